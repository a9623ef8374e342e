// What a device has kept of its answers, asked for when somebody wants to see it.

import { html, useState } from "./vendor/preact-htm.js";
import { Answer, Doing, ago, compact } from "./parts.js";
import { get } from "./store.js";

function parsed(text) {
  try { return JSON.parse(text); } catch { return undefined; }
}

export function Records({ device }) {
  const [found, setFound] = useState(null);
  const load = async () => setFound(await get(`devices/${encodeURIComponent(device)}/records`));
  return html`<h3>Records</h3>
    ${!found && html`<p><${Doing} label="Show what it has kept" what=${load} /></p>`}
    ${found && html`<p class="quiet">${found.total === 0 ? html`None. <code>records: {keep: 1000}</code> in the fleet file has it keep some.` : `the newest ${found.records.length} of ${found.total}`}</p>
    <ul class="answers records">${found.records.map((of, at) => {
      const answer = parsed(of.text);
      return html`<li key=${at}>
        <p class="reading"><span class="label">${of.link || of.model}</span> ${of.reading === undefined ? "" : compact(of.reading)}<time>${of.time ? ago((Date.now() - Date.parse(of.time)) / 1000) : ""}</time></p>
        <${Answer} answer=${typeof answer === "object" ? answer : undefined} text=${of.text} confidence=${of.confidence} unfamiliar=${of.unfamiliar} reason=${of.reason} route=${of.route} />
        <p class="quiet">${of.bundle ? `${of.bundle.name} ${of.bundle.version} · ` : ""}${of.took_ms !== undefined ? `${Math.round(of.took_ms)} ms` : ""}${of.energy && of.energy.mwh !== undefined ? ` · ${of.energy.mwh} mWh, ${of.energy.how}` : ""}${of.redacted ? " · redacted" : ""}</p></li>`;
    })}</ul>`}`;
}
