// The last calls, newest first.

import { json } from "./api.js";
import { by, cell, el, setText } from "./dom.js";
import { caller, clock, contains, duration, ms, percent, reason, reasonKind } from "./format.js";

/** Rows that are shown at first, and added by the button. */
const PAGE = 50;
/** Calls that are kept. */
const MAX = 1000;

/** Ended calls, newest first. */
let all = [];
let shown = PAGE;
let onOpen = () => {};

export const find = (id) => all.find((ended) => ended.call.id === id);

function row(ended) {
  const { call, summary } = ended;
  const lost = summary?.packets_lost ?? 0;
  const recordings = summary?.recordings?.length ?? 0;
  return el("tr", { role: "row", "data-id": call.id, on: { click: (event) => {
    if (!event.target.closest("button")) onOpen(call.id);
  } } },
    cell("Ended", "when-cell", clock(call.ended_at)),
    cell("Caller", "who-cell",
      el("button", { type: "button", class: "link open", on: { click: () => onOpen(call.id) } }, caller(call)),
      el("span", {}, call.from_name)),
    cell("Called", "to-cell", el("span", { title: `PBX ${call.pbx}` }, call.to_number)),
    cell("Talk", "num", summary?.answered ? duration(summary.talk_ms) : "–"),
    cell("Result", "result-cell",
      el("span", { class: `pill ${reasonKind(call.end_reason)}` }, reason(call.end_reason)),
      el("span", {}, call.disposition?.status)),
    cell("First audio", "num", ms(summary?.first_audio_ms)),
    cell("Loss", "num", percent(lost, (summary?.packets_in ?? 0) + lost)),
    cell("Recording", "recording-cell", recordings ? (recordings === 1 ? "Yes" : `${recordings}`) : "–"));
}

function draw() {
  const text = by("ended-filter").value;
  const suiting = all.filter(({ call }) => contains(call, text));
  const rows = by("ended-rows");
  const focused = document.activeElement?.closest?.("#ended-rows tr")?.dataset.id;
  const known = new Map([...rows.children].map((node) => [node.dataset.id, node]));
  const wanted = suiting.slice(0, shown).map((ended) => known.get(ended.call.id) ?? row(ended));
  // rows that stay are not touched, so that focus stays too
  const kept = new Set(wanted);
  for (const node of [...rows.children]) if (!kept.has(node)) node.remove();
  wanted.forEach((node, n) => {
    if (rows.children[n] !== node) rows.insertBefore(node, rows.children[n] ?? null);
  });
  if (focused && !rows.contains(document.activeElement)) {
    (rows.querySelector(`tr[data-id="${CSS.escape(focused)}"] button`) ?? by("ended-title")).focus();
  }
  by("ended-table").hidden = !wanted.length;
  by("ended-empty").hidden = wanted.length > 0;
  setText(by("ended-empty"), all.length ? "No call suits the filter." : "No call has ended since the start of trunkless.");
  by("ended-more").hidden = suiting.length <= wanted.length;
  setText(by("ended-count"), wanted.length ? `${wanted.length} of ${suiting.length}` : "");
}

/** Adds calls that have just ended. */
export function add(ended) {
  if (!ended.length) return;
  const ids = new Set(ended.map(({ call }) => call.id));
  all = [...ended, ...all.filter(({ call }) => !ids.has(call.id))].slice(0, MAX);
  draw();
}

export async function load(open) {
  onOpen = open;
  const { calls } = await json(`v1/ended?limit=${MAX}`);
  // some may have ended since the answer
  const ids = new Set(calls.map(({ call }) => call.id));
  all = [...all.filter(({ call }) => !ids.has(call.id)), ...calls]
    .sort((a, b) => (a.call.ended_at < b.call.ended_at ? 1 : -1)).slice(0, MAX);
  draw();
}

export function clear() {
  all = [];
  shown = PAGE;
  draw();
}

export function start() {
  by("ended-filter").addEventListener("input", () => {
    shown = PAGE;
    draw();
  });
  by("ended-more").addEventListener("click", () => {
    const last = by("ended-rows").lastElementChild;
    shown += PAGE;
    draw();
    // reading goes on at the first new row
    last?.nextElementSibling?.querySelector("button")?.focus();
  });
}
