// What forms do better with a script; each of them works without.

import { morph } from "./morph.js";

export function helpForms() {
  document.addEventListener("submit", (event) => {
    const form = /** @type {HTMLFormElement} */ (event.target);
    if (form.matches("[data-drop-empty]")) dropEmpty(form);
    if (form.matches("[data-tells-time]")) tellTime(form);
    // A second click submits nothing more; the buttons come back with the page.
    if (form.matches("[data-once]")) setTimeout(() => setDisabled(form, true));
  });
  addEventListener("pageshow", (event) => {
    for (const form of document.forms) setDisabled(form, false);
    // Back on a page that was kept whole: its filters are those of its address again.
    if (event.persisted) document.querySelectorAll("[data-drop-empty]").forEach((form) => form.reset());
  });
  document.addEventListener("input", (event) => {
    const [name, value] = (event.target.dataset?.chooses ?? "").split("=");
    const radio = value && event.target.form.querySelector(`[name="${CSS.escape(name)}"][value="${CSS.escape(value)}"]`);
    if (radio) radio.checked = true;
  });
  for (const button of document.querySelectorAll("[data-preview]")) helpPreview(button);
  for (const zone of document.querySelectorAll("[data-zone]")) {
    zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone || "your time";
  }
}

function setDisabled(form, disabled) {
  for (const button of form.querySelectorAll("button")) button.disabled = disabled;
}

/** Keep addresses short: what is not filtered by is not in them. */
function dropEmpty(form) {
  const empty = [...form.elements].filter((field) => field.name && !field.value);
  for (const field of empty) field.disabled = true;
  setTimeout(() => empty.forEach((field) => (field.disabled = false)));
}

/** The field holds a time of the visitor's clock and zone; the server is told the moment. */
function tellTime(form) {
  const at = new Date(form.elements.at.value);
  form.elements.run_at.value = Number.isNaN(at.getTime()) ? "" : at.toISOString();
}

/** Show what the server makes of the fields beside the button, also while they are filled in. */
function helpPreview(button) {
  const fields = button.closest("fieldset");
  const part = fields.querySelector("[data-part]");
  let timer = 0;
  let asked = 0;
  async function show() {
    clearTimeout(timer);
    const number = ++asked;
    const url = new URL(button.form.action);
    url.searchParams.set("part", part.dataset.part);
    tellTime(button.form);
    for (const field of fields.elements) {
      if (field.name && field.value && (field.type !== "radio" || field.checked)) url.searchParams.append(field.name, field.value);
    }
    try {
      const answer = await fetch(url, { headers: { accept: "text/html" }, cache: "no-store" });
      const text = await answer.text();
      // Of several answers only the last one counts, in whatever order they come.
      if (number !== asked) return;
      if (answer.ok) morph(part, new DOMParser().parseFromString(text, "text/html").body.firstElementChild);
      else part.textContent = text.slice(0, 300);
    } catch {
      part.textContent = "The server does not answer.";
    }
  }
  button.addEventListener("click", (event) => {
    event.preventDefault();
    show();
  });
  fields.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(show, 300);
  });
  show();
}
