// Server-sent events, from text that comes in pieces of any size.

export class EventParser {
  #rest = "";
  #name = "";
  #data = [];
  #onEvent;

  // `onEvent` is called with the name of each event and its data, read as JSON.
  constructor(onEvent) {
    this.#onEvent = onEvent;
  }

  feed(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) this.#take(line.endsWith("\r") ? line.slice(0, -1) : line);
  }

  #take(line) {
    if (line === "") {
      if (this.#data.length) this.#onEvent(this.#name || "message", JSON.parse(this.#data.join("\n")));
      this.#name = "";
      this.#data = [];
      return;
    }
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") this.#name = value;
    if (field === "data") this.#data.push(value);
  }
}
