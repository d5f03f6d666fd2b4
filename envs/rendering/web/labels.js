// Names beside agents that never cover each other: each takes the first free of sixteen places around its agent.
"use strict";

const LINE = 16; // pixels of a label's height
const MARK = 12; // pixels that the dot in the agent's colour takes
const FONT = "13px system-ui, sans-serif";
// Where a label may stand, as shares of its size and of the distance: right, left, above, below, corners; near, then far.
const SIDES = [[0, -0.5, 1, 0], [-1, -0.5, -1, 0], [-0.5, -1, 0, -1], [-0.5, 0, 0, 1],
  [0, -1, 0.7, -0.7], [-1, -1, -0.7, -0.7], [0, 0, 0.7, 0.7], [-1, 0, -0.7, 0.7]];
const PLACES = [4, 18].flatMap((gap) => SIDES.map((side) => [...side, gap]));
const widths = new Map(); // text -> pixels
const stood = new Map(); // name -> where its label stood: it stays there while it can, else it would flicker

const cover = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

function textWidth(ctx, text) {
  if (!widths.has(text)) widths.set(text, ctx.measureText(text).width);
  return widths.get(text);
}

// items: {name, text, px, py, size: radius in pixels}, the most important first; a label without a free place is left out.
function placeLabels(ctx, items, width, height) {
  ctx.font = FONT;
  const placed = [];
  for (const item of items) {
    const box = { width: textWidth(ctx, item.text) + MARK + 4, height: LINE };
    let best = null, least = Infinity;
    const last = stood.get(item.name), order = PLACES.keys();
    for (const k of last === undefined ? order : [last, ...order]) {
      const [dx, dy, ox, oy, gap] = PLACES[k], away = item.size + gap;
      const at = { ...box, x: item.px + dx * box.width + ox * away, y: item.py + dy * box.height + oy * away };
      if (at.x < 0 || at.y < 0 || at.x + at.width > width || at.y + at.height > height) continue;
      if (placed.some((other) => cover(at, other))) continue;
      const covered = items.filter((other) => other !== item && cover(at, { x: other.px - other.size,
        y: other.py - other.size, width: 2 * other.size, height: 2 * other.size })).length;
      if (covered < least) { best = { ...at, item, k }; least = covered; }
      if (!covered) break;
    }
    if (best) { placed.push(best); stood.set(item.name, best.k); }
  }
  return placed;
}

function drawLabels(ctx, placed) {
  Object.assign(ctx, { font: FONT, textBaseline: "middle" });
  for (const { x, y, width, height, k, item } of placed) {
    if (k >= SIDES.length) { // far: a line says whose it is
      ctx.beginPath();
      ctx.moveTo(item.px, item.py);
      ctx.lineTo(Math.min(x + widths.get(item.text), Math.max(x, item.px)), y + LINE / 2);
      ctx.lineWidth = 1;
      ctx.strokeStyle = theme.soft;
      ctx.stroke();
    }
    ctx.globalAlpha = 0.8; // what lies below is seen, and does not cross the letters
    ctx.fillStyle = theme.stage;
    ctx.fillRect(x, y, width, height);
    ctx.globalAlpha = 1;
    ctx.beginPath();
    ctx.arc(x + 6, y + LINE / 2, 4, 0, 2 * Math.PI);
    ctx.fillStyle = item.colour;
    ctx.fill();
    ctx.fillStyle = theme.ink;
    ctx.fillText(item.text, x + MARK, y + LINE / 2 + 1);
  }
}

// {name: what stands beside it}: of many agents without the beginning that all of them share.
function labelTexts(names) {
  let shared = names.length > 6 ? names[0].lastIndexOf("_") + 1 : 0;
  while (shared && !names.every((name) => name.startsWith(names[0].slice(0, shared))))
    shared = names[0].lastIndexOf("_", shared - 2) + 1;
  return Object.fromEntries(names.map((name) => [name, name.slice(shared)]));
}
