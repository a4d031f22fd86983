// The page of `ino web`. A frame and its labels (one byte per pixel: the number of an object) are
// fetched by number; drawing changes the labels here and sends them once, when a stroke ends.

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const HINTS = {
  brush: "Paint the object. It need not be exact to the pixel.",
  eraser: "Wipe over what does not belong to the object.",
  polygon: "Click around the object; Enter or a click on the first corner closes it.",
  box: "Drag a box around the object.",
  clicks: "Click on the object; right-click on what is not part of it.",
};
const MAX_UNDO = 100;

let home = null; // what the server offers
let work = null; // the open workspace
let shown = null; // {number, labels, source} of the frame on the screen
let wanted = 0; // number of the frame that should be there
let loading = false;
let tool = "brush";
let current = 1; // number of the object that is drawn
let hidden = false;
let playing = false;
let stroke = null; // a drag in progress
let corners = []; // of the polygon
let clicks = null; // {number, before, points}
let busy = false; // a prompt is being answered
let undone = []; // steps back
let redone = [];
let pictures = new Map(); // number -> ImageBitmap, the last used at the end
let labelings = new Map(); // number -> {labels, source}
let run = null; // last answer about the run
let fresh = []; // ranges of new masks
let zoom = { scale: 1, x: 0, y: 0, fits: true };
let saving = Promise.resolve();
let unsaved = 0;
let viewTimer = 0;
let pollTimer = 0;

// ---------------------------------------------------------------- server

async function ask(method, path, body) {
  const options = { method };
  if (body instanceof Uint8Array) options.body = body;
  else if (body !== undefined) options.body = JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("The server does not answer. Is ino web still running?"), { isOffline: true });
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  throw new Error(found.error || `The server refused this (${answer.status}).`);
}
const json = async (method, path, body) => (await ask(method, path, body)).json();
const at = (rest) => `/api/w/${work.id}${rest}`;

function toast(error) {
  const line = document.createElement("div");
  line.className = "toast";
  const text = String(error.message || error);
  line.textContent = /^[a-z]+ /.test(text) ? text[0].toUpperCase() + text.slice(1) : text; // no file's name
  line.onclick = () => line.remove();
  $("toasts").append(line);
  setTimeout(() => line.remove(), 9000);
}
const guarded = (action) => async (...given) => {
  try { return await action(...given); } catch (error) { toast(error); }
};

// ---------------------------------------------------------------- start page

async function openStart() {
  clearTimeout(pollTimer);
  stopPlaying();
  work = null;
  document.title = "ino: follow an object through a video";
  $("work").hidden = true;
  $("start").hidden = false;
  home = await json("GET", "/api/home");
  $("file").accept = home.suffixes.join(",");
  $("where").textContent = home.is_local ? "Open from a folder of this computer" : "Open from a folder of the server";
  $("limits").textContent = `MP4, MOV, AVI, MKV, WebM, TIFF stack and others, up to ${readableSize(home.max_upload)}`;
  const cards = home.workspaces.map((one) => {
    const card = document.createElement("div");
    card.className = "card";
    card.innerHTML = `<a><img loading="lazy" alt=""><div><strong></strong><span class="muted"></span></div></a>
      <button class="button quiet delete" aria-label="Delete"><svg class="icon"><use href="#i-trash"/></svg></button>`;
    card.querySelector("a").href = `#${one.id}`;
    card.querySelector("img").src = `/api/w/${one.id}/frame/0`;
    card.querySelector("strong").textContent = one.title;
    const followed = one.num_followed ? `followed in ${one.num_followed} of ${one.num_frames} frames` : `${one.num_frames} frames, not followed yet`;
    card.querySelector("span").textContent = followed;
    card.querySelector(".delete").onclick = guarded(async () => {
      if (!confirm(`Delete the drawings and masks of "${one.title}"? The video on your disk stays; an uploaded copy is deleted, too.`)) return;
      await ask("DELETE", `/api/w/${one.id}`);
      await openStart();
    });
    return card;
  });
  $("workspaces").replaceChildren(...cards);
  $("workspaces").parentElement.hidden = !cards.length;
  await list("");
}

const readableSize = (bytes) => bytes >= 1 << 30 ? `${+(bytes / (1 << 30)).toFixed(1)} GB` : `${Math.max(1, Math.round(bytes / (1 << 20)))} MB`;

async function list(path) {
  let found = await json("GET", `/api/folder?path=${encodeURIComponent(path)}`);
  if (!path && found.folders.length === 1) found = await json("GET", `/api/folder?path=${encodeURIComponent(found.folders[0].path)}`);
  const line = (icon, text, action) => {
    const button = document.createElement("button");
    button.innerHTML = `<svg class="icon"><use href="#i-${icon}"/></svg><span></span>`;
    button.lastChild.textContent = text;
    button.onclick = guarded(action);
    return button;
  };
  const lines = [
    ...(found.parent === null ? [] : [line("folder", "..", () => list(found.parent))]),
    ...found.folders.map((one) => line("folder", one.name, () => list(one.path))),
    ...found.videos.map((one) => line("film", one.name, () => openPath(one.path))),
  ];
  if (!found.folders.length && !found.videos.length) {
    const nothing = document.createElement("p");
    nothing.className = "muted";
    nothing.textContent = "No videos here.";
    lines.push(nothing);
  }
  $("listing").replaceChildren(...lines);
  if (path) $("path").value = found.path; // somebody may be typing while the page opens
}

async function openPath(path) {
  const found = await json("POST", "/api/open", { path });
  location.hash = found.id;
}

