// One call in a dialog: a live one with its figures and commands, or an ended one with its timeline
// and recordings.

import { command, request } from "./api.js";
import { Output, playLive } from "./audio.js";
import { announce, by, el, facts, placeAnnouncer, setAttribute, setClass, setText } from "./dom.js";
import * as ended from "./ended.js";
import { aiState, caller, clock, duration, ms, percent, reason, reasonKind } from "./format.js";
import { calls, meter, presentLoss, setMeter, talked } from "./live.js";
import { player, stopPlaying } from "./player.js";

/** What the token may do. */
let me = { scopes: [], listen_in: false, recordings: false };
/** The call that is shown: its id, and for a live one the nodes that change. */
let open = null;
let listening = null;
/** What had focus before. */
let opener = null;

const may = (scope) => me.scopes.includes(scope);
export const setSession = (session) => { me = session; };

function head(call, ...more) {
  return el("header", { class: "detail-head" },
    el("div", {}, el("h2", { id: "detail-title", tabindex: "-1" }, caller(call)),
      call.from_name ? el("p", { class: "name" }, call.from_name) : null),
    ...more,
    el("button", { type: "button", class: "quiet close", "aria-label": "Close", on: { click: close } }, "✕"));
}

const ANSWERERS = {
  human: "a person",
  machine_start: "a machine",
  machine_end_beep: "a machine, which has beeped",
  machine_end_silence: "a machine, which is silent now",
  machine_end_other: "a machine with a long greeting",
  unknown: "not known",
};

function known(call) {
  return facts([
    ["Called", call.to_number],
    ["Direction", call.direction],
    ["PBX", call.pbx],
    ["Started", clock(call.started_at)],
    ["Answered", call.answered_at && clock(call.answered_at)],
    ["Answered by", ANSWERERS[call.answered_by]],
    ["Call", call.id],
    ["callSid", call.call_sid],
    ["PBX's id", call.native_id],
    ...Object.entries(call.details ?? {}),
  ]);
}

function turns(latency) {
  if (!latency) return null;
  return el("section", {}, el("h3", {}, "Turn latency"), facts([
    ["Turns", String(latency.turns)],
    ["Last", ms(latency.last_ms)],
    ["Median", ms(latency.median_ms)],
    ["95 %", ms(latency.p95_ms)],
    ["Last, AI's share", ms(latency.last_ai_ms)],
    ["Last, our share", ms(latency.last_bridge_ms)],
  ]));
}

function present(id, ...children) {
  const dialog = by("detail");
  if (!dialog.open) opener = document.activeElement;
  const inner = el("div", { class: "detail" }, ...children);
  placeAnnouncer(document.body);
  dialog.replaceChildren(inner);
  if (!dialog.open) dialog.showModal();
  placeAnnouncer(dialog);
  by("detail-title").focus();
  return inner;
}

// ---- live calls ----

export function openLive(id) {
  const entry = calls.get(id);
  if (!entry) return openEnded(id);
  leave();
  const { call } = entry;
  const meters = [meter("Caller level", "caller"), meter("AI level", "ai")];
  const names = ["Time", "Loss now", "Loss", "Jitter", "Latency", "Packets in", "Packets out", "Concealed",
    "AI audio waiting", "Listeners"];
  const values = Object.fromEntries(names.map((name) => [name, el("span")]));
  const state = el("span", { class: "pill" });
  const latency = el("div");
  open = { id, values, meters, state, latency };
  present(id, head(call, state),
    el("section", { class: "levels-large" },
      el("div", {}, el("span", {}, "Caller"), meters[0].node),
      el("div", {}, el("span", {}, "AI"), meters[1].node)),
    actions(call),
    el("section", {}, el("h3", {}, "Now"), facts(names.map((name) => [name, values[name]]))),
    latency,
    el("section", {}, el("h3", {}, "Call"), known(call)));
  drawLive();
}

function drawLive() {
  const entry = calls.get(open?.id);
  if (!entry || !open.values) return;
  const { call, figures } = entry;
  const [word, kind] = aiState(call, figures);
  setText(open.state, word);
  setClass(open.state, `pill ${kind}`);
  setText(open.values.Time, talked(call) === null ? "–" : duration(talked(call)));
  const loss = presentLoss(entry);
  setText(open.values["Loss now"], loss === null ? "–" : percent(loss, 1));
  if (figures) {
    setMeter(open.meters[0], figures.caller_dbfs);
    setMeter(open.meters[1], figures.ai_dbfs);
    setText(open.values.Loss, percent(figures.lost, figures.packets_in + figures.lost));
    setText(open.values.Jitter, ms(figures.jitter_ms));
    setText(open.values.Latency, ms(figures.round_trip_ms));
    setText(open.values["Packets in"], figures.packets_in);
    setText(open.values["Packets out"], figures.packets_out);
    setText(open.values.Concealed, ms(figures.concealed_ms));
    setText(open.values["AI audio waiting"], ms(figures.playout_floor_ms));
    setText(open.values.Listeners, figures.listeners);
  }
  const turn = JSON.stringify(call.turn_latency ?? null);
  if (open.turn !== turn) {
    open.turn = turn;
    open.latency.replaceChildren(...[turns(call.turn_latency)].filter(Boolean));
  }
}

