// The microphone, as a file.

const LOUDEST_DECIBELS = 0;
const SOFTEST_DECIBELS = -60;
const SUFFIXES = { "audio/webm": "webm", "audio/mp4": "m4a", "audio/ogg": "ogg" };

// Say why this browser cannot record here; null where it can.
export function whyNoRecording() {
  if (!window.isSecureContext) {
    return "Browsers let a page record only where its address begins with https:// or names this machine (localhost). " +
      "Open it there, or choose a file.";
  }
  return window.MediaRecorder && navigator.mediaDevices ? null : "This browser cannot record. Choose a file instead.";
}

export class Recording {
  #stream;
  #recorder;
  #context;
  #pieces = [];
  #ended;

  // Ask for the microphone and begin. `onLevel` gets how loud it is, 0 to 1, at every frame. Throws an Error to show.
  static async start(onLevel) {
    try {
      return new Recording(await navigator.mediaDevices.getUserMedia({ audio: true }), onLevel);
    } catch (error) {
      throw new Error(explanation(error));
    }
  }

  constructor(stream, onLevel) {
    this.#stream = stream;
    try {
      this.#recorder = new MediaRecorder(stream);
      this.#recorder.ondataavailable = (event) => this.#pieces.push(event.data);
      this.#ended = new Promise((resolve) => (this.#recorder.onstop = resolve));
      this.#context = new AudioContext();
      this.#measure(onLevel);
      this.#recorder.start();
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  // End it; give what was recorded.
  async stop() {
    this.#recorder.stop();
    await this.#ended;
    this.#release();
    const type = this.#recorder.mimeType;
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "."); // no colons in the names of files
    return new File(this.#pieces, `Recording ${time}.${SUFFIXES[type.split(";")[0]] ?? "webm"}`, { type });
  }

  discard() {
    this.#recorder.stop();
    this.#release();
  }

  #measure(onLevel) {
    const analyser = this.#context.createAnalyser();
    const samples = new Float32Array(analyser.fftSize);
    this.#context.createMediaStreamSource(this.#stream).connect(analyser);
    const step = () => {
      if (this.#context.state === "closed") return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
      const decibels = 10 * Math.log10(power + 1e-12);
      const level = (decibels - SOFTEST_DECIBELS) / (LOUDEST_DECIBELS - SOFTEST_DECIBELS);
      onLevel(Math.min(Math.max(level, 0), 1));
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  #release() {
    for (const track of this.#stream.getTracks()) track.stop(); // the browser's sign of recording goes out
    this.#context?.close();
  }
}

function explanation(error) {
  if (error.name === "NotAllowedError") {
    return "The browser may not use the microphone here: allow it beside the address, and try again.";
  }
  if (error.name === "NotFoundError") return "No microphone was found: plug one in, or choose a file.";
  return `The microphone cannot be used: ${error.message}`;
}