function upload(file) {
  if (!file) return;
  const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
  if (!home.suffixes.includes(suffix)) return toast(`${file.name} is no video by its name. Choose a file such as .mp4, .mov, .avi, .mkv, .webm or .tif.`);
  if (file.size > home.max_upload) return toast(`${file.name} has ${readableSize(file.size)}, but at most ${readableSize(home.max_upload)} are taken. Cut it first.`);
  const request = new XMLHttpRequest(); // fetch does not tell how far an upload is
  const end = (error) => {
    $("uploading").hidden = true;
    $("file").value = "";
    if (error) toast(error);
  };
  request.upload.onprogress = (event) => {
    $("uploaded").style.width = `${(100 * event.loaded) / event.total}%`;
    $("upload-text").textContent = event.loaded < event.total ? `${readableSize(event.loaded)} of ${readableSize(event.total)}` : "Reading the video";
  };
  request.onload = () => {
    let found = {};
    try { found = JSON.parse(request.response); } catch { /* told below */ }
    if (request.status === 200) { end(); location.hash = found.id; } else end(found.error || "The upload failed.");
  };
  request.onerror = () => end("The upload broke off. Is ino web still running?");
  $("uploading").hidden = false;
  $("uploaded").style.width = "0";
  request.open("POST", `/api/upload?name=${encodeURIComponent(file.name)}`);
  request.send(file);
}

// ---------------------------------------------------------------- workspace

async function openWork(id) {
  if (!home) home = await json("GET", "/api/home");
  const found = await json("GET", `/api/w/${id}`);
  work = found;
  [shown, stroke, clicks, run, corners, undone, redone, fresh] = [null, null, null, null, [], [], [], []];
  pictures = new Map();
  labelings = new Map();
  current = work.objects[0].id;
  $("start").hidden = true;
  $("work").hidden = false;
  document.title = `${work.title} - ino`;
  $("title").textContent = work.title;
  $("facts").textContent = `${work.width} \u00d7 ${work.height}, ${work.num_frames} frames`;
  for (const canvas of [$("picture"), $("overlay")]) [canvas.width, canvas.height] = [work.width, work.height];
  $("marks").setAttribute("viewBox", `0 0 ${work.width} ${work.height}`);
  $("quality").replaceChildren(...Object.entries(home.qualities).map(([name, words]) => new Option(words, name)));
  $("quality").value = work.view.quality in home.qualities ? work.view.quality : home.quality;
  $("quality").parentElement.hidden = !home.quality;
  $("adapt").parentElement.hidden = !home.can_adapt;
  $("opacity").value = 100 * work.view.opacity;
  $("size").max = Math.round(Math.max(30, work.height / 3));
  $("size").value = Math.round(work.height / 18);
  for (const name of ["number", "first", "last"]) $(name).max = work.num_frames - 1;
  $("first").value = work.view.first;
  $("last").value = work.view.last ?? work.num_frames - 1;
  $("of").textContent = `of ${work.num_frames - 1}`;
  const exports = Object.entries(home.exports).map(([kind, one]) => {
    const button = document.createElement("button");
    button.className = "button export";
    button.dataset.kind = kind;
    button.innerHTML = `<svg class="icon"><use href="#i-down"/></svg><span><span></span><small></small></span>`;
    button.querySelector("span span").textContent = one.title;
    button.querySelector("small").textContent = one.hint;
    button.onclick = guarded(() => takeHome(kind, button));
    return button;
  });
  const more = document.createElement("details");
  more.append(document.createElement("summary"), ...exports.slice(4));
  more.firstChild.textContent = "More formats";
  $("exports").replaceChildren(...exports.slice(0, 4), more);
  zoom.fits = true;
  showTool("brush");
  showObjects();
  layOut();
  show(Math.min(work.view.frame, work.num_frames - 1));
  showState();
  await poll();
}

// Which frames are to be followed; what is not a number means all.
function range() {
  const end = work.num_frames - 1, [first, last] = ["first", "last"].map((name) => $(name).value === "" ? NaN : Math.round(+$(name).value));
  return { first: clamp(first || 0, 0, end), last: Number.isNaN(last) || last >= end ? null : Math.max(last, 0) };
}

function keepView() {
  clearTimeout(viewTimer);
  const [id, view] = [work.id, { frame: wanted, opacity: $("opacity").value / 100, quality: $("quality").value, ...range() }];
  viewTimer = setTimeout(guarded(() => ask("PUT", `/api/w/${id}/view`, view)), 600);
}

// ---------------------------------------------------------------- frames

function kept(map, number, limit) {
  const found = map.get(number);
  if (found) { map.delete(number); map.set(number, found); }
  for (const old of map.keys()) {
    if (map.size <= limit) break;
    if (old !== number && old !== shown?.number) map.delete(old); else if (map.size <= limit + 2) break;
  }
  return found;
}
const limit = (bytes) => Math.max(8, Math.floor((bytes << 20) / (work.width * work.height)));

async function picture(number) {
  const found = kept(pictures, number, limit(60));
  if (found) return found;
  const [answer, map] = [await ask("GET", at(`/frame/${number}`)), pictures];
  const bitmap = await createImageBitmap(await answer.blob());
  map.set(number, bitmap);
  return bitmap;
}

async function labeling(number) {
  const found = kept(labelings, number, limit(60));
  if (found) return found;
  const map = labelings;
  const answer = await ask("GET", at(`/labels/${number}`));
  const fetched = { labels: new Uint8Array(await answer.arrayBuffer()), source: answer.headers.get("X-Source") };
  if (map.has(number)) return map.get(number); // drawn meanwhile
  map.set(number, fetched);
  return fetched;
}

function show(number) {
  wanted = clamp(Math.round(number) || 0, 0, work.num_frames - 1);
  showClock();
  drawLine();
  if (!loading) load();
}

