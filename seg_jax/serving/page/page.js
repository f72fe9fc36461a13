// The page: a picture, questions about it, and outlines to be edited and saved.
// Whatever comes from outside is set as text or as an attribute, never as markup.

import { Outlines, boxOf, pathOf } from "/outline.js";
import * as files from "/files.js";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HANDLE = matchMedia("(pointer: coarse)").matches ? 11 : 6;

let about = { limits: { bytes: 16 << 20, pixels: 25e6, side: 4096 }, kinds: [] };
let picture = null;
let tool = "click";
let cross = null;
let corner = null;
let asking = null;
let pressed = { name: "", time: -Infinity };
const outlines = new Outlines(() => show());

// The token comes in the address and does not stay there.
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("token");
if (token) {
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname);
}

async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { headers, signal };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const told = await reply.json();
  if (!reply.ok) {
    const wait = reply.headers.get("Retry-After");
    throw new Error(told.error.message + (wait ? ` (again in ${wait} s)` : ""));
  }
  return told;
}

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

// Pictures.

async function open(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    say(`${name} is no picture that this browser can read.`, "error");
    return;
  }
  const { side, pixels } = about.limits;
  const { width, height } = bitmap;
  const scale = Math.min(1, side / Math.max(width, height), Math.sqrt(pixels / (width * height)));
  let sent = blob;
  const plain = ["image/png", "image/jpeg", "image/webp"].includes(blob.type);
  if (scale < 1 || !plain || blob.size * 1.4 > about.limits.bytes) {
    const small = [width, height].map((length) => Math.max(1, Math.floor(length * scale)));
    const canvas = new OffscreenCanvas(...small);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, ...small);
    sent = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  }
  giveUp();
  if (picture) URL.revokeObjectURL(picture.address);
  picture = { name, width, height, sent: await dataUri(sent), address: URL.createObjectURL(blob) };
  $("hint").hidden = true;
  $("view").removeAttribute("hidden");
  $("view").setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const [key, value] of Object.entries({ href: picture.address, width, height })) {
    $("picture").setAttribute(key, value);
  }
  cross = corner = null;
  outlines.clear();
  say(`${name}, ${width} x ${height}${scale < 1 ? "; it is asked about at a smaller size" : ""}`);
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// Questions. A clue has text, points with labels, or a box; numbers are fractions of the picture.

function giveUp() {
  asking?.abort();
  asking = null;
}

async function ask(clue, id = null) {
  if (!picture) {
    say("Open a picture first.", "error");
    return;
  }
  giveUp();
  const mine = (asking = new AbortController());
  const began = performance.now();
  say("asking", "busy");
  try {
    const told = await call("/v1/segment", { image: picture.sent, ...clue }, mine.signal);
    if (asking !== mine) return;
    take(told.objects[0], clue, id);
    say(`answered in ${((performance.now() - began) / 1000).toFixed(2)} s`);
  } catch (error) {
    if (!mine.signal.aborted) say(error.message, "error");
  } finally {
    if (asking === mine) asking = null;
  }
}

function take(answer, clue, id) {
  const size = [picture.width, picture.height];
  const rings = answer.polygons_unit
    .filter((ring) => ring.length > 2)
    .map((ring) => ring.map((point) => point.map((value, axis) => +(value * size[axis]).toFixed(2))));
  const { text, verdict, score, finish, agreement, tokens, says_nothing: nothing, question } = answer;
  const told = { text, verdict, score, finish, agreement, tokens, nothing, question };
  const fields = { rings, told, clue, edited: false };
  if (id !== null && outlines.objects.some((one) => one.id === id)) outlines.replace(id, fields);
  else outlines.add(clue.text ? { ...fields, name: clue.text } : fields);
}

function askAt(place, beside) {
  const point = [place[0] / picture.width, place[1] / picture.height];
  const old = outlines.object?.clue;
  if (!beside) return ask({ points: [point], labels: [1] });
  if (!old) {
    say("Choose the object first that this point is not of.", "error");
    return null;
  }
  const points = [...(old.points ?? []), point];
  return ask({ ...old, points, labels: [...(old.labels ?? []), 0] }, outlines.chosen);
}

