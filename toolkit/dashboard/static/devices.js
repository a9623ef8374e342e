// The table of devices, and one of them in detail.

import { Component, html, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";
import { Answer, Badge, Dialog, ago, none, number, span } from "./parts.js";
import { CorrectButton } from "./correct.js";
import { Records } from "./records.js";
import { state } from "./store.js";

const PAGE = 120; // rows that are drawn; more when one scrolls there
const ORDER = ["lost", "unknown", "disconnected", "init", "updating", "busy", "ready", "sleeping"]; // what needs a look first
const rank = (state) => Math.min(ORDER.indexOf(state) + 1 || 5, 5); // rows that work keep their places
const health = (row) => row.health || {};
const COLUMNS = [
  { name: "Device", value: (row) => row.id },
  { name: "State", value: (row) => rank(row.state) + row.id },
  { name: "Model", value: (row) => (row.models || []).join() },
  { name: "tok/s", value: (row) => health(row).tps_p50 ?? -1, right: true },
  { name: "Temp.", value: (row) => health(row).temperature_c ?? -300, right: true },
  { name: "Queue", value: (row) => health(row).queue ?? -1, right: true },
  { name: "Answers", value: (row) => health(row).answers ?? -1, right: true },
  { name: "Pool", value: (row) => row.pool || "" },
  { name: "Board", value: (row) => row.board || "" },
];

class Row extends Component {
  shouldComponentUpdate(next) {
    return next.row !== this.props.row;
  }

  render({ row, onOpen }) {
    const of = health(row);
    const hot = of.throttled || of.temperature_c >= 80;
    const model = (row.models || [])[0];
    const closed = Object.values(row.not_open || {});
    const refused = Object.keys(row.links_refused || {});
    const progress = row.update && row.update.phase === "fetching" && row.update.total_bytes
      ? ` ${Math.round((100 * row.update.done_bytes) / row.update.total_bytes)} %` : "";
    return html`<tr class=${row.planned ? "" : "stranger"}>
      <td class="device"><button class="plain" onClick=${() => onOpen(row.id)}>${row.id}</button></td>
      <td class="state"><${Badge} state=${row.state} />${progress && html`<span class="unit">${progress}</span>`}</td>
      <td class="model" title=${row.bundles && row.bundles[model]}>${model || none}${row.models && row.models.length > 1 ? html`<span class="unit"> +${row.models.length - 1}</span>` : ""}${closed.length > 0 && html` <span class="flag" title=${closed.join("\n")}>not open</span>`}${refused.length > 0 && html` <span class="flag" title=${Object.values(row.links_refused).join("\n")}>leaves out ${refused.length > 1 ? `${refused.length} links` : refused[0]}</span>`}</td>
      <td class="num" data-label="tok/s">${number(of.tps_p50, of.tps_p50 < 100 ? 1 : 0)}</td>
      <td class=${`num ${hot ? "hot" : ""}`} data-label="°C">${number(of.temperature_c, 0, "°C")}</td>
      <td class="num" data-label="queue">${number(of.queue)}</td>
      <td class="num wide-only">${number(of.answers)}</td>
      <td class="wide-only">${row.pool || none}</td>
      <td class="wide-only board" title=${row.board}>${row.board || none}</td>
    </tr>`;
  }
}

export function Devices() {
  const [filter, setFilter] = useState("");
  const [only, setOnly] = useState("");
  const [sort, setSort] = useState({ by: 1, down: false });
  const [limit, setLimit] = useState(PAGE);
  const [open, setOpen] = useState(null);
  const end = useRef(null);
  const rows = [...state.devices.values()];
  const counts = {};
  for (const row of rows) counts[row.state] = (counts[row.state] || 0) + 1;
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS[sort.by];
  const shown = rows
    .filter((row) => !only || row.state === only)
    .filter((row) => words.every((word) => [row.id, row.board, row.pool, ...(row.models || []), ...(row.groups || [])].some((of) => of && of.toLowerCase().includes(word))))
    .map((row) => [column.value(row), row])
    .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (sort.down ? -1 : 1))
    .map(([, row]) => row);
  useEffect(() => {
    if (!end.current) return undefined;
    const seen = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && setLimit((now) => now + PAGE), { rootMargin: "600px" });
    seen.observe(end.current);
    return () => seen.disconnect();
  }, [shown.length > limit, limit]);
  const onOpen = useMemo(() => (id) => setOpen(id), []);
  const states = ORDER.filter((name) => counts[name]);
  return html`<section aria-label="Devices">
    <div class="tools">
      <input type="search" placeholder="Filter: name, model, board, pool" aria-label="Filter devices" value=${filter} onInput=${(event) => setFilter(event.target.value)} />
      <div class="chips" role="group" aria-label="States">
        <button class=${only ? "chip" : "chip on"} aria-pressed=${!only} onClick=${() => setOnly("")}>all <b>${rows.length}</b></button>
        ${states.map((name) => html`<button key=${name} class=${`chip is-${name} ${only === name ? "on" : ""}`} aria-pressed=${only === name} onClick=${() => setOnly(only === name ? "" : name)}>${name} <b>${counts[name]}</b></button>`)}
      </div>
    </div>
    ${rows.length === 0 && html`<p class="empty">No device is known yet. Start one: <code>stonechat serve FLEET.yaml --device ID</code></p>`}
    ${rows.length > 0 && html`<div class="scroll"><table class="devices">
      <thead><tr>${COLUMNS.map((of, at) => html`<th key=${of.name} class=${`${of.right ? "num" : ""} ${at > 5 ? "wide-only" : ""}`} aria-sort=${sort.by === at ? (sort.down ? "descending" : "ascending") : "none"}>
        <button class="plain" onClick=${() => setSort({ by: at, down: sort.by === at ? !sort.down : Boolean(of.right) })}>${of.name}<span class="arrow">${sort.by === at ? (sort.down ? "↓" : "↑") : ""}</span></button></th>`)}</tr></thead>
      <tbody>${shown.slice(0, limit).map((row) => html`<${Row} key=${row.id} row=${row} onOpen=${onOpen} />`)}</tbody>
    </table></div>`}
    ${shown.length > limit && html`<p ref=${end} class="quiet pad">${shown.length - limit} more…</p>`}
    ${rows.length > 0 && shown.length === 0 && html`<p class="empty">No device fits the filter.</p>`}
    ${open && state.devices.has(open) && html`<${Detail} row=${state.devices.get(open)} onClose=${() => setOpen(null)} />`}
  </section>`;
}

