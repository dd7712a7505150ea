// What outlives a reload: the choices in this browser, the API key in this tab. Never audio, never text.

const CHOICES = "whisperlib.choices";
const KEY = "whisperlib.key";

export function loadChoices() {
  try {
    const choices = JSON.parse(localStorage.getItem(CHOICES));
    return choices && typeof choices === "object" ? choices : {};
  } catch {
    return {}; // no storage, or not ours
  }
}

export function saveChoices(choices) {
  try {
    localStorage.setItem(CHOICES, JSON.stringify(choices));
  } catch {
    // a browser that keeps nothing: they hold as long as the page
  }
}

let key = null;

export function apiKey() {
  try {
    return key ?? sessionStorage.getItem(KEY);
  } catch {
    return key;
  }
}

export function setApiKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // as above
  }
}