function askBox([x0, y0, x1, y1], id = null) {
  const { width, height } = picture;
  if (x1 - x0 < 1 || y1 - y0 < 1) return;
  const unit = [x0 / width, y0 / height, x1 / width, y1 / height];
  ask({ boxes: [unit.map((value) => Math.min(1, Math.max(0, value)))] }, id);
}

function askAgain() {
  const one = outlines.object;
  if (one?.rings.length) askBox(boxOf(one.rings), one.id);
}

function endBox(box) {
  const [x0, y0, x1, y1] = box;
  if (tool === "box") askBox(box);
  else if (!outlines.object) say("Choose the object first that gets the hole.", "error");
  else if (x1 - x0 >= 1 && y1 - y0 >= 1) outlines.addRing([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]);
}

// Drawing.

function node(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function pixel() {
  const shown = $("view").getBoundingClientRect();
  return Math.max(picture.width / shown.width, picture.height / shown.height);
}

function show() {
  $("undo").disabled = !outlines.past.length;
  $("redo").disabled = !outlines.future.length;
  for (const id of ["again", "delete"]) $(id).disabled = !outlines.object;
  for (const id of ["save-coco", "save-svg", "save-png"]) $(id).disabled = !outlines.objects.length;
  showTools();
  if (!picture) return;
  $("shapes").replaceChildren(
    ...outlines.objects.map((one) => {
      const chosen = one.id === outlines.chosen ? "chosen" : "";
      const [fill, d] = [one.colour, pathOf(one.rings)];
      return node("path", { d, fill, stroke: fill, "fill-rule": "evenodd", class: chosen, "data-id": one.id });
    }),
  );
  showHandles();
  showCross();
  showList();
  showAnswer();
}

function showHandles() {
  const found = [];
  const one = outlines.object;
  const size = pixel() * HANDLE;
  if (one && tool === "edit") {
    for (const [r, ring] of one.rings.entries()) {
      for (const [at, [x, y]] of ring.entries()) {
        const [nx, ny] = ring[(at + 1) % ring.length];
        const middle = { cx: (x + nx) / 2, cy: (y + ny) / 2, r: size * 0.7, class: "middle" };
        found.push(node("circle", { ...middle, stroke: one.colour, "data-ring": r, "data-at": at }));
      }
    }
    for (const [r, ring] of one.rings.entries()) {
      for (const [at, [cx, cy]] of ring.entries()) {
        const chosen = outlines.vertex?.[0] === r && outlines.vertex?.[1] === at;
        const kind = { class: chosen ? "vertex chosen" : "vertex", stroke: one.colour };
        found.push(node("circle", { cx, cy, r: size, ...kind, "data-ring": r, "data-at": at }));
      }
    }
  }
  $("handles").replaceChildren(...found);
}

function showCross() {
  $("cross").setAttribute("visibility", cross ? "visible" : "hidden");
  if (!cross) return;
  const [x, y] = cross;
  const arm = pixel() * 12;
  $("cross").setAttribute("d", `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`);
}

function showBand(a, b) {
  const box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  const [x0, y0, x1, y1] = box;
  const lengths = { x: x0, y: y0, width: x1 - x0, height: y1 - y0, visibility: "visible" };
  for (const [key, value] of Object.entries(lengths)) $("band").setAttribute(key, value);
  return box;
}

function showTools() {
  for (const name of ["click", "box", "edit", "hole"]) {
    $(`tool-${name}`).setAttribute("aria-checked", String(name === tool));
  }
  $("view").setAttribute("class", tool);
}

function showList() {
  const rows = outlines.objects.map((one) => {
    const row = document.createElement("li");
    row.className = one.id === outlines.chosen ? "chosen" : "";
    const pick = document.createElement("button");
    Object.assign(pick, { type: "button", className: "colour", title: "choose" });
    pick.setAttribute("aria-label", `choose ${one.name}`);
    pick.style.background = one.colour;
    pick.onclick = () => outlines.choose(one.id);
    const name = document.createElement("input");
    Object.assign(name, { type: "text", value: one.name, maxLength: 200, ariaLabel: "name" });
    name.onfocus = () => one.id !== outlines.chosen && later(one.id);
    name.onchange = () => outlines.rename(one.id, name.value.trim() || one.name);
    const note = document.createElement("small");
    note.textContent = one.edited ? "edited" : `${one.rings.length} ring${one.rings.length === 1 ? "" : "s"}`;
    row.append(pick, name, note);
    return row;
  });
  const active = document.activeElement;
  if (!(active?.closest("#objects") && active.tagName === "INPUT" && rows.length === $("objects").children.length)) {
    $("objects").replaceChildren(...rows);
    return;
  }
  for (const [at, row] of rows.entries()) $("objects").children[at].className = row.className;
}

const later = (id) => setTimeout(() => outlines.choose(id));

function showAnswer() {
  const told = outlines.object?.told;
  $("wrote").textContent = told?.text ?? "";
  const facts = told
    ? {
        asked: told.question,
        verdict: told.nothing ? `${told.verdict}, there is no such object` : told.verdict,
        outlines: outlines.object.rings.map((ring) => ring.length).join(" + ") + " vertices",
        score: told.score.toFixed(3),
        ended: told.finish === "stop" ? "by itself" : "cut at its longest",
        ...(told.agreement < 1 ? { clicks: `${Math.round(100 * told.agreement)} % agree` } : {}),
      }
    : {};
  $("read").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => {
      const [term, text] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }),
  );
}

