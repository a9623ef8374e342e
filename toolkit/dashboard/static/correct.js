// A person's answer in place of the model's: kept by the device, for the next training.

import { html, useState } from "./vendor/preact-htm.js";
import { Dialog, Doing, compact } from "./parts.js";
import { call, state } from "./store.js";

export function CorrectButton({ of }) {
  const [open, setOpen] = useState(false);
  const may = !(state.me && state.me.read_only) && of.device && of.link && of.reading !== undefined && of.reading !== null;
  if (!may || of.answer === undefined || (of.answer !== null && typeof of.answer !== "object")) return "";
  return html`<button class="plain small" aria-label=${`Correct the answer of ${of.link}`} onClick=${() => setOpen(true)}>correct</button>
    ${open && html`<${Correct} of=${of} onClose=${() => setOpen(false)} />`}`;
}

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function asValue(text, before) {
  if (typeof before === "string") return text;
  try { return JSON.parse(text); } catch { return text; } // the device says what it expects
}

function Correct({ of, onClose }) {
  const fields = Object.entries(of.answer || {});
  const [values, setValues] = useState(Object.fromEntries(fields.map(([name, value]) => [name, asText(value)])));
  const [whole, setWhole] = useState("{}");
  const [who, setWho] = useState(localStorage.getItem("who") || "");
  const [kept, setKept] = useState("");
  const send = async () => {
    let answer = Object.fromEntries(fields.map(([name, value]) => [name, asValue(values[name], value)]));
    if (!fields.length) {
      try { answer = JSON.parse(whole); } catch (fault) { throw new Error(`this is not JSON: ${fault.message}`); }
    }
    const body = { device: of.device, link: of.link, reading: of.reading, answer };
    if (of.topic) body.topic = of.topic;
    if (of.window) body.window = of.window;
    if (of.route && of.route.where === "here" && of.route.model) body.model = of.route.model;
    if (of.answer) body.said = of.answer;
    if (who.trim()) body.who = who.trim();
    localStorage.setItem("who", who.trim());
    await call("correct", body);
    setKept(`Kept on ${of.device}. Gather it with stonechat records FLEET.yaml --examples, and train with stonechat task harvest.`);
  };
  return html`<${Dialog} title=${`What would have been right? ${of.link}`} onClose=${onClose}>
    <p class="reading"><span class="label">${of.topic || of.device}</span> ${compact(of.reading)}</p>
    <div class="form">
      ${fields.map(([name]) => html`<label key=${name}>${name} <input type="text" value=${values[name]} onInput=${(event) => setValues({ ...values, [name]: event.target.value })} /></label>`)}
      ${!fields.length && html`<label>Answer, as JSON <textarea rows="3" class="mono" value=${whole} onInput=${(event) => setWhole(event.target.value)}></textarea></label>`}
      <label>Who says so <input type="text" autocomplete="name" value=${who} onInput=${(event) => setWho(event.target.value)} /></label>
    </div>
    ${kept ? html`<p class="kept" role="status">${kept}</p>` : html`<footer class="row"><${Doing} label="Keep it" kind="main" what=${send} /></footer>`}
  </${Dialog}>`;
}
