// Elements are made of names, properties and text, never of markup: a caller's name stays text.

/** Makes an element. `props` are attributes, but `on` has listeners and `class` may be a list. */
export function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (key === "class") {
      node.className = [value].flat().filter(Boolean).join(" ");
    } else {
      node.setAttribute(key, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const by = (id) => document.getElementById(id);

/** Sets an element's text if it has another one, so that nothing is drawn or read again. */
export function setText(node, text) {
  const wanted = String(text ?? "");
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function setAttribute(node, name, value) {
  const wanted = String(value);
  if (node.getAttribute(name) !== wanted) node.setAttribute(name, wanted);
}

export function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

const announcer = by("announcer");
const toast = by("toast");
let hide;

/** Puts the place of announcements where it is seen and read: in the dialog while that is open. */
export function placeAnnouncer(host) {
  if (toast.parentNode !== host) host.append(toast, announcer);
}

/** Shows the outcome of something that the user did, also to screen readers. */
export function announce(text, bad = false) {
  announcer.textContent = "";
  // a change, also if the text is the same as before
  setTimeout(() => { announcer.textContent = text; }, 50);
  toast.textContent = text;
  toast.className = bad ? "toast bad" : "toast";
  toast.hidden = false;
  clearTimeout(hide);
  hide = setTimeout(() => { toast.hidden = true; }, 6000);
}

/** A table cell with its column's name, which is shown where the table has no columns. */
export function cell(label, kind, ...children) {
  return el("td", { role: "cell", class: kind, "data-label": label }, ...children);
}

/** A row of facts: names and values. Empty values are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return el("dl", { class: "facts" }, ...shown.map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
