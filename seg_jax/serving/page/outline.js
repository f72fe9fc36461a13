// Objects with their outlines, and what can be done to them; every change can be undone.
// Rings are lists of [x, y] in pixels of the picture; a ring within a ring is a hole.

const COLOURS = ["#d0103a", "#2457d6", "#0a8a4a", "#b85c00", "#7a2fc2", "#00798c", "#c2185b", "#5b6b00"];
const MOST_UNDONE = 200;

export class Outlines {
  constructor(changed) {
    this.changed = changed;
    this.#empty();
  }

  clear() {
    this.#empty();
    this.changed();
  }

  #empty() {
    this.objects = [];
    this.chosen = null;
    this.vertex = null;
    this.past = [];
    this.future = [];
    this.made = 0;
  }

  get object() {
    return this.objects.find((one) => one.id === this.chosen) ?? null;
  }

  // Remembers what is there before something changes.
  remember() {
    this.past.push(JSON.stringify([this.objects, this.chosen]));
    if (this.past.length > MOST_UNDONE) this.past.shift();
    this.future = [];
  }

  undo() { this.#step(this.past, this.future); }
  redo() { this.#step(this.future, this.past); }

  #step(from, to) {
    if (!from.length) return;
    to.push(JSON.stringify([this.objects, this.chosen]));
    [this.objects, this.chosen] = JSON.parse(from.pop());
    this.vertex = null;
    this.changed();
  }

  add(fields) {
    this.remember();
    this.made += 1;
    const colour = COLOURS[(this.made - 1) % COLOURS.length];
    const one = { id: this.made, name: `object ${this.made}`, colour, rings: [], ...fields };
    this.objects.push(one);
    this.choose(one.id);
    return one;
  }

  replace(id, fields) {
    this.remember();
    Object.assign(this.objects.find((one) => one.id === id) ?? {}, fields);
    this.vertex = null;
    this.changed();
  }

  choose(id) {
    this.chosen = id;
    this.vertex = null;
    this.changed();
  }

  next() {
    if (!this.objects.length) return;
    const at = this.objects.findIndex((one) => one.id === this.chosen);
    this.choose(this.objects[(at + 1) % this.objects.length].id);
  }

  rename(id, name) {
    this.remember();
    this.objects.find((one) => one.id === id).name = name;
    this.changed();
  }

  // Deletes the chosen vertex, or the chosen object where none is.
  remove() {
    if (!this.object) return;
    this.remember();
    if (this.vertex) {
      const [ring, at] = this.vertex;
      const rings = this.object.rings;
      rings[ring].splice(at, 1);
      if (rings[ring].length < 3) rings.splice(ring, 1);
      this.object.edited = true;
      this.vertex = null;
    } else {
      this.objects = this.objects.filter((one) => one.id !== this.chosen);
      this.chosen = this.objects.at(-1)?.id ?? null;
    }
    this.changed();
  }

  // Adds a vertex behind another one, half way to the next if no place is given.
  insert(ring, at, place) {
    this.remember();
    const points = this.object.rings[ring];
    const [a, b] = [points[at], points[(at + 1) % points.length]];
    points.splice(at + 1, 0, place ?? [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]);
    this.object.edited = true;
    this.vertex = [ring, at + 1];
    this.changed();
  }

  addRing(points) {
    if (!this.object) return;
    this.remember();
    this.object.rings.push(points);
    this.object.edited = true;
    this.changed();
  }

  // Moves the chosen vertex; `remember` is for whoever begins the movement.
  move(place, [width, height]) {
    if (!this.object || !this.vertex) return;
    const [ring, at] = this.vertex;
    const inside = [Math.min(width, Math.max(0, place[0])), Math.min(height, Math.max(0, place[1]))];
    this.object.rings[ring][at] = inside.map((value) => Math.round(value * 100) / 100);
    this.object.edited = true;
    this.changed();
  }

  // Chooses the next vertex of the chosen object, or the one before; null past the last.
  stepVertex(by) {
    const every = (this.object?.rings ?? []).flatMap((ring, r) => ring.map((_, at) => [r, at]));
    if (!every.length) return false;
    const now = this.vertex
      ? every.findIndex(([r, at]) => r === this.vertex[0] && at === this.vertex[1])
      : (by > 0 ? -1 : every.length);
    const next = now + by;
    this.vertex = next >= 0 && next < every.length ? every[next] : null;
    this.changed();
    return this.vertex !== null;
  }
}

export function pathOf(rings) {
  return rings
    .map((ring) => "M" + ring.map(([x, y]) => `${+x.toFixed(2)} ${+y.toFixed(2)}`).join("L") + "Z")
    .join("");
}

export function boxOf(rings) {
  const points = rings.flat();
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}
