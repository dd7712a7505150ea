// The calls of the server. Every address is relative, so that the page works below any prefix.

import { EventParser } from "./sse.js";
import { apiKey } from "./state.js";

const RETRY = [429, 503];
const RETRY_SECONDS = 5; // where the server does not say
const OPENAI_ALIAS = "whisper-1"; // a name that OpenAI's clients send, of no model
const UNREACHABLE = "The server cannot be reached, or broke the connection off.";

// What went wrong, in the server's words. `retrySeconds` is null where the same call would fail again.
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, retrySeconds = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retrySeconds = retrySeconds;
  }

  static of(status, body, retryAfter) {
    let error = {};
    try {
      error = JSON.parse(body).error ?? {};
    } catch {
      // a proxy's own page
    }
    const seconds = Number(retryAfter) || RETRY_SECONDS;
    const retrySeconds = RETRY.includes(status) ? seconds : null;
    return new ServerError(error.message ?? `The server answered ${status}.`, { status, code: error.code, retrySeconds });
  }
}

export function config() {
  return get("page/config.json");
}

// The names of the models that may be asked for.
export async function models() {
  return (await get("v1/models")).data.map((model) => model.id).filter((name) => name !== OPENAI_ALIAS);
}

// Send `form` and hand on the events of the answer. A request that uploads must be an XMLHttpRequest: only that tells
// how much has been sent. `onUpload` gets a fraction.
export function transcribe(form, { signal, onUpload, onEvent }) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const request = new XMLHttpRequest();
    const events = new Events(onEvent);
    let read = 0;
    const take = () => {
      if (request.status !== 200) return;
      events.feed(request.responseText.slice(read));
      read = request.responseText.length;
    };
    const abort = () => request.abort();
    signal.addEventListener("abort", abort, { once: true });
    request.open("POST", "transcribe");
    for (const [name, value] of Object.entries(headers("text/event-stream"))) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onUpload(event.loaded / event.total);
    request.onprogress = take;
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onerror = () => reject(new ServerError(UNREACHABLE));
    request.onload = () => {
      take();
      if (request.status !== 200) {
        reject(ServerError.of(request.status, request.responseText, request.getResponseHeader("Retry-After")));
      } else if (events.error) reject(events.error);
      else resolve();
    };
    request.onloadend = () => signal.removeEventListener("abort", abort);
    request.send(form);
  });
}

// Have the text of a transcription cleaned up, and hand on the events.
export async function enhance(id, { signal, onEvent }) {
  const path = `transcriptions/${encodeURIComponent(id)}/enhance-stream?enhance=always`;
  const response = await reach(path, { headers: headers("text/event-stream"), signal });
  const events = new Events(onEvent);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(unreachable);
    if (done) break;
    events.feed(value);
  }
  if (events.error) throw events.error;
}

class Events extends EventParser {
  error = null;

  constructor(onEvent) {
    super((name, data) => {
      if (name === "error") this.error = new ServerError(data.error.message, { code: data.error.code });
      else onEvent(name, data);
    });
  }
}

async function get(path) {
  return (await reach(path, { headers: headers("application/json") })).json();
}

async function reach(path, options) {
  const response = await fetch(path, options).catch(unreachable);
  if (!response.ok) throw ServerError.of(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

function unreachable(error) {
  throw error.name === "AbortError" ? error : new ServerError(UNREACHABLE);
}

function headers(accept) {
  const key = apiKey();
  // A header's bytes are the key's UTF-8.
  const bytes = key && String.fromCharCode(...new TextEncoder().encode(key));
  return key ? { Accept: accept, Authorization: `Bearer ${bytes}` } : { Accept: accept };
}