async function give(body, words, button) {
  const id = open.id;
  button.disabled = true;
  try {
    const reply = await command(id, body);
    announce(reply.status === "done" ? `${words}: done` : `${words}: ${reply.state ?? reply.status}`);
  } catch (error) {
    announce(`${words}: ${error.message}`, true);
  } finally {
    button.disabled = false;
    if (document.activeElement === document.body) by("detail-title")?.focus();
  }
}

function hangUp() {
  const box = el("div", { class: "confirm" });
  const ask = el("button", { type: "button", class: "danger", on: { click: () => {
    const yes = el("button", { type: "button", class: "danger", on: { click: () => give({ command: "hangup" }, "Hang up", yes) } }, "Hang up now");
    const no = el("button", { type: "button", on: { click: () => { box.replaceChildren(ask); ask.focus(); } } }, "Keep the call");
    box.replaceChildren(yes, no);
    no.focus();
  } } }, "Hang up");
  box.append(ask);
  return box;
}

function transfer({ names, extensions }) {
  if (!names.length && !extensions.length) {
    return el("p", { class: "muted" }, "No transfers: [pbx.NAME.transfer] allows no target.");
  }
  const select = names.length
    ? el("select", { "aria-label": "Transfer target" }, ...names.map((name) => el("option", { value: name }, name)),
      extensions.length ? el("option", { value: "" }, "Other extension…") : null)
    : null;
  const input = extensions.length
    ? el("input", { type: "text", inputmode: "tel", "aria-label": `Extension: ${extensions.join(", ")}`,
      placeholder: extensions.join(", "), autocomplete: "off", size: 12 })
    : null;
  if (select && input) {
    input.hidden = true;
    select.addEventListener("change", () => { input.hidden = select.value !== ""; });
  }
  const button = el("button", { type: "submit" }, "Transfer");
  return el("form", { class: "transfer", on: { submit: (event) => {
    event.preventDefault();
    const to = select?.value || input?.value.trim();
    if (to) give({ command: "transfer", to }, `Transfer to ${to}`, button);
    else input?.focus();
  } } }, ...[select, input, button].filter(Boolean));
}

function listenIn() {
  if (!may("listen")) return el("p", { class: "muted" }, "This token may not listen in: it lacks the scope listen.");
  if (!me.listen_in) return el("p", { class: "muted" }, "Listening in is off: set [control] listen_in = true.");
  const button = el("button", { type: "button", "aria-pressed": "false", on: { click: () => {
    if (listening) stopListening();
    else startListening(button);
  } } }, "Listen in");
  return button;
}

async function startListening(button) {
  const mine = { abort: new AbortController(), output: new Output(), button };
  listening = mine;
  setAttribute(button, "aria-pressed", true);
  setText(button, "Stop listening");
  try {
    const path = `v1/calls/${encodeURIComponent(open.id)}/listen`;
    await playLive(await request(path, { signal: mine.abort.signal }), mine.output);
    if (listening === mine) announce("Listening in ended");
  } catch (error) {
    if (listening === mine) announce(`Listening in: ${error.message}`, true);
  } finally {
    if (listening === mine) stopListening();
  }
}

function stopListening() {
  const mine = listening;
  listening = null;
  if (!mine) return;
  mine.abort.abort();
  mine.output.close();
  setAttribute(mine.button, "aria-pressed", false);
  setText(mine.button, "Listen in");
}

function actions(call) {
  const listen = listenIn();
  if (!may("control")) {
    return el("section", { class: "actions" }, listen,
      el("p", { class: "muted" }, "This token may not give commands: it lacks the scope control."));
  }
  return el("section", { class: "actions", "aria-label": "Commands" }, listen, transfer(call.targets), hangUp());
}

// ---- ended calls ----

const WORDS = {
  "call.started": "Offered by the PBX",
  "call.dialling": "The PBX calls the number",
  "call.ringing": "Ringing",
  "call.answered": "Answered",
  "call.answered_by": "Known who answered",
  "call.held": "Put on hold",
  "call.resumed": "Off hold",
  "call.transferred": "Transferred",
};
const COMMANDS = {
  hangup: "Hang up",
  transfer: "Transfer",
  redirect: "Redirect",
  sendDigits: "Press keys",
  hold: "Hold",
  unhold: "Off hold",
  mute: "Mute",
  unmute: "Unmute",
  record: "Record",
  play: "Play a prompt",
  setVariables: "Set variables",
  disposition: "Disposition",
  callback: "Call back",
  doNotCall: "Do not call",
  updateLead: "Update the lead",
};