async function load() {
  loading = true;
  const id = work.id;
  try {
    while (work?.id === id) {
      const number = wanted;
      const [image, found] = await Promise.all([picture(number), labeling(number)]);
      if (work?.id !== id) break;
      if (number !== wanted && !playing && !pictures.has(wanted)) continue; // only the last one is worth waiting for
      if (shown?.number !== number) giveUp();
      shown = { number, ...found, entry: found };
      $("picture").getContext("2d").drawImage(image, 0, 0, work.width, work.height);
      paint();
      $("stage").dataset.frame = number;
      showState();
      if (number === wanted) break;
    }
  } catch (error) {
    toast(error);
    stopPlaying();
  } finally {
    loading = false;
  }
  if (work && work.id !== id) return load();
  if (work) {
    keepView();
    for (const next of [wanted + 1, wanted - 1]) if (next >= 0 && next < work.num_frames) picture(next).catch(() => {});
  }
}

function paint(x0 = 0, y0 = 0, x1 = work.width, y1 = work.height) {
  const [width, height] = [work.width, work.height];
  const reach = Math.max(1, Math.round(Math.min(width, height) / 480)); // width of the outline
  x0 = clamp(Math.floor(x0) - reach, 0, width); y0 = clamp(Math.floor(y0) - reach, 0, height);
  x1 = clamp(Math.ceil(x1) + reach, 0, width); y1 = clamp(Math.ceil(y1) + reach, 0, height);
  if (x1 <= x0 || y1 <= y0) return;
  const context = $("overlay").getContext("2d");
  const image = context.createImageData(x1 - x0, y1 - y0);
  const pixels = new Uint32Array(image.data.buffer);
  const fill = Math.round(2.55 * $("opacity").value);
  const inside = new Uint32Array(256), outline = new Uint32Array(256);
  for (const one of work.objects) {
    const color = parseInt(one.color.slice(1), 16);
    const bgr = ((color & 255) << 16) | (color & 0xff00) | (color >> 16);
    inside[one.id] = ((fill << 24) | bgr) >>> 0;
    outline[one.id] = ((255 << 24) | bgr) >>> 0;
  }
  const labels = shown.labels;
  for (let y = y0, place = 0; y < y1; y++) {
    for (let x = x0; x < x1; x++, place++) {
      const spot = y * width + x, label = labels[spot];
      if (!label) continue;
      const isEdge = (x >= reach && labels[spot - reach] !== label) || (x < width - reach && labels[spot + reach] !== label) ||
        (y >= reach && labels[spot - reach * width] !== label) || (y < height - reach && labels[spot + reach * width] !== label);
      pixels[place] = isEdge ? outline[label] : inside[label];
    }
  }
  context.putImageData(image, x0, y0);
}

// ---------------------------------------------------------------- drawing

const canDraw = () => shown && shown.number === wanted && !busy && !playing;

function place(event) {
  const box = $("view").getBoundingClientRect();
  return [((event.clientX - box.left) * work.width) / box.width, ((event.clientY - box.top) * work.height) / box.height];
}

function stamp(x, y, radius, label) {
  const { labels } = shown;
  const [top, bottom] = [Math.max(0, Math.ceil(y - radius - 0.5)), Math.min(work.height - 1, Math.floor(y + radius - 0.5))];
  for (let row = top; row <= bottom; row++) {
    const half = Math.sqrt(Math.max(0, radius ** 2 - (row + 0.5 - y) ** 2));
    const from = Math.max(0, Math.ceil(x - half - 0.5)), to = Math.min(work.width - 1, Math.floor(x + half - 0.5));
    if (to >= from) labels.fill(label, row * work.width + from, row * work.width + to + 1);
  }
}

function brushTo(x, y) {
  const radius = Math.max(0.5, +$("size").value / 2);
  const length = Math.hypot(x - stroke.x, y - stroke.y), steps = Math.max(1, Math.ceil(length / Math.max(0.5, radius / 3)));
  for (let step = 1; step <= steps; step++) {
    stamp(stroke.x + ((x - stroke.x) * step) / steps, stroke.y + ((y - stroke.y) * step) / steps, radius, stroke.label);
  }
  paint(Math.min(x, stroke.x) - radius, Math.min(y, stroke.y) - radius, Math.max(x, stroke.x) + radius, Math.max(y, stroke.y) + radius);
  [stroke.x, stroke.y] = [x, y];
}

function fillPolygon(points, label) {
  const { width, height } = work;
  for (let row = 0; row < height; row++) {
    const cuts = [];
    points.forEach(([x, y], index) => {
      const [x2, y2] = points[(index + 1) % points.length];
      const middle = row + 0.5;
      if ((y <= middle) !== (y2 <= middle)) cuts.push(x + ((middle - y) * (x2 - x)) / (y2 - y));
    });
    cuts.sort((a, b) => a - b);
    for (let index = 0; index + 1 < cuts.length; index += 2) {
      const from = clamp(Math.ceil(cuts[index] - 0.5), 0, width), to = clamp(Math.floor(cuts[index + 1] - 0.5) + 1, 0, width);
      if (to > from) shown.labels.fill(label, row * width + from, row * width + to);
    }
  }
}

