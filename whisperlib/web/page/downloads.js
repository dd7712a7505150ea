// A transcript as a file, byte for byte as the server writes it (whisperlib/formats.py).

// What Python's str.split() takes for space; JavaScript's \s differs.
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;

export const FORMATS = {
  txt: { type: "text/plain", write: (result) => `${result.text}\n` },
  srt: { type: "application/x-subrip", write: srt },
  vtt: { type: "text/vtt", write: vtt },
  json: { type: "application/json", write: (result) => `${JSON.stringify(result, null, 2)}\n` },
};

// Save `result` as a file named after `source`, a file's name.
export function download(result, format, source) {
  const { type, write } = FORMATS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(result)], { type: `${type};charset=utf-8` }));
  link.download = `${source.replace(/\.[^.]{1,5}$/, "") || "transcript"}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click
}

function srt(result) {
  return cues(result)
    .map(([start, end, text], n) => `${n + 1}\n${time(start, ",")} --> ${time(end, ",")}\n${text.replace(/-{2,}>/g, "->")}\n\n`)
    .join("");
}

function vtt(result) {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const lines = cues(result).map(([start, end, text]) => `${time(start, ".")} --> ${time(end, ".")}\n${escaped(text)}\n\n`);
  return `WEBVTT\n\n${lines.join("")}`;
}

// Start and end in milliseconds and the text of every segment that has some.
function cues(result) {
  return result.segments
    .map(({ start, end, text }) => [milliseconds(start), milliseconds(end), text.split(SPACE).filter(Boolean).join(" ")])
    .filter(([, , text]) => text)
    .map(([start, end, text]) => [start, Math.max(end, start + 1), text]);
}

function milliseconds(seconds) {
  return Math.max(Math.round(seconds * 1000), 0);
}

function time(milliseconds, mark) {
  const pad = (number, digits = 2) => String(Math.floor(number)).padStart(digits, "0");
  const seconds = milliseconds / 1000;
  return `${pad(seconds / 3600)}:${pad((seconds / 60) % 60)}:${pad(seconds % 60)}${mark}${pad(milliseconds % 1000, 3)}`;
}
