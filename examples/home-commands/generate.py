"""Commands to a house, and sentences that are none: JSON lines, the same for the same seed.

    python generate.py --seed 0 --cases 1000
"""

from __future__ import annotations

import argparse
import json
import random
import re

ROOMS = {
    "kitchen": "kitchen|kitchen|kitchen|kitchenette|cooking area|galley|pantry",
    "living_room": "living room|living room|lounge|sitting room|parlour|parlor|family room|tv room|livingroom|living-room|front room|den|living area",
    "bedroom": "bedroom|bedroom|bedroom|sleeping room|guest room|kids room|children's room|nursery|bed room|master bedroom|kid's bedroom|guest bedroom|my room",
    "bathroom": "bathroom|bathroom|bath|shower room|washroom|toilet|restroom|ensuite|bath room|loo",
    "hall": "hall|hallway|corridor|entrance|entrance hall|foyer|entryway|lobby|passage|landing|stairway|vestibule",
    "office": "office|study|home office|workroom|work room|den office|study room|workspace|my office",
    "garden": "garden|yard|backyard|back yard|patio|terrace|outside|outdoors|lawn|front yard|garden shed",
}
ALL = "in all rooms|everywhere|in the whole house|in every room|throughout the house|in the entire house|all over the house|all around the house|in the whole flat|in the house|in all the rooms|in each room|across the house|in the whole apartment|at home everywhere"
DEVICES = {
    "light": "light|light|lights|lights|lamp|lamps|lighting|ceiling light|ceiling lamp|bulb|bulbs|spotlights|floor lamp|desk lamp|bedside lamp|reading light|led strip|leds|chandelier|table lamp|night light|wall lamp|light bulb|illumination|spots|downlights",
    "heating": "heating|heating|heater|radiator|radiators|thermostat|heat|central heating|underfloor heating|floor heating|heaters|furnace|boiler|heating system|temperature",
    "blind": "blind|blinds|blinds|shutter|shutters|roller blind|roller blinds|roller shutters|venetian blinds|shades|shade|window blind|window blinds|roller shutter|curtains|curtain|drapes|sunblind|awning|jalousie",
    "fan": "fan|fan|ceiling fan|ventilator|ventilation|fans|extractor fan|table fan|exhaust fan|air fan|vent fan|standing fan|extractor|blower",
    "socket": "socket|socket|outlet|plug|power outlet|wall socket|power socket|sockets|plugs|outlets|smart plug|power strip|wall plug|wall outlet|power point|electric socket|mains socket|smart socket|extension socket",
    "door": "door|door|doors|front door|back door|garage door|gate|entrance door|sliding door|main door|side door|patio door|terrace door|cellar door",
}
SWITCHED = ("light", "heating", "fan", "socket")
ON = "turn on X|switch on X|turn X on|switch X on|X on|put X on|put on X|activate X|power on X|power up X|start X|enable X|get X on|get X going|make X go on|fire up X|start up X|flip on X|flip X on|i want X on|i need X on|i'd like X on|let's have X on|X should be on|have X on|bring X on|kick on X|run X|energize X|turn X back on|switch X back on|set X to on|set X on|X on now|let there be X|hit X"
OFF = "turn off X|switch off X|turn X off|switch X off|X off|put X off|put out X|deactivate X|power off X|power down X|stop X|disable X|shut off X|shut X off|cut X|kill X|get X off|shut down X|i want X off|i need X off|i'd like X off|X should be off|X out|have X off|turn X back off|cut off X|flip X off|flip off X|set X to off|set X off|no more X|unplug X|turn out X|switch out X|i don't need X anymore|X can go off|quit X|end X|extinguish X"
DIM = "dim X|dim X a bit|dim X a little|make X darker|turn down X|turn X down|lower X|reduce X|soften X|less light from X|make X dimmer|bring X down|darken X|tone down X|X dimmer|X darker|lower the brightness of X|X less bright|make X less bright|decrease X|turn X down a bit|X should be dimmer|reduce the brightness of X|fade X|put X lower|take X down a notch|turn X lower|dial down X|dial X down|X is too bright|X are too bright|i want X dimmer|decrease the brightness of X|dim down X"
BRIGHTEN = "brighten X|brighten X a bit|make X brighter|turn up X|turn X up|raise X|increase X|more light from X|brighten up X|X brighter|X more bright|bring X up|increase the brightness of X|raise the brightness of X|boost X|intensify X|make X more bright|turn X up a bit|lighten X|lighten up X|X should be brighter|put X higher|turn X higher|dial up X|dial X up|i want X brighter|X is too dim|X are too dark|X is too dark|crank up X|strengthen X|up the brightness of X"
DIM_TO = "dim X to N|dim X down to N|lower X to N|reduce X to N|turn X down to N|bring X down to N|turn down X to N|fade X to N|darken X to N|decrease X to N|dim X at N"
BRIGHTEN_TO = "brighten X to N|brighten X up to N|raise X to N|turn X up to N|bring X up to N|turn up X to N|increase X to N|boost X to N"
SET = "set X to N|set X at N|put X to N|put X at N|X to N|X at N|adjust X to N|change X to N|make X N|get X to N|bring X to N|X N|turn X to N|switch X to N|regulate X to N|i want X at N|i'd like X at N|X should be N|X should be at N|move X to N|have X at N|let X be N|fix X at N|program X to N|i want X to be N|keep X at N|position X at N"
OPEN = {
    "blind": "open X|open up X|raise X|pull up X|pull X up|roll up X|lift X|X up|X open|put X up|get X up|bring X up|draw X open|move X up|let X up|wind up X|crank up X|open X please|roll X up|hoist X|X to open|let the sun in through X|slide X open|draw back X",
    "door": "open X|open up X|X open|get X open|let X open|swing X open|open X for me|X to open|slide X open|pull X open|push X open|make X open|i want X open",
}
CLOSE = {
    "blind": "close X|close down X|lower X|pull down X|pull X down|roll down X|drop X|X down|X closed|put X down|get X down|bring X down|shut X|let X down|let down X|move X down|draw X|wind down X|roll X down|X shut|draw X shut|i want X closed|slide X shut",
    "door": "close X|shut X|X closed|X shut|get X closed|push X shut|close up X|swing X shut|slide X shut|close X for me|pull X shut|shut up X|make X close|i want X closed|X to close",
}
BEFORE = "please|hey|hey house|ok house|computer|hello|hi|now|ok|okay|could you|can you|would you|could you please|can you please|would you please|would you mind to|please can you|hey could you|i would like you to|i want you to|just|quickly|go and|will you|be so kind and|kindly|alright|so|um|uh|jarvis|alexa|hey there|house|go ahead and|do me a favour and|do me a favor and|it would be nice if you could|you can|you may|time to|let's|let us|we need to|i need you to|may i ask you to|would it be possible to|hey can you|yo|then|and|well|right|listen|assistant|home|hey home|help me|try to|you should|you could|i'd appreciate it if you could|if you could|we should|mind if you|dear house|good morning|good evening|good night|i'm home|i'm leaving|i am cold|it's dark|it is late|we're going to bed"
AFTER = "please|now|thanks|thank you|for me|right now|immediately|will you|would you|could you|again|ok|at once|if you can|asap|for a while|if possible|quickly|pls|plz|for us|tonight|already|straight away|cheers|if you don't mind|when you can|as soon as possible|right away|thank you very much|if you would|my dear|then|today|so i can see|so i can read|because it's dark|we're leaving|i'm going to bed|it's too hot|it's cold"
OTHER = "tv|television|radio|music|washing machine|dishwasher|coffee machine|oven|stove|computer|laptop|phone|vacuum|robot vacuum|alarm|alarm clock|timer|window|windows|fridge|freezer|microwave|kettle|toaster|speaker|speakers|camera|printer|dryer|shower|tap|sprinkler|mower|car|projector|playstation|console|netflix|spotify|app|browser|podcast|volume|song|channel|wifi|router|screen|monitor|safe|drawer|book|bottle|box|cupboard|wardrobe|envelope|umbrella|account|game|movie|water|bath tub|doorbell|dog flap|humidifier|dehumidifier|air purifier|sauna|pool pump|aquarium|security system|intercom|tablet|kitchen timer|garden hose|bedroom tv|office printer|living room tv|kitchen radio|cooker|grill|iron|hair dryer|bluetooth|subtitles|notifications|file|document|email|mailbox|letter|jar|curtain call|bank|shop|store|meeting"
QUESTIONS = "is X on|is X off|are X on|are X off|is X open|are X closed|is X still on|is X still open|did you turn off X|did you turn on X|have you closed X|did i leave X on|was X on|did somebody open X|why is X on|why are X off|who turned on X|who opened X|when did X go off|how bright is X|how warm is it R|what is the temperature R|what's the temperature R|how hot is it R|is it warm R|is it dark R|how much power does X use|is there a fan R|do we have X|how old is X|where is X|what does X cost|which lights are on R|can you see whether X is on|can you tell me if X is on|tell me if X is on|could you check if X is off|do you know if X is open|check whether X is closed|i wonder if X is on|what is the status of X|status of X|show me X|what is X set to|how many lights are on R|how do i turn on X|how can i dim X|how does X work|does X work|is X broken|what happens if i turn off X|when was X opened|is anyone R|has X been switched off|will X turn off by itself|should i turn off X|should we close X|do i need to close X|how long has X been on|what brightness is X at|is X too bright|isn't X on|are you sure X is off|would you like X on|what color is X|which room has X|at what temperature is X|how far open is X|were X closed last night|can X be dimmed|is it possible to dim X|do you like X|who left X open|why did you turn off X|what time does X go on|is X at N|how many X do we have|did X turn off|could X be open|any lights on R|anything on R|is everything off|are all lights off|is X running|is X plugged in|is X locked|whats the state of X|tell me whether X is open|let me know if X is on|find out if X is closed|report on X"
STATEMENTS = "i like X|X is nice|X is on|X is off|X are on|i turned off X|i turned on X|i have closed X|we bought X|X was expensive|X broke yesterday|i opened X myself|don't turn on X|do not turn off X|don't open X|do not close X|don't touch X|leave X alone|never turn X on|please don't dim X|X looks great|remind me to turn off X|X is already open|somebody left X open|X needs to be repaired|my neighbour has X too|i need to buy X|i should paint X|order X|the cat is R|i was R|there is a spider R|i am R|we had breakfast R|she is working R|buy new bulbs for X|X will be delivered tomorrow|i forgot X|i love X|no need to turn on X|you don't have to close X|X stays as it is|i just switched X off|he opened X|she dims X every night|they turned X on yesterday|i'll turn off X later myself|nice weather R|the meeting R was long|call someone to fix X|write down that X is broken|add X to the shopping list|clean X|X is dirty|X makes a noise|the children play R|thanks for turning on X|well done with X|it smells R|X has been on all day|keep your hands off X|not X"
SMALLTALK = "hello|hi|how are you|good morning|good night|thank you|thanks|thanks a lot|what's up|tell me a joke|what time is it|what's the weather like|will it rain tomorrow|sing a song|who are you|what can you do|i am tired|i am hungry|i love you|happy birthday|see you later|bye|goodbye|what day is it|how was your day|you are great|never mind|stop|cancel|yes|no|maybe|ok|that's all|nothing|forget it|i am bored|tell me a story|what's for dinner|let's go|i feel cold today|it was a long day|my head hurts|the weather is nice|it is raining|it is snowing|what is the capital of france|how far is the moon|who won the game|good job|well done|sorry|excuse me|help|what is two plus two|spell banana|how do you spell garden|i am going to the kitchen|dinner is ready|the dog wants out|where are my keys|i lost my phone|nice to meet you|my name is anna|call me tom|i'm home|i'm leaving|it's late|it's dark outside|it's cold|it is warm|i can't sleep|do you like music|what are you doing|are you there|can you hear me|say something|i had a dream|tomorrow is monday|that was funny|you're welcome|no thanks|not now|wait|repeat that|what did you say|speak louder|speak more slowly|how old are you|where do you live|do you sleep|what is love|good evening|merry christmas|happy new year|the bus is late|i missed the train|lovely|wonderful|oh no|wow|hmm|ha ha|great|cool|awesome|whatever|sure|of course|as you like|i don't know|let me think|one moment|who is at the door|someone is at the door|the sun is shining|my light mood|a light breakfast would be nice|close friends came over|i'm an open person|i'm a big fan of football|i am a fan of jazz|turn left at the corner|the book is open|it's close to midnight|open mind|set the table|game set match|on and off|door to door|the light of my life|you light up my life|travel light|garden of eden|office hours are over|kitchen table|bed time|the fan club meets today|electric dreams|call it a day|we closed the deal|the shop is open|the store closes at eight|she set a record"
WISHES = "play some music|play jazz|play my favourite song|turn up the music|turn down the volume|set a timer for N minutes|set an alarm for N|wake me up at N|call mom|call the doctor|send a message to peter|order a pizza|order food|add milk to the shopping list|remind me to call anna|book a table for N|read the news|what's in the news|start the washing machine|make coffee|make me a coffee|vacuum the R|clean the R|water the plants|feed the cat|turn on the tv|open the window|close the window|lock the car|start the dishwasher|find a recipe|show me photos|translate hello into french|calculate N times N|buy tickets|skip this song|pause the video|next song|write an email|open spotify|close the app|open the browser|navigate home|take a picture|record a video|run the bath|fill the tub|mow the lawn|wash the dishes|walk the dog|take out the trash|schedule a meeting at N|cancel my appointment|turn the page|dim the screen|brighten the screen|open the fridge|close the drawer|set the volume to N|set the oven to N degrees|preheat the oven to N|boil water|switch the channel|change the channel to N|put on a movie|put the kettle on|turn on netflix|switch off the tv|switch on the radio|start the car|open the mail|open my calendar|close all tabs|shut up|shut down the computer|turn off the computer|set the date to N|count to N|roll a dice|flip a coin|set a reminder for N|turn off the alarm|stop the music|stop the timer|print the document|charge my phone|find my phone|open a bottle of wine|bring me a beer|tell grandma that dinner is at N|cook dinner|bake a cake|light a candle|light the fire|light the stove|turn around|go away|come here|sit down|wake up|look it up|search for lamps online|google it|turn off the water|open the tap|close the tap|run the sprinkler|start the mower|open the safe|set the microwave to N|warm up the soup|heat the soup|heat up the pizza|cool the wine|fan the fire|open the letter|close your eyes|open your mouth|set me free"
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMES = "anna peter tom maria john lisa my mother my wife my boss the doctor our neighbour".split()