const energy = (joules) => (joules < 3600 ? `${joules.toFixed(1)} J` : `${(joules / 3600).toFixed(2)} Wh`);

function Detail({ row, onClose }) {
  const of = health(row);
  const refused = Object.entries(row.links_refused || {});
  const answers = [...state.answers.values()].flat().filter((answer) => answer.device === row.id).slice(0, 8);
  const facts = [
    ["Board", row.board], ["stonechat", row.version], ["Firmware", row.firmware], ["Pool", row.pool],
    ["Groups", (row.groups || []).join(", ")], ["Links", (row.links || []).join(", ")], ["Starts", row.boot],
    ["Running for", of.uptime_s === undefined ? "" : span(of.uptime_s)],
    ["Memory", of.rss_mb === undefined ? "" : `${of.rss_mb.toFixed(0)} MB`],
    ["Answers", of.answers], ["Errors", of.errors], ["First token, p95", of.ttft_ms_p95 === undefined ? "" : `${of.ttft_ms_p95.toFixed(0)} ms`],
    ["Energy an answer", of.energy_mwh_answer === undefined ? "" : html`${of.energy_mwh_answer.toPrecision(3)} mWh <span class="quiet">${of.energy_how || ""}</span>`],
    ["Energy since the start", of.energy_j === undefined ? "" : energy(of.energy_j)],
    ["Last health", row.health_at ? ago(Date.now() / 1000 - row.health_at) : "not yet"],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  return html`<${Dialog} title=${row.id} onClose=${onClose}>
    <p><${Badge} state=${row.state} /> ${!row.planned && html`<span class="flag">not in the fleet file</span>`}</p>
    <div class="figures">
      <div><b>${number(of.tps_p50, of.tps_p50 < 100 ? 1 : 0)}</b><span>tok/s</span></div>
      <div><b class=${of.throttled ? "hot" : ""}>${number(of.temperature_c, 0)}</b><span>°C${of.throttled ? ", throttled" : ""}</span></div>
      <div><b>${number(of.queue)}</b><span>waiting</span></div>
    </div>
    <h3>Models</h3>
    <ul class="models">${(row.models || []).map((name) => html`<li key=${name}><b>${name}</b>
      <span class="quiet">${(row.bundles || {})[name] || ""} ${(row.tasks || {})[name] || ""}</span>
      ${(row.tasks || {})[name] !== "embed" && html`<a href=${`#ask/${row.id}/${name}`} onClick=${onClose}>ask it</a>`}</li>`)}</ul>
    ${Object.entries(row.not_open || {}).map(([name, why]) => html`<p class="fault" key=${name}>${name} is not open. ${why}</p>`)}
    ${refused.length > 0 && html`<h3>Links that it leaves out</h3><ul class="refused">${refused.map(([name, why]) => html`<li key=${name}><b>${name}</b>: ${why}</li>`)}</ul>`}
    ${row.update && html`<h3>Update</h3><p>${row.update.phase.replace("_", " ")} ${row.update.version || ""} ${row.update.message || ""}</p>`}
    <dl class="facts">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${answers.length > 0 && html`<h3>Last answers</h3><ul class="answers">${answers.map((answer) => html`<li key=${answer.number}><span class="label">${answer.link}</span> <${Answer} ...${answer} /> <${CorrectButton} of=${answer} /></li>`)}</ul>`}
    <${Records} device=${row.id} />
  </${Dialog}>`;
}
