// The segments of one transcript: to read, to hear, and to walk through by keys.

import { clock } from "./units.js";

const SKIP_SECONDS = 5;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Transcript {
  segments = [];
  #list;
  #player;
  #current = -1;

  constructor(list, player) {
    this.#list = list;
    this.#player = player;
    list.addEventListener("click", (event) => this.#clicked(event));
    list.addEventListener("keydown", (event) => this.#pressed(event));
  }

  clear() {
    this.segments = [];
    this.#current = -1;
    this.#list.replaceChildren();
  }

  add(segment) {
    const row = document.createElement("li");
    const time = document.createElement("button");
    const text = document.createElement("span");
    time.type = "button";
    time.className = "time";
    time.textContent = clock(segment.start);
    time.setAttribute("aria-label", `Play from ${clock(segment.start)}`);
    time.tabIndex = this.segments.length ? -1 : 0; // one of them takes Tab, arrows go on from there
    text.className = "text";
    text.append(...wordsOf(segment));
    row.append(time, text);
    this.#list.append(row);
    this.segments.push(segment);
  }

  // Show what is heard at `seconds`: the last segment that has begun.
  follow(seconds) {
    let current = this.segments.findLastIndex((segment) => segment.start <= seconds + 0.02);
    if (current >= 0 && seconds > this.segments[current].end + 1) current = -1;
    if (current !== this.#current) {
      this.#list.children[this.#current]?.removeAttribute("aria-current");
      const row = this.#list.children[current];
      row?.setAttribute("aria-current", "true");
      row?.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
      this.#current = current;
    }
    for (const word of this.#list.querySelectorAll(".spoken")) word.classList.remove("spoken");
    if (current < 0) return;
    for (const word of this.#list.children[current].querySelectorAll(".word")) {
      if (word.dataset.start <= seconds && seconds < word.dataset.end) word.classList.add("spoken");
    }
  }

  #clicked(event) {
    const row = event.target.closest("li");
    if (!row || !getSelection().isCollapsed) return; // who selects text wants to copy it
    const start = event.target.closest(".word")?.dataset.start ?? this.segments[this.#index(row)].start;
    this.#focus(row);
    this.#player.playFrom(Number(start));
  }

  #pressed(event) {
    const row = event.target.closest("li");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const { children } = this.#list;
    const index = this.#index(row);
    const actions = {
      ArrowDown: () => this.#focus(children[Math.min(index + 1, children.length - 1)]),
      ArrowUp: () => this.#focus(children[Math.max(index - 1, 0)]),
      Home: () => this.#focus(children[0]),
      End: () => this.#focus(children[children.length - 1]),
      ArrowLeft: () => this.#player.skip(-SKIP_SECONDS),
      ArrowRight: () => this.#player.skip(SKIP_SECONDS),
      " ": () => (index === this.#current || !this.#player.paused ? this.#player.toggle() : this.#play(index)),
      Enter: () => this.#play(index),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  #play(index) {
    this.#player.playFrom(this.segments[index].start);
  }

  #index(row) {
    return [...this.#list.children].indexOf(row);
  }

  #focus(row) {
    for (const time of this.#list.querySelectorAll('.time[tabindex="0"]')) time.tabIndex = -1;
    const time = row.querySelector(".time");
    time.tabIndex = 0;
    time.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }
}

// The text of a segment, with each of its words to be found in it as an element of its own.
function wordsOf({ text, words }) {
  const parts = [];
  let at = 0;
  for (const { word, start, end } of words ?? []) {
    const bare = word.trim();
    const found = text.indexOf(bare, at);
    if (!bare || found < 0 || start === null) continue;
    const element = document.createElement("span");
    element.className = "word";
    element.textContent = bare;
    Object.assign(element.dataset, { start, end });
    parts.push(text.slice(at, found), element);
    at = found + bare.length;
  }
  return [...parts, text.slice(at)];
}
