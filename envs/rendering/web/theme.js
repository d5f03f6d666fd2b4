// Colours of the page for what is drawn on canvases, in light and in dark, and the sizes of the canvases.
"use strict";

const theme = { dark: false, series: [] }; // and the CSS variables below; written by `readTheme` only
const darkness = matchMedia("(prefers-color-scheme: dark)");
let shades = new WeakMap(); // a shape's colour -> what it is drawn in

function readTheme() {
  const style = getComputedStyle(document.documentElement), read = (name) => style.getPropertyValue(`--${name}`).trim();
  for (const name of ["text", "soft", "line", "stage", "ink"]) theme[name] = read(name);
  theme.series = [];
  for (let i = 0; read(`series-${i}`); i++) theme.series.push(read(`series-${i}`));
  theme.dark = darkness.matches;
  shades = new WeakMap();
}
readTheme();
darkness.onchange = () => { readTheme(); redraw(); };

const series = (i) => theme.series[i % theme.series.length]; // the colour of the i-th agent
const redraw = () => window.dispatchEvent(new Event("redraw")); // pages listen: colours or sizes have changed

const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
const mix = (a, b, share) => a.map((v, i) => v + share * (b[i] - v));
const luminance = (rgb) => rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);

// VMAS draws on white. On a dark ground greys change places, and colours become light enough to be told from it.
function onDark(rgb, alpha) {
  const stage = parts(theme.stage), ink = parts(theme.ink);
  if (Math.max(...rgb) - Math.min(...rgb) < 0.12) return mix(ink, stage, (rgb[0] + rgb[1] + rgb[2]) / 3);
  let shown = luminance(rgb) > 0.3 ? mix(rgb, stage, 0.2) : rgb;
  const seen = () => luminance(mix(stage, shown, Math.max(alpha, 0.35))) + 0.05; // what is nearly clear stays so
  for (let i = 0; i < 20 && seen() < 2.5 * (luminance(stage) + 0.05); i++) { // brighter, and then whiter
    const most = Math.max(...shown);
    shown = most < 0.98 ? shown.map((c) => c * Math.min(1.15, 1 / most)) : mix(shown, ink, 0.06);
  }
  return shown;
}

// [inside, edge] of a shape's colour [r, g, b, opacity], as CSS.
function shade(colour) {
  let made = shades.get(colour);
  if (made) return made;
  const rgb = colour.slice(0, 3), alpha = theme.dark && colour[3] >= 0.35 ? Math.min(1, 1.5 * colour[3]) : colour[3];
  const inside = theme.dark ? onDark(rgb, alpha) : rgb;
  const edge = theme.dark ? mix(inside, parts(theme.ink), 0.4) : rgb.map((c) => c * 0.5);
  const css = (c, alpha) => `rgba(${c.map((v) => Math.round(255 * v)).join(",")},${alpha})`;
  made = [css(inside, alpha), css(edge, alpha * 0.5)];
  shades.set(colour, made);
  return made;
}

const sizes = new WeakMap(); // canvas -> its box; read once and then told, so that no frame asks for a layout
const watcher = new ResizeObserver((changes) => {
  for (const { target, contentRect } of changes) sizes.set(target, { width: contentRect.width, height: contentRect.height });
  redraw();
});

function sizeOf(canvas) {
  if (!sizes.has(canvas)) {
    sizes.set(canvas, { width: canvas.clientWidth, height: canvas.clientHeight });
    watcher.observe(canvas);
  }
  return sizes.get(canvas);
}

// A context whose unit is a CSS pixel, sharp on any screen.
function fit(canvas) {
  const ratio = window.devicePixelRatio || 1, { width, height } = sizeOf(canvas);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  return ctx;
}
