// The player of a recording: both sides as waveforms, with keys, marks, turns, pauses and gaps.
// Pieces of the file are fetched as they are needed, with the token in a header.

import { json, request } from "./api.js";
import { FORMATS, Output, decode } from "./audio.js";
import { announce, el, setAttribute, setText } from "./dom.js";
import { duration, ms, position } from "./format.js";

const RATE = 8000;
/** Seconds of sound that are fetched at once, and that wait at least. */
const PIECE = 5;
const AHEAD = 3;
const LANE = 56;
const GAP = 18;

let playing = null;
/** Players that may be on the page. */
const players = new Set();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const each of players) each.draw();
});

/** Stops what is being played. */
export function stopPlaying() {
  playing?.pause();
  for (const each of players) each.resizing.disconnect();
  players.clear();
}

/** What happened in a recording: marker, words and time. */
function happenings(recording) {
  const list = [];
  for (const event of recording.events ?? []) {
    if (event.dtmf !== undefined) list.push({ at: event.at_ms, kind: "key", text: `Key ${event.dtmf}` });
    if (event.mark !== undefined) list.push({ at: event.at_ms, kind: "mark", text: `Mark “${event.mark}”` });
  }
  for (const turn of recording.turns ?? []) {
    const rest = turn.first_rtp_ms ?? turn.ai_first_audio_ms;
    const wait = rest === undefined || rest === null ? "" : `, answered after ${ms(rest - turn.caller_stopped_ms)}`;
    list.push({ at: turn.caller_stopped_ms, kind: "turn", text: `Caller stopped speaking${wait}` });
  }
  for (const { from_ms, to_ms } of recording.pauses ?? []) {
    list.push({ at: from_ms, kind: "pause", text: `Paused for ${ms(to_ms - from_ms)}` });
  }
  for (const { from_ms, to_ms } of recording.gaps ?? []) {
    list.push({ at: from_ms, kind: "gap", text: `Not written: ${ms(to_ms - from_ms)} are silence` });
  }
  return list.sort((a, b) => a.at - b.at);
}

class Player {
  constructor(recording, path) {
    Object.assign(this, { recording, path, at: 0, output: null, run: 0 });
    this.length = Math.max(1, (recording.samples / RATE) * 1000);
    this.events = happenings(recording);
    this.sides = [true, true];
  }

  build() {
    const text = `Waveform of ${duration(this.length)}: the caller above, the AI below`;
    this.canvas = el("canvas", { class: "waveform", role: "img", "aria-label": text, on: {
      click: (event) => this.seek((event.offsetX / this.canvas.clientWidth) * this.length),
    } });
    this.button = el("button", { type: "button", class: "primary play", on: { click: () => this.toggle() } }, "Play");
    this.slider = el("input", {
      type: "range", min: 0, max: Math.ceil(this.length), step: 100, value: 0, "aria-label": "Position",
      on: { input: () => this.seek(Number(this.slider.value)) },
    });
    this.time = el("span", { class: "time" });
    const side = (label, kind, n) => el("label", { class: `side ${kind}` },
      el("input", { type: "checkbox", checked: true, on: { change: (event) => {
        this.sides[n] = event.target.checked;
        this.output?.set(n, this.sides[n]);
      } } }), label);
    const list = this.events.length
      ? el("details", { class: "events" }, el("summary", {}, `Keys, marks and turns (${this.events.length})`),
        el("ol", {}, ...this.events.slice(0, 500).map(({ at, kind, text: what }) => el("li", {},
          el("button", { type: "button", class: "link at", on: { click: () => this.seek(at) } }, position(at)),
          el("span", { class: `dot ${kind}` }), el("span", {}, what)))))
      : null;
    this.node = el("div", { class: "player" }, this.canvas,
      el("div", { class: "controls" }, this.button, this.slider, this.time,
        side("Caller", "caller", 0), side("AI", "ai", 1)),
      list);
    this.resizing = new ResizeObserver(() => this.draw());
    this.resizing.observe(this.canvas);
    players.add(this);
    this.showTime();
    return this.node;
  }

  toggle() {
    if (this.output) this.pause();
    else this.play().catch((error) => {
      this.pause();
      announce(`The recording cannot be played: ${error.message}`, true);
    });
  }

  pause() {
    this.run += 1;
    this.output?.close();
    this.output = null;
    if (playing === this) playing = null;
    setText(this.button, "Play");
  }

