// The gallery: a card with a short loop for each policy of the zoo, see envs/rendering/loops.py for the loops' data.
// What is out of view stands still; where the reader asks for less motion, all of it does until it is clicked.
"use strict";

const SPEED = 2; // seconds of the simulation per second
const REST = 0.8; // seconds at a loop's end
const gallery = window.gallery = { ready: false, playing: !still.matches, loops: [] };

const element = (kind, text, more = {}) => Object.assign(document.createElement(kind), { textContent: text, ...more });
const whole = (track, count) => { // one number per frame
  if (!Array.isArray(track)) return new Array(count).fill(track);
  let value = 0;
  return track.map((change) => (value += change));
};

// The shapes of a moment between two frames, as drawScene takes them.
function rowsAt(loop, moment) {
  const first = Math.floor(moment), second = Math.min(loop.frames - 1, first + 1), share = moment - first;
  const between = (values) => values[first] + (values[second] - values[first]) * share;
  const rows = [];
  for (const thing of loop.things) {
    const look = loop.looks[thing.looks[first]];
    if (!look) continue;
    const moved = thing.looks[second] >= 0 ? thing.pose.map(between) : thing.pose.map((values) => values[first]);
    if (moved.length === 3) { // an angle takes the short way
      const [a, b] = [thing.pose[2][first], thing.pose[2][second]], turn = 2 * Math.PI * loop.turn;
      moved[2] = (a + share * (b - a - turn * Math.round((b - a) / turn))) / loop.turn;
    } else for (let i = 0; i < 4; i++) moved[i] /= loop.turn;
    const place = moved.length === 3 ? [0, 1] : [4, 5];
    for (const i of place) moved[i] *= loop.unit;
    rows.push([look[0], look[1], moved, look[2], look[3], thing.layer, "", look[4]]);
  }
  return { rows, bounds: loop.bounds.map((values) => between(values) * loop.unit) };
}

function draw(loop) {
  const ctx = fit(loop.canvas), { width, height } = sizeOf(loop.canvas), { rows, bounds } = rowsAt(loop, loop.moment);
  const view = viewOf(bounds, width, height, loop.size[0]);
  drawScene(ctx, view, rows, { rays: false, labels: false }, [], null);
  loop.drawn++;
}

function card(entry, turn) {
  const loop = { ...entry.loop, turn, name: entry.name, moment: 0, rest: 0, drawn: 0, visible: false };
  loop.playing = gallery.playing;
  loop.bounds = loop.bounds.map((track) => whole(track, loop.frames));
  loop.things = loop.things.map(([layer, looks, pose]) => ({ layer, looks: whole(looks, loop.frames),
    pose: pose.map((track) => whole(track, loop.frames)) }));
  if (!loop.playing) loop.moment = Math.floor((loop.frames - 1) / 2);
  loop.canvas = element("canvas", "", { tabIndex: 0 });
  loop.canvas.style.aspectRatio = `${loop.size[0]} / ${loop.size[1]}`;
  loop.canvas.setAttribute("role", "button");
  loop.canvas.setAttribute("aria-label", `${entry.name}: play or pause`);
  loop.canvas.onclick = () => { loop.playing = !loop.playing; };
  loop.canvas.onkeydown = (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    loop.canvas.onclick();
    event.preventDefault();
  };
  const box = element("article", "", { id: entry.name }), text = element("div", "");
  text.append(element("h2", entry.title), element("p", entry.score), element("p", entry.about, { className: "soft" }),
    element("code", entry.command));
  if (entry.live) text.append(element("a", "live page: join in", { href: entry.live }));
  box.append(loop.canvas, text);
  $("loops").append(box);
  return loop;
}

let last = 0;
function tick(now) {
  const seconds = Math.min(0.1, (now - last) / 1000);
  last = now;
  for (const loop of gallery.loops) {
    if (!loop.visible || !loop.playing) continue;
    if (loop.rest > 0) {
      loop.rest -= seconds;
      if (loop.rest > 0) continue;
      loop.moment = 0;
    } else {
      loop.moment += (seconds * SPEED) / loop.dt;
      if (loop.moment >= loop.frames - 1) { loop.moment = loop.frames - 1; loop.rest = REST; }
    }
    draw(loop);
  }
  requestAnimationFrame(tick);
}

function play(on) {
  gallery.playing = on;
  for (const loop of gallery.loops) loop.playing = on;
  $("play").textContent = on ? "pause" : "play";
}

unpack("data").then(({ entries, turn, about }) => {
  $("about").textContent = about;
  gallery.loops = entries.map((entry) => card(entry, turn));
  const seen = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      const loop = gallery.loops.find(({ canvas }) => canvas === target);
      loop.visible = isIntersecting;
      if (isIntersecting) draw(loop);
    }
  });
  for (const { canvas } of gallery.loops) seen.observe(canvas);
  $("play").onclick = () => play(!gallery.playing);
  still.onchange = () => play(!still.matches);
  window.addEventListener("redraw", () => { for (const loop of gallery.loops) if (loop.visible) draw(loop); });
  play(gallery.playing);
  gallery.ready = true;
  requestAnimationFrame(tick);
});
