// Turn one element into another without undoing what its reader does: nodes that stay the same stay the same nodes, so
// focus, selection, scroll positions and what is typed live on. Elements with a data-key are matched by it, the others
// by their order.

/** @param {Element} from  @param {Element} to */
export function morph(from, to) {
  syncAttributes(from, to);
  // What is typed into a textarea is its own; its children are only what it began with.
  if (from.nodeName === "TEXTAREA" && from === document.activeElement) return;
  syncChildren(from, to);
}

function syncAttributes(from, to) {
  for (const { name, value } of [...to.attributes]) {
    // A value attribute is only the beginning of what a field holds: setting it leaves alone what is typed.
    if (!isReaders(from, name) && from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  for (const { name } of [...from.attributes]) {
    if (!isReaders(from, name) && !to.hasAttribute(name)) from.removeAttribute(name);
  }
}

/** Whether the attribute belongs to the reader: what is folded open, and what a script has marked. */
function isReaders(element, name) {
  return (name === "open" && (element.nodeName === "DETAILS" || element.nodeName === "DIALOG")) || name === "data-mine";
}

function syncChildren(from, to) {
  const keyed = new Map();
  for (const child of from.children) {
    if (child.dataset?.key) keyed.set(child.dataset.key, child);
  }
  let next = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const key = wanted.dataset?.key;
    let found = key === undefined ? plain(next, wanted) : keyed.get(key);
    if (found && found.nodeName !== wanted.nodeName) found = null;
    if (!found) {
      from.insertBefore(document.importNode(wanted, true), next);
      continue;
    }
    if (key !== undefined) keyed.delete(key);
    if (found === next) next = next.nextSibling;
    else next = place(from, found, next);
    if (found.nodeType === Node.ELEMENT_NODE) morph(found, wanted);
    else if (found.data !== wanted.data) found.data = wanted.data;
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

/** Bring `found` before `next`. Moving a node would take its focus away, so those in between go when it has any. */
function place(parent, found, next) {
  if (!found.contains(document.activeElement)) {
    parent.insertBefore(found, next);
    return next;
  }
  while (next && next !== found) {
    const passed = next;
    next = next.nextSibling;
    // Keyed ones may be wanted further on: they move behind.
    if (passed.dataset?.key) parent.append(passed);
    else passed.remove();
  }
  return found.nextSibling;
}

/** The next old node without a key, if it is of the wanted sort. */
function plain(node, wanted) {
  return node && node.nodeName === wanted.nodeName && !node.dataset?.key ? node : null;
}
