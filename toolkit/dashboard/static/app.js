// The page: who is logged in, the tabs, and the view that is open.

import { html, render, useEffect, useState } from "./vendor/preact-htm.js";
import { Ask } from "./ask.js";
import { Devices } from "./devices.js";
import { Links } from "./links.js";
import { Rollouts } from "./rollouts.js";
import { call, listen, onChange, refusals, state, who } from "./store.js";

const TABS = [["fleet", "Fleet"], ["links", "Links"], ["rollouts", "Roll-outs"], ["ask", "Ask"]];

function place() {
  let hash = location.hash.slice(1);
  try { hash = decodeURIComponent(hash); } catch { /* as it is */ }
  const [tab, ...rest] = hash.split("/");
  return { tab: TABS.some(([name]) => name === tab) ? tab : "fleet", rest: rest.join("/") };
}

function Page() {
  const [, draw] = useState(0);
  const [at, setAt] = useState(place());
  useEffect(() => onChange(() => draw((now) => now + 1)), []);
  useEffect(() => {
    const moved = () => setAt(place());
    addEventListener("hashchange", moved);
    const clock = setInterval(() => draw((now) => now + 1), 10000); // "… ago"
    return () => { removeEventListener("hashchange", moved); clearInterval(clock); };
  }, []);
  if (!state.me) return html`<p class="quiet pad">Loading the fleet…</p>`;
  if (!state.me.known) return html`<${Login} />`;
  const lost = [...state.devices.values()].filter((row) => row.state === "lost").length;
  const refused = refusals().size;
  const under = state.rollouts.filter((of) => of.counts && !of.ended).length;
  const marks = { fleet: lost && html`<span class="mark bad" title=${`${lost} lost`}>${lost}</span>`, links: refused && html`<span class="mark bad" title=${`${refused} left out`}>${refused}</span>`, rollouts: under && html`<span class="mark">${under}</span>` };
  const online = state.live && state.broker.connected;
  return html`
    <header class="top">
      <a class="brand" href="#fleet"><img src="bird.svg" alt="" width="22" height="22" />stonechat</a>
      <nav aria-label="Views">${TABS.map(([name, label]) => html`<a key=${name} href=${`#${name}`} aria-current=${at.tab === name ? "page" : "false"}>${label}${marks[name] || ""}</a>`)}</nav>
      <span class="where"><i class=${`dot ${online ? "ok" : "bad"}`}></i><span class="wide-only">${state.fleet.name} · ${state.fleet.broker}</span></span>
      ${state.me.login && html`<button class="plain" onClick=${async () => { await call("logout"); location.reload(); }}>Log out</button>`}
    </header>
    ${!state.live && state.loaded && html`<p class="banner" role="alert">The dashboard does not answer; trying again. What is shown is old.</p>`}
    ${state.live && !state.broker.connected && html`<p class="banner" role="alert">No connection to the broker${state.broker.reason ? `: ${state.broker.reason}` : ""}. What is shown is old.</p>`}
    <main>
      ${at.tab === "fleet" && html`<${Devices} />`}
      ${at.tab === "links" && html`<${Links} />`}
      ${at.tab === "rollouts" && html`<${Rollouts} />`}
      ${at.tab === "ask" && html`<${Ask} preset=${at.rest} />`}
    </main>`;
}

function Login() {
  const [token, setToken] = useState("");
  const [fault, setFault] = useState("");
  const send = async (event) => {
    event.preventDefault();
    try {
      await call("login", { token });
      await who();
      listen();
    } catch (error) {
      setFault(error.message);
    }
  };
  return html`<form class="login card" onSubmit=${send}><h1><img src="bird.svg" alt="" width="28" height="28" /> stonechat</h1>
    <label>Token <input type="password" autocomplete="current-password" autofocus value=${token} onInput=${(event) => setToken(event.target.value)} /></label>
    ${fault && html`<p class="fault" role="alert">${fault}</p>`}
    <button class="main" type="submit" disabled=${!token}>Log in</button></form>`;
}

render(html`<${Page} />`, Object.assign(document.getElementById("app"), { innerHTML: "" }));
who();
listen(); // at once; where a login is needed it ends at once, too
