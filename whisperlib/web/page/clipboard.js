// Text into the clipboard, also at plain http:// addresses, where browsers offer no other way than the old one.

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const before = document.activeElement;
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    before?.focus({ preventScroll: true });
  }
}
