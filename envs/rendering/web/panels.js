// What stands beside the drawing, in the player and the live page: curves, tables of numbers, buttons of agents.
"use strict";

const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)"); // who asks for it starts what moves
const TOP = 26; // pixels of a curve's title
const LEFT = 66; // pixels of its numbers: the same for all, so that curves stand above each other

// For readers of the screen: what has just happened, said once.
const say = (text) => { $("said").textContent = text; };

// Whether a key belongs to what has the focus, and is no shortcut of the page.
function taken(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || target.matches("input[type=number], select")) return true;
  if (target.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(key)) return true;
  return target.matches("button, input, a") && (key === " " || key === "Enter");
}

// A button per agent, in its colour; returns a function that shows which one is chosen.
function agentButtons(box, names, choose) {
  for (const [i, name] of names.entries()) {
    const button = Object.assign(document.createElement("button"), { textContent: name, onclick: () => choose(name) });
    button.style.setProperty("--series", `var(--series-${i % theme.series.length})`);
    box.append(button);
  }
  return (chosen) => { for (const b of box.children) b.setAttribute("aria-pressed", b.textContent === chosen); };
}

// A table of numbers with small bars, by their names or, where there are none, numbered. Its rows are made once and
// then told their numbers, at most ten times a second (`steady`).
function numbersIn(box) {
  const table = Object.assign(document.createElement("table"), { className: "numbers" }), title = table.createCaption();
  const body = table.createTBody();
  let known = "", cells = [];
  box.append(table);
  return (text, values, names) => {
    const key = [values.length, ...(names || [])].join("\n"); // no values: after an episode's end no action is taken
    if (known !== key) {
      known = key;
      body.replaceChildren();
      cells = values.map((_, i) => {
        const row = body.insertRow(), name = document.createElement("th"), bar = document.createElement("i");
        Object.assign(name, { textContent: names ? names[i] : i, scope: "row" });
        row.append(name);
        const frame = document.createElement("div");
        frame.className = "bar";
        frame.append(bar);
        row.insertCell().append(frame);
        row.cells[1].setAttribute("aria-hidden", "true");
        return [bar, row.insertCell().appendChild(document.createTextNode(""))];
      });
    }
    if (title.textContent !== text) title.textContent = text;
    const largest = Math.max(1e-9, ...values.map(Math.abs));
    for (const [i, [bar, number]] of cells.entries()) {
      const shown = (+values[i]).toFixed(3);
      if (number.nodeValue === shown && bar.style.transform) continue;
      number.nodeValue = shown;
      bar.style.transform = `scaleX(${(values[i] / largest).toFixed(4)})`;
    }
  };
}

const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-2 ? v.toExponential(1) : `${+v.toPrecision(3)}`);

// Lines over frames: lines [{colour, values, bold}], a title, and a cursor at frame `at` of `count`.
// Returns a function: which frame is drawn at a pixel from the left.
function drawCurves(canvas, title, lines, at, count) {
  const ctx = fit(canvas), { width, height } = sizeOf(canvas);
  ctx.clearRect(0, 0, width, height);
  let low = Infinity, high = -Infinity;
  for (const { values } of lines) for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (!(high > low)) { low = Math.min(low, 0) - 1e-3; high = Math.max(high, 0) + 1e-3; }
  if (!Number.isFinite(low)) { low = 0; high = 1; }
  const ends = [short(high), short(low)], zero = Math.min(high, Math.max(low, 0));
  ctx.font = "12px system-ui, sans-serif";
  const left = LEFT, right = width - 10, bottom = height - 12;
  const x = (i) => left + ((right - left) * i) / Math.max(1, count), y = (v) => TOP + 6 + ((bottom - TOP - 6) * (high - v)) / (high - low);
  Object.assign(ctx, { fillStyle: theme.soft, textBaseline: "middle", textAlign: "right", lineWidth: 1 });
  ctx.fillText(ends[0], left - 6, y(high));
  ctx.fillText(ends[1], left - 6, y(low));
  ctx.textAlign = "left";
  ctx.fillStyle = theme.text;
  ctx.fillText(title, 8, 13);
  const line = (x1, y1, x2, y2, colour) => {
    ctx.strokeStyle = colour;
    ctx.beginPath();
    ctx.moveTo(x1, y1);
    ctx.lineTo(x2, y2);
    ctx.stroke();
  };
  line(left, y(zero), right, y(zero), theme.line);
  for (const { colour, values, bold } of lines) {
    ctx.strokeStyle = colour;
    ctx.lineWidth = bold ? 3 : 1.2;
    ctx.beginPath();
    values.forEach((v, i) => ctx[i ? "lineTo" : "moveTo"](x(i), y(v)));
    ctx.stroke();
  }
  ctx.lineWidth = 1;
  line(x(at), TOP, x(at), bottom + 6, theme.ink);
  return (pixel) => ((pixel - left) / (right - left)) * count;
}
