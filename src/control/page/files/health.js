// The state of the bridge and of what it depends on: a list of findings, each with its remedy.

import { announce, by, el, setText } from "./dom.js";

const WORDS = { ok: "OK", warning: "Warning", failed: "Failed" };
const KINDS = { ok: "good", warning: "warn", failed: "bad" };
const ORDER = ["failed", "warning", "ok"];

let before = null;

function finding({ step, state, what, remedy }) {
  return el("li", { class: ["finding", KINDS[state] ?? "plain"] },
    el("span", { class: `pill ${KINDS[state] ?? "plain"}` }, WORDS[state] ?? state),
    el("div", {},
      el("h3", {}, step),
      el("p", {}, what),
      remedy ? el("p", { class: "remedy" }, el("b", {}, "Remedy: "), remedy) : null));
}

export function update(status) {
  const bad = status.findings.filter(({ state }) => state !== "ok");
  const badge = by("nav-health");
  setText(badge, bad.length || "");
  badge.className = bad.some(({ state }) => state === "failed") ? "count bad" : "count warn";
  badge.hidden = !bad.length;
  const stopping = { step: "trunkless", state: "warning", what: "is shutting down", remedy: "" };
  const all = [...(status.stopping ? [stopping] : []), ...status.findings];
  all.sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  by("findings").replaceChildren(...all.map(finding));
  // only what has become bad, and only once
  const names = bad.filter(({ state }) => state === "failed").map(({ step }) => step);
  const fresh = before ? names.filter((name) => !before.includes(name)) : [];
  if (fresh.length) announce(`Failed: ${fresh.join(", ")}`, true);
  before = names;
}

export function clear() {
  before = null;
}
