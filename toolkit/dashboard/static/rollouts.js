// Roll-outs: how far each is, and what can be done about it.

import { html } from "./vendor/preact-htm.js";
import { Doing } from "./parts.js";
import { call, state } from "./store.js";

const PHASES = ["confirmed", "failed", "updating", "waiting"];

export function Rollouts() {
  const all = state.rollouts;
  return html`<section aria-label="Roll-outs">
    ${all.length === 0 && html`<p class="empty">No roll-outs. Begin one: <code>stonechat deploy BUNDLE --to fleet:GROUP --fleet FLEET.yaml</code></p>`}
    <div class="cards">${all.map((of) => html`<${Card} key=${of.id} of=${of} />`)}</div>
  </section>`;
}

function Card({ of }) {
  if (!of.counts) return html`<article class="card"><h3>${of.id}</h3><p class="fault">${of.error}</p></article>`;
  const total = PHASES.reduce((sum, phase) => sum + of.counts[phase], 0);
  const act = (action) => () => call(`rollouts/${encodeURIComponent(of.id)}/${action}`);
  const word = of.ended ? of.stage : of.paused ? `${of.stage}, paused` : of.stage;
  const open = !of.ended && !(state.me && state.me.read_only);
  return html`<article class="card rollout">
    <header><h3>${of.bundle.name} <span class="quiet">${of.bundle.version}</span></h3><span class=${`badge is-${of.ended ? (of.stage === "done" ? "ready" : "lost") : of.paused ? "init" : "updating"}`}>${word}</span></header>
    <p class="quiet">to ${of.group} · ${of.id}</p>
    <div class="progress" role="img" aria-label=${`${of.counts.confirmed} of ${total} confirmed, ${of.counts.failed} failed`}>
      ${PHASES.slice(0, 3).map((phase) => html`<i key=${phase} class=${phase} style=${{ width: `${(100 * of.counts[phase]) / total}%` }}></i>`)}
    </div>
    <p class="counts">${PHASES.filter((phase) => of.counts[phase]).map((phase) => html`<span key=${phase}><i class=${`dot ${phase}`}></i>${of.counts[phase]} ${phase}</span>`)}</p>
    ${Object.keys(of.devices).length > 0 && html`<ul class="rollout-devices">${Object.entries(of.devices).slice(0, 12).map(([name, device]) => html`<li key=${name}>
      <i class=${`dot ${device.phase}`}></i><b>${name}</b> ${of.canaries.includes(name) && html`<span class="label">canary</span>`}
      <span class="quiet">${device.phase}${device.tokens_per_s ? `, ${device.tokens_per_s.toFixed(1)} tok/s` : ""}${device.message ? `: ${device.message}` : ""}</span></li>`)}</ul>`}
    ${of.error && html`<p class="fault">${of.error}</p>`}
    ${open && html`<footer>
      ${!of.paused && html`<${Doing} label="Pause" what=${act("pause")} />`}
      ${of.paused && of.may_resume && html`<${Doing} label="Resume" kind="main" what=${act("resume")} />`}
      ${of.paused && !of.may_resume && html`<span class="quiet">go on with <code>stonechat rollout resume ${of.id}</code></span>`}
      <${Doing} label="Abort" kind="danger" confirm="Abort for good?" what=${act("abort")} />
    </footer>`}
  </article>`;
}
