// What forms do better with a script; each of them works without.

export function helpForms() {
  document.addEventListener("submit", (event) => {
    const form = /** @type {HTMLFormElement} */ (event.target);
    if (form.matches("[data-drop-empty]")) dropEmpty(form);
    if (form.matches("[data-new-job]")) tellTime(form);
    // A second click submits nothing more; the buttons come back with the page.
    if (form.matches("[data-once]")) setTimeout(() => setDisabled(form, true));
  });
  addEventListener("pageshow", (event) => {
    for (const form of document.forms) setDisabled(form, false);
    // Back on a page that was kept whole: its filters are those of its address again.
    if (event.persisted) document.querySelectorAll("[data-drop-empty]").forEach((form) => form.reset());
  });
  document.addEventListener("input", (event) => {
    const chosen = event.target.dataset?.chooses;
    const radio = chosen && event.target.form.querySelector(`[name="when"][value="${CSS.escape(chosen)}"]`);
    if (radio) radio.checked = true;
  });
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
