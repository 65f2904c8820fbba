// Pictures, maps and outlines on a canvas.

// Colours of the heat, from its beginning to its end.
const RAMP = [[255, 214, 64], [255, 140, 30], [226, 45, 60], [160, 20, 120]];
const AT_LIMIT = 0.15; // how strong the heat is at the limit

// A base64 PNG as {width, height, values: 0..255}.
export async function readMap(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const values = new Uint8Array(data.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = data[4 * i];
  return { width: bitmap.width, height: bitmap.height, values };
}

function heat(map, limit) {
  const at = Math.min(Math.max(limit, 1e-6), 1 - 1e-6), table = new Uint8ClampedArray(1024);
  for (let level = 0; level < 256; level++) {
    const x = level / 255;
    const strength = x < at / 2 ? 0 : x < at ? (AT_LIMIT * (x - at / 2)) / (at / 2) : AT_LIMIT + ((1 - AT_LIMIT) * (x - at)) / (1 - at);
    const place = strength * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
    for (let c = 0; c < 3; c++) table[4 * level + c] = RAMP[low][c] + (RAMP[low + 1][c] - RAMP[low][c]) * (place - low);
    table[4 * level + 3] = 255 * Math.min(0.7, strength * 1.6);
  }
  const image = new ImageData(map.width, map.height);
  for (let i = 0; i < map.values.length; i++) {
    const from = 4 * map.values[i];
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = table[from + c];
  }
  const canvas = new OffscreenCanvas(map.width, map.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Where the map passes a limit that is tried, in the map's own scale.
const mapLimit = (answer, limit, mapScale) => Math.max(0, answer.map_limit + (limit - answer.limit) * mapScale);

export function draw(canvas, seen, limit, { map_scale: mapScale, map_floor: mapFloor }, { map, regions }) {
  const { answer } = seen, scale = Math.min(1, 1400 / Math.max(answer.width, answer.height));
  canvas.width = Math.round(answer.width * scale);
  canvas.height = Math.round(answer.height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "#333";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (seen.bitmap) context.drawImage(seen.bitmap, 0, 0, canvas.width, canvas.height);
  // Where reference parts alone decide, the map's limit is 0, and all of the part would glow.
  const at = Math.max(mapLimit(answer, limit, mapScale), mapFloor);
  if (map) context.drawImage(heat(seen.map, at), 0, 0, canvas.width, canvas.height);
  if (regions) outline(context, answer.ignored ?? [], scale, [3, 3]);
  if (!regions || answer.score <= limit) return;
  const shown = answer.regions.filter((region) => limit === answer.limit || region.score > at);
  outline(context, shown, scale);
}

// Outlines with the word for each; those of what is ignored are dashed.
function outline(context, shown, scale, dash = []) {
  const width = Math.max(1.5, context.canvas.width / 350), size = Math.max(11, context.canvas.width / 45);
  context.setLineDash(dash.map((part) => part * width));
  context.font = `600 ${size}px system-ui, sans-serif`;
  for (const [colour, extra] of [["#000a", width], ["#fff", 0]]) {
    context.lineWidth = width + extra;
    context.strokeStyle = colour;
    for (const { contour } of shown) {
      context.beginPath();
      for (const [x, y] of contour) context.lineTo((x + 0.5) * scale, (y + 0.5) * scale);
      context.closePath();
      context.stroke();
    }
  }
  context.setLineDash([]);
  context.lineWidth = size / 5;
  context.strokeStyle = "#000a";
  context.fillStyle = "#fff";
  for (const { box: [x, y, , height], kinds } of shown) {
    const word = kindOf(kinds), wide = context.measureText(word).width;
    const at = [Math.max(2, Math.min(x * scale, context.canvas.width - wide - 2)), y * scale > 1.3 * size ? y * scale - size / 3 : (y + height) * scale + size];
    context.strokeText(word, ...at);
    context.fillText(word, ...at);
  }
}

// The most probable word; "" where the bundle has none.
export const kindOf = (kinds) => Object.entries(kinds ?? {}).reduce((best, one) => (one[1] > best[1] ? one : best), ["", 0])[0];

export function thumbnail(canvas, bitmap) {
  canvas.width = canvas.height = 88;
  if (!bitmap) return;
  const side = Math.min(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, 88, 88);
}