// Notes a change of the labels since `before`, to be undone, and sends it.
function commit(before, source) {
  const { labels, number } = shown, { width } = work;
  let [x0, y0, x1, y1] = [width, -1, -1, -1];
  for (let spot = 0; spot < labels.length; spot++) {
    if (labels[spot] === before[spot]) continue;
    const x = spot % width, y = (spot - x) / width;
    if (y0 < 0) y0 = y;
    y1 = y; x0 = Math.min(x0, x); x1 = Math.max(x1, x);
  }
  if (y0 < 0) return;
  const area = [x0, y0, x1 + 1, y1 + 1];
  undone.push({ number, area, before: cutOut(before, area), after: cutOut(labels, area), source });
  if (undone.length > MAX_UNDO) undone.shift();
  redone = [];
  shown.source = shown.entry.source = "drawn";
  paint(...area);
  send(number, labels.slice());
  showState();
}

function cutOut(labels, [x0, y0, x1, y1]) {
  const part = new Uint8Array((x1 - x0) * (y1 - y0));
  for (let y = y0; y < y1; y++) part.set(labels.subarray(y * work.width + x0, y * work.width + x1), (y - y0) * (x1 - x0));
  return part;
}

async function step(from, to, isBack) {
  if (!from.length || busy || stroke) return;
  const id = work.id, one = from.pop();
  giveUp();
  if (shown?.number !== one.number || wanted !== one.number) {
    wanted = one.number;
    showClock();
    while (loading) await new Promise((done) => setTimeout(done, 10));
    if (shown?.number !== one.number) await load();
    if (work?.id !== id || shown?.number !== one.number) return;
  }
  const [x0, y0, x1, y1] = one.area, part = isBack ? one.before : one.after;
  for (let y = y0; y < y1; y++) shown.labels.set(part.subarray((y - y0) * (x1 - x0), (y - y0 + 1) * (x1 - x0)), y * work.width + x0);
  const source = isBack ? one.source : "drawn";
  shown.source = shown.entry.source = source;
  to.push(one);
  paint(...one.area);
  send(one.number, source === "drawn" ? shown.labels.slice() : new Uint8Array());
  showState();
}
const undo = () => step(undone, redone, true);
const redo = () => step(redone, undone, false);

function send(number, labels) {
  const id = work.id;
  const others = work.annotated.filter((one) => one !== number);
  const isEmpty = !labels.some((label) => label);
  work.annotated = isEmpty ? others : [...others, number].sort((a, b) => a - b);
  work.is_changed = true;
  unsaved += 1;
  $("saved").textContent = "Saving";
  saving = saving.then(async () => {
    try {
      const { absent } = await sent(`/api/w/${id}/labels/${number}`, labels);
      if (work?.id === id) { work.absent = absent; showAbsent(); }
      if (isEmpty && work?.id === id && unsaved === 1) { // what was followed there is seen again
        labelings.delete(number);
        if (shown?.number === number) { shown = null; show(number); }
      }
    } catch (error) {
      toast(error);
      if (work?.id === id) { // what is on disk is seen again
        labelings.delete(number);
        if (shown?.number === number) { shown = null; show(number); }
      }
    }
    unsaved -= 1;
    if (!unsaved) $("saved").textContent = "All drawings are saved";
  });
}

