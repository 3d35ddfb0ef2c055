// The pictures among what people drop: files as they are, folders walked.

const PICTURE = /\.(jpe?g|jpe|jfif|mpo|png|webp|avif|heic|heif|hif|gif|bmp|dib|tiff?)$/i;

// Of files chosen as a folder: its pictures, in their order, without what is hidden.
export const pictures = (files) => Array.from(files)
  .filter((file) => PICTURE.test(file.name) && !/(^|\/)\./.test(file.webkitRelativePath || file.name))
  .sort((a, b) => a.webkitRelativePath.localeCompare(b.webkitRelativePath, undefined, { numeric: true }));

// Of a drop, or of a paste. To be called in the event's own turn: later the browser has forgotten what was dropped.
export function dropped(transfer) {
  const entries = Array.from(transfer.items ?? [], (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return Promise.resolve(Array.from(transfer.files));
  return Promise.all(entries.map((entry) => (entry.isDirectory ? walk(entry) : fileOf(entry)))).then((found) => found.flat());
}

const fileOf = (entry) => new Promise((done, fail) => entry.file(done, fail));

async function walk(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (let some; (some = await new Promise((done, fail) => reader.readEntries(done, fail))).length; ) entries.push(...some); // a hundred at a time
  entries.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const found = [];
  for (const entry of entries) {
    if (entry.name.startsWith(".")) continue;
    if (entry.isDirectory) found.push(...(await walk(entry)));
    else if (PICTURE.test(entry.name)) found.push(await fileOf(entry));
  }
  return found;
}
