// Draws shapes on a canvas, as envs/rendering/scene.py draws them into pixels. A shape is a row [kind, points, pose,
// colour, width, layer, owner, text or image], see envs/rendering/web_frames.py.
"use strict";

const pictures = new Map(); // data URI -> Image

// A view maps metres to pixels: `bounds` [left, right, bottom, top] onto a width x height canvas; `zoom`: canvas pixels
// per pixel of VMAS's window, for line widths and text.
function viewOf(bounds, width, height, window_width) {
  const [left, right, bottom, top] = bounds;
  return { left, bottom, across: width / (right - left), up: height / (top - bottom), width, height,
    zoom: width / window_width };
}
const pixelX = (view, x) => (x - view.left) * view.across;
const pixelY = (view, y) => view.height - (y - view.bottom) * view.up;
const metresX = (view, px) => px / view.across + view.left;
const metresY = (view, py) => (view.height - py) / view.up + view.bottom;

function matrixOf(pose) {
  if (pose.length === 6) return pose;
  const c = Math.cos(pose[2]), s = Math.sin(pose[2]);
  return [c, s, -s, c, pose[0], pose[1]];
}

function drawShape(ctx, view, row) {
  const [kind, points, pose, colour, width, , , extra] = row;
  const [a, b, c, d, e, f] = matrixOf(pose);
  const at = (i) => [a * points[i] + c * points[i + 1] + e, b * points[i] + d * points[i + 1] + f];
  if (kind === "text") {
    const [x, y] = at(0);
    ctx.font = `${(width * 96 / 72) * view.zoom}px monospace`;
    ctx.fillStyle = theme.ink;
    ctx.textBaseline = "bottom";
    ctx.fillText(extra, x * view.zoom, view.height - y * view.zoom);
    return;
  }
  if (kind === "image") {
    if (!pictures.has(extra)) pictures.set(extra, Object.assign(new Image(), { src: extra }));
    const [x0, y0] = at(0), [x1, y1] = at(2), picture = pictures.get(extra);
    if (picture.complete)
      ctx.drawImage(picture, pixelX(view, x0), pixelY(view, y1), (x1 - x0) * view.across, (y1 - y0) * view.up);
    return;
  }
  ctx.beginPath();
  for (let i = 0; i < points.length; i += 2) {
    const [x, y] = at(i);
    ctx[i ? "lineTo" : "moveTo"](pixelX(view, x), pixelY(view, y));
  }
  const [inside, edge] = shade(colour);
  ctx.lineWidth = Math.max(1, width * view.zoom);
  if (kind === "fill" || kind === "plain") {
    ctx.closePath();
    ctx.fillStyle = inside;
    ctx.fill();
    if (kind === "plain") return;
    ctx.strokeStyle = edge;
  } else {
    if (kind === "loop") ctx.closePath();
    ctx.strokeStyle = inside;
  }
  ctx.stroke();
}

// show: {rays, labels}; places: agents, with `text` and `colour` of their label; chosen: the one that gets a ring.
// Returns the labels' boxes {x, y, width, height, item}, pixels.
function drawScene(ctx, view, rows, show, places, chosen) {
  ctx.fillStyle = theme.stage;
  ctx.fillRect(0, 0, view.width, view.height);
  for (const row of rows) if (show.rays || row[5] !== "sensor") drawShape(ctx, view, row);
  const items = places.map((place) => ({ ...place, px: pixelX(view, place.x), py: pixelY(view, place.y),
    size: Math.max(6, place.radius * view.across) }));
  const ringed = items.find(({ name }) => name === chosen);
  if (ringed) {
    ctx.beginPath();
    ctx.arc(ringed.px, ringed.py, ringed.size + 4, 0, 2 * Math.PI);
    ctx.strokeStyle = theme.ink;
    ctx.lineWidth = 2;
    ctx.stroke();
  }
  const named = items.filter((item) => show.labels || item.marked);
  named.sort((a, b) => (b === ringed) - (a === ringed));
  const placed = placeLabels(ctx, named, view.width, view.height);
  drawLabels(ctx, placed);
  return placed;
}

function drawTrail(ctx, view, spots, colour) {
  ctx.lineWidth = 2;
  ctx.strokeStyle = colour;
  for (let i = 1; i < spots.length; i++) {
    ctx.globalAlpha = (0.6 * i) / spots.length;
    ctx.beginPath();
    ctx.moveTo(pixelX(view, spots[i - 1][0]), pixelY(view, spots[i - 1][1]));
    ctx.lineTo(pixelX(view, spots[i][0]), pixelY(view, spots[i][1]));
    ctx.stroke();
  }
  ctx.globalAlpha = 1;
}

// The owner of the topmost body at a point in metres, or within `slack` of it; null where there is none.
function hit(rows, x, y, slack) {
  for (const [kind, points, pose, , , layer, owner] of [...rows].reverse()) {
    if (layer !== "body" || !owner) continue;
    const [a, b, c, d, e, f] = matrixOf(pose), n = points.length / 2;
    const spots = Array.from({ length: n }, (_, i) => [a * points[2 * i] + c * points[2 * i + 1] + e - x,
      b * points[2 * i] + d * points[2 * i + 1] + f - y]); // seen from the point
    let inside = false, near = false;
    for (let i = 0, j = n - 1; i < n; j = i++) {
      const [px, py] = spots[i], [qx, qy] = spots[j];
      if (py > 0 !== qy > 0 && px + ((qx - px) * py) / (py - qy) > 0) inside = !inside;
      const length = (qx - px) ** 2 + (qy - py) ** 2;
      const t = length ? Math.min(1, Math.max(0, -(px * (qx - px) + py * (qy - py)) / length)) : 0;
      if (Math.hypot(px + t * (qx - px), py + t * (qy - py)) <= slack) near = true;
    }
    if (near || (inside && (kind === "fill" || kind === "plain"))) return owner;
  }
  return null;
}

// Gzipped JSON in base64 from a script element of the page.
async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}