// A drawing waits for a server that does not answer.
async function sent(path, labels) {
  for (let tries = 0; ; tries++) {
    try {
      return await json("PUT", path, labels);
    } catch (error) {
      if (!error.isOffline) throw error;
      if (!tries) toast(error);
      $("saved").textContent = "Not saved yet: the server does not answer";
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
}

async function removeDrawing() {
  const { number } = shown, before = shown.labels.slice();
  shown.labels.fill(0);
  commit(before, shown.source);
  await saving;
}

// The object in a box or at clicks, as the server finds it.
async function prompt(before, given) {
  const [{ number, entry, source }, label, id] = [shown, current, work.id];
  busy = true;
  $("busy").hidden = false;
  try {
    // Clicks correct what is there of the object; a box replaces it.
    const mask = given.points ? before.map((one) => +(one === label)) : new Uint8Array();
    const path = at(`/prompt/${number}?given=${encodeURIComponent(JSON.stringify(given))}`);
    const found = new Uint8Array(await (await ask("POST", path, mask)).arrayBuffer());
    if (work?.id !== id || shown?.number !== number || shown.entry !== entry) return;
    const now = shown.labels.slice();
    for (let spot = 0; spot < found.length; spot++) {
      shown.labels[spot] = found[spot] ? label : before[spot] === label ? 0 : before[spot];
    }
    commit(now, source);
  } catch (error) {
    toast(error);
  } finally {
    busy = false;
    $("busy").hidden = true;
    showMarks();
  }
}

function closePolygon() {
  if (corners.length > 2 && canDraw()) {
    const [before, source] = [shown.labels.slice(), shown.source];
    fillPolygon(corners, current);
    commit(before, source);
  }
  corners = [];
  showMarks();
}

function giveUp() { // what is not finished
  if (stroke?.kind === "brush") { shown.labels.set(stroke.before); paint(); }
  stroke = clicks = null;
  corners = [];
  showMarks();
}

function showMarks(pointer) {
  const unit = work ? work.width / $("view").getBoundingClientRect().width || 1 : 1;
  const color = work?.objects.find((one) => one.id === current)?.color || "#fff";
  const parts = [];
  if (corners.length) {
    const points = [...corners, ...(pointer && tool === "polygon" ? [pointer] : [])];
    parts.push(`<polyline points="${points.map((one) => one.join()).join(" ")}" fill="${color}33" stroke="${color}" stroke-width="2"/>`);
    corners.forEach(([x, y], index) => parts.push(`<circle cx="${x}" cy="${y}" r="${(index ? 4 : 6) * unit}" fill="#fff" stroke="${color}" stroke-width="2"/>`));
  }
  if (stroke?.kind === "box") {
    const [x, y] = [Math.min(stroke.x, stroke.x2), Math.min(stroke.y, stroke.y2)];
    parts.push(`<rect x="${x}" y="${y}" width="${Math.abs(stroke.x2 - stroke.x)}" height="${Math.abs(stroke.y2 - stroke.y)}" fill="${color}22" stroke="#fff" stroke-width="2" stroke-dasharray="6 4"/>`);
  }
  if (tool === "clicks" && clicks) {
    for (const [x, y, isObject] of clicks.points) parts.push(`<circle cx="${x}" cy="${y}" r="${5 * unit}" fill="${isObject ? "#35d07f" : "#ff5a5f"}" stroke="#fff" stroke-width="2"/>`);
  }
  if (pointer && (tool === "brush" || tool === "eraser")) {
    const radius = Math.max(0.5, +$("size").value / 2);
    parts.push(`<circle cx="${pointer[0]}" cy="${pointer[1]}" r="${radius}" fill="none" stroke="#000" stroke-width="3" opacity=".5"/><circle cx="${pointer[0]}" cy="${pointer[1]}" r="${radius}" fill="none" stroke="${tool === "eraser" ? "#fff" : color}" stroke-width="1.5"/>`);
  }
  $("marks").innerHTML = parts.join("");
}

// ---------------------------------------------------------------- the mouse on the frame

$("stage").addEventListener("pointerdown", (event) => {
  $("stage").setPointerCapture(event.pointerId);
  document.activeElement?.blur?.();
  if (event.button === 1 || event.altKey) {
    event.preventDefault();
    stroke = { kind: "move", x: event.clientX, y: event.clientY };
    return;
  }
  stopPlaying();
  if (stroke || !canDraw() || event.button > 2) return;
  const [x, y] = place(event), isSecond = event.button === 2;
  const [before, source] = [shown.labels.slice(), shown.source];
  if (hidden) hide(false);
  if (tool === "brush" || tool === "eraser") {
    stroke = { kind: "brush", x, y, before, source, label: tool === "eraser" || isSecond ? 0 : current };
    brushTo(x, y);
  } else if (tool === "box" && !isSecond) {
    stroke = { kind: "box", x, y, x2: x, y2: y, before };
  } else if (tool === "polygon" && !isSecond) {
    const first = corners[0], near = (10 * work.width) / $("view").getBoundingClientRect().width;
    if (corners.length > 2 && Math.hypot(x - first[0], y - first[1]) < near) closePolygon();
    else { corners.push([x, y]); showMarks([x, y]); }
  } else if (tool === "clicks") {
    if (!clicks || clicks.number !== shown.number || clicks.object !== current) clicks = { number: shown.number, object: current, before, points: [] };
    clicks.points.push([x, y, !isSecond]);
    showMarks();
    prompt(clicks.before, { points: clicks.points });
  }
});

$("stage").addEventListener("pointermove", (event) => {
  if (!work) return;
  if (stroke?.kind === "move") {
    zoom.x += event.clientX - stroke.x; zoom.y += event.clientY - stroke.y; zoom.fits = false;
    [stroke.x, stroke.y] = [event.clientX, event.clientY];
    layOut();
    return;
  }
  const pointer = place(event);
  if (stroke?.kind === "brush") for (const one of event.getCoalescedEvents?.() || [event]) brushTo(...place(one));
  if (stroke?.kind === "box") [stroke.x2, stroke.y2] = pointer;
  showMarks(pointer);
});

function finish(event) {
  const one = stroke;
  stroke = null;
  if (!one || !shown) return;
  if (one.kind === "brush") commit(one.before, one.source);
  if (one.kind === "box") {
    const box = [Math.min(one.x, one.x2), Math.min(one.y, one.y2), Math.max(one.x, one.x2), Math.max(one.y, one.y2)];
    if (box[2] - box[0] > 3 && box[3] - box[1] > 3) prompt(one.before, { box });
  }
  showMarks(event.type === "pointerup" ? place(event) : undefined);
}
$("stage").addEventListener("pointerup", finish);
$("stage").addEventListener("pointercancel", () => giveUp());
$("stage").addEventListener("pointerleave", () => { if (!stroke) showMarks(); });
$("stage").addEventListener("dblclick", () => { if (tool === "polygon") { corners.pop(); closePolygon(); } });
$("stage").addEventListener("contextmenu", (event) => event.preventDefault());
$("stage").addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = $("stage").getBoundingClientRect(), [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const scale = clamp(zoom.scale * Math.exp(-event.deltaY / 500), 0.05, 40), ratio = scale / zoom.scale;
  zoom = { scale, x: x - (x - zoom.x) * ratio, y: y - (y - zoom.y) * ratio, fits: false };
  layOut();
  showMarks(place(event));
}, { passive: false });

function layOut() {
  if (!work) return;
  const { clientWidth: width, clientHeight: height } = $("stage");
  if (zoom.fits) {
    const scale = Math.min((width - 24) / work.width, (height - 24) / work.height);
    zoom = { scale, x: (width - work.width * scale) / 2, y: (height - work.height * scale) / 2, fits: true };
  }
  Object.assign($("view").style, {
    left: `${zoom.x}px`, top: `${zoom.y}px`, width: `${work.width * zoom.scale}px`, height: `${work.height * zoom.scale}px`,
  });
  $("view").classList.toggle("near", zoom.scale > 3);
  drawLine();
}
new ResizeObserver(layOut).observe($("stage"));

// ---------------------------------------------------------------- objects and panel

function showTool(name) {
  giveUp();
  tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) button.classList.toggle("on", button.dataset.tool === name);
  showHint();
}

function showHint() {
  const isNew = shown && !work.annotated.length && !work.followed.length;
  $("hint").textContent = !shown ? "" : isNew || tool === "polygon" || tool === "clicks" ? HINTS[tool] : "";
}

