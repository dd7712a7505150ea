// How to transcribe: the form, remembered, and as the fields of POST /transcribe.

import { loadChoices, saveChoices } from "./state.js";

const form = document.querySelector("#choices");
const NAMES = ["profile", "language", "model", "translate", "words", "enhance"];

// Offer what this server has, and choose what was chosen last.
export function offerChoices({ profile, languages, language_model: languageModel }) {
  const byName = Object.entries(languages).sort(([, one], [, other]) => one.localeCompare(other));
  form.elements.language.append(...byName.map(([code, name]) => new Option(name, code)));
  document.querySelector("#clean-up").hidden = !languageModel;
  document.querySelector("#language-model").textContent = languageModel ?? "";
  form.elements.profile.value = profile;
  for (const [name, value] of Object.entries(loadChoices())) {
    if (NAMES.includes(name)) choose(form.elements[name], value);
  }
  form.onchange = () => saveChoices(Object.fromEntries(NAMES.map((name) => [name, chosen(form.elements[name])])));
  form.onsubmit = (event) => event.preventDefault();
}

export function offerModels(names) {
  const select = form.elements.model;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  select.disabled = names.length < 2;
  if (names.includes(loadChoices().model)) select.value = loadChoices().model;
}

// What is chosen, but for what the server would take anyway.
export function chosenOptions() {
  const { profile, language, model, translate, words, enhance } = form.elements;
  const fields = {
    stream: "true",
    profile: profile.value,
    language: language.value,
    model: model.disabled ? "" : model.value,
    task: translate.checked ? "translate" : "",
    word_timestamps: words.checked ? "true" : "",
    enhance: enhance.value,
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value));
}

function chosen(control) {
  return control.type === "checkbox" ? control.checked : control.value;
}

function choose(control, value) {
  const before = chosen(control);
  if (control.type === "checkbox") control.checked = value === true;
  else control.value = value;
  if (control.type !== "checkbox" && control.value !== value) control.value = before; // no longer offered
}
