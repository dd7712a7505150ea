// The text as a language model corrects it, beside the transcript. Whether it is a correction is known at its end.

import { enhance } from "./api.js";
import { copy } from "./clipboard.js";

export class Enhancement {
  done = null; // what the server said at the end
  #root;
  #button;
  #page;
  #asking = null;
  #id = null;

  // `root` is its section, `button` the one that asks for it; `page` is that of a Job.
  constructor(root, button, page) {
    this.#root = root;
    this.#button = button;
    this.#page = page;
    button.onclick = () => this.#ask();
    this.#part("anyway").onclick = () => this.#ask();
    this.#part("copy-enhanced").onclick = () => copy(this.done.text).then(() => page.announce("Copied."));
  }

  // Offer it for a transcription that the server knows by `id`.
  offer(id) {
    this.#id = id ?? null;
    this.#button.hidden = this.#id === null || this.#root.hidden === false;
  }

  // Begin to show what comes. `stop` ends it.
  begin(stop) {
    this.done = null;
    this.#root.hidden = false;
    this.#button.hidden = true;
    this.#part("enhanced").textContent = "";
    this.#show("growing", "The language model is reading …", { stop: true });
    this.#part("stop").onclick = stop;
  }

  get growing() {
    return this.#root.dataset.status === "growing";
  }

  take(name, data) {
    if (name === "enhancement.delta") {
      this.#part("enhanced").append(data.text);
      this.#say("The language model is writing …");
    }
    if (name === "enhancement.done") this.#finish(data);
  }

  // It ended before anybody could know whether it is a correction.
  breakOff(why) {
    this.#show("failed", why, { anyway: "Try again" });
    this.#page.announce(why);
  }

  close() {
    this.#asking?.abort();
  }

  async #ask() {
    const asking = new AbortController();
    this.#asking = asking;
    this.begin(() => asking.abort());
    this.#part("stop").focus();
    try {
      await enhance(this.#id, { signal: asking.signal, onEvent: (name, data) => this.take(name, data) });
      if (this.growing) this.breakOff("Not used: the answer ended before the text did.");
    } catch (error) {
      if (error.status === 401 && (await this.#page.askKey(error))) return this.#ask();
      this.breakOff(error.name === "AbortError" ? "Stopped: what was written is not used." : error.message);
    }
  }

  #finish(done) {
    this.done = done;
    const { status, text, reason, model, seconds } = done;
    if (status === "enhanced") {
      this.#part("enhanced").textContent = text;
      const by = `Corrected by ${model} in ${seconds.toFixed(1)} s.`;
      this.#show(status, reason ? `${by} ${sentence(reason)}` : by, { copy: true });
    } else if (status === "skipped") this.#show(status, `Skipped: ${reason}.`, { anyway: "Enhance anyway" });
    else this.#show(status, `Not used: ${reason}.`, { anyway: "Try again" });
    this.#page.announce(`Enhanced text: ${this.#part("verdict").textContent}`);
  }

  #show(status, verdict, { stop = false, copy = false, anyway = null }) {
    this.#root.dataset.status = status;
    this.#say(verdict);
    if (!stop && document.activeElement === this.#part("stop")) this.#root.focus({ preventScroll: true });
    this.#part("stop").hidden = !stop;
    this.#part("copy-enhanced").hidden = !copy;
    this.#part("anyway").hidden = !anyway || this.#id === null;
    this.#part("anyway").textContent = anyway ?? "";
  }

  #say(text) {
    this.#part("verdict").textContent = text;
  }

  #part(name) {
    return this.#root.querySelector(`.${name}`);
  }
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}