function choose(name) {
  tool = name;
  corner = null;
  $("band").setAttribute("visibility", "hidden");
  show();
}

// Pointers.

function placeOf(event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform($("view").getScreenCTM().inverse());
  return [Math.min(picture.width, Math.max(0, at.x)), Math.min(picture.height, Math.max(0, at.y))];
}

$("view").addEventListener("pointerdown", (event) => {
  if (event.button || !picture) return;
  const place = placeOf(event);
  const { ring, at, id } = event.target.dataset;
  cross = null;
  if (tool === "edit") {
    if (ring !== undefined && event.target.classList.contains("middle")) outlines.insert(+ring, +at, place);
    else if (ring !== undefined && isSecond(event, ring, at)) {
      outlines.vertex = [+ring, +at];
      outlines.remove();
      return;
    } else if (ring !== undefined) {
      outlines.remember();
      outlines.vertex = [+ring, +at];
      show();
    } else {
      outlines.choose(id ? +id : null);
      return;
    }
    drag(event, (now) => outlines.move(now, [picture.width, picture.height]), () => {});
  } else if (tool === "click") {
    askAt(place, event.shiftKey || $("beside").checked);
  } else {
    let box = [...place, ...place];
    const end = () => {
      $("band").setAttribute("visibility", "hidden");
      endBox(box);
    };
    drag(event, (now) => (box = showBand(place, now)), end);
  }
});

function drag(event, moved, ended) {
  const view = $("view");
  const stop = new AbortController();
  const options = { signal: stop.signal };
  view.setPointerCapture(event.pointerId);
  view.addEventListener("pointermove", (next) => moved(placeOf(next)), options);
  view.addEventListener("pointerup", () => { stop.abort(); ended(); }, options);
  view.addEventListener("pointercancel", () => {
    stop.abort();
    $("band").setAttribute("visibility", "hidden");
  }, options);
}

// Returns whether a vertex is pressed for the second time at once; while pointers are captured no
// double click tells it.
function isSecond(event, ring, at) {
  const name = `${ring} ${at}`;
  const second = pressed.name === name && event.timeStamp - pressed.time < 400;
  pressed = { name, time: second ? -Infinity : event.timeStamp };
  return second;
}

