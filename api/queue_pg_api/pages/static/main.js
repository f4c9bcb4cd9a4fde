// Starts what a page needs: the live regions, the forms' help, and the keys.

import { helpForms } from "./forms.js";
import { Live } from "./live.js";

const notice = document.getElementById("notice");
const live = new Live((text) => {
  if (notice.textContent === (text ?? "")) return;
  notice.textContent = text ?? "";
  notice.hidden = text === null;
});

const SWITCH = "queue-pg-live";
const button = document.getElementById("live");

function setLive(on) {
  button.setAttribute("aria-pressed", String(on));
  document.getElementById("live-word").textContent = on ? "Live" : "Paused";
  try {
    localStorage.setItem(SWITCH, on ? "on" : "off");
  } catch {
    // Storage may be forbidden; the switch then holds for this page.
  }
  live.set(on);
}

function storedLive() {
  try {
    return localStorage.getItem(SWITCH) !== "off";
  } catch {
    return true;
  }
}

const dialog = document.getElementById("keys-dialog");
button.addEventListener("click", () => setLive(button.getAttribute("aria-pressed") !== "true"));
document.getElementById("keys").addEventListener("click", () => dialog.showModal());

let prefix = "";
let prefixTimer = 0;

/** Follow the link that names these keys. */
function follow(keys) {
  const link = document.querySelector(`[data-keys="${CSS.escape(keys)}"]`);
  if (link) location.assign(link.href);
}

function step(by) {
  const rows = [...document.querySelectorAll("[data-row]")];
  if (!rows.length) return;
  const row = document.activeElement?.closest("tr")?.querySelector("[data-row]");
  const at = row ? rows.indexOf(row) + by : by > 0 ? 0 : rows.length - 1;
  rows[Math.min(Math.max(at, 0), rows.length - 1)].focus();
}

const KEYS = {
  g: () => {
    prefix = "g";
    clearTimeout(prefixTimer);
    prefixTimer = setTimeout(() => (prefix = ""), 1_500);
  },
  n: () => follow("n"),
  "/": () => document.querySelector("[data-first]")?.focus(),
  j: () => step(1),
  k: () => step(-1),
  r: () => live.fetchAll(),
  l: () => button.click(),
  "?": () => dialog.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialog.open) return;
  const target = /** @type {HTMLElement} */ (event.target);
  if (target.closest?.("input, textarea, select, [contenteditable]")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (prefix === "g" && event.key !== "g") {
    prefix = "";
    follow(`g ${event.key}`);
    event.preventDefault();
  } else if (Object.hasOwn(KEYS, event.key)) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

document.documentElement.classList.add("scripted");
helpForms();
setLive(storedLive());
