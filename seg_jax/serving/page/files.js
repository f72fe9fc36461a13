// What is saved: COCO JSON, SVG and PNG. Masks are filled by the server, as answers are.

import { pathOf } from "/outline.js";

export async function coco(objects, picture, fill) {
  const names = [...new Set(objects.map((one) => one.name))];
  const annotations = [];
  for (const one of objects) {
    const mask = await fill(one.rings);
    const [x0, y0, x1, y1] = mask.box_px;
    annotations.push({
      id: annotations.length + 1,
      image_id: 1,
      category_id: names.indexOf(one.name) + 1,
      // COCO joins polygons, so that only run lengths can have a hole.
      segmentation: one.rings.length === 1 ? [one.rings[0].flat()] : mask.rle,
      area: mask.area_px,
      bbox: [x0, y0, x1 - x0, y1 - y0],
      iscrowd: 0,
    });
  }
  const categories = names.map((name, at) => ({ id: at + 1, name, supercategory: "" }));
  const images = [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }];
  return JSON.stringify({ info: { description: "seg-jax" }, images, annotations, categories }, null, 1);
}

const escaped = (text) =>
  text.replace(/[<>&"']/g, (one) => `&#${one.charCodeAt(0)};`).replace(/[\0-\x08\x0b\x0c\x0e-\x1f]/g, "");

export function svg(objects, picture) {
  const paths = objects.map(
    (one) =>
      `  <path d="${pathOf(one.rings)}" fill="${one.colour}" fill-opacity="0.4" stroke="${one.colour}"` +
      ` fill-rule="evenodd"><title>${escaped(one.name)}</title></path>`,
  );
  const { width, height } = picture;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}"` +
    ` height="${height}">\n${paths.join("\n")}\n</svg>\n`
  );
}

// Every object in its colour on black; later ones cover earlier ones.
export async function png(objects, picture, fill) {
  const { width, height } = picture;
  const canvas = new OffscreenCanvas(width, height);
  const paint = canvas.getContext("2d");
  const image = paint.createImageData(width, height);
  for (let at = 3; at < image.data.length; at += 4) image.data[at] = 255;
  for (const one of objects) {
    const rgb = [1, 3, 5].map((at) => parseInt(one.colour.slice(at, at + 2), 16));
    for (const pixel of pixelsOf((await fill(one.rings)).rle)) {
      image.data.set(rgb, 4 * ((pixel % height) * width + Math.floor(pixel / height)));
    }
  }
  paint.putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

// Numbers of the pixels of COCO's compressed run lengths, column by column.
function* pixelsOf({ counts }) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const six = counts.charCodeAt(at++) - 48;
      value |= (six & 31) << shift;
      shift += 5;
      more = (six & 32) !== 0;
      if (!more && six & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  let place = 0;
  for (const [at, run] of runs.entries()) {
    if (at % 2) for (let pixel = place; pixel < place + run; pixel++) yield pixel;
    place += run;
  }
}

export function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
