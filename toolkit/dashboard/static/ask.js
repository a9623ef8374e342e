// Ask any device or pool, and see the answer come.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Sure } from "./parts.js";
import { ask, state } from "./store.js";

const GONE = new Set(["lost", "disconnected", "unknown"]);
const talks = []; // of this visit; not kept

function targets() {
  const found = [];
  const pools = new Map();
  for (const row of state.devices.values()) {
    if (GONE.has(row.state)) continue;
    for (const model of row.models || []) {
      if ((row.tasks || {})[model] === "embed") continue;
      found.push(`${row.id}/${model}`);
      if (row.pool) pools.set(`pool/${row.pool}/${model}`, true);
    }
  }
  const auto = state.links && state.links.router && found.length ? ["auto"] : [];
  return [...auto, ...[...pools.keys()].sort(), ...found.sort()];
}

export function Ask({ preset }) {
  const all = targets();
  const [target, setTarget] = useState(preset || "");
  const [text, setText] = useState("");
  const [system, setSystem] = useState("");
  const [schema, setSchema] = useState("");
  const [limit, setLimit] = useState("");
  const [temperature, setTemperature] = useState("");
  const [running, setRunning] = useState(null);
  const [, draw] = useState(0);
  const pending = useRef(0);
  useEffect(() => { if (preset) setTarget(preset); }, [preset]);
  useEffect(() => () => running && running.abort(), [running]);
  const chosen = target || all[0] || "";
  const redraw = () => {
    if (!pending.current) pending.current = requestAnimationFrame(() => { pending.current = 0; draw((now) => now + 1); });
  };
  const send = async (event) => {
    event.preventDefault();
    if (!text.trim() || running) return;
    const talk = { number: talks.length, target: chosen, question: text, answer: "", error: "", end: null };
    const body = { model: chosen, messages: [...(system.trim() ? [{ role: "system", content: system }] : []), { role: "user", content: text }] };
    if (limit) body.max_tokens = Number(limit);
    if (temperature) body.temperature = Number(temperature);
    if (schema.trim()) {
      try {
        body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema) } };
      } catch (fault) {
        talk.error = `the schema is not JSON: ${fault.message}`;
      }
    }
    talks.unshift(talk);
    talks.splice(50);
    redraw();
    if (talk.error) return;
    const control = new AbortController();
    setRunning(control);
    setText("");
    try {
      talk.end = await ask(body, (piece) => { talk.answer += piece; redraw(); }, control.signal);
    } catch (fault) {
      talk.error = control.signal.aborted ? "stopped" : fault.message;
    }
    setRunning(null);
    redraw();
  };
  return html`<section class="ask" aria-label="Ask">
    <form onSubmit=${send}>
      <label>Whom <select aria-label="Whom" value=${chosen} onChange=${(event) => setTarget(event.target.value)}>
        ${chosen && !all.includes(chosen) && html`<option value=${chosen}>${chosen} (not online)</option>`}
        ${all.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label>
      <label>Question <textarea rows="4" value=${text} onInput=${(event) => setText(event.target.value)} placeholder="What should it answer? Ctrl-Enter sends."
        onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && send(event)}></textarea></label>
      <details><summary>More</summary>
        <label>System message <textarea rows="2" value=${system} onInput=${(event) => setSystem(event.target.value)}></textarea></label>
        <label>Answer as data: a JSON schema <textarea rows="3" class="mono" value=${schema} onInput=${(event) => setSchema(event.target.value)} placeholder='{"type":"object","properties":{"hot":{"type":"boolean"}},"required":["hot"]}'></textarea></label>
        <div class="pair"><label>Tokens, at most <input type="number" min="1" value=${limit} onInput=${(event) => setLimit(event.target.value)} /></label>
        <label>Temperature <input type="number" min="0" max="10" step="0.1" placeholder="0" value=${temperature} onInput=${(event) => setTemperature(event.target.value)} /></label></div>
      </details>
      <div class="row"><button class="main" type="submit" disabled=${!chosen || !text.trim() || running}>Ask</button>
        ${running && html`<button type="button" onClick=${() => running.abort()}>Stop</button>`}
        ${all.length === 0 && html`<span class="quiet">no device is online</span>`}</div>
    </form>
    <div class="talks" aria-live="polite">
      ${talks.length === 0 && html`<p class="empty">Answers appear here as they come.</p>`}
      ${talks.map((talk) => html`<article key=${talk.number} class="card talk">
        <p class="question">${talk.question}</p>
        <p class="reply">${talk.answer}${!talk.end && !talk.error && html`<span class="cursor"></span>`}</p>
        ${talk.error && html`<p class="fault" role="alert">${talk.error}</p>`}
        <p class="quiet">${talk.target}${talk.end && html`<${End} end=${talk.end} />`}</p>
      </article>`)}
    </div>
  </section>`;
}

function End({ end }) {
  return html`<span>${end.device ? ` · by ${end.device}` : ""}${end.usage ? ` · ${end.usage.completion_tokens} tokens` : ""}${end.tokens_per_s ? ` · ${end.tokens_per_s.toFixed(1)} tok/s` : ""}${end.energy ? html` · <span title=${end.energy.how}>${end.energy.mwh} mWh</span>` : ""}${end.finish === "length" ? " · cut at its limit" : ""}
    ${end.confidence && Object.entries(end.confidence).map(([name, share]) => html`<span class="field apart" key=${name}><span class="label">${name}</span> <${Sure} share=${share} /></span>`)}
    ${end.unfamiliar && html`<span class="flag" title=${end.reason}>unfamiliar</span>`}</span>`;
}
