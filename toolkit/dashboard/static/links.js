// Links: what they answered last; adding one, changing one, trying it on readings, saving it to the fleet file.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Answer, Dialog, Doing, ago, compact } from "./parts.js";
import { CorrectButton } from "./correct.js";
import { call, changed, refusals, state } from "./store.js";

const SHOWN = 4;
const NEW = { name: "", from: "", when: "", prompt: "", to: "", answer: "" };

export function Links() {
  const [editing, setEditing] = useState(null);
  const [filter, setFilter] = useState("");
  const [saved, setSaved] = useState(null);
  const file = state.links;
  const planned = file ? file.links : [];
  const names = new Set(planned.map((link) => link.name));
  const refused = refusals();
  const strangers = [...new Set([...state.answers.keys(), ...refused.keys()])].filter((name) => !names.has(name)).map((name) => ({ name, stranger: true }));
  const word = filter.toLowerCase();
  const shown = [...planned, ...strangers].filter((link) => !word || [link.name, link.from, link.to].some((of) => of && of.toLowerCase().includes(word)));
  const may = !(state.me && state.me.read_only);
  return html`<section aria-label="Links">
    <div class="tools"><input type="search" aria-label="Filter links" placeholder="Filter by name or topic" value=${filter} onInput=${(event) => setFilter(event.target.value)} />
      ${may && html`<button class="main" onClick=${() => setEditing({ was: null, link: NEW })}>New link</button>`}</div>
    ${file && file.fault && html`<p class="fault" role="alert">${file.fault} (The page shows what could be read.)</p>`}
    ${saved && html`<${Remains} of=${saved} onClose=${() => setSaved(null)} />`}
    ${shown.length === 0 && html`<p class="empty">No links. A link joins a sensor's topic to a model: its readings wake it, and its answers go to another topic.</p>`}
    <div class="cards wide">${shown.map((link) => html`<${Card} key=${link.name} link=${link} refused=${refused.get(link.name) || new Map()} devices=${file ? Object.keys(file.devices).filter((name) => file.devices[name].includes(link.name)) : []} onEdit=${may && !link.stranger ? () => setEditing({ was: link.name, link }) : null} />`)}</div>
    ${editing && html`<${Editor} ...${editing} onClose=${() => setEditing(null)} onSaved=${setSaved} />`}
  </section>`;
}

// What is left to do for a change that is saved: the file here is not yet the one that the devices read.
function Remains({ of, onClose }) {
  return html`<aside class="card remains" role="status"><header><h3>${of.what}</h3><button class="plain close" aria-label="Close" onClick=${onClose}>✕</button></header>
    ${of.devices.length === 0 ? html`<p>No device serves it, so nothing more is to be done.</p>` : html`<p>Saved in ${state.links.file}. ${of.devices.length === 1 ? "This device goes" : "These devices go"} on as before until the file is there and the service has started again:</p>
    <ul>${of.devices.map((name) => html`<li key=${name}><code>${`stonechat device init USER@HOST --device ${name} --fleet ${state.links.file}`}</code></li>`)}</ul>
    <p class="quiet">Where <code>stonechat serve</code> reads this very file, start it again.</p>`}</aside>`;
}

function several(names) {
  return names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
}

// Devices with the same bundle leave a link out for the same reason.
function Refused({ by }) {
  const reasons = new Map();
  for (const [device, why] of by) reasons.set(why, [...(reasons.get(why) || []), device]);
  return html`<ul class="refused">${[...reasons].map(([why, devices]) => html`<li key=${why}><b>${several(devices)}</b> ${devices.length > 1 ? "leave" : "leaves"} it out: ${why}</li>`)}</ul>`;
}

function Card({ link, refused, devices, onEdit }) {
  const [more, setMore] = useState(false);
  const answers = state.answers.get(link.name) || [];
  return html`<article class="card link">
    <header><h3>${link.name} ${refused.size > 0 && html`<span class="flag">left out</span>`}</h3>${onEdit && html`<button onClick=${onEdit}>Edit</button>`}</header>
    ${link.stranger ? html`<p class="quiet">not in the fleet file</p>` : html`<p class="path"><code>${link.from}</code> → <code>${link.to}</code></p>
    <p class="quiet">${link.when ? html`when <code>${link.when}</code>` : "every reading"} · ${devices.length ? several(devices) : "no device serves it"}</p>`}
    ${refused.size > 0 && html`<${Refused} by=${refused} />`}
    ${answers.length === 0 ? html`<p class="quiet">${refused.size > 0 && devices.every((name) => refused.has(name)) ? "No answer will come until the model or the link is another." : "No answer yet."}</p>` : html`<ul class="answers">
      ${answers.slice(0, more ? 30 : SHOWN).map((of) => html`<li key=${of.number}>
        <p class="reading"><span class="label">${of.topic || of.device}</span> ${compact(of.reading)}<time>${of.time ? ago((Date.now() - Date.parse(of.time)) / 1000) : ""}</time></p>
        <${Answer} ...${of} /> <${CorrectButton} of=${of} /></li>`)}</ul>
      ${answers.length > SHOWN && html`<button class="plain more" onClick=${() => setMore(!more)}>${more ? "fewer" : `${answers.length - SHOWN} earlier`}</button>`}`}
  </article>`;
}

const FIELDS = [
  { name: "name", label: "Name", hint: "letters a-z, digits and -" },
  { name: "from", label: "From: topic filter of the readings", hint: "plant/+/boiler", mono: true },
  { name: "when", label: "When: wakes the model only if this holds", hint: "temp_c > 80", mono: true },
  { name: "prompt", label: "Prompt", hint: "Boiler {{ topic[1] }} reads {{ temp_c }} °C. Say in one sentence what to do.", rows: 3, mono: true },
  { name: "answer", label: "Answer: a JSON schema, in YAML; empty for a text", hint: "type: object\nproperties:\n  severity: {enum: [ok, warn, alarm]}\nrequired: [severity]", rows: 5, mono: true },
  { name: "to", label: "To: topic of the answers", hint: "plant/{{ topic[1] }}/boiler/advice", mono: true },
];
const MORE = [
  { name: "system", label: "System message", rows: 2 },
  { name: "window", label: "Window: earlier readings", hint: "{seconds: 30, keep: 20}", mono: true },
  { name: "decide", label: "Decide: fields that expressions give", hint: "severity: \"'alarm' if temp_c > 90 else ''\"", rows: 2, mono: true },
  { name: "unsure", label: "Unsure", hint: "{below: 0.8, do: flag}", mono: true },
  { name: "escalate", label: "Escalate: where unsure answers go on to", rows: 2, mono: true },
  { name: "examples", label: "Examples", hint: "- {reading: {temp_c: 91}, answer: {severity: alarm}}", rows: 3, mono: true },
  { name: "deadline_s", label: "Deadline in seconds", hint: "30" },
  { name: "overload", label: "While the model is busy, keep", choices: ["", "newest", "oldest", "every"] },
  { name: "parse", label: "A payload is", choices: ["", "json", "text", "number", "auto"] },
];

function recorded(name) {
  return (state.answers.get(name) || []).slice().reverse()
    .filter((of) => of.reading !== undefined && of.reading !== null)
    .map((of) => JSON.stringify({ ...(of.topic ? { topic: of.topic } : {}), reading: of.reading })).join("\n");
}

function Editor({ was, link, onClose, onSaved }) {
  const file = state.links;
  const [fields, setFields] = useState({ ...link });
  const [devices, setDevices] = useState(Object.keys(file.devices).filter((name) => was ? file.devices[name].includes(was) : Object.keys(file.devices).length === 1));
  const [checked, setChecked] = useState(null);
  const [readings, setReadings] = useState(was ? recorded(was) : "");
  const [tried, setTried] = useState(null);
  const base = useRef(file.base);
  const body = () => ({ was, link: fields, devices, base: base.current });
  const touched = useRef(false);
  useEffect(() => { // as one types: the faults that the command line would name, and what the file would be
    let last = true; // an answer to what has been typed over is late
    const timer = setTimeout(async () => {
      let found;
      try {
        found = await call("links/check", body());
      } catch (fault) {
        found = { faults: [{ field: "", text: fault.message }], difference: "" };
      }
      if (last) setChecked(found);
    }, 300);
    return () => { last = false; clearTimeout(timer); };
  }, [fields, devices]);
  const set = (name, value) => { touched.current = true; setFields({ ...fields, [name]: value }); };
  const faults = (checked && checked.faults) || [];
  const known = new Set([...FIELDS, ...MORE].map((of) => of.name));
  const other = faults.filter((fault) => !known.has(fault.field));
  const model = file.models.length > 1 && { name: "model", label: "Model", choices: ["", ...file.models] };
  const input = (of) => html`<${Input} key=${of.name} of=${of} value=${fields[of.name] || ""} onInput=${(value) => set(of.name, value)}
    faults=${faults.filter((fault) => fault.field === of.name && (touched.current || was))} />`;
  const tryIt = async () => {
    setTried(null);
    const found = await call("links/try", { ...body(), readings });
    if (found.faults) throw new Error("mend the link first");
    setTried(found);
  };
  const save = async () => {
    const saved = await call("links/save", body());
    if (saved.faults) return setChecked({ ...checked, faults: saved.faults });
    return end(saved, `Link ${fields.name.trim()} is saved`, [...new Set([...served, ...devices])]);
  };
  const remove = async () => {
    const saved = await call("links/delete", { was, base: base.current });
    if (saved.faults) throw new Error(saved.faults.map((fault) => fault.text).join("; "));
    return end(saved, `Link ${was} is deleted`, served);
  };
  const served = Object.keys(file.devices).filter((name) => was && file.devices[name].includes(was));
  const end = (saved, what, concerned) => {
    state.links = saved;
    changed();
    onClose();
    onSaved({ what, devices: concerned });
  };
  return html`<${Dialog} title=${was ? `Link ${was}` : "New link"} onClose=${onClose} wide=${true}>
    <div class="editor">
      <div class="form">
        ${FIELDS.map(input)} ${model && input(model)}
        <fieldset><legend>Devices that serve it</legend><div class="ticks">${Object.keys(file.devices).map((name) => html`<label key=${name}><input type="checkbox" checked=${devices.includes(name)}
          onChange=${(event) => setDevices(event.target.checked ? [...devices, name] : devices.filter((of) => of !== name))} />${name}</label>`)}</div></fieldset>
        <details open=${MORE.some((of) => link[of.name])}><summary>More fields</summary>${MORE.map(input)}</details>
      </div>
      <div class="beside">
        <h3>Change to ${file.file}</h3>
        ${other.length > 0 && (touched.current || was) && html`<ul class="faults" role="alert">${other.map((fault) => html`<li key=${fault.text}>${fault.text}</li>`)}</ul>`}
        ${checked && checked.difference ? html`<pre class="difference">${checked.difference.split("\n").slice(2).map((line) => html`<span class=${line[0] === "+" ? "plus" : line[0] === "-" ? "minus" : line[0] === "@" ? "at" : ""}>${line + "\n"}</span>`)}</pre>` : html`<p class="quiet">Nothing yet.</p>`}
        <h3>Try it</h3>
        <label>Readings, one a line <textarea rows="4" class="mono" aria-label="Readings" value=${readings} onInput=${(event) => setReadings(event.target.value)} placeholder=${'{"topic": "plant/3/boiler", "reading": {"temp_c": 91}}'}></textarea></label>
        <${Doing} label="Try" what=${tryIt} disabled=${!readings.trim()} />
        ${tried && html`<${Tried} of=${tried} />`}
      </div>
    </div>
    <footer class="row"><${Doing} label="Save" kind="main" what=${save} disabled=${!checked || faults.length > 0 || !checked.difference} />
      ${was && html`<${Doing} label="Delete" kind="danger" confirm=${`Delete ${was} for good?`} what=${remove} />`}
      <span class="quiet">What remains to be done for the devices is said after it.</span></footer>
  </${Dialog}>`;
}

function Input({ of, value, onInput, faults }) {
  const shared = { value, class: of.mono ? "mono" : "", placeholder: of.hint || "", "aria-label": of.label, "aria-invalid": faults.length > 0, onInput: (event) => onInput(event.target.value) };
  return html`<label class=${faults.length ? "bad" : ""}>${of.label}
    ${of.choices ? html`<select ...${shared} onChange=${shared.onInput}>${of.choices.map((choice) => html`<option key=${choice} value=${choice}>${choice || "as usual"}</option>`)}</select>`
      : of.rows ? html`<textarea rows=${of.rows} spellcheck=${!of.mono} ...${shared}></textarea>` : html`<input type="text" spellcheck="false" autocapitalize="off" ...${shared} />`}
    ${faults.map((fault) => html`<span class="fault" key=${fault.text}>${fault.text}</span>`)}</label>`;
}

function Tried({ of }) {
  return html`<div class="tried" aria-live="polite"><p class="quiet">on ${of.where}: ${of.answers.length} answered, ${of.asleep} did not wake the model${of.of_no_link ? `, ${of.of_no_link} on other topics` : ""}${of.left ? `, ${of.left} left out: the time was up` : ""}</p>
    <ul class="answers">${of.answers.map((answer, at) => html`<li key=${at}><p class="reading"><span class="label">${answer.topic}</span> ${compact(answer.reading)}</p>
      ${answer.error ? html`<span class="fault">${answer.error}</span>` : html`<${Answer} ...${answer} />`} ${answer.held_back && html`<span class="flag">held back</span>`}</li>`)}</ul></div>`;
}
