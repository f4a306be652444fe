// Sound: decodes G.711, and plays the two sides of a call without gaps.

const RATE = 8000;

function table(decode) {
  return Float32Array.from({ length: 256 }, (_, byte) => decode(byte) / 32_768);
}

const MU = table((byte) => {
  const code = ~byte & 0xff;
  const magnitude = (((code & 0x0f) << 3) + 0x84) << ((code & 0x70) >> 4);
  return code & 0x80 ? 0x84 - magnitude : magnitude - 0x84;
});

const A = table((byte) => {
  const code = byte ^ 0x55;
  const [segment, step] = [(code & 0x70) >> 4, (code & 0x0f) << 4];
  const magnitude = segment === 0 ? step + 8 : (step + 0x108) << (segment - 1);
  return code & 0x80 ? magnitude : -magnitude;
});

/** Bytes of the header of our WAV files, and bytes of one sample, by format. */
export const FORMATS = {
  mulaw: { header: 58, bytes: 1 },
  alaw: { header: 58, bytes: 1 },
  pcm16: { header: 44, bytes: 2 },
};

/** Divides interleaved samples into the two sides. */
export function decode(bytes, format) {
  const size = FORMATS[format].bytes;
  const count = Math.floor(bytes.length / (2 * size));
  const sides = [new Float32Array(count), new Float32Array(count)];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const law = format === "alaw" ? A : MU;
  for (let n = 0; n < 2 * count; n++) {
    sides[n & 1][n >> 1] = size === 2 ? view.getInt16(2 * n, true) / 32_768 : law[bytes[n]];
  }
  return sides;
}

/** Plays what it is given, one piece after the other. */
export class Output {
  constructor() {
    this.context = new AudioContext({ sampleRate: RATE, latencyHint: "playback" });
    this.gains = [0, 1].map((side) => {
      const gain = this.context.createGain();
      const pan = this.context.createStereoPanner();
      // the caller a little to the left, the AI to the right
      pan.pan.value = side ? 0.35 : -0.35;
      gain.connect(pan).connect(this.context.destination);
      return gain;
    });
    this.sources = new Set();
    this.next = 0;
  }

  /** Turns a side on or off: 0 is the caller, 1 the AI. */
  set(side, on) {
    this.gains[side].gain.value = on ? 1 : 0;
  }

  /** Seconds of sound that have not been heard yet. */
  get ahead() {
    return Math.max(0, this.next - this.context.currentTime);
  }

  /** Adds sound. Returns the time at which it will be heard. `delay`: what to wait after a gap. */
  push(sides, delay) {
    const now = this.context.currentTime;
    if (this.next < now + 0.01) this.next = now + delay;
    const at = this.next;
    sides.forEach((samples, side) => {
      if (!samples.length) return;
      const buffer = this.context.createBuffer(1, samples.length, RATE);
      buffer.copyToChannel(samples, 0);
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.gains[side]);
      source.onended = () => this.sources.delete(source);
      this.sources.add(source);
      source.start(at);
    });
    this.next = at + sides[0].length / RATE;
    return at;
  }

  /** Forgets what has not been heard. */
  clear() {
    for (const source of this.sources) source.stop();
    this.sources.clear();
    this.next = 0;
  }

  close() {
    this.clear();
    return this.context.close();
  }
}

const PIECE = RATE / 10;
/** Sound that waits before listening begins, and the most that may wait, in seconds. */
const DELAY = 0.25;
const MAX_AHEAD = 1.5;

/** Plays the stream of a live call until it ends. */
export async function playLive(response, output) {
  const reader = response.body.getReader();
  let skip = FORMATS.mulaw.header;
  let rest = new Uint8Array(0);
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const all = new Uint8Array(rest.length + value.length);
    all.set(rest);
    all.set(value, rest.length);
    const start = Math.min(skip, all.length);
    skip -= start;
    rest = all.subarray(start);
    while (rest.length >= 2 * PIECE) {
      const piece = rest.slice(0, 2 * PIECE);
      rest = rest.subarray(2 * PIECE);
      // what arrives after a stall of the network is left out
      if (output.ahead < MAX_AHEAD) output.push(decode(piece, "mulaw"), DELAY);
    }
  }
}