def pick(rng: random.Random, choices: str) -> str:
    return rng.choice(choices.split("|"))


def spoken(number: int) -> str:
    """21 as twenty-one."""
    if number < 20:
        return ONES[number]
    if number == 100:
        return "one hundred"
    return TENS[number // 10 - 2] + (" " + ONES[number % 10] if number % 10 else "")


def room_phrase(rng: random.Random, room: str) -> tuple[str, str]:
    """(before the device, after it): `kitchen light` or `light in the kitchen`; one of them is empty."""
    if room == "all":
        return ("all ", "") if rng.random() < 0.5 else ("", pick(rng, ALL))
    name = pick(rng, ROOMS[room])
    if rng.random() < 0.5 and name not in ("outside", "outdoors"):
        return ("my " if rng.random() < 0.03 else "") + name + " ", ""
    if name in ("outside", "outdoors"):
        return "", name
    place = rng.choice(["in the", "in the", "in the", "in", "in my", "of the", "in our", "inside the", "at the", "for the", "in that"])
    if room == "garden" and name in ("patio", "terrace", "lawn"):
        place = "on the"
    return "", f"{place} {name}"


def thing(rng: random.Random, device: str, room: str) -> str:
    """`the kitchen light`, `every lamp in the house`."""
    name = pick(rng, DEVICES[device])
    before, after = room_phrase(rng, room) if room != "none" else ("", "")
    if room == "all" and before:
        article = rng.choice(["all ", "all the ", "all ", "every ", "each ", "all of the ", "all our "])
        name = name if name.endswith("s") or article in ("every ", "each ") or "heat" in name else name + "s"
        return article + name
    articles = ["the ", "the ", "the ", "", "", "my ", "that ", "our ", "this "] if room == "none" else ["the ", "the ", "the ", "", "my ", "our "]
    if room not in ("none", "all") and rng.random() < 0.12 and name.endswith("s"):
        articles = ["all ", "all the ", "both "]
    return f"{rng.choice(articles)}{before}{name}{' ' + after if after else ''}"


def number_phrase(rng: random.Random, device: str) -> tuple[int, str]:
    if device == "heating":
        number = rng.randint(5, 30)
        unit = rng.choice([" degrees", " degrees", "", "°", " °c", "°c", " celsius", " degrees celsius", " c", "c"])
    elif device == "fan":
        number = rng.choice([rng.randint(1, 5), rng.randint(1, 10), rng.randrange(0, 101, 5)])
        unit = rng.choice(["", ""]) if number <= 10 else rng.choice(["%", " percent", " %", ""])
        if number <= 10 and rng.random() < 0.5:
            return number, rng.choice(["level ", "speed ", "stage ", "step "]) + (str(number) if rng.random() < 0.8 else spoken(number))
    else:
        number = rng.choice([rng.randrange(0, 101, 10), rng.randrange(0, 101, 5), rng.randint(0, 100)])
        unit = rng.choice(["%", "%", " percent", " percent", " %", "", " per cent"])
    digits = rng.random() < 0.8
    if not digits and unit in ("%", "°", "c", "°c"):
        unit = rng.choice([" percent", ""]) if device != "heating" else rng.choice([" degrees", ""])
    return number, (str(number) if digits else spoken(number)) + unit


def filled(rng: random.Random, template: str, x: str, n: str = "") -> str:
    """A template with its thing; sometimes the room comes first."""
    return re.sub(r"\bN\b", lambda _: n, re.sub(r"\bX\b", lambda _: x, template))


def command(rng: random.Random) -> tuple[str, dict[str, object]]:
    device = rng.choice(["light", "light", "light", "heating", "heating", "blind", "fan", "socket", "door"])
    room = rng.choice(["none", "none", "all", *ROOMS, *ROOMS])
    value: int | None = None
    number = ""
    if device == "light":
        action = rng.choice(["on", "off", "dim", "brighten", "set", "on", "off"])
    elif device in ("blind", "door"):
        action = rng.choice(["open", "close", "open", "close", "set" if device == "blind" else "open"])
    elif device == "socket":
        action = rng.choice(["on", "off"])
    elif device == "fan":
        action = rng.choice(["on", "off", "on", "off", "set"])
    else:
        action = rng.choice(["on", "off", "set", "set"])
    if action in ("dim", "brighten"):
        if rng.random() < 0.4:
            value, number = number_phrase(rng, device)
            template = pick(rng, DIM_TO if action == "dim" else BRIGHTEN_TO)
        else:
            template = pick(rng, DIM if action == "dim" else BRIGHTEN)
    elif action == "set":
        value, number = number_phrase(rng, device)
        template = pick(rng, SET)
    elif action in ("open", "close"):
        template = pick(rng, (OPEN if action == "open" else CLOSE)[device])
    else:
        template = pick(rng, ON if action == "on" else OFF)
    x = thing(rng, device, room)
    text = filled(rng, template, x, number)
    if room not in ("none", "all") and rng.random() < 0.12:  # in the kitchen, turn on the light
        bare = thing(rng, device, "none")
        text = filled(rng, template, bare, number)
        place = f"{rng.choice(['in the', 'in the', 'in', 'for the'])} {pick(rng, ROOMS[room])}"
        text = f"{place}{rng.choice([',', '', ':'])} {text}" if rng.random() < 0.5 else f"{text} {place}"
    if rng.random() < 0.5:
        text = f"{pick(rng, BEFORE)}{rng.choice(['', '', ','])} {text}"
    if rng.random() < 0.25:
        text = f"{text}{rng.choice(['', ',', ''])} {pick(rng, AFTER)}"
    return text, {"action": action, "device": device, "room": room, "value": value}


def nothing(rng: random.Random) -> str:
    device, room = rng.choice(list(DEVICES)), rng.choice(["none", "none", "all", *ROOMS])
    x, n = thing(rng, device, room), str(rng.randint(1, 60)) if rng.random() < 0.7 else spoken(rng.randint(1, 60))
    r = rng.choice(["in the ", "in the ", ""]) + pick(rng, ROOMS[rng.choice(list(ROOMS))])
    kind = rng.random()
    if kind < 0.34:
        text = filled(rng, pick(rng, QUESTIONS), x, n)
    elif kind < 0.52:
        text = filled(rng, pick(rng, STATEMENTS), x, n)
    elif kind < 0.62:
        text = pick(rng, SMALLTALK)
    elif kind < 0.76:
        text = filled(rng, pick(rng, WISHES), x, n)
    elif kind < 0.93:  # the same verbs, of other things
        other = rng.choice(["the ", "the ", "my ", "a ", ""]) + pick(rng, OTHER)
        if rng.random() < 0.25:
            other += " " + room_phrase(rng, rng.choice(list(ROOMS)))[1]
        verbs = rng.choice([ON, OFF, DIM, BRIGHTEN, SET, OPEN["door"], CLOSE["door"], SET])
        text = filled(rng, pick(rng, verbs), other.strip(), n)
    elif kind < 0.96:
        text = rng.choice([x, pick(rng, ROOMS[rng.choice(list(ROOMS))]), n, pick(rng, OTHER), device])
    else:
        words = f"{pick(rng, SMALLTALK)} {pick(rng, WISHES)} {pick(rng, OTHER)}".split()
        rng.shuffle(words)
        text = " ".join(words[: rng.randint(2, 7)])
    text = re.sub(r"\bR\b", lambda _: r, text)
    text = re.sub(r"\bN\b", lambda _: n, text)
    if rng.random() < 0.35 and not text.startswith(("hello", "hi")):
        opening = pick(rng, BEFORE)
        if kind < 0.34 and opening.split()[0] in ("could", "can", "would", "will", "may", "mind", "let's", "let", "go", "please"):
            opening = rng.choice(["hey", "ok", "computer", "so", "um", "hi"])
        text = f"{opening} {text}"
    if rng.random() < 0.15:
        text = f"{text} {pick(rng, AFTER)}"
    if kind < 0.34 and rng.random() < 0.75:
        text += "?"
    return text


def misspelt(rng: random.Random, text: str) -> str:
    """One or two slips of the finger, not in numbers."""
    for _ in range(rng.choice([1, 1, 2])):
        places = [i for i, c in enumerate(text) if c.isalpha() and 0 < i < len(text) - 1]
        if len(places) < 6:
            return text
        i = rng.choice(places)
        slip = rng.randrange(4)
        if slip == 0:
            text = text[:i] + text[i + 1 :]
        elif slip == 1:
            text = text[:i] + text[i] + text[i:]
        elif slip == 2 and text[i + 1].isalpha():
            text = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        else:
            text = text[:i] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[i + 1 :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    rng = random.Random(f"home-commands {args.seed}")
    none = {"action": "none", "device": "none", "room": "none", "value": None}
    for _ in range(args.cases):
        text, answer = (nothing(rng), none) if rng.random() < 0.45 else command(rng)
        if rng.random() < 0.15:
            text = misspelt(rng, text)
        if rng.random() < 0.3:
            text += rng.choice([".", "!", ".", " !", "..", " please."]) if not text.endswith("?") else ""
        elif answer is not none and rng.random() < 0.1:
            text += "?"
        print(json.dumps({"input": {"text": text}, "answer": answer}, ensure_ascii=False))


if __name__ == "__main__":
    main()
