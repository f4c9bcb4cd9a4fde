// Keep the regions of a page as the server would draw them now. The server tells which topics have changed; the regions
// that show them are fetched by ?part= and morphed. Without the stream they are fetched every few seconds, and nothing at
// all is asked for while the tab is hidden.

import { morph } from "./morph.js";

const POLL = 5_000;
const STREAM_AGAIN = 30_000;
// Ages are drawn by the server; this also makes good what a lost message left out.
const AT_LEAST = 30_000;
const BUSY_AGAIN = 500;

export class Live {
  /** @param {(text: string | null) => void} say */
  constructor(say) {
    this.say = say;
    this.on = true;
    this.stream = null;
    this.followed = "";
    this.timers = {};
    this.wanted = new Set();
    this.fetching = new Set();
    this.pressed = false;
    document.addEventListener("visibilitychange", () => this.update());
    addEventListener("pagehide", () => this.close());
    addEventListener("pageshow", (event) => event.persisted && this.update());
    document.addEventListener("pointerdown", () => (this.pressed = true));
    for (const name of ["pointerup", "pointercancel"]) {
      document.addEventListener(name, () => (this.pressed = false));
    }
  }

  /** @param {boolean} on */
  set(on) {
    this.on = on;
    this.update();
  }

  regions() {
    return [...document.querySelectorAll("[data-part]")];
  }

  topics() {
    return [...new Set(this.regions().flatMap(topicsOf))];
  }

  /** Open or close the stream, as the switch and the tab ask for. */
  update() {
    this.close();
    if (!this.on || document.hidden || !this.topics().length) return;
    this.timers.atLeast = setInterval(() => this.fetchAll(), AT_LEAST);
    this.open();
  }

  open() {
    clearTimeout(this.timers.again);
    const url = new URL(document.documentElement.dataset.events, location.href);
    this.followed = this.topics().join(" ");
    for (const topic of this.topics()) url.searchParams.append("topic", topic);
    const stream = new EventSource(url);
    this.stream = stream;
    stream.addEventListener("ready", () => {
      this.endPolling();
      this.fetchAll();
    });
    stream.onmessage = (message) => {
      const changed = new Set(JSON.parse(message.data).topics);
      this.fetch(this.regions().filter((region) => topicsOf(region).some((topic) => changed.has(topic))));
    };
    stream.onerror = () => {
      this.poll();
      if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      this.timers.again = setTimeout(() => this.open(), STREAM_AGAIN);
    };
  }

  close() {
    this.stream?.close();
    this.stream = null;
    this.endPolling();
    clearTimeout(this.timers.again);
    clearInterval(this.timers.atLeast);
    clearTimeout(this.timers.busy);
  }

  poll() {
    this.timers.poll ??= setInterval(() => this.fetchAll(), POLL);
    document.documentElement.dataset.live = "polling";
  }

  endPolling() {
    clearInterval(this.timers.poll);
    this.timers.poll = null;
    document.documentElement.dataset.live = this.stream ? "stream" : "off";
  }

  fetchAll() {
    return this.fetch(this.regions().filter((region) => topicsOf(region).length));
  }

  /** @param {Element[]} regions */
  fetch(regions) {
    for (const region of regions) {
      // Drawn anew, a form that was refused would not say why any more, and what was in it would be gone.
      if (!("refused" in region.dataset)) this.wanted.add(region.dataset.part);
    }
    return this.work();
  }

  async work() {
    clearTimeout(this.timers.busy);
    const names = [...this.wanted].filter((name) => !this.fetching.has(name));
    await Promise.all(names.map((name) => this.renew(name)));
  }

  async renew(name) {
    const region = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
    this.wanted.delete(name);
    if (!region) return;
    this.fetching.add(name);
    let html = null;
    try {
      // Not the address of a form that was refused.
      const url = new URL(document.documentElement.dataset.here, location.href);
      url.searchParams.set("part", name);
      const answer = await fetch(url, { headers: { accept: "text/html" }, cache: "no-store" });
      if (answer.ok) html = await answer.text();
      else this.say(`Not up to date: ${(await answer.text()).slice(0, 300)}`);
    } catch {
      this.say("Not up to date: the server does not answer. Trying again.");
    }
    this.fetching.delete(name);
    const drawn = html && new DOMParser().parseFromString(html, "text/html").body.firstElementChild;
    if (drawn && "slow" in drawn.dataset && !("slow" in region.dataset)) {
      // What is shown stays: it has the reader's place and focus in it.
      this.say(`Not up to date: ${drawn.textContent.trim()}`);
      html = null;
    }
    if (html === null) {
      // Tried again soon, also while the stream is open.
      this.later(name, POLL);
    } else if (this.busy(region)) {
      this.later(name, BUSY_AGAIN);
    } else {
      this.say(null);
      const follows = atEnd(region.querySelector("[data-follow]"));
      if (drawn) morph(region, drawn);
      const box = region.querySelector("[data-follow]");
      if (box && follows) box.scrollTop = box.scrollHeight;
      document.dispatchEvent(new CustomEvent("drawn", { detail: name }));
      // What is shown now may have to be followed by more than what was.
      if (this.stream && this.followed !== this.topics().join(" ")) this.update();
      if (this.wanted.has(name)) await this.renew(name);
    }
  }

  later(name, milliseconds) {
    this.wanted.add(name);
    clearTimeout(this.timers.busy);
    this.timers.busy = setTimeout(() => !document.hidden && this.work(), milliseconds);
  }

  /** Whether something is under way in the region that new content would disturb. */
  busy(region) {
    const selection = getSelection();
    return (
      this.pressed ||
      document.querySelector("dialog[open]") !== null ||
      (document.activeElement?.nodeName === "SELECT" && region.contains(document.activeElement)) ||
      (selection !== null && !selection.isCollapsed && selection.containsNode(region, true))
    );
  }
}

/** Whether a box that grows shows its end, or is not there yet: then it goes on showing it. */
function atEnd(box) {
  return box === null || box.scrollHeight - box.scrollTop - box.clientHeight < 30;
}

function topicsOf(region) {
  return region.dataset.topics.split(" ").filter(Boolean);
}