function moment({ at_ms, type, command: given }, call, summary) {
  let [text, kind] = [WORDS[type] ?? type, "plain"];
  if (type === "call.command") {
    const who = given.by === "ai" ? "the AI" : given.by.replace(/^http:/, "");
    const name = COMMANDS[given.command] ?? given.command;
    text = `${name}, by ${who}: ${given.status === "done" ? "done" : given.detail ?? given.status}`;
    kind = given.status === "done" ? "good" : "bad";
  } else if (type === "call.ended") {
    text = `${reason(call.end_reason)}${summary?.ai_end ? `; AI: ${summary.ai_end}` : ""}`;
    kind = reasonKind(call.end_reason);
  }
  return { at_ms, text, kind };
}

function timeline({ call, summary, timeline: moments, timeline_left_out: leftOut }) {
  const list = moments.map((entry) => moment(entry, call, summary));
  const answered = moments.find(({ type }) => type === "call.answered");
  if (answered && typeof summary?.first_audio_ms === "number") {
    list.push({ at_ms: answered.at_ms + summary.first_audio_ms, text: "First audio of the AI", kind: "plain" });
  }
  list.sort((a, b) => a.at_ms - b.at_ms);
  return el("section", {}, el("h3", {}, "Timeline"), el("ol", { class: "timeline" },
    ...list.map(({ at_ms, text, kind }) => el("li", { class: kind },
      el("span", { class: "at" }, at_ms < 10_000 ? `${(at_ms / 1000).toFixed(2)} s` : duration(at_ms)),
      el("span", {}, text)))),
  leftOut ? el("p", { class: "muted" }, `${leftOut} later events are not kept.`) : null);
}

function recordings(summary) {
  const ids = summary?.recordings ?? [];
  if (!ids.length) return null;
  const section = el("section", {}, el("h3", {}, ids.length === 1 ? "Recording" : "Recordings"));
  if (!may("recordings")) {
    section.append(el("p", { class: "muted" }, "This token may not play recordings: it lacks the scope recordings."));
    return section;
  }
  for (const id of ids) {
    const place = el("div", { class: "recording", "aria-busy": "true" }, el("p", { class: "muted" }, "Loading…"));
    section.append(place);
    player(id).then((node) => place.replaceChildren(node), (error) => {
      const text = error.status === 404 ? "This recording is not here (yet), or no longer: it may have been uploaded." : error.message;
      place.replaceChildren(el("p", { class: "muted" }, text));
    }).finally(() => place.removeAttribute("aria-busy"));
  }
  return section;
}

export function openEnded(id) {
  const found = ended.find(id);
  if (!found) return announce("This call is not among the last calls", true);
  leave();
  const { call, summary } = found;
  open = { id };
  const lost = summary?.packets_lost ?? 0;
  present(id, head(call, el("span", { class: `pill ${reasonKind(call.end_reason)}` }, reason(call.end_reason))),
    recordings(summary),
    timeline(found),
    el("section", {}, el("h3", {}, "Figures"), facts([
      ["Talk", summary?.answered ? duration(summary.talk_ms) : "not answered"],
      ["Set-up", ms(summary?.setup_ms)],
      ["First audio", ms(summary?.first_audio_ms)],
      ["Packets in", String(summary?.packets_in ?? "–")],
      ["Packets out", String(summary?.packets_out ?? "–")],
      ["Loss", percent(lost, (summary?.packets_in ?? 0) + lost)],
      ["Frames the AI missed", String(summary?.ai_dropped_frames ?? "–")],
      ["Disposition", call.disposition?.status],
    ])),
    turns(summary?.turn_latency),
    el("section", {}, el("h3", {}, "Call"), known(call)));
}

// ---- the dialog ----

/** Takes over an event of `v1/live`. */
export function update(data) {
  if (!open?.values) return;
  if (calls.has(open.id)) return drawLive();
  stopListening();
  const over = data.ended.some(({ call }) => call.id === open.id) || ended.find(open.id);
  if (over) openEnded(open.id);
  else close();
}

/** Stops what the dialog plays. */
function leave() {
  stopListening();
  stopPlaying();
  open = null;
}

export function close() {
  if (by("detail").open) by("detail").close();
}

export function start() {
  const dialog = by("detail");
  dialog.addEventListener("close", () => {
    leave();
    placeAnnouncer(document.body);
    dialog.replaceChildren();
    // the row may be gone
    if (opener?.isConnected && opener.offsetParent !== null) opener.focus();
    opener = null;
  });
  // a click beside the dialog
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) close();
  });
}
