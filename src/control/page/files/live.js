// The live calls: one row each, changed in place, so that focus and selection stay.

import { by, cell, el, setAttribute, setClass, setText } from "./dom.js";
import { aiState, caller, contains, duration, ms, percent } from "./format.js";

/** Figures of this many seconds give the present loss. */
const WINDOW = 10;
/** Loss of the last seconds from which on a call is marked, and latency. */
export const MUCH_LOSS = 0.02;
const MUCH_LATENCY = 200;
/** The scale of the levels, in dB. */
const FLOOR = -60;

/** The live calls by id: `call`, `figures`, `history` and its row. */
export const calls = new Map();

/** A level meter. */
export function meter(label, kind) {
  const bar = el("span", { class: "bar-fill" });
  const node = el("span", {
    class: ["meter", kind], role: "meter", "aria-label": label,
    "aria-valuemin": FLOOR, "aria-valuemax": 0, "aria-valuenow": FLOOR,
  }, bar);
  return { node, bar };
}

export function setMeter({ node, bar }, dbfs) {
  const level = Math.max(FLOOR, Math.min(0, dbfs ?? FLOOR));
  setAttribute(node, "aria-valuenow", level);
  setAttribute(node, "aria-valuetext", level <= FLOOR ? "silent" : `${level} decibels`);
  bar.style.transform = `scaleX(${(level - FLOOR) / -FLOOR})`;
}

/** The loss of the last seconds, as a share; null without packets. */
export function presentLoss(entry) {
  const [first, last] = [entry.history[0], entry.history.at(-1)];
  if (!first || first === last) return null;
  const lost = last.lost - first.lost;
  const all = last.packets_in - first.packets_in + lost;
  return all > 0 ? Math.max(0, lost) / all : null;
}

/** How far this computer's clock is ahead of the server's. */
let skew = 0;
export const setSkew = (value) => { skew = value; };

export const talked = (call) =>
  call.answered_at ? Date.now() - skew - Date.parse(call.answered_at) : null;

function makeRow(entry, onOpen) {
  const open = el("button", {
    type: "button", class: "link open", on: { click: () => onOpen(entry.call.id) },
  });
  const [name, to, ai, time, loss, latency, turn] = Array.from({ length: 7 }, () => el("span"));
  const meters = [meter("Caller level", "caller"), meter("AI level", "ai")];
  const pill = el("span", { class: "pill" });
  const row = el("tr", { role: "row", "data-id": entry.call.id, on: { click: (event) => {
    if (event.target.closest("button")) return;
    open.focus();
    onOpen(entry.call.id);
  } } },
    cell("Caller", "who-cell", open, name),
    cell("Called", "to-cell", to),
    cell("AI", "ai-cell", pill, ai),
    cell("Time", "num time-cell", time),
    cell("Levels", "levels", meters[0].node, meters[1].node),
    cell("Loss", "num", loss),
    cell("Latency", "num", latency),
    cell("Turn", "num", turn));
  return { row, open, name, to, ai, time, loss, latency, turn, meters, pill };
}

function drawRow(entry) {
  const { call, figures, view } = entry;
  setText(view.open, caller(call));
  setText(view.name, call.from_name);
  setText(view.to, call.to_number);
  setAttribute(view.to, "title", `PBX ${call.pbx}`);
  const [word, kind] = aiState(call, figures);
  setText(view.pill, word);
  setClass(view.pill, `pill ${kind}`);
  setText(view.ai, call.ai);
  setText(view.time, talked(call) === null ? "–" : duration(talked(call)));
  setMeter(view.meters[0], figures?.caller_dbfs);
  setMeter(view.meters[1], figures?.ai_dbfs);
  const loss = presentLoss(entry);
  setText(view.loss, loss === null ? "–" : percent(loss, 1));
  setClass(view.loss, loss >= MUCH_LOSS ? "warn-text" : "");
  const latency = figures?.round_trip_ms;
  setText(view.latency, ms(latency));
  setClass(view.latency, latency >= MUCH_LATENCY ? "warn-text" : "");
  setText(view.turn, ms(call.turn_latency?.median_ms));
}

function drawTiles() {
  const all = [...calls.values()];
  const longest = Math.max(0, ...all.map((entry) => talked(entry.call) ?? 0));
  const lossy = all.filter((entry) => presentLoss(entry) >= MUCH_LOSS).length;
  const failing = all.filter((entry) => entry.figures?.ai === "failed").length;
  const held = all.filter((entry) => entry.call.state === "held").length;
  const tiles = [
    ["Live", all.length, ""],
    ["Longest", all.length ? duration(longest) : "–", ""],
    ["On hold", held, ""],
    ["With loss", lossy, lossy ? "warn" : ""],
    ["AI failed", failing, failing ? "bad" : ""],
  ];
  const list = by("tiles");
  if (!list.children.length) {
    list.append(...tiles.map(([name]) => el("li", {}, el("b"), el("span", {}, name))));
  }
  tiles.forEach(([, value, kind], n) => {
    setText(list.children[n].firstChild, value);
    setClass(list.children[n], kind);
  });
  setText(by("nav-live"), all.length);
}

/** Shows the calls that suit the filter. */
export function filter() {
  const text = by("live-filter").value;
  let shown = 0;
  for (const { call, view } of calls.values()) {
    const suits = contains(call, text);
    view.row.hidden = !suits;
    shown += suits;
  }
  by("live-table").hidden = !shown;
  const empty = by("live-empty");
  empty.hidden = shown > 0;
  setText(empty, calls.size ? "No live call suits the filter." : "No live calls. New ones appear here by themselves.");
}

/** Where focus goes when the row that has it disappears. */
function neighbour(row) {
  for (const step of ["nextElementSibling", "previousElementSibling"]) {
    let other = row[step];
    while (other?.hidden) other = other[step];
    if (other) return other.querySelector("button");
  }
  return by("live-title");
}

function remove(id) {
  const row = calls.get(id)?.view.row;
  if (!row) return;
  if (row.contains(document.activeElement)) neighbour(row).focus();
  row.remove();
  calls.delete(id);
}

/** Takes over an event of `v1/live`. */
export function update(data, onOpen) {
  for (const { call, ai, targets } of data.calls) {
    Object.assign(call, { ai, targets });
    const entry = calls.get(call.id);
    if (entry) {
      entry.call = call;
    } else {
      const added = { call, figures: null, history: [] };
      added.view = makeRow(added, onOpen);
      calls.set(call.id, added);
      by("live-rows").append(added.view.row);
    }
  }
  for (const id of data.gone) remove(id);
  for (const [id, figures] of Object.entries(data.figures)) {
    const entry = calls.get(id);
    if (!entry) continue;
    entry.figures = figures;
    entry.history.push(figures);
    if (entry.history.length > WINDOW + 1) entry.history.shift();
  }
  for (const entry of calls.values()) drawRow(entry);
  drawTiles();
  filter();
}

/** Forgets the calls that are not among `present`, as after a lost connection. */
export function keepOnly(present) {
  for (const id of [...calls.keys()]) if (!(id in present)) remove(id);
}

export const clear = () => keepOnly({});
