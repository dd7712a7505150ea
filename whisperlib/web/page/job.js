// One file, or one address: its way through the server, and its place on the page.

import { transcribe } from "./api.js";
import { copy } from "./clipboard.js";
import { download } from "./downloads.js";
import { Enhancement } from "./enhancement.js";
import { Player } from "./player.js";
import { Transcript } from "./transcript.js";
import { clock, size } from "./units.js";

const TICK_MILLISECONDS = 200;
const template = document.querySelector("#job-template");

export class Job {
  root = template.content.firstElementChild.cloneNode(true);
  #source;
  #options;
  #page;
  #player;
  #transcript;
  #enhancement;
  #cancel = new AbortController();
  #result = null;
  #address = null; // of the audio, to play it

  // `source` has a name and a file or a url; `options` are the fields of POST /transcribe. `page` has `config`,
  // `announce(text)`, `askKey(error)`, which tells whether there is a key now, `again(job)`, and `forget(job)`.
  constructor(source, options, page) {
    this.#source = source;
    this.#options = options;
    this.#page = page;
    this.#part("name").textContent = source.name;
    this.root.setAttribute("aria-label", source.name);
    this.#player = new Player(this.#part("player"), {
      onTime: (seconds) => this.#transcript.follow(seconds),
      onFailure: () => this.#cannotPlay(),
    });
    this.#transcript = new Transcript(this.#part("segments"), this.#player);
    this.#enhancement = new Enhancement(this.#part("enhancement"), this.#part("enhance"), page);
    this.#part("cancel").onclick = () => this.#cancel.abort();
    this.#part("again").onclick = () => page.again(this);
    this.#part("remove").onclick = () => this.#remove();
    this.#part("copy").onclick = () => this.#copy();
    for (const button of this.root.querySelectorAll("[data-format]")) {
      button.onclick = () => download(this.#told(), button.dataset.format, source.name);
    }
    this.prepare();
  }

  // Make it wait for its turn, for the first time or again.
  prepare() {
    this.#cancel = new AbortController();
    this.#cancel.signal.addEventListener("abort", () => this.#waiting && this.#end("cancelled", "Cancelled."));
    this.#result = null;
    this.#show("waiting", "Waits for what is before it");
  }

  get active() {
    return ["waiting", "sending", "working", "retrying"].includes(this.root.dataset.state);
  }

  get #waiting() {
    return this.root.dataset.state === "waiting";
  }

  // Have it transcribed; resolves when its text is there, or there will be none. Never rejects.
  run() {
    if (this.#cancel.signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      this.#load();
      this.#attempts(resolve).finally(resolve);
    });
  }

  async #attempts(onResult) {
    const started = performance.now();
    const ticking = setInterval(() => {
      if (this.#result) clearInterval(ticking);
      else this.#part("elapsed").textContent = clock((performance.now() - started) / 1000);
    }, TICK_MILLISECONDS);
    try {
      while (await this.#attempt(onResult)); // again, until it says that this was the last
    } finally {
      clearInterval(ticking);
    }
  }

  async #attempt(onResult) {
    const { signal } = this.#cancel;
    const { max_body_bytes: most } = this.#page.config;
    this.#transcript.clear();
    this.#problem("");
    try {
      if (this.#source.file?.size > most) {
        throw new Error(`It has ${size(this.#source.file.size)}, and this server takes at most ${size(most)}.`);
      }
      this.#show("sending", this.#source.file ? "Uploading" : "The server fetches it");
      await transcribe(this.#form(), {
        signal,
        onUpload: (fraction) => this.#uploaded(fraction),
        onEvent: (name, data) => this.#take(name, data, onResult),
      });
      if (!this.#result) throw new Error("The answer broke off before its end.");
      if (this.#enhancement.growing) this.#enhancement.breakOff("Not used: the answer ended before the text did.");
    } catch (error) {
      return this.#failed(error);
    }
    return false;
  }

  // Show what went wrong; tell whether to try again.
  async #failed(error) {
    const { signal } = this.#cancel;
    if (this.#result) { // only the clean-up was left to do
      const stopped = error.name === "AbortError";
      this.#enhancement.breakOff(stopped ? "Stopped: what was written is not used." : error.message);
    } else if (signal.aborted) {
      this.#end("cancelled", this.#transcript.segments.length ? "Cancelled: this is what was heard by then." : "Cancelled.");
    } else if (error.status === 401 && (await this.#page.askKey(error))) {
      return !signal.aborted || this.#failed(signal.reason);
    } else if (error.retrySeconds) {
      await this.#countDown(error, signal);
      return !signal.aborted || this.#failed(signal.reason);
    } else {
      this.#problem(error.message);
      this.#player.unload();
      this.#end("failed", "");
    }
    return false;
  }

  // Wait for as long as the server says, or until somebody cannot.
  #countDown({ message, retrySeconds }, signal) {
    this.#problem(message);
    const until = performance.now() + retrySeconds * 1000;
    return new Promise((resolve) => {
      const end = () => {
        clearInterval(ticking);
        resolve();
      };
      const tick = () => {
        const left = Math.ceil((until - performance.now()) / 1000);
        if (left <= 0) end();
        else this.#show("retrying", `Trying again in ${left} s`);
      };
      const ticking = setInterval(tick, TICK_MILLISECONDS);
      signal.addEventListener("abort", end, { once: true });
      tick();
    });
  }

  #form() {
    const form = new FormData();
    for (const [name, value] of Object.entries(this.#options)) form.append(name, value);
    if (this.#source.file) form.append("file", this.#source.file, this.#source.name);
    else form.append("audio_url", this.#source.url);
    return form;
  }

  #uploaded(fraction) {
    if (fraction < 1) this.#show("sending", `Uploading ${Math.floor(fraction * 100)} %`, fraction);
    else this.#show("working", "The server reads it");
  }

  #take(name, data, onResult) {
    if (name === "progress") {
      const percent = Math.floor(data.progress * 100);
      this.#show("working", percent ? `Transcribing ${percent} %` : "Queued, or just begun", data.progress || null);
    } else if (name === "segment") {
      this.#transcript.add(data);
      this.#show("working");
    } else if (name === "result") {
      this.#result = data;
      this.#finish(data);
      onResult();
    } else if (name.startsWith("enhancement.")) {
      if (!this.#enhancement.growing) this.#enhancement.begin(() => this.#cancel.abort());
      this.#enhancement.take(name, data);
    }
  }

  #finish(result) {
    const { text, language, duration, segments, model, timings } = result;
    this.#transcript.clear();
    for (const segment of this.#withWords(segments, result.words)) this.#transcript.add(segment);
    this.#player.setLength(duration);
    const spoken = language && (this.#page.config.languages[language] ?? language);
    const facts = [clock(duration), spoken, model, `took ${timings.total.toFixed(1)} s`];
    this.#part("facts").textContent = facts.filter(Boolean).join(" · ");
    this.#part("silence").hidden = text !== "";
    if (this.#page.config.language_model && text) this.#enhancement.offer(result.id);
    this.#end("done", "");
    this.#page.announce(`${this.#source.name}: done, ${segments.length} ${segments.length === 1 ? "line" : "lines"}.`);
  }

  // The segments of a result come without their words, which stand beside them.
  #withWords(segments, words = []) {
    let at = 0;
    return segments.map((segment) => {
      const from = at;
      while (at < words.length && words[at].start < segment.end) at += 1;
      return { ...segment, words: words.slice(from, at) };
    });
  }

  // What is there to copy and to download: all, or what was heard when it ended.
  #told() {
    const { segments } = this.#transcript;
    const result = this.#result ?? { text: segments.map(({ text }) => text).join(" "), segments, complete: false };
    const { done } = this.#enhancement;
    if (!done) return result;
    const { status, text, reason, model } = done;
    return { ...result, enhancement: { status, text, reason, model } };
  }

  async #copy() {
    await copy(this.#told().text);
    const button = this.#part("copy");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy text"), 1500);
    this.#page.announce("Copied.");
  }

  #load() {
    const { file, url } = this.#source;
    this.#address ??= file ? URL.createObjectURL(file) : url;
    this.#player.load(this.#address, file ? "metadata" : "none");
    this.#part("facts").textContent = file ? size(file.size) : new URL(url).host;
    this.#part("unplayable").hidden = true;
  }

  #cannotPlay() {
    this.#part("player").hidden = true;
    this.#part("unplayable").hidden = this.root.dataset.state === "failed";
    this.#part("unplayable").textContent = this.#source.file
      ? "This browser cannot play the file; that changes nothing for its text."
      : "This browser cannot play what is at the address; that changes nothing for its text.";
  }

  #problem(message) {
    this.#part("problem").textContent = message;
    this.#part("problem").hidden = !message;
  }

  // Show a state; a bar without `fraction` moves only to say that something goes on.
  #show(state, text, fraction = null) {
    const bar = this.#part("progress").querySelector("progress");
    this.root.dataset.state = state;
    if (text !== undefined) {
      this.#part("state").textContent = text;
      if (fraction === null) bar.removeAttribute("value");
      else bar.value = fraction;
    }
    this.#part("progress").hidden = !this.active;
    bar.hidden = this.#waiting || state === "retrying";
    this.#part("cancel").hidden = !this.active;
    if (state === "failed") this.#part("unplayable").hidden = true;
    this.#part("again").hidden = !["failed", "cancelled"].includes(state);
    this.#part("remove").hidden = this.active;
    this.root.querySelector("footer").hidden = this.active || !this.#transcript.segments.length;
  }

  // The last state; `text` stands where the progress was.
  #end(state, text) {
    const focused = document.activeElement === this.#part("cancel");
    this.#show(state, text);
    if (text) this.#part("facts").textContent = text;
    if (focused) this.#part(state === "done" ? "remove" : "again").focus();
    if (state !== "done") this.#page.announce(`${this.#source.name}: ${text || this.#part("problem").textContent}`);
  }

  #remove() {
    this.#cancel.abort();
    this.#enhancement.close();
    this.#player.unload();
    if (this.#source.file && this.#address) URL.revokeObjectURL(this.#address);
    const next = this.root.nextElementSibling?.querySelector(".remove:not([hidden])");
    this.root.remove();
    this.#page.forget(this);
    (next ?? document.querySelector("#choose")).focus();
  }

  #part(name) {
    return this.root.querySelector(`.${name}`);
  }
}
