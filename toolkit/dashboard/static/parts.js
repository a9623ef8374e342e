// What several views are made of.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";

export const none = html`<span class="none">–</span>`;

export function number(value, digits = 0, unit = "") {
  if (value === undefined || value === null) return none;
  return html`${Number(value).toFixed(digits)}${unit && html`<span class="unit"> ${unit}</span>`}`;
}

export function ago(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

export function span(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export const Badge = ({ state }) => html`<span class=${`badge is-${state}`}>${state}</span>`;

export function compact(value) {
  if (value === undefined || value === null) return "";
  if (typeof value !== "object") return String(value);
  if (Array.isArray(value)) return JSON.stringify(value);
  if (Object.keys(value).join() === "value") return compact(value.value); // of a sensor that says a number, or a text
  return Object.entries(value)
    .map(([name, of]) => `${name}\u00a0${typeof of === "object" ? JSON.stringify(of) : of}`)
    .join(" · ");
}

// An answer's fields, each with how sure the model is of it.
export function Answer({ answer, confidence, text, reason, unsure, unfamiliar, route }) {
  const flags = html`
    ${route && route.where !== "here" && html`<span class="label" title=${route.why}>answered by ${route.where}</span>`}
    ${route && route.failed && html`<span class="flag" title=${route.failed}>not passed on</span>`}
    ${unsure && html`<span class="flag" title=${reason}>unsure</span>`}
    ${unfamiliar && html`<span class="flag" title=${reason}>unfamiliar</span>`}`;
  if (answer === null || answer === undefined) {
    return html`<span class="answer">${text || html`<span class="quiet">no answer${reason ? `: ${reason}` : ""}</span>`} ${flags}</span>`;
  }
  if (typeof answer !== "object" || Array.isArray(answer)) return html`<span class="answer">${compact(answer)} ${flags}</span>`;
  return html`<span class="answer">
    ${Object.entries(answer).map(([name, value]) => html`<span class="field" key=${name}>
      <span class="label">${name}</span> <b class=${String(value).length > 16 ? "long" : ""}>${compact(value === null ? "null" : value)}</b>
      ${confidence && confidence[name] !== undefined && html`<${Sure} share=${confidence[name]} />`}
    </span>`)} ${flags}</span>`;
}

export function Sure({ share }) {
  const percent = Math.round(share * 100);
  return html`<span class=${`sure ${share < 0.8 ? "low" : ""}`} title=${`confidence ${percent} %`}>
    <span class="bar"><i style=${{ width: `${percent}%` }}></i></span>${percent}<span class="unit"> %</span></span>`;
}

// A dialog of the browser's own: Escape closes it, and the keyboard stays inside.
export function Dialog({ title, onClose, children, wide }) {
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  return html`<dialog ref=${dialog} class=${wide ? "wide" : ""} aria-label=${title} onClose=${onClose}
      onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
    <div class="inside">
      <header><h2>${title}</h2><button class="plain close" aria-label="Close" onClick=${() => dialog.current.close()}>✕</button></header>
      ${children}
    </div>
  </dialog>`;
}

// A button that waits for what it has begun, and shows what went wrong.
export function Doing({ label, what, kind = "", disabled, confirm }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const [sure, setSure] = useState(false);
  const click = async () => {
    if (confirm && !sure) return setSure(true);
    setSure(false);
    setBusy(true);
    setError("");
    try {
      await what();
    } catch (fault) {
      setError(fault.message);
    }
    setBusy(false);
  };
  return html`<span class="doing">
    <button class=${kind} disabled=${disabled || busy} onClick=${click} onBlur=${() => setSure(false)}>${busy ? `${label}…` : sure ? confirm : label}</button>
    ${error && html`<span class="fault" role="alert">${error}</span>`}</span>`;
}
