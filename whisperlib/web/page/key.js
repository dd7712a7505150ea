// The question for the API key.

import { setApiKey } from "./state.js";

const $ = (selector) => document.querySelector(selector);
let asking = null;

// Ask for a key, and say what was wrong with the last one; resolves to whether one was given. Who asks meanwhile waits
// for the same answer.
export function askKey(problem = "") {
  asking ??= new Promise((resolve) => {
    const dialog = $("#key-dialog");
    let given = false;
    $("#key-problem").textContent = problem;
    $("#key-problem").hidden = !problem;
    $("#key").value = "";
    $("#key-form").onsubmit = (event) => {
      event.preventDefault();
      given = true;
      setApiKey($("#key").value.trim());
      dialog.close();
    };
    $("#key-later").onclick = () => dialog.close();
    dialog.onclose = () => {
      asking = null;
      resolve(given);
    };
    dialog.showModal();
  });
  return asking;
}
