// Requests to the control API. The token is kept for this tab only, and sent in a header, so that
// no other site can use it.

const KEY = "trunkless-token";

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

export class ApiError extends Error {
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

/** Called when the token is refused. */
export const session = { onRefused: () => {} };

/** Sends a request, and throws an ApiError unless the status is one of success. */
export async function request(path, { method = "GET", headers = {}, body, signal } = {}) {
  const response = await fetch(path, {
    method,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: { Authorization: `Bearer ${token.get() ?? ""}`, ...headers },
    credentials: "omit",
    cache: "no-store",
    redirect: "error",
  });
  if (response.ok) return response;
  let answer = null;
  try {
    answer = await response.json();
  } catch {
    // a proxy's error, which is not JSON
  }
  const message = answer?.error?.message ?? answer?.detail ?? `the server answered ${response.status}`;
  if (response.status === 401) session.onRefused(message);
  throw new ApiError(response.status, message, answer);
}

export const json = async (path, options) => (await request(path, options)).json();

/** Gives a command to a call, and returns its reply. */
export async function command(call, body) {
  const path = `v1/calls/${encodeURIComponent(call)}/commands?wait=30`;
  return json(path, { method: "POST", body });
}

/** Calls `onData` with the data of each server-sent event, until the stream ends. */
export async function follow(path, signal, onOpen, onData) {
  const response = await request(path, { signal });
  onOpen(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) onData(JSON.parse(lines.map((line) => line.slice(5).trimStart()).join("\n")));
    }
  }
}