// Keys.

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  c: () => choose("click"),
  b: () => choose("box"),
  e: () => choose("edit"),
  h: () => choose("hole"),
  a: askAgain,
  n: () => outlines.next(),
  i: () => outlines.vertex && outlines.insert(...outlines.vertex),
  Delete: () => outlines.remove(),
  Backspace: () => outlines.remove(),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text]");
  if ((event.ctrlKey || event.metaKey) && !typing && /^[zy]$/i.test(event.key)) {
    event.preventDefault();
    if (event.key.toLowerCase() === "y" || event.shiftKey) outlines.redo();
    else outlines.undo();
    return;
  }
  if (event.key === "Escape") {
    giveUp();
    cross = corner = null;
    outlines.vertex = null;
    $("band").setAttribute("visibility", "hidden");
    say("");
    show();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !picture) return;
  if (event.target === $("stage") && stageKey(event)) {
    event.preventDefault();
    return;
  }
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

// Returns whether a key means something on the picture.
function stageKey(event) {
  const { width, height } = picture;
  const by = MOVES[event.key];
  if (by) {
    const step = (event.shiftKey ? 10 : 1) * (tool === "edit" ? 1 : Math.max(1, Math.max(width, height) / 100));
    if (tool === "edit" && outlines.vertex) {
      const [ring, at] = outlines.vertex;
      const [x, y] = outlines.object.rings[ring][at];
      outlines.remember();
      outlines.move([x + by[0] * step, y + by[1] * step], [width, height]);
      return true;
    }
    const [x, y] = cross ?? [width / 2, height / 2];
    cross = [Math.min(width, Math.max(0, x + by[0] * step)), Math.min(height, Math.max(0, y + by[1] * step))];
    if (corner) showBand(corner, cross);
    showCross();
    return true;
  }
  if (event.key === "Tab" && tool === "edit" && outlines.object) return outlines.stepVertex(event.shiftKey ? -1 : 1);
  if (event.key === "Enter" && tool !== "edit") {
    cross ??= [width / 2, height / 2];
    if (tool === "click") askAt(cross, event.shiftKey || $("beside").checked);
    else if (!corner) corner = cross;
    else {
      const box = showBand(corner, cross);
      corner = null;
      $("band").setAttribute("visibility", "hidden");
      endBox(box);
    }
    showCross();
    return true;
  }
  return false;
}

// The rest.

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) ask({ text });
  else say("Write what to outline.", "error");
});
for (const name of ["click", "box", "edit", "hole"]) $(`tool-${name}`).onclick = () => choose(name);
$("undo").onclick = () => outlines.undo();
$("redo").onclick = () => outlines.redo();
$("again").onclick = askAgain;
$("delete").onclick = () => outlines.remove();
$("file").onchange = () => $("file").files[0] && open($("file").files[0], $("file").files[0].name);
addEventListener("resize", () => picture && show());
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("stage").classList.toggle("over", name === "dragover");
    const file = name === "drop" ? event.dataTransfer.files[0] : null;
    if (file) open(file, file.name);
  });
}
document.addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (file) open(file, file.name || "pasted");
});

const fill = (rings) =>
  call("/v1/mask", { height: picture.height, width: picture.width, polygons_px: rings });
const SAVED = {
  "save-coco": async () => files.save("outlines.json", await files.coco(outlines.objects, picture, fill), "application/json"),
  "save-svg": async () => files.save("outlines.svg", files.svg(outlines.objects, picture), "image/svg+xml"),
  "save-png": async () => files.save("outlines.png", await files.png(outlines.objects, picture, fill), "image/png"),
};
for (const [id, act] of Object.entries(SAVED)) {
  $(id).onclick = () => act().catch((error) => say(error.message, "error"));
}

async function begin() {
  show();
  try {
    about = await call("/v1/about");
    $("model").textContent = about.model;
    const examples = await call("/examples");
    for (const [at, { image, texts }] of examples.entries()) {
      const [button, shown] = [document.createElement("button"), document.createElement("img")];
      Object.assign(button, { type: "button", title: texts.join(", ") });
      Object.assign(shown, { src: image, alt: `example ${at + 1}` });
      button.append(shown);
      button.onclick = async () => {
        await open(await (await fetch(image)).blob(), `example ${at + 1}.png`);
        $("text").value = texts[0] ?? "";
      };
      $("examples").append(button);
    }
  } catch (error) {
    say(error.message, "error");
  }
}
begin();
