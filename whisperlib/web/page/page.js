// The page: what there is to choose, and the files, one after another.

import * as api from "./api.js";
import { chosenOptions, offerChoices, offerModels } from "./choices.js";
import { Job } from "./job.js";
import { askKey } from "./key.js";
import { watchSources } from "./sources.js";
import { apiKey } from "./state.js";

const $ = (selector) => document.querySelector(selector);

const waiting = [];
const jobs = new Set();
let working = false;

const page = {
  config: null,
  announce: (text) => ($("#announcer").textContent = text),
  askKey: async (error) => {
    // No key at the first question is not worth a reproach.
    const given = await askKey(error?.code === "missing_api_key" ? "" : error?.message);
    if (given) showModels();
    return given;
  },
  again: (job) => {
    job.prepare();
    enqueue([job]);
  },
  forget: (job) => jobs.delete(job),
};

// Whoever is quicker than the server's answer to the first question waits for it.
async function add(sources) {
  if (!(await configured)) return;
  const added = sources.map((source) => new Job(source, chosenOptions(), page));
  $("#jobs").prepend(...added.map((job) => job.root));
  document.body.classList.add("has-jobs");
  for (const job of added) jobs.add(job);
  enqueue(added);
}

async function enqueue(added) {
  waiting.push(...added);
  if (working) return;
  working = true;
  while (waiting.length) await waiting.shift().run();
  working = false;
}

// The models are there when the server is ready, which may take a while after its start.
async function showModels() {
  for (;;) {
    try {
      offerModels(await api.models());
      tell("ready", "Ready");
      return;
    } catch (error) {
      tell("failed", error.message);
      if (error.status === 401) {
        await page.askKey(error);
        return;
      }
      if (!error.retrySeconds) return;
      await new Promise((resolve) => setTimeout(resolve, error.retrySeconds * 1000));
    }
  }
}

function tell(state, text) {
  $("#server").dataset.state = state;
  $("#server").textContent = text;
}

// Ask what the server has; tell whether it has answered.
async function configure() {
  try {
    page.config = await api.config();
  } catch (error) {
    tell("failed", `${error.message} Reload the page to try again.`);
    return false;
  }
  offerChoices(page.config);
  return true;
}

async function start() {
  if (!(await configured)) return;
  $("#change-key").hidden = !page.config.needs_key;
  $("#change-key").onclick = () => page.askKey();
  if (!page.config.needs_key || apiKey()) await showModels();
  else if (!(await page.askKey())) tell("failed", "This server needs an API key");
}

const configured = configure();
watchSources(add);
addEventListener("beforeunload", (event) => {
  if ([...jobs].some((job) => job.active)) event.preventDefault();
});
start();
