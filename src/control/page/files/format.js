// Values as people read them.

const two = (n) => String(n).padStart(2, "0");

/** Milliseconds as 0:07, 12:34 or 1:02:03. */
export function duration(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const [hours, minutes, seconds] = [Math.floor(s / 3600), Math.floor(s / 60) % 60, s % 60];
  return hours ? `${hours}:${two(minutes)}:${two(seconds)}` : `${minutes}:${two(seconds)}`;
}

/** Milliseconds within a recording, as 1:07.5. */
export function position(ms) {
  return `${duration(ms)}.${Math.floor((ms % 1000) / 100)}`;
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  return value < 10_000 ? `${Math.round(value)} ms` : `${Math.round(value / 1000)} s`;
}

export function percent(part, whole) {
  if (!whole) return "–";
  const value = (100 * part) / whole;
  return value === 0 ? "0 %" : value < 0.1 ? "< 0.1 %" : `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

export function clock(rfc3339) {
  if (!rfc3339) return "–";
  const at = new Date(rfc3339);
  const today = at.toDateString() === new Date().toDateString();
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return today ? time : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}

const REASONS = {
  caller_hangup: "Caller hung up",
  cancelled: "Caller gave up",
  ai_hangup: "AI hung up",
  ai_handover: "AI handed over",
  transfer_failed: "Transfer failed",
  api_hangup: "Hung up by command",
  ai_unreachable: "AI unreachable",
  ai_closed: "AI connection lost",
  ai_timeout: "AI silent",
  ai_protocol: "AI protocol error",
  media_timeout: "No audio from the PBX",
  pbx_lost: "PBX lost",
  pbx_error: "PBX error",
  transferred: "Transferred",
  no_ack: "No ACK",
  session_expired: "Session expired",
  bad_media: "No common codec",
  max_duration: "Longest duration",
  overload: "Too many calls",
  busy: "Busy",
  no_answer: "No answer",
  rejected: "Declined",
  invalid_number: "Unknown number",
  dial_failed: "Not placed by the PBX",
  not_recorded: "Not recorded",
  drain: "Shutdown",
  internal: "Internal error",
};
const GOOD = ["caller_hangup", "cancelled", "ai_hangup", "ai_handover", "api_hangup", "transferred"];
const NEUTRAL = ["drain", "max_duration"];

export const reason = (label) => REASONS[label] ?? String(label ?? "").replaceAll("_", " ");
export const reasonKind = (label) =>
  GOOD.includes(label) ? "good" : NEUTRAL.includes(label) ? "plain" : "bad";

const AI_STATES = {
  dialling: ["Dialling", "plain"],
  listening: ["Listening", "listening"],
  speaking: ["Speaking", "speaking"],
  failed: ["Failed", "bad"],
  gone: ["Gone", "plain"],
};

/** The state of a call's AI: its words, and its kind. */
export function aiState(call, figures) {
  if (call.state === "held") return ["On hold", "warn"];
  if (call.state === "connecting") return figures?.ai === "failed" ? AI_STATES.failed : ["Connecting", "plain"];
  return AI_STATES[figures?.ai] ?? ["–", "plain"];
}

export const caller = (call) => call.from_number || "unknown number";

export const contains = (call, text) => {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return true;
  const parts = [call.from_number, call.from_name, call.to_number, call.pbx, call.id, call.call_sid,
    call.native_id, call.end_reason && reason(call.end_reason), ...Object.values(call.details ?? {})];
  return parts.some((part) => String(part ?? "").toLowerCase().includes(wanted));
};