function showObjects() {
  const rows = work.objects.map((one, index) => {
    const row = document.createElement("div");
    row.className = `object${one.id === current ? " on" : ""}`;
    row.innerHTML = `<input type="color" aria-label="Color"><input type="text" maxlength="60" aria-label="Name"><kbd></kbd>
      <button class="button quiet" aria-label="Remove the object" title="Remove the object"><svg class="icon"><use href="#i-trash"/></svg></button>`;
    const [color, name, key, remove] = row.children;
    color.value = one.color;
    name.value = one.name;
    key.textContent = index < 9 ? index + 1 : "";
    remove.hidden = work.objects.length === 1;
    row.onpointerdown = () => choose(one.id);
    color.oninput = () => { one.color = color.value; paint(); };
    color.onchange = guarded(keepObjects);
    name.onchange = guarded(async () => { one.name = name.value = name.value.trim() || `object ${one.id}`; await keepObjects(); });
    name.onkeydown = (event) => { if (event.key === "Enter") name.blur(); };
    remove.onclick = guarded(() => removeObject(one));
    return row;
  });
  $("objects").replaceChildren(...rows);
}

function choose(id) {
  if (id === current) return;
  giveUp();
  current = id;
  [...$("objects").children].forEach((row, index) => row.classList.toggle("on", work.objects[index].id === id));
}

const keepObjects = () => json("PUT", at("/objects"), { objects: work.objects });

async function addObject() {
  const used = new Set(work.objects.map((one) => one.id));
  const id = Array.from({ length: 254 }, (_, index) => index + 1).find((one) => !used.has(one));
  if (!id) return;
  work.objects.push({ id, name: `object ${id}`, color: home.colors[(id - 1) % home.colors.length] });
  current = id;
  giveUp();
  showObjects();
  await keepObjects();
}

async function removeObject(one) {
  if (!confirm(`Remove "${one.name}" from all frames?`)) return;
  await saving;
  const found = await json("PUT", at("/objects"), { objects: work.objects.filter((other) => other !== one) });
  work.objects = work.objects.filter((other) => other !== one);
  Object.assign(work, found);
  [undone, redone, labelings] = [[], [], new Map()];
  current = work.objects[0].id;
  showObjects();
  shown = null;
  show(wanted);
}

// A drawing tells the whole frame: what is not in it counts as not visible.
function showAbsent() {
  const missing = shown?.source === "drawn" ? work.absent[shown.number] || [] : [];
  const names = work.objects.filter((one) => missing.includes(one.id)).map((one) => one.name).join(", ");
  const [counts, it, is] = missing.length > 1 ? ["They count", "them", "they are"] : ["It counts", "it", "it is"];
  $("absent").textContent = names && `Not drawn in this frame: ${names}. ${counts} as out of view here; draw ${it} as well if ${is} in view.`;
}

const inRanges = (ranges, number) => ranges.some(([first, last]) => first <= number && number <= last);
const isLive = () => run && ["waiting", "running", "paused"].includes(run.status);

function showState() {
  const live = isLive(), numFollowed = work.followed.reduce((sum, [first, last]) => sum + last - first + 1, 0);
  $("undo").disabled = !undone.length;
  $("redo").disabled = !redone.length;
  $("clear").hidden = shown?.source !== "drawn";
  showAbsent();
  $("idle").hidden = !!live;
  $("running").hidden = !live;
  $("follow").disabled = !work.annotated.length;
  $("follow").textContent = numFollowed ? "Follow again" : "Follow";
  for (const button of document.querySelectorAll(".export")) button.disabled = !numFollowed || !!button.dataset.making;
  let words = "";
  if (!work.annotated.length) words = "Draw the object on one frame first.";
  else if (run?.status === "failed") words = `This did not work: ${run.reason}.`;
  else if (numFollowed && work.is_changed) words = "You drew since the last time: follow again to spread it.";
  else if (run?.status === "stopped") words = `Stopped${run.reason ? `, because ${run.reason}` : ""}. The masks are kept: follow again to go on.`;
  else if (work.run === "running" && !live) words = "The last time ended early. Its masks are kept: follow again to go on.";
  else if (numFollowed === work.num_frames) words = "Every frame has its mask.";
  else if (numFollowed) words = `${numFollowed} of ${work.num_frames} frames have their masks.`;
  if (run?.status === "done" && run.note) words += ` Adapting: ${run.note}.`;
  $("result").textContent = live ? "" : words;
  $("result").classList.toggle("warn", run?.status === "failed" || work.is_changed);
  $("opacity-text").textContent = hidden ? "hidden" : `${$("opacity").value} %`;
  const link = (text, number) => {
    const button = document.createElement("button");
    button.className = "button small";
    button.textContent = text;
    button.onclick = () => show(number);
    return button;
  };
  const doubts = work.doubtful.slice(0, 5).map(([first, last]) => link(first === last ? `frame ${first}` : `${first} to ${last}`, Math.floor((first + last) / 2)));
  const next = work.next.map((number) => link(`frame ${number}`, number));
  $("doubts").replaceChildren(...(next.length ? ["Draw next:", ...next] : []), ...(doubts.length ? ["Doubtful here:", ...doubts] : []));
  $("doubts").hidden = !doubts.length && !next.length;
  showHint();
  drawLine();
}

// ---------------------------------------------------------------- run

async function follow() {
  if (!work.annotated.length || isLive()) return;
  await saving;
  await ask("POST", at("/run"), { quality: $("quality").value, adapt: $("adapt").checked, ...range() });
  work.is_changed = false;
  await poll();
}