  seek(at) {
    const wasPlaying = this.output !== null;
    if (wasPlaying) this.pause();
    this.at = Math.max(0, Math.min(at, this.length));
    this.showTime();
    if (wasPlaying) this.toggle();
  }

  async play() {
    if (playing) playing.pause();
    playing = this;
    const run = ++this.run;
    const output = new Output();
    this.output = output;
    this.sides.forEach((on, side) => output.set(side, on));
    setText(this.button, "Pause");
    if (this.at >= this.length - 50) this.at = 0;
    const { header, bytes } = FORMATS[this.recording.format];
    const total = this.recording.samples;
    let next = Math.floor((this.at / 1000) * RATE);
    let begun = null;
    const from = next;
    const tick = () => {
      if (this.run !== run) return;
      if (begun !== null) {
        const heard = Math.max(0, output.context.currentTime - begun);
        this.at = Math.min(this.length, ((from / RATE) + heard) * 1000);
        this.showTime();
        if (this.at >= this.length) return this.pause();
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    while (this.run === run && next < total) {
      if (output.ahead > AHEAD) {
        await new Promise((resolve) => setTimeout(resolve, 250));
        continue;
      }
      const count = Math.min(PIECE * RATE, total - next);
      const first = header + next * 2 * bytes;
      const range = `bytes=${first}-${first + count * 2 * bytes - 1}`;
      const response = await request(`${this.path}/audio`, { headers: { Range: range } });
      const piece = new Uint8Array(await response.arrayBuffer());
      if (this.run !== run) return;
      if (!piece.length) throw new Error("the file is shorter than its description");
      const at = output.push(decode(piece, this.recording.format), 0.1);
      begun ??= at;
      next += Math.floor(piece.length / (2 * bytes));
    }
  }

  showTime() {
    setText(this.time, `${position(this.at)} / ${duration(this.length)}`);
    this.slider.value = this.at;
    setAttribute(this.slider, "aria-valuetext", `${position(this.at)} of ${duration(this.length)}`);
    this.draw();
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    const height = 2 * LANE + GAP;
    const scale = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
    }
    const draw = this.canvas.getContext("2d");
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    draw.setTransform(scale, 0, 0, scale, 0, 0);
    draw.clearRect(0, 0, width, height);
    const x = (at) => (at / this.length) * width;
    for (const [list, name] of [[this.recording.pauses, "--line"], [this.recording.gaps, "--bad-soft"]]) {
      draw.fillStyle = colour(name);
      for (const { from_ms, to_ms } of list ?? []) draw.fillRect(x(from_ms), 0, Math.max(1, x(to_ms) - x(from_ms)), height);
    }
    const { caller, ai } = this.recording.waveform;
    [[caller, LANE / 2, "--caller"], [ai, LANE + GAP + LANE / 2, "--ai"]].forEach(([points, middle, name]) => {
      draw.fillStyle = colour(name);
      const bars = Math.min(points.length, Math.floor(width / 3));
      for (let n = 0; n < bars; n++) {
        const part = points.slice(Math.floor((n * points.length) / bars), Math.floor(((n + 1) * points.length) / bars));
        const half = Math.max(0.75, (Math.max(...part) / 100) * (LANE / 2));
        const left = (n * width) / bars;
        draw.globalAlpha = left <= x(this.at) && this.at > 0 ? 1 : 0.55;
        draw.fillRect(left, middle - half, Math.max(1.5, width / bars - 1), 2 * half);
      }
    });
    draw.globalAlpha = 1;
    for (const { at, kind } of this.events) {
      draw.fillStyle = colour({ key: "--warn", mark: "--muted", turn: "--good" }[kind] ?? "--line");
      draw.beginPath();
      draw.arc(x(at), LANE + GAP / 2, 3.5, 0, 2 * Math.PI);
      draw.fill();
    }
    draw.fillStyle = colour("--ink");
    draw.fillRect(Math.min(width - 2, x(this.at)), 0, 2, height);
  }
}

/** Loads a recording and returns its player, or words about why there is none. */
export async function player(id) {
  const path = `v1/recordings/${encodeURIComponent(id)}`;
  const recording = await json(path);
  if (!FORMATS[recording.format]) throw new Error(`the format ${recording.format} is not known`);
  return new Player(recording, path).build();
}
