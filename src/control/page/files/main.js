// Signs in, follows the live calls, and switches between the views.

import { follow, json, session, token } from "./api.js";
import * as detail from "./detail.js";
import { announce, by, setText } from "./dom.js";
import * as ended from "./ended.js";
import * as health from "./health.js";
import * as live from "./live.js";

const VIEWS = ["live", "ended", "health"];
const TITLES = { live: "Live calls", ended: "Last calls", health: "Health" };
/** Without an event for this long, the connection is made again. */
const SILENCE = 10_000;
const MAX_PAUSE = 10_000;

/** Ends what is being followed. */
let following = null;

function show(view, focus) {
  for (const name of VIEWS) by(name).hidden = name !== view;
  for (const link of by("nav").querySelectorAll("a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = view ? `${TITLES[view]} – trunkless` : "trunkless";
  if (view && focus) by(`${view}-title`).focus();
}

function wanted() {
  const name = location.hash.slice(1);
  return VIEWS.includes(name) ? name : "live";
}

function linkState(text, kind) {
  setText(by("link-state"), text);
  by("link-state").className = `link-state ${kind}`;
}

function signOut(message = "") {
  token.forget();
  following?.abort();
  following = null;
  detail.close();
  live.clear();
  ended.clear();
  health.clear();
  by("nav").hidden = true;
  by("session").hidden = true;
  show(null);
  document.title = "Sign in – trunkless";
  by("sign-in").hidden = false;
  setText(by("sign-in-error"), message);
  by("token").value = "";
  by("token").focus();
}

async function signIn() {
  const me = await json("v1/session");
  if (!me.scopes.includes("read")) {
    token.forget();
    throw new Error("this token may not see calls: it lacks the scope read");
  }
  detail.setSession(me);
  health.allow(me.scopes.includes("control"));
  setText(by("who"), me.token);
  setText(by("version"), `trunkless ${me.version}`);
  by("sign-in").hidden = true;
  by("nav").hidden = false;
  by("session").hidden = false;
  show(wanted(), true);
  ended.load(detail.openEnded).catch((error) => announce(`Last calls: ${error.message}`, true));
  followCalls();
}

/** Takes over an event of the stream. */
function take(data) {
  live.update(data, detail.openLive);
  ended.add(data.ended);
  if (data.status) health.update(data.status);
  detail.update(data);
}

/** Compares the server's clock with this computer's. */
function noteClock(response) {
  const date = Date.parse(response.headers.get("date"));
  const difference = Date.now() - date;
  // the header has whole seconds
  live.setSkew(Math.abs(difference) > 2000 ? difference : 0);
}

const sleep = (time) => new Promise((resolve) => setTimeout(resolve, time));

async function followCalls() {
  const mine = new AbortController();
  following?.abort();
  following = mine;
  let pause = 500;
  let lost = false;
  while (!mine.signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    mine.signal.addEventListener("abort", stop);
    let watchdog = setTimeout(stop, SILENCE);
    let first = true;
    linkState("Connecting…", "plain");
    try {
      await follow("v1/live", attempt.signal, noteClock, (data) => {
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, SILENCE);
        if (first) {
          live.keepOnly(data.figures);
          if (lost) announce("Connected again");
          // what has ended in the meantime
          if (lost) ended.load(detail.openEnded).catch(() => {});
        }
        [first, lost, pause] = [false, false, 500];
        linkState("Live", "good");
        take(data);
      });
    } catch (error) {
      if (mine.signal.aborted || error.status === 401) break;
      if (error.status === 403) return signOut(error.message);
    } finally {
      clearTimeout(watchdog);
      mine.signal.removeEventListener("abort", stop);
    }
    if (mine.signal.aborted) break;
    if (!lost) announce("The connection to trunkless is lost", true);
    lost = true;
    linkState("Connection lost", "bad");
    await sleep(pause);
    pause = Math.min(2 * pause, MAX_PAUSE);
  }
}

session.onRefused = (message) => signOut(`Signed out: ${message}`);

by("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setText(by("sign-in-error"), "");
  // characters of a pasted line that no header may have
  const text = by("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(text)) {
    setText(by("sign-in-error"), "A token consists of printable ASCII characters without spaces.");
    return;
  }
  token.set(text);
  try {
    await signIn();
  } catch (error) {
    token.forget();
    setText(by("sign-in-error"), `Not signed in: ${error.message}`);
    by("token").focus();
  }
});
by("sign-out").addEventListener("click", () => signOut());
window.addEventListener("hashchange", () => {
  if (token.get() && !by("nav").hidden) show(wanted(), true);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  by("main").focus();
});
by("live-filter").addEventListener("input", live.filter);
ended.start();
detail.start();

if (token.get()) {
  signIn().catch((error) => signOut(`Not signed in: ${error.message}`));
} else {
  signOut();
}