async function poll() {
  clearTimeout(pollTimer);
  const id = work.id;
  let found;
  try {
    found = await json("GET", at("/progress"));
  } catch (error) {
    if (work?.id !== id) return;
    toast(error);
    pollTimer = setTimeout(poll, 5000);
    return;
  }
  if (work?.id !== id) return;
  const wasLive = isLive();
  run = found;
  if (isLive()) {
    showProgress();
    let newest = -1;
    for (const [first, last] of found.new) {
      for (let number = first; number <= last; number++) {
        if (inRanges(fresh, number)) continue;
        newest = number;
        if (labelings.get(number)?.source !== "drawn") labelings.delete(number);
      }
    }
    fresh = found.new;
    if (newest >= 0 && $("live").checked && !stroke && !busy && !corners.length && !playing) { // the last one that came
      if (labelings.has(newest) === false && shown?.number === newest) shown = null;
      show(newest);
    }
    pollTimer = setTimeout(poll, 400);
  } else {
    const { annotated, ...times } = found;
    Object.assign(work, times);
    if (!unsaved && annotated) work.annotated = annotated;
    if (wasLive) {
      fresh = [];
      // A drawing of a new object has the others beside it now.
      for (const [number, one] of [...labelings]) if (one.source !== "drawn" || !unsaved) labelings.delete(number);
      if (!stroke && !busy && !corners.length && (shown?.source !== "drawn" || !unsaved)) { shown = null; show(wanted); }
    }
  }
  showState();
}

function showProgress() {
  const { status, num_done: done, num_steps: total, seconds_left: left, num_before: before } = run;
  const percent = Math.floor((100 * done) / total);
  $("done").style.width = `${percent}%`;
  $("pause").textContent = status === "paused" ? "Go on" : "Pause";
  $("pause").disabled = status === "waiting";
  if (status === "waiting" && run.adapting) $("progress").textContent = `Adapting to this video: ${run.adapting}`;
  else if (status === "waiting") $("progress").textContent = before ? `${before === 1 ? "One video is" : `${before} videos are`} before yours. It begins by itself.` : "It begins in a moment.";
  else if (!done) $("progress").textContent = "Getting ready";
  else $("progress").textContent = `${percent} % done${status === "paused" ? ", paused" : left === null ? "" : `, ${readableTime(left)} left`}`;
}

const readableTime = (seconds) => {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  return seconds < 7200 ? `about ${Math.round(seconds / 60)} min` : `about ${Math.round(seconds / 3600)} h`;
};

async function takeHome(kind, button) {
  const small = button.querySelector("small"), words = small.textContent, id = work.id;
  button.dataset.making = "yes";
  button.disabled = true;
  small.textContent = "is being made";
  try {
    await saving;
    await ask("POST", `/api/w/${id}/export/${kind}`);
    while (!(await json("GET", `/api/w/${id}/export/${kind}`)).is_ready) await new Promise((done) => setTimeout(done, 500));
    const link = document.createElement("a");
    link.href = `/api/w/${id}/export/${kind}/file`;
    link.download = "";
    link.click();
  } finally {
    small.textContent = words;
    delete button.dataset.making;
    button.disabled = false;
  }
}

// ---------------------------------------------------------------- time

function showClock() {
  $("number").value = wanted;
  const seconds = wanted / work.fps, total = work.num_frames / work.fps;
  const clock = (time) => `${Math.floor(time / 60)}:${(time % 60).toFixed(1).padStart(4, "0")}`;
  $("time").textContent = `${clock(seconds)} of ${clock(total)}`;
}

function drawLine() {
  const canvas = $("line"), box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
  if (!work || !box.width) return;
  [canvas.width, canvas.height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  const context = canvas.getContext("2d"), { width } = box;
  context.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue(`--${name}`);
  const left = (number) => (number / work.num_frames) * width;
  const band = (ranges, fill, top, height) => {
    context.fillStyle = fill;
    for (const [first, last] of ranges) context.fillRect(left(first), top, Math.max(1.5, left(last + 1) - left(first) - (width / work.num_frames > 6 ? 1 : 0)), height);
  };
  context.fillStyle = color("bg");
  context.fillRect(0, 0, width, 48);
  const each = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 25000].find((one) => left(one) > 60) || 100000;
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = color("muted");
  for (let number = 0; number < work.num_frames; number += each) {
    context.fillRect(left(number), 0, 1, 5);
    context.fillText(number, left(number) + 3, 10);
  }
  context.fillStyle = color("raised");
  context.fillRect(0, 17, width, 16);
  band(work.followed, "#2a7f77", 17, 16);
  if (isLive()) band(fresh, color("fresh"), 17, 16);
  if (work.certainty.length && !isLive()) { // the surer, the higher
    context.strokeStyle = "#d8fff9";
    context.lineWidth = 1.2;
    context.beginPath();
    work.certainty.forEach(([number, value], index) => context[index ? "lineTo" : "moveTo"](left(number + 0.5), 32 - 14 * clamp(value, 0, 1)));
    context.stroke();
  }
  if (!isLive()) band(work.doubtful, color("doubt"), 35, 5);
  context.fillStyle = color("drawn");
  for (const number of work.annotated) {
    const x = left(number + 0.5);
    context.beginPath();
    context.moveTo(x, 19); context.lineTo(x + 6, 25); context.lineTo(x, 31); context.lineTo(x - 6, 25);
    context.fill();
    context.strokeStyle = color("bg");
    context.stroke();
  }
  const x = left(wanted + 0.5);
  context.fillStyle = "#fff";
  context.fillRect(x - 1, 0, 2, 48);
  context.beginPath();
  context.moveTo(x - 6, 48); context.lineTo(x + 6, 48); context.lineTo(x, 40);
  context.fill();
  canvas.setAttribute("aria-valuenow", wanted);
  canvas.setAttribute("aria-valuemax", work.num_frames - 1);
}

