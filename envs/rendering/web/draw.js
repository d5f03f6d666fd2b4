// Draws shapes on a canvas, as envs/rendering/scene.py draws them into pixels; curves; what the player and the live
// page share. A shape is a row [kind, points, pose, colour, width, layer, owner, text or image], see
// envs/rendering/web_frames.py.
"use strict";

const PALETTE = ["#4477aa", "#ee6677", "#228833", "#aa7a00", "#0f8aa8", "#aa3377", "#777777", "#332288", "#882255",
  "#117733"];
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

const css = (colour, dim = 1) =>
  `rgba(${colour.slice(0, 3).map((c) => Math.round(255 * c * dim)).join(",")},${colour[3] * dim})`;

function drawShape(ctx, view, row) {
  const [kind, points, pose, colour, width, , , extra] = row;
  const [a, b, c, d, e, f] = matrixOf(pose);
  const at = (i) => [a * points[i] + c * points[i + 1] + e, b * points[i] + d * points[i + 1] + f];
  if (kind === "text") {
    const [x, y] = at(0);
    ctx.font = `${(width * 96 / 72) * view.zoom}px monospace`;
    ctx.fillStyle = "black";
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
  ctx.lineWidth = Math.max(1, width * view.zoom);
  if (kind === "fill" || kind === "plain") {
    ctx.closePath();
    ctx.fillStyle = css(colour);
    ctx.fill();
    if (kind === "plain") return;
    ctx.strokeStyle = css(colour, 0.5);
  } else {
    if (kind === "loop") ctx.closePath();
    ctx.strokeStyle = css(colour);
  }
  ctx.stroke();
}

// show: {rays, labels}; labels: {agent: text}; chosen: an agent that gets a ring.
function drawScene(ctx, view, rows, show, places, chosen) {
  ctx.fillStyle = "white";
  ctx.fillRect(0, 0, view.width, view.height);
  for (const row of rows) if (show.rays || row[5] !== "sensor") drawShape(ctx, view, row);
  for (const { name, x, y, radius } of places) {
    const px = pixelX(view, x), py = pixelY(view, y), size = Math.max(6, radius * view.across);
    if (name === chosen) {
      ctx.beginPath();
      ctx.arc(px, py, size + 4, 0, 2 * Math.PI);
      ctx.strokeStyle = "#111";
      ctx.lineWidth = 2;
      ctx.stroke();
    }
    if (show.labels) {
      ctx.font = "12px sans-serif";
      ctx.fillStyle = "#111";
      ctx.textBaseline = "bottom";
      ctx.fillText(name, px + size, py - size);
    }
  }
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

// Lines over frames: series [{name, colour, values}], a title, and a cursor at frame `at` of `count`.
function drawCurves(canvas, title, series, at, count) {
  const ctx = fit(canvas), width = canvas.clientWidth, height = canvas.clientHeight;
  ctx.clearRect(0, 0, width, height);
  let low = Infinity, high = -Infinity;
  for (const { values } of series) for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (!(high > low)) { low = Math.min(low, 0) - 1e-3; high = Math.max(high, 0) + 1e-3; }
  if (!Number.isFinite(low)) { low = 0; high = 1; }
  const x = (i) => 40 + ((width - 46) * i) / Math.max(1, count), y = (v) => 16 + ((height - 22) * (high - v)) / (high - low);
  ctx.font = "11px sans-serif";
  ctx.fillStyle = "#555";
  ctx.textBaseline = "alphabetic";
  ctx.fillText(title, 40, 11);
  ctx.fillText(high.toPrecision(3), 2, 22);
  ctx.fillText(low.toPrecision(3), 2, height - 4);
  ctx.strokeStyle = "#ddd";
  ctx.beginPath();
  ctx.moveTo(40, y(Math.min(high, Math.max(low, 0))));
  ctx.lineTo(width - 6, y(Math.min(high, Math.max(low, 0))));
  ctx.stroke();
  for (const { colour, values, bold } of series) {
    ctx.strokeStyle = colour;
    ctx.lineWidth = bold ? 2.5 : 1.2;
    ctx.beginPath();
    values.forEach((v, i) => ctx[i ? "lineTo" : "moveTo"](x(i), y(v)));
    ctx.stroke();
  }
  ctx.lineWidth = 1;
  ctx.strokeStyle = "#111";
  ctx.beginPath();
  ctx.moveTo(x(at), 14);
  ctx.lineTo(x(at), height - 4);
  ctx.stroke();
}

// A context whose unit is a CSS pixel, sharp on any screen.
function fit(canvas) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  return ctx;
}

// Numbers as a table of small bars, by their names or, without any, numbered.
function showNumbers(element, title, values, names) {
  const largest = Math.max(1e-9, ...values.map(Math.abs));
  element.innerHTML = `<h3></h3><div class="bars">${values.map((v, i) =>
    `<span>${i}</span><span class="bar"><i style="width:${(50 * Math.abs(v)) / largest}%;` +
    `${v < 0 ? "right" : "left"}:50%"></i></span><span>${(+v).toFixed(3)}</span>`).join("")}</div>`;
  element.firstChild.textContent = title;
  if (names) element.querySelectorAll(".bars > span:nth-child(3n + 1)").forEach((s, i) => { s.textContent = names[i]; });
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
