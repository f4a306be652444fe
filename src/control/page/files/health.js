// The state of the bridge and of what it depends on: a list of findings, each with its remedy.

import { json } from "./api.js";
import { announce, by, el, setText } from "./dom.js";

const WORDS = { ok: "OK", warning: "Warning", failed: "Failed", fault: "Fault", skipped: "Not checked" };
const KINDS = { ok: "good", warning: "warn", failed: "bad", fault: "bad" };
// the faults of doctor first
const DOCTOR_ORDER = ["fault", "warning", "ok", "skipped"];
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

/** Runs the checks of doctor, and shows what they find. */
async function check() {
  const [button, line] = [by("doctor-run"), by("doctor-state")];
  button.disabled = true;
  setText(line, "Checking: this takes up to 15 s …");
  try {
    const { findings } = await json("v1/doctor", { method: "POST" });
    findings.sort((a, b) => DOCTOR_ORDER.indexOf(a.state) - DOCTOR_ORDER.indexOf(b.state));
    by("doctor-findings").replaceChildren(...findings.map(finding));
    const count = (wanted) => findings.filter(({ state }) => state === wanted).length;
    const [faults, warnings] = [count("fault"), count("warning")];
    const found = `${faults} ${faults === 1 ? "fault" : "faults"}, ${warnings} ${warnings === 1 ? "warning" : "warnings"}`;
    setText(line, `Checked at ${new Date().toLocaleTimeString()}: ${found}.`);
    announce(`Doctor: ${found}`);
  } catch (error) {
    setText(line, error.message);
    announce(error.message, true);
  } finally {
    button.disabled = false;
  }
}

/** Shows the button to those who may use it. */
export function allow(may) {
  const button = by("doctor-run");
  button.hidden = !may;
  button.onclick = check;
}

export function clear() {
  before = null;
  by("doctor-findings").replaceChildren();
  setText(by("doctor-state"), "Checks all that a call needs, as trunkless doctor does.");
}
