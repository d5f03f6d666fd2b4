// The live page: draws an engine at the screen's rate, and passes on what a person does with mouse, finger and keyboard.
"use strict";

const PAST = 300; // steps that the curves show
const PANELS = 100; // milliseconds between two looks of what stands beside the drawing
const PUSH = 250; // milliseconds that a button of the pad steers which is pressed without being held
const live = window.live = { ready: false, frames: 0, fps: 0, busy: 0, chosen: null, engine: null, labels: [] };

// Whether all numbers of a command are finite: a field may hold 1e999, and a script of somebody's anything.
function understood(told) {
  const numbers = { reset: [told.seed], speed: [told.value], drag: [told.x, told.y], act: told.action || [] }[told.do] || [];
  return numbers.every(Number.isFinite);
}

function start(engine, world) {
  live.engine = engine;
  const agents = engine.names, order = Object.fromEntries(agents.map((name, i) => [name, i])), texts = labelTexts(agents);
  const pressed = new Set(), history = { reward: {}, value: {} };
  let taking = null, word = 0, dragging = null, view = null, recorded = "", shown = 0, last = performance.now(), trails = [], seen = 0;
  document.title = $("title").textContent = `${world.scenario}, live`;
  $("view").style.aspectRatio = `${world.camera.width} / ${world.camera.height}`;
  $("view").style.setProperty("--ratio", world.camera.width / world.camera.height);
  $("seed").max = world.seeds - 1;
  if (world.left_out) $("note").textContent = `Not drawn here: ${world.left_out} moving decorations of the scenario's own.`;
  const tell = (told) => { $("note").textContent = engine.command(told) || $("note").textContent; stale(); };
  const stale = () => { shown = 0; }; // the panels are shown with the next frame
  const groupOf = (name) => Object.values(world.groups).find((g) => g.agents.includes(name));
  const markChosen = agentButtons($("agents"), agents, choose);
  const showObservation = numbersIn($("observation")), showAction = numbersIn($("action"));
  for (const { name, drags } of engine.places()) if (drags) $("thing").add(new Option(name));

  function choose(name) {
    live.chosen = name;
    if (taking && taking !== name) take(null);
    if ([...$("thing").options].some((option) => option.value === name)) $("thing").value = name;
    refresh();
  }
  function refresh() {
    markChosen(live.chosen);
    $("take").setAttribute("aria-pressed", taking === live.chosen);
    $("freeze").setAttribute("aria-pressed", engine.frozen.has(live.chosen));
    $("play").textContent = engine.playing ? "pause" : "play";
    const steers = taking === $("thing").value, turns = steers && (groupOf(taking).low || [[]])[0].length > 2;
    $("pad").setAttribute("aria-label", `${steers ? "steer" : "move"} ${$("thing").value}`);
    for (const button of $("pad").querySelectorAll("[data-key=q], [data-key=e]")) button.hidden = !turns;
    stale();
  }
  function take(name) {
    if (taking) tell({ do: "act", name: taking, action: null });
    taking = name;
    word = 0;
    pressed.clear();
    if (name) $("thing").value = name;
    steer();
    refresh();
  }

  const KEYS = { ArrowLeft: [0, -1], a: [0, -1], ArrowRight: [0, 1], d: [0, 1], ArrowDown: [1, -1], s: [1, -1],
    ArrowUp: [1, 1], w: [1, 1], q: [2, 1], e: [2, -1] };
  function steer() { // keys held down, as an action of the agent that was taken over
    if (!taking) return;
    const group = groupOf(taking), i = group.agents.indexOf(taking);
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
  const press = (key, down) => { pressed[down ? "add" : "delete"](key); steer(); };
  function move(key) { // what is chosen beside the pad, by a small part of the view
    const name = $("thing").value, place = engine.places().find((p) => p.name === name), [axis, sign] = KEYS[key];
    const far = 0.04 * view.width / view.across;
    tell({ do: "drag", name, x: place.x + (axis === 0 ? sign * far : 0), y: place.y + (axis === 1 ? sign * far : 0) });
    tell({ do: "drop", name });
    say(`${name} moved`);
  }

  function draw(now) {
    const began = performance.now();
    engine.advance((now - last) / 1000);
    live.fps = live.fps ? 0.95 * live.fps + 0.05 * (1000 / Math.max(1, now - last)) : 60;
    last = now;
    if (engine.steps !== undefined) {
      const moment = `${engine.seed} ${engine.steps}`;
      if (moment !== recorded) { record(); recorded = moment; if (!engine.playing) stale(); }
      if (now - shown >= PANELS && (engine.playing || !shown)) { panels(); shown = now; }
      const ctx = fit($("view")), { width, height } = sizeOf($("view")), places = engine.places();
      view = viewOf(dragging ? dragging.bounds : engine.bounds(), width, height, world.camera.width);
      const moving = places.filter((p) => p.name in order).map((p) => ({ ...p, colour: series(order[p.name]), ...labelOf(p.name) }));
      live.labels = drawScene(ctx, view, engine.shapes(places), { rays: $("rays").checked, labels: $("labels").checked }, moving, live.chosen);
      if ($("trails").checked) for (const name of agents)
        drawTrail(ctx, view, trails.map((t) => t[name]).filter(Boolean), series(order[name]));
    }
    live.frames++;
    live.busy = 0.95 * live.busy + 0.05 * (performance.now() - began); // milliseconds of work per frame
    requestAnimationFrame(draw);
  }
  function labelOf(name) { // what a person does to an agent stands beside it even where names are not shown
    const marked = [taking === name && "yours", engine.frozen.has(name) && "frozen"].filter(Boolean);
    return { marked: marked.length > 0, text: [texts[name], ...marked].join(", ") };
  }

  function record() { // once per step: trails and curves
    if (engine.steps <= seen || !(agents[0] in history.reward)) { // another episode, whose first steps may not have been seen
      trails = [];
      for (const name of agents) { history.reward[name] = []; history.value[name] = []; }
    }
    seen = engine.steps;
    const spots = {};
    for (const p of engine.places()) spots[p.name] = [p.x, p.y];
    trails.push(spots);
    if (trails.length > 25) trails.shift();
    for (const name of agents) {
      const { reward, value } = engine.about(name);
      for (const [kind, v] of [["reward", reward], ["value", value]]) {
        if (v === undefined || v === null) continue;
        history[kind][name].push(v);
        if (history[kind][name].length > PAST) history[kind][name].shift();
      }
    }
    if (engine.done) say(`the episode has ended, return ${engine.returns.toFixed(2)}`);
  }

  function panels() { // curves, numbers, status
    for (const kind of ["reward", "value"]) {
      const lines = agents.map((name) => ({ colour: series(order[name]), bold: name === live.chosen, values: history[kind][name] || [] }));
      const count = Math.max(...lines.map((line) => line.values.length)) - 1;
      $(kind).hidden = count < 0;
      if (count >= 0) drawCurves($(kind), kind === "reward" ? "reward per step" : "value", lines, count, Math.max(count, 20));
    }
    const about = engine.about(live.chosen), group = groupOf(live.chosen), i = group.agents.indexOf(live.chosen);
    showObservation(`${live.chosen}: observation`, about.observation, group.names[i]);
    showAction(`${live.chosen}: action${taking === live.chosen ? " (yours)" : ""}`, about.action, group.actions[i]);
    $("status").textContent = `seed ${engine.seed}, step ${engine.steps}${world.max_steps ? ` of ${world.max_steps}` : ""}, return ` +
      `${engine.returns.toFixed(2)}${about.value === undefined || about.value === null ? "" : `, value ${about.value.toFixed(2)}`}` +
      `${engine.done ? ", ended" : ""} · ${live.fps.toFixed(0)} frames/s`;
    const word = engine.playing ? "pause" : "play";
    if ($("play").textContent !== word) $("play").textContent = word;
    if (document.activeElement !== $("seed")) $("seed").value = engine.seed;
  }

  const metres = (event) => { // of a mouse or a finger
    const box = $("view").getBoundingClientRect();
    return [metresX(view, event.clientX - box.left - 1), metresY(view, event.clientY - box.top - 1)];
  };
  function draggable(event) {
    const [x, y] = metres(event), places = engine.places(), name = hit(engine.shapes(places), x, y, (event.touches ? 14 : 6) / view.across);
    return places.find((p) => p.name === name && p.drags);
  }
  $("view").addEventListener("touchstart", (event) => { // elsewhere a finger scrolls the page
    if (draggable({ ...point(event.touches[0]), touches: true })) event.preventDefault();
  }, { passive: false });
  const point = ({ clientX, clientY }) => ({ clientX, clientY });
  $("view").onpointerdown = (event) => {
    const [x, y] = metres(event), found = draggable({ ...point(event), touches: event.pointerType === "touch" });
    if (!found) return;
    dragging = { name: found.name, dx: found.x - x, dy: found.y - y, bounds: engine.bounds() };
    $("view").setPointerCapture(event.pointerId);
    if (found.name in order) choose(found.name);
    else { $("thing").value = found.name; refresh(); }
  };
  $("view").onpointermove = (event) => {
    if (!dragging) return;
    const [x, y] = metres(event);
    tell({ do: "drag", name: dragging.name, x: x + dragging.dx, y: y + dragging.dy });
  };
  $("view").onpointerup = $("view").onpointercancel = () => {
    if (dragging) tell({ do: "drop", name: dragging.name });
    dragging = null;
  };
  const play = (on) => { tell({ do: "play", on }); refresh(); };
  $("play").onclick = () => { say(engine.playing ? "paused" : "playing"); play(!engine.playing); };
  $("step").onclick = () => { play(false); tell({ do: "step" }); say(`step ${engine.steps}`); };
  $("reset").onclick = () => { tell({ do: "reset", seed: Number($("seed").value) }); say(`seed ${$("seed").value} from its start`); };
  $("seed").onchange = $("reset").onclick;
  $("speed").oninput = () => {
    const value = 2 ** Number($("speed").value);
    $("times").textContent = `${value < 1 ? value.toFixed(2) : value.toFixed(1)} ×`;
    tell({ do: "speed", value });
  };
  $("again").onchange = () => tell({ do: "again", on: $("again").checked });
  $("take").onclick = () => {
    take(taking === live.chosen ? null : live.chosen);
    say(taking ? `you steer ${taking} by the arrow keys` : `the policy steers ${live.chosen}`);
  };
  $("freeze").onclick = () => {
    const on = !engine.frozen.has(live.chosen);
    tell({ do: "freeze", name: live.chosen, on });
    say(`${live.chosen} ${on ? "frozen" : "free"}`);
    refresh();
  };
  $("thing").onchange = () => { if ($("thing").value in order) choose($("thing").value); else refresh(); };
  for (const button of $("pad").children) {
    const { key } = button.dataset, held = () => taking && taking === $("thing").value;
    button.onpointerdown = () => { if (held()) press(key, true); };
    button.onpointerup = button.onpointercancel = button.onpointerleave = () => { if (pressed.has(key)) press(key, false); };
    button.onclick = (event) => {
      if (!held()) move(key);
      else if (!event.detail) { press(key, true); setTimeout(() => press(key, false), PUSH); } // not by a pointer
    };
    button.oncontextmenu = (event) => event.preventDefault(); // a long press is a long push
  }
  document.onkeydown = (event) => {
    if (taken(event)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (taking && KEYS[key]) { press(key, true); event.preventDefault(); }
    else if (taking && /^[0-9]$/.test(key)) { word = Number(key); steer(); } // what a talker of hybrid actions says
    else if (key === "t") $("take").onclick();
    else if (key === "f") $("freeze").onclick();
    else if (key === "r") $("reset").onclick();
    else if (key === ".") $("step").onclick();
    else if (key === " ") { $("play").onclick(); event.preventDefault(); }
  };
  document.onkeyup = (event) => {
    pressed.delete(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    steer();
  };
  window.onblur = () => { pressed.clear(); steer(); };
  window.addEventListener("redraw", stale);

  live.at = (name) => { // pixels of an entity on the canvas, for whoever tests the page
    const p = engine.places().find((q) => q.name === name);
    return [pixelX(view, p.x), pixelY(view, p.y)];
  };
  live.taking = () => taking;
  choose(agents[0]);
  if (still.matches) play(false);
  requestAnimationFrame((now) => { last = now; draw(now); live.ready = true; });
}
