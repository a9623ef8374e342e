// What the page knows, from /api/events, and the calls that it makes.

export const state = {
  devices: new Map(), answers: new Map(), broker: { connected: true, reason: "" }, rollouts: [], links: null,
  fleet: { name: "", broker: "" }, me: null, live: false, loaded: false,
};
const KEPT = 30;
const listeners = new Set();
let asked = false;

export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

// However many messages come, the page is drawn once a frame.
export function changed() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const listener of listeners) listener();
  });
}

export function take(some) {
  if (some.all) {
    state.devices = new Map();
    state.answers = new Map();
    if (!state.loaded) requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("first-view")));
    state.loaded = true;
  }
  for (const row of some.devices || []) state.devices.set(row.id, row);
  for (const answer of some.answers || []) {
    const before = state.answers.get(answer.link) || [];
    state.answers.set(answer.link, [answer, ...before].slice(0, KEPT));
  }
  for (const name of ["broker", "rollouts", "links", "fleet"]) if (some[name]) state[name] = some[name];
  changed();
}

// By link: the devices that leave it out, and why.
export function refusals() {
  const found = new Map();
  for (const row of state.devices.values()) {
    for (const [link, why] of Object.entries(row.links_refused || {})) {
      if (!found.has(link)) found.set(link, new Map());
      found.get(link).set(row.id, why);
    }
  }
  return found;
}

let source = null;

export function listen() {
  if (source) source.close();
  source = new EventSource("api/events");
  source.onopen = () => { state.live = true; changed(); };
  source.onmessage = (message) => take(JSON.parse(message.data));
  source.onerror = async () => {
    state.live = false;
    changed();
    if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    await who(); // a refusal: perhaps a login is needed
    if (state.me && state.me.known) setTimeout(listen, 2000);
  };
}

export async function who() {
  try {
    state.me = await (await fetch("api/me")).json();
  } catch {
    if (!state.me) setTimeout(who, 2000);
  }
  changed();
}

// A call that changes something; an Error with the server's own words where it fails.
export async function call(path, body) {
  const response = await fetch(`api/${path}`, {
    method: "POST", headers: { "Content-Type": "application/json", "X-Stonechat": "page" }, body: JSON.stringify(body || {}),
  });
  const value = await response.json().catch(() => ({}));
  if (!response.ok && !value.faults) {
    if (response.status === 401) await who();
    throw new Error(value.error ? value.error.message : `the server answered ${response.status}`);
  }
  return value;
}

// What the server knows; an Error as `call` has it.
export async function get(path) {
  const response = await fetch(`api/${path}`, { headers: { "X-Stonechat": "page" } });
  const value = await response.json().catch(() => ({}));
  if (!response.ok) {
    if (response.status === 401) await who();
    throw new Error(value.error ? value.error.message : `the server answered ${response.status}`);
  }
  return value;
}

// An answer as it comes: calls `onPiece` with each text, returns what the last chunk says.
export async function ask(body, onPiece, signal) {
  const response = await fetch("api/v1/chat/completions", {
    method: "POST", signal, headers: { "Content-Type": "application/json", "X-Stonechat": "page" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) {
    const value = await response.json().catch(() => ({}));
    throw new Error(value.error ? value.error.message : `the server answered ${response.status}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const end = {};
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) end.usage = chunk.usage;
      if (chunk.stonechat) Object.assign(end, chunk.stonechat);
      for (const choice of chunk.choices) {
        if (choice.delta.content) onPiece(choice.delta.content);
        if (choice.finish_reason) end.finish = choice.finish_reason;
      }
    }
  }
  return end;
}
