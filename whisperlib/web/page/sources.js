// Where audio comes from: dropped, chosen, recorded, or fetched by the server from an address.

import { Recording, whyNoRecording } from "./recorder.js";
import { clock } from "./units.js";

const $ = (selector) => document.querySelector(selector);

// `onSources` gets a list of { name, file } or { name, url }.
export function watchSources(onSources) {
  watchFiles(onSources);
  watchDrops(onSources);
  watchAddress(onSources);
  watchMicrophone(onSources);
}

function problem(message) {
  $("#source-problem").textContent = message;
  $("#source-problem").hidden = !message;
}

function take(files, onSources) {
  problem("");
  onSources([...files].map((file) => ({ name: file.name, file })));
}

function watchFiles(onSources) {
  const input = $("#files");
  $("#choose").onclick = () => input.click();
  input.onchange = () => {
    take(input.files, onSources);
    input.value = ""; // so that the same file may be chosen again
  };
}

function watchDrops(onSources) {
  const hint = $("#drop-hint");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (hasFiles(event)) hint.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) hint.hidden = true; // it has left the window
  });
  addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    hint.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
    take(files, onSources);
    if (files.length < items.length) problem("A folder cannot be dropped: open it, and drop the files in it.");
  });
}

function watchAddress(onSources) {
  $("#url-form").onsubmit = (event) => {
    event.preventDefault();
    const url = new URL($("#url").value);
    problem("");
    onSources([{ name: nameOf(url), url: url.href }]);
    $("#url").value = "";
  };
}

function nameOf(url) {
  const name = url.pathname.split("/").pop();
  try {
    return decodeURIComponent(name) || url.host;
  } catch {
    return name; // a percent sign that means nothing
  }
}

function watchMicrophone(onSources) {
  let recording = null;
  let starting = false; // the browser may be asking whether it may, and another click would begin another recording
  let ticking = 0;
  const show = (on) => {
    $("#recorder").hidden = !on;
    $("#drop").hidden = on;
    $(on ? "#stop-recording" : "#record").focus();
    if (!on) clearInterval(ticking);
  };
  $("#record").onclick = async () => {
    problem(whyNoRecording() ?? "");
    if (whyNoRecording() || starting) return;
    starting = true;
    try {
      recording = await Recording.start((level) => ($("#level").value = level));
    } catch (error) {
      problem(error.message);
      return;
    } finally {
      starting = false;
    }
    const started = performance.now();
    $("#recorded").textContent = clock(0);
    ticking = setInterval(() => ($("#recorded").textContent = clock((performance.now() - started) / 1000)), 200);
    show(true);
  };
  $("#stop-recording").onclick = async () => {
    const file = await recording.stop();
    show(false);
    take([file], onSources);
  };
  $("#discard-recording").onclick = () => {
    recording.discard();
    show(false);
  };
}
