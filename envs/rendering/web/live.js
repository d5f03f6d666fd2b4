// The live page: draws an engine at the screen's rate, and passes on what a person does with mouse and keyboard.
"use strict";

const $ = (id) => document.getElementById(id);
const PAST = 300; // steps that the curves show
const live = window.live = { ready: false, frames: 0, fps: 0, busy: 0, chosen: null, engine: null };

// Whether all numbers of a command are finite: a field may hold 1e999, and a script of somebody's anything.
function understood(told) {
  const numbers = { reset: [told.seed], speed: [told.value], drag: [told.x, told.y], act: told.action || [] }[told.do] || [];
  return numbers.every(Number.isFinite);
}

function start(engine, world) {
  live.engine = engine;
  const agents = engine.names, colour = Object.fromEntries(agents.map((n, i) => [n, PALETTE[i % PALETTE.length]]));
  const pressed = new Set(), history = { reward: {}, value: {} };
  let taking = null, word = 0, dragging = null, view = null, lastSteps = -1, last = performance.now(), trails = [];
  document.title = $("title").textContent = `${world.scenario}, live`;
  $("view").style.aspectRatio = `${world.camera.width} / ${world.camera.height}`;
  $("seed").max = world.seeds - 1;
  if (world.left_out) $("note").textContent = `Not drawn here: ${world.left_out} moving decorations of the scenario's own.`;
  const tell = (told) => { $("note").textContent = engine.command(told) || $("note").textContent; };

  for (const name of agents) {
    const button = Object.assign(document.createElement("button"), { textContent: name, onclick: () => choose(name) });
    button.style.borderLeftColor = colour[name];
    $("agents").append(button);
  }
  function choose(name) {
    live.chosen = name;
    if (taking && taking !== name) take(null);
    refresh();
  }
  function refresh() {
    for (const b of $("agents").children) b.classList.toggle("on", b.textContent === live.chosen);
    $("take").classList.toggle("on", taking === live.chosen);
    $("freeze").classList.toggle("on", engine.frozen.has(live.chosen));
    $("play").textContent = engine.playing ? "pause" : "play";
  }
  function take(name) {
    if (taking) tell({ do: "act", name: taking, action: null });
    taking = name;
    word = 0;
    pressed.clear();
    steer();
    refresh();
  }

  const KEYS = { ArrowLeft: [0, -1], a: [0, -1], ArrowRight: [0, 1], d: [0, 1], ArrowDown: [1, -1], s: [1, -1],
    ArrowUp: [1, 1], w: [1, 1], q: [2, 1], e: [2, -1] };
  function steer() { // keys held down, as an action of the agent that was taken over
    if (!taking) return;
    const group = Object.values(world.groups).find((g) => g.agents.includes(taking)), i = group.agents.indexOf(taking);
    const push = [0, 0, 0];
    for (const key of pressed) push[KEYS[key][0]] += KEYS[key][1];
    let action;
    if (group.low)
      action = group.low[i].map((low, d) => (push[d] > 0 ? group.high[i][d] : push[d] < 0 ? low : Math.min(group.high[i][d], Math.max(low, 0))));
    if (group.kind === "hybrid") action = action.concat(group.nvec.map((n) => Math.min(word, n - 1)));
    if (!group.low) { // VMAS's choices: 0 stays, then half of them down, then half of them up
      const sizes = group.kind === "discrete" ? (group.parts || group.nvec) : group.nvec;
      const choices = sizes.map((n, d) => (push[d] > 0 ? n - 1 : push[d] < 0 ? 1 : 0));
      action = group.kind === "discrete" && sizes.length > 1 ? [choices.reduce((sum, c, d) => sum * sizes[d] + c, 0)] : choices;
    }
    tell({ do: "act", name: taking, action });
  }

  function draw(now) {
    const began = performance.now();
    engine.advance((now - last) / 1000);
    live.fps = live.fps ? 0.95 * live.fps + 0.05 * (1000 / Math.max(1, now - last)) : 60;
    last = now;
    if (engine.steps !== undefined) {
      if (engine.steps !== lastSteps) note();
      const ctx = fit($("view")), places = engine.places(), bounds = dragging ? dragging.bounds : engine.bounds();
      view = viewOf(bounds, $("view").clientWidth, $("view").clientHeight, world.camera.width);
      const moving = places.filter((p) => agents.includes(p.name));
      drawScene(ctx, view, engine.shapes(places), { rays: $("rays").checked, labels: $("labels").checked }, moving, live.chosen);
      for (const p of moving) if (engine.frozen.has(p.name)) mark(ctx, p, "❄");
      for (const p of moving) if (taking === p.name) mark(ctx, p, "⌨");
      if ($("trails").checked) for (const name of agents)
        drawTrail(ctx, view, trails.map((t) => t[name]).filter(Boolean), colour[name]);
    }
    live.frames++;
    live.busy = 0.95 * live.busy + 0.05 * (performance.now() - began); // milliseconds of work per frame
    requestAnimationFrame(draw);
  }
  function mark(ctx, place, text) {
    ctx.font = "16px sans-serif";
    ctx.fillStyle = "#111";
    ctx.fillText(text, pixelX(view, place.x) - 8, pixelY(view, place.y) + 8);
  }

  function note() { // once per step: curves, numbers, status
    if (engine.steps < lastSteps || engine.steps === 0) {
      trails = [];
      for (const name of agents) { history.reward[name] = []; history.value[name] = []; }
    }
    lastSteps = engine.steps;
    const spots = {};
    for (const p of engine.places()) spots[p.name] = [p.x, p.y];
    trails.push(spots);
    if (trails.length > 25) trails.shift();
    for (const name of agents) {
      const { reward, value } = engine.about(name);
      for (const [kind, v] of [["reward", reward], ["value", value]]) {
        if (v === undefined || v === null) continue;
        (history[kind][name] = history[kind][name] || []).push(v);
        if (history[kind][name].length > PAST) history[kind][name].shift();
      }
    }
    for (const kind of ["reward", "value"]) {
      const series = agents.map((name) => ({ name, colour: colour[name], bold: name === live.chosen, values: history[kind][name] || [] }));
      const count = Math.max(...series.map((s) => s.values.length)) - 1;
      if (count >= 0) drawCurves($(kind), kind === "reward" ? "reward per step" : "value", series, count, Math.max(count, 20));
    }
    const about = engine.about(live.chosen), group = Object.values(world.groups).find((g) => g.agents.includes(live.chosen));
    showNumbers($("observation"), `${live.chosen}: observation`, about.observation, group.names);
    showNumbers($("action"), taking === live.chosen ? "action (yours)" : "action", about.action);
    $("status").textContent = `seed ${engine.seed}, step ${engine.steps}${world.max_steps ? ` of ${world.max_steps}` : ""}, return ` +
      `${engine.returns.toFixed(2)}${about.value === undefined || about.value === null ? "" : `, value ${about.value.toFixed(2)}`}` +
      `${engine.done ? ", ended" : ""} · ${live.fps.toFixed(0)} frames/s`;
    $("play").textContent = engine.playing ? "pause" : "play";
    if (document.activeElement !== $("seed")) $("seed").value = engine.seed;
  }

  const spot = (event) => [metresX(view, event.offsetX), metresY(view, event.offsetY)];
  $("view").onpointerdown = (event) => {
    const [x, y] = spot(event), places = engine.places(), name = hit(engine.shapes(places), x, y, 6 / view.across);
    const found = places.find((p) => p.name === name && p.drags);
    if (!found) return;
    dragging = { name, dx: found.x - x, dy: found.y - y, bounds: engine.bounds() };
    $("view").setPointerCapture(event.pointerId);
    if (agents.includes(name)) choose(name);
  };
  $("view").onpointermove = (event) => {
    if (!dragging) return;
    const [x, y] = spot(event);
    tell({ do: "drag", name: dragging.name, x: x + dragging.dx, y: y + dragging.dy });
  };
  $("view").onpointerup = $("view").onpointercancel = () => {
    if (dragging) tell({ do: "drop", name: dragging.name });
    dragging = null;
  };
  $("play").onclick = () => { tell({ do: "play", on: !engine.playing }); refresh(); };
  $("step").onclick = () => { tell({ do: "play", on: false }); tell({ do: "step" }); refresh(); };
  $("reset").onclick = () => tell({ do: "reset", seed: Number($("seed").value) });
  $("seed").onchange = $("reset").onclick;
  $("speed").oninput = () => {
    const value = 2 ** Number($("speed").value);
    $("times").textContent = `${value < 1 ? value.toFixed(2) : value.toFixed(1)} ×`;
    tell({ do: "speed", value });
  };
  $("again").onchange = () => tell({ do: "again", on: $("again").checked });
  $("take").onclick = () => { take(taking === live.chosen ? null : live.chosen); document.activeElement.blur(); };
  $("freeze").onclick = () => { tell({ do: "freeze", name: live.chosen, on: !engine.frozen.has(live.chosen) }); refresh(); };
  document.onkeydown = (event) => {
    if (event.target.matches("input[type=number]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (taking && KEYS[key]) { pressed.add(key); steer(); event.preventDefault(); }
    else if (taking && /^[0-9]$/.test(key)) { word = Number(key); steer(); } // what a talker of hybrid actions says
    else if (key === "t") $("take").onclick();
    else if (key === "f") $("freeze").onclick();
    else if (key === "r") $("reset").onclick();
    else if (key === ".") $("step").onclick();
    else if (key === " " && !event.target.matches("button")) { $("play").onclick(); event.preventDefault(); }
  };
  document.onkeyup = (event) => {
    pressed.delete(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    steer();
  };
  window.onblur = () => { pressed.clear(); steer(); };

  live.at = (name) => { // pixels of an entity on the canvas, for whoever tests the page
    const p = engine.places().find((q) => q.name === name);
    return [pixelX(view, p.x), pixelY(view, p.y)];
  };
  live.taking = () => taking;
  choose(agents[0]);
  requestAnimationFrame((now) => { last = now; draw(now); live.ready = true; });
}
