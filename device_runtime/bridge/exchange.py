"""The exchange of one request to a board: what of it is confirmed, what to ask for again, and how it ends.

Like `Session`, which owns it, it has neither a port nor a clock. What it sends again is harmless: a request has a
number, and its prompt and its answer have offsets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from device_runtime.bridge.frames import LARGEST_BODY, OVERHEAD
from device_runtime.bridge.messages import (
    CERTAIN,
    LEAST_BODY_3,
    TOKEN_BYTES,
    Cancel,
    Done,
    Fault,
    FaultCode,
    Finish,
    Form,
    Hello,
    Message,
    Piece,
    Prompt,
    Resume,
    Start,
    Status,
    Taken,
    Work,
)
from device_runtime.bridge.request import Ask, Chunk, Ended, Event, Failed, Request, Stage
from device_runtime.bridge.timing import Timing
from device_runtime.errors import StonechatError, UnavailableError

__all__ = ["Exchange", "prompt_room"]

SPARE_BYTES = 64  # of the board's buffer, for a Resume or a Cancel after a part of the prompt
PART_HEADER = 9  # bytes of a Prompt before its data
MOST_TEXT = 65_536  # bytes of an answer in text

log = logging.getLogger("stonechat.bridge")


def prompt_room(hello: Hello) -> int:
    """Bytes of the body of a `Prompt` that a board takes."""
    return min(hello.largest_body, LARGEST_BODY, hello.window - SPARE_BYTES - OVERHEAD)


class Exchange:
    """One request, until `over`."""

    def __init__(
        self,
        ask: Ask,
        hello: Hello,
        timing: Timing,
        byte_s: float,
        number: Callable[[], int],
        send: Callable[[Message, float], None],
        report: Callable[[Event], None],
    ) -> None:
        """`begin` starts it.

        Args:
            hello: what the board says of itself; after it came back it may say something else.
            byte_s: what a byte takes on the line.
            number: gives requests their numbers.
            send: gets each message for the board, and what time it is.
            report: gets what happens.
        """
        self.over = False
        self.progress = 0  # changes as the board gets on with it
        self.hello = hello
        self._timing, self._byte_s = timing, byte_s
        self._number, self._send, self._report = number, send, report
        self._request = Request(ask, number(), prompt=ask.prompt)
        self._steps = -1  # of the board's model, as it last reported them

    # what the session calls

    def begin(self, now_s: float) -> None:
        """Send the first message."""
        self._ask_again(now_s)

    def resume(self, hello: Hello, now_s: float) -> None:
        """The board is there (again): send what is due now."""
        self.hello, self._request.tries = hello, 0
        self._ask_again(now_s)

    def cancel(self, now_s: float) -> bool:
        """Ask for the end; whether that is news."""
        request = self._request
        if request.cancelled_s is not None:
            return False
        request.cancelled_s, request.tries = now_s, 0
        return True

    def receive(self, message: Message, now_s: float) -> None:
        """A message of the board."""
        request = self._request
        match message:
            case Taken() if message.request == request.number:
                self._taken(message, now_s)
            case Piece() if message.request == request.number:
                self._piece(message, now_s)
            case Done() if message.request == request.number:
                self._done(message, now_s)
            case Fault() if message.request == request.number:
                self._fault(message, now_s)
            case Status():
                if message.request == request.number and message.steps != self._steps:
                    self._steps = message.steps
                    self.progress += 1
                if request.stage is Stage.ANSWER:
                    self._compare(message, now_s)

    def tick(self, now_s: float) -> None:
        """Time has passed, and the board is there: ask again for what should have come."""
        request = self._request
        if request.cancelled_s is not None and now_s - request.cancelled_s > self._timing.lost_after_s(self.hello) / 2:
            self.end_cancelled()
        elif now_s >= request.due_s:
            request.tries += 1
            if request.tries <= self._timing.tries:
                self._ask_again(now_s)
            else:
                where = request.stage.value
                self.fail(StonechatError(f"the board answers, but not to this request ({where}); reset it."))

    def tick_away(self, now_s: float, away_s: float, trouble: str) -> None:
        """Time has passed, and the board has been away for `away_s`."""
        self.progress += 1  # it does not get on, but this waiting has an end
        if self._request.cancelled_s is not None:
            self.end_cancelled()
        elif away_s > self._timing.grace_s:
            self.fail(UnavailableError(trouble))

    def fail(self, error: StonechatError) -> None:
        """There will be no more of the answer."""
        self._end(Failed(error))

    def end_cancelled(self) -> None:
        """The answer is what has come."""
        self._end(Ended(Finish.CANCELLED, completion_tokens=self._tokens()))

    # what the board says

    def _taken(self, message: Taken, now_s: float) -> None:
        request = self._request
        if request.stage is Stage.ANSWER or message.offset > len(request.prompt):
            return
        if request.stage is Stage.START or message.offset > request.taken:
            request.taken, request.tries = message.offset, 0
            self.progress += 1
            request.stage = Stage.ANSWER if request.taken == len(request.prompt) else Stage.PROMPT
            if request.stage is Stage.PROMPT or request.cancelled_s is not None:
                self._ask_again(now_s)
            else:
                self._wait(now_s)

    def _piece(self, message: Piece, now_s: float) -> None:
        request = self._request
        request.stage = Stage.ANSWER  # it would not answer without the whole prompt
        if message.offset > request.offset:
            self._rewind(now_s)
            return
        new = message.data[request.offset - message.offset :]
        if not request.ask.text:
            new = new[: len(new) // TOKEN_BYTES * TOKEN_BYTES]
        if not new:
            return
        at = len(request.answer)
        request.answer += new
        self.progress += 1
        again = len(request.told) - at  # bytes that are no news
        if again > 0 and not request.told.startswith(new[:again], at):
            self.fail(_changed())
            return
        most = MOST_TEXT if request.ask.text else TOKEN_BYTES * (request.ask.max_new or MOST_TEXT)
        if len(request.answer) > most:
            self.fail(StonechatError(f"the board answers with more than the {most} bytes it was allowed; reset it."))
            return
        if news := new[max(0, again) :]:
            self._report(Chunk(news))
        self._wait(now_s)

    def _done(self, message: Done, now_s: float) -> None:
        request = self._request
        request.stage = Stage.ANSWER
        if message.length > request.offset:
            self._rewind(now_s)
            return
        if message.length < request.offset:
            self.fail(StonechatError("the board takes back a part of its answer; reset it."))
            return
        if len(request.answer) < len(request.told):
            self.fail(_changed())
            return
        count = message.completion_tokens
        rate = (count - 1) * 1000 / message.decode_ms if count > 1 and message.decode_ms else 0.0
        before = 0 if request.ask.text else request.before // TOKEN_BYTES
        confidence = message.confidence / CERTAIN if message.confidence else None
        self._end(
            Ended(
                message.finish, message.prompt_tokens - before, message.cached_tokens, before + count, rate, confidence,
                message.shares,
            )
        )  # fmt: skip

    def _fault(self, message: Fault, now_s: float) -> None:
        request = self._request
        if message.code is not FaultCode.UNKNOWN_REQUEST:
            why = message.reason or message.code.name.lower().replace("_", " ")
            self.fail(StonechatError(f"the board refuses the request: {why}."))
            return
        request.resets += 1
        if request.cancelled_s is not None:
            self.end_cancelled()
        elif request.resets > self._timing.tries:
            self.fail(UnavailableError(f"the board was reset {request.resets} times during one answer."))
        else:
            log.info("the board was reset in the middle of a request; it is asked for the rest")
            self._continue(now_s)

    def _compare(self, message: Status, now_s: float) -> None:
        """Does the board have more of the answer than has come?"""
        request = self._request
        if message.request != request.number or message.work is Work.DONE or message.length > request.offset:
            self._rewind(now_s)
        else:
            self._wait(now_s)

    # what to send

    def _continue(self, now_s: float) -> None:
        """Ask a board that has forgotten the request for the rest."""
        request = self._request
        if request.ask.text or request.ask.schema:
            self._begin_anew(now_s)
            return
        # what it has said becomes a part of the prompt
        whole = len(request.answer) // TOKEN_BYTES * TOKEN_BYTES
        del request.answer[whole:]
        if request.ask.max_new and whole == request.ask.max_new * TOKEN_BYTES:
            self._end(Ended(Finish.LENGTH, len(request.ask.prompt) // TOKEN_BYTES, 0, whole // TOKEN_BYTES))
            return
        request.number, request.before = self._number(), whole
        request.prompt = request.ask.prompt + bytes(request.answer)
        request.stage, request.taken, request.tries = Stage.START, 0, 0
        self._ask_again(now_s)

    def _begin_anew(self, now_s: float) -> None:
        """Ask for all of it: text has no tokens to append, and a schema is followed from its first byte.

        The same prompt and the same seed give the same answer, whose beginning is known.
        """
        request = self._request
        request.told = max(request.told, bytes(request.answer), key=len)
        request.answer.clear()
        request.number, request.stage, request.taken, request.tries = self._number(), Stage.START, 0, 0
        self._ask_again(now_s)

    def _ask_again(self, now_s: float) -> None:
        """Send what the request waits for an answer to."""
        request, ask = self._request, self._request.ask
        message: Message
        if request.cancelled_s is not None:
            message = Cancel(request.number)
        elif request.stage is Stage.START:
            drawn = request.before // TOKEN_BYTES
            # a board of small frames says its confidence as the model has it
            softness = ask.softness if self.hello.largest_body >= LEAST_BODY_3 else ()
            message = Start(
                request.number, len(request.prompt), max(0, ask.max_new - drawn), drawn, ask.top_k,
                ask.temperature, ask.top_p, ask.seed, len(ask.stop_tokens), ask.stop_tokens,
                Form.TEXT if ask.text else Form.TOKENS, ask.schema, len(softness), softness,
            )  # fmt: skip
        elif request.stage is Stage.PROMPT:
            room = prompt_room(self.hello) - PART_HEADER
            message = Prompt(request.number, request.taken, request.prompt[request.taken : request.taken + room])
        else:
            message = Resume(request.number, request.offset)
        self._send(message, now_s)
        self._wait(now_s, len(message.pack()))

    def _rewind(self, now_s: float) -> None:
        """Ask for what is missing; once, not for each piece that follows a gap."""
        request = self._request
        if request.rewind_at == request.offset and now_s - request.rewind_s < self._timing.reply_s:
            return
        request.rewind_at, request.rewind_s = request.offset, now_s
        self._send(Resume(request.number, request.offset), now_s)
        self._wait(now_s, 0)

    def _wait(self, now_s: float, sent_bytes: int | None = None) -> None:
        """Note when to ask again: after `sent_bytes`, or (None) after something that has come."""
        request = self._request
        if sent_bytes is None:
            request.tries = 0
        line_s = 2 * (LARGEST_BODY if request.stage is Stage.ANSWER else 64 + (sent_bytes or 0)) * self._byte_s
        request.due_s = now_s + self._timing.reply_after_s(self.hello, line_s, request.tries)

    def _tokens(self) -> int:
        return 0 if self._request.ask.text else len(self._request.answer) // TOKEN_BYTES

    def _end(self, event: Ended | Failed) -> None:
        self.over = True
        self._report(event)


def _changed() -> UnavailableError:
    return UnavailableError(
        "the board was reset in the middle of its answer, and now answers otherwise: its model or its firmware is "
        "another; ask again."
    )
