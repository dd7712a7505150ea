// The audio of one job: a button, a position, and the time to whoever follows it.

import { clock } from "./units.js";

const UNKNOWN_END = 1e7; // seconds; to seek there has a browser find the end of a recording that does not tell it

let playing = null; // one at a time on the whole page

export class Player {
  #root;
  #audio;
  #seek;

  // `onTime` gets the position in seconds, `onFailure` nothing: the browser cannot play this.
  constructor(root, { onTime, onFailure }) {
    this.#root = root;
    this.#audio = root.querySelector("audio");
    this.#seek = root.querySelector(".seek");
    this.#root.querySelector(".play").onclick = () => this.toggle();
    this.#seek.oninput = () => (this.#audio.currentTime = this.#seek.value);
    this.#audio.onplay = () => {
      if (playing !== this) playing?.pause();
      playing = this;
      this.#showState();
      this.#follow(onTime);
    };
    this.#audio.onpause = () => this.#showState();
    this.#audio.ontimeupdate = () => this.#showTime(onTime);
    this.#audio.onloadedmetadata = () => this.#measure();
    this.#audio.onerror = () => this.#audio.getAttribute("src") && onFailure();
  }

  get paused() {
    return this.#audio.paused;
  }

  get position() {
    return this.#audio.currentTime;
  }

  // `preload` is "none" where only a click may ask another host for it.
  load(url, preload = "metadata") {
    this.#audio.preload = preload;
    this.#audio.src = url;
    this.#root.hidden = false;
  }

  unload() {
    this.pause();
    if (playing === this) playing = null;
    this.#audio.removeAttribute("src");
    this.#audio.load();
    this.#root.hidden = true;
  }

  // What the server says of the length holds until the browser knows it.
  setLength(seconds) {
    if (!(this.#audio.duration < UNKNOWN_END)) this.#showLength(seconds);
  }

  playFrom(seconds) {
    this.#audio.currentTime = seconds;
    this.#play();
  }

  toggle() {
    if (this.#audio.paused) this.#play();
    else this.pause();
  }

  pause() {
    this.#audio.pause();
  }

  skip(seconds) {
    this.#audio.currentTime = Math.max(0, this.#audio.currentTime + seconds);
  }

  #play() {
    this.#audio.play().catch(() => {}); // `onerror` says why; a pause meanwhile is no failure
  }

  #measure() {
    const { duration } = this.#audio;
    if (duration < UNKNOWN_END) {
      this.#showLength(duration);
      return;
    }
    const wanted = this.#audio.currentTime;
    this.#audio.ondurationchange = () => {
      if (!(this.#audio.duration < UNKNOWN_END)) return;
      this.#audio.ondurationchange = null;
      this.#audio.currentTime = wanted;
      this.#showLength(this.#audio.duration);
    };
    this.#audio.currentTime = UNKNOWN_END;
  }

  // `timeupdate` comes four times a second: too seldom for words.
  #follow(onTime) {
    const step = () => {
      if (this.#audio.paused) return;
      this.#showTime(onTime);
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  #showState() {
    const paused = this.#audio.paused;
    this.#root.dataset.playing = String(!paused);
    this.#root.querySelector(".play").setAttribute("aria-label", paused ? "Play" : "Pause");
  }

  #showTime(onTime) {
    const seconds = Math.min(this.#audio.currentTime, Number(this.#seek.max));
    this.#seek.value = seconds;
    this.#seek.setAttribute("aria-valuetext", clock(seconds));
    this.#root.querySelector(".position").textContent = clock(seconds);
    onTime(seconds);
  }

  #showLength(seconds) {
    this.#seek.max = seconds;
    this.#root.querySelector(".length").textContent = clock(seconds);
  }
}
