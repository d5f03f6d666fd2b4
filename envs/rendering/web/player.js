// The player of recorded episodes: play, scrub, speed, episodes, trails, labels, rays, curves, observations.
"use strict";

const TRAIL = 25; // frames
const player = window.player = { frame: 0, playing: false, episode: 0, chosen: null, ready: false, drawn: 0, labels: [] };

unpack("data").then((film) => {
  const agents = Object.values(film.groups).flat(), texts = labelTexts(agents);
  const order = Object.fromEntries(agents.map((name, i) => [name, i])), at = {}; // at: curve -> pixel to frame
  for (const shape of film.shapes) shape[1] = film.points[shape[1]];
  const note = film.note || {};
  $("title").textContent = document.title = `${film.scenario}: replay`;
  $("about").textContent = [note.name, note.checkpoint, note.iteration && `iteration ${note.iteration}`,
    `${film.episodes.length} episode${film.episodes.length > 1 ? "s" : ""}`].filter(Boolean).join(" · ");
  $("view").style.aspectRatio = `${film.width} / ${film.height}`;
  $("view").style.setProperty("--ratio", film.width / film.height);
  film.episodes.forEach((e, i) => {
    const total = returns(e), text = `${e.episode}: ${e.steps} steps, return ${total.toFixed(2)}`;
    $("episode").add(new Option(text, i));
  });
  const markChosen = agentButtons($("agents"), agents, choose);
  const showObservation = numbersIn($("observation")), showAction = numbersIn($("action"));

  const episode = () => film.episodes[player.episode];
  const rows = (t) => episode().frames[t][1].map((i) => film.shapes[i]);
  const pose = (row) => (row[2].length === 6 ? row[2].slice(4) : row[2]);
  const places = (t) => rows(t).filter((r) => r[5] === "body" && r[6] in order).map((r) => {
    const radius = Math.max(...r[1].map(Math.abs)), [x, y] = pose(r);
    return { name: r[6], text: texts[r[6]], colour: series(order[r[6]]), x, y, radius };
  });
  let view;

  function returns(e) {
    const groups = Object.values(e.reward).map((steps) =>
      steps.reduce((sum, agents) => sum + agents.reduce((a, b) => a + b, 0) / agents.length, 0));
    return groups.reduce((a, b) => a + b, 0) / groups.length;
  }

  function curves(kind) { // one line per agent
    return Object.entries(episode()[kind]).flatMap(([group, steps]) => film.groups[group].map((name, i) => ({
      colour: series(order[name]), bold: name === player.chosen, values: steps.map((row) => row[i]) })));
  }

  function draw() {
    const ctx = fit($("view")), t = player.frame, e = episode(), { width, height } = sizeOf($("view"));
    view = viewOf(e.frames[t][0], width, height, film.width);
    const here = places(t);
    player.labels = drawScene(ctx, view, rows(t), { rays: $("rays").checked, labels: $("labels").checked }, here, player.chosen);
    if ($("trails").checked) {
      const past = [];
      for (let k = Math.max(0, t - TRAIL); k <= t; k++) past.push(places(k));
      for (const { name, colour } of here)
        drawTrail(ctx, view, past.map((p) => p.find((q) => q.name === name)).filter(Boolean).map((q) => [q.x, q.y]), colour);
    }
    at.reward = drawCurves($("reward"), "reward per step", curves("reward"), t, e.steps);
    $("value").hidden = !Object.keys(e.value).length;
    if (!$("value").hidden) at.value = drawCurves($("value"), "value", curves("value"), t, e.steps);
    $("scrub").value = t;
    $("status").textContent = `step ${t} of ${e.steps}, ${(t * film.dt).toFixed(1)} s` +
      (t === e.steps ? (e.terminated ? " (terminated)" : " (time limit)") : "");
    const group = Object.keys(film.groups).find((g) => film.groups[g].includes(player.chosen));
    if (group) {
      const i = film.groups[group].indexOf(player.chosen);
      showObservation(`${player.chosen}: observation`, e.observation[group][t][i], film.names[group][i]);
      showAction(`${player.chosen}: action taken next`, t < e.steps ? e.action[group][t][i] : [], film.actions[group][i]);
    }
    player.drawn++;
  }

  function go(t) { player.frame = Math.max(0, Math.min(episode().steps, Math.round(t))); draw(); }
  function choose(name) {
    player.chosen = name;
    markChosen(name);
    draw();
  }
  function play(on) {
    player.playing = on;
    $("play").textContent = on ? "pause" : "play";
    say(on ? "playing" : `paused at step ${player.frame}`);
    if (on && player.frame >= episode().steps) player.frame = 0;
    last = performance.now();
  }
  function select(i) {
    player.episode = i;
    $("scrub").max = episode().steps;
    go(0);
  }
  const single = (step) => { play(false); go(player.frame + step); say($("status").textContent); };

  let last = 0, owed = 0;
  function tick(now) {
    if (player.playing) {
      owed += Math.min(1, ((now - last) / 1000) * Number($("speed").value) / film.dt);
      last = now;
      if (owed >= 1) {
        const steps = Math.floor(owed);
        owed -= steps;
        go(player.frame + steps);
        if (player.frame >= episode().steps) play(false);
      }
    }
    requestAnimationFrame(tick);
  }

  $("play").onclick = () => play(!player.playing);
  $("back").onclick = () => single(-1);
  $("forth").onclick = () => single(1);
  $("scrub").oninput = (event) => { const t = Number(event.target.value); play(false); go(t); };
  $("episode").onchange = (event) => select(Number(event.target.value));
  for (const id of ["trails", "labels", "rays"]) $(id).onchange = draw;
  for (const id of ["reward", "value"]) $(id).onclick = (event) => go(at[id](event.offsetX));
  $("view").onclick = (event) => {
    const found = hit(rows(player.frame), metresX(view, event.offsetX), metresY(view, event.offsetY), 8 / view.across);
    if (agents.includes(found)) choose(found);
  };
  document.onkeydown = (event) => {
    if (taken(event)) return;
    if (event.key === " ") { play(!player.playing); event.preventDefault(); }
    if (event.key === "ArrowRight") single(1);
    if (event.key === "ArrowLeft") single(-1);
  };
  window.addEventListener("redraw", draw);
  select(0);
  choose(agents[0]);
  player.go = go;
  player.ready = true;
  requestAnimationFrame(tick);
});