function scrub(event) {
  const box = $("line").getBoundingClientRect();
  $("live").checked = false;
  stopPlaying();
  show(Math.floor(((event.clientX - box.left) / box.width) * work.num_frames));
}
$("line").addEventListener("pointerdown", (event) => { $("line").setPointerCapture(event.pointerId); scrub(event); });
$("line").addEventListener("pointermove", (event) => { if ($("line").hasPointerCapture(event.pointerId)) scrub(event); });

function stopPlaying() {
  if (!playing) return;
  playing = false;
  $("play").querySelector("use").setAttribute("href", "#i-play");
}

async function play() {
  if (playing) return stopPlaying();
  if (wanted === work.num_frames - 1) show(0);
  playing = true;
  giveUp();
  $("play").querySelector("use").setAttribute("href", "#i-pause");
  const id = work.id;
  while (playing && work?.id === id && wanted < work.num_frames - 1) {
    const due = performance.now() + 1000 / clamp(work.fps, 1, 60);
    for (let ahead = 2; ahead < 10; ahead++) if (wanted + ahead < work.num_frames) { picture(wanted + ahead).catch(() => {}); labeling(wanted + ahead).catch(() => {}); }
    show(wanted + 1);
    while (loading) await new Promise((done) => setTimeout(done, 4));
    await new Promise((done) => setTimeout(done, Math.max(0, due - performance.now())));
  }
  stopPlaying();
}

function hide(value) {
  hidden = value;
  $("overlay").style.visibility = hidden ? "hidden" : "";
  showState();
}

function nextDrawing(direction) {
  const others = direction > 0 ? work.annotated.filter((one) => one > wanted) : work.annotated.filter((one) => one < wanted).reverse();
  if (others.length) show(others[0]);
}

function nextDoubt() {
  const places = work.doubtful.map(([first, last]) => Math.floor((first + last) / 2));
  if (places.length) show(places.find((one) => one > wanted) ?? places[0]);
}

// ---------------------------------------------------------------- keys and buttons

document.addEventListener("keydown", (event) => {
  if (!work || $("keys-dialog").open || ["text", "number"].includes(event.target.type) || event.target.tagName === "SELECT") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const tools = { b: "brush", e: "eraser", p: "polygon", x: "box", c: "clicks" };
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") { event.preventDefault(); (event.shiftKey ? redo : undo)(); }
    if (key === "y") { event.preventDefault(); redo(); }
    return;
  }
  const far = event.shiftKey ? 10 : 1;
  const actions = {
    "[": () => resize(1 / 1.2), "]": () => resize(1.2), n: guarded(addObject), f: guarded(follow), h: () => hide(!hidden),
    ArrowLeft: () => show(wanted - far), ArrowRight: () => show(wanted + far), Home: () => show(0), End: () => show(work.num_frames - 1),
    ",": () => nextDrawing(-1), ".": () => nextDrawing(1), d: nextDoubt, " ": play, Enter: closePolygon, Escape: giveUp,
    Backspace: () => { corners.pop(); showMarks(); }, 0: fit, "?": () => $("keys-dialog").showModal(),
  };
  if (event.target.type === "range" && key.startsWith("Arrow")) return;
  if (event.target.tagName === "BUTTON" && (key === " " || (key === "Enter" && !corners.length))) return;
  if (tools[key]) showTool(tools[key]);
  else if (/^[1-9]$/.test(key) && work.objects[key - 1]) choose(work.objects[key - 1].id);
  else if (actions[key]) { event.preventDefault(); if (key.startsWith("Arrow") || key === "Home" || key === "End") { stopPlaying(); $("live").checked = false; } actions[key](); }
});

function resize(factor) {
  const size = +$("size").value;
  $("size").value = factor > 1 ? Math.max(size + 1, size * factor) : Math.min(size - 1, size * factor);
  showMarks();
}
function fit() { zoom.fits = true; layOut(); showMarks(); }

for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => showTool(button.dataset.tool);
$("undo").onclick = undo;
$("redo").onclick = redo;
$("fit").onclick = fit;
$("add").onclick = guarded(addObject);
$("clear").onclick = guarded(removeDrawing);
$("follow").onclick = guarded(follow);
$("pause").onclick = guarded(async () => { await ask("POST", at(run.status === "paused" ? "/resume" : "/pause")); await poll(); });
$("stop").onclick = guarded(async () => { await ask("POST", at("/stop")); await poll(); });
$("opacity").oninput = () => { if (hidden) hide(false); paint(); showState(); keepView(); };
$("quality").onchange = $("first").onchange = $("last").onchange = keepView;
$("number").onchange = () => { stopPlaying(); show(+$("number").value); };
$("play").onclick = play;
$("home").onclick = () => { location.hash = ""; };
$("keys").onclick = () => $("keys-dialog").showModal();
$("file").onchange = () => upload($("file").files[0]);
$("choose").onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") $("file").click(); };
$("path-form").onsubmit = guarded(async (event) => {
  event.preventDefault();
  const path = $("path").value.trim();
  if (path) await openPath(path); else await list("");
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && !$("start").hidden) upload(event.dataTransfer.files[0]);
  });
}
window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

async function route() {
  const id = location.hash.slice(1);
  try {
    await (id ? openWork(id) : openStart());
  } catch (error) {
    toast(error);
    if (id) { history.replaceState(null, "", "/"); await guarded(openStart)(); }
  }
}
window.addEventListener("hashchange", route);
route();
