// The scenario running in the page: state, policy, and what a person does to them. No drawing, no elements of the page.
"use strict";

// Small seeded generator (sfc32): uniform numbers in [0, 1).
function generator(seed) {
  let a = 0x9e3779b9, b = 0x243f6a88, c = 0xb7e15162, d = (seed ^ 0xdeadbeef) >>> 0;
  const next = () => {
    const t = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + t) | 0;
    return (t >>> 0) / 4294967296;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

const DOT = Array.from({ length: 16 }, (_, i) => 0.01 * Math[i % 2 ? "sin" : "cos"](((i >> 1) * Math.PI) / 4)); // where a ray ends

class LocalEngine {
  // program: the generated step; world: starts, entities, groups (envs/rendering/live_world.py); policy:
  // `makePolicy`'s.
  constructor(program, world, policy) {
    Object.assign(this, { program, world, policy });
    this.s = new Float32Array(program.fields);
    this.o = new Float32Array(program.rows);
    this.z = new Float32Array(Math.max(1, program.noise));
    this.row = Object.fromEntries(program.outputs.map(([key, first, count]) => [key, [first, count]]));
    this.where = {}; // agent -> [group, index]
    for (const [group, told] of Object.entries(world.groups)) told.agents.forEach((a, i) => (this.where[a] = [group, i]));
    this.names = Object.keys(this.where);
    this.frozen = new Set();
    this.held = new Map(); // entity -> [x, y] that a person holds it at
    this.taken = new Map(); // agent -> action
    this.speed = 1;
    this.playing = true;
    this.again = true; // restart when an episode ends
    this.owed = 0;
    this.ink = world.sensors.map(({ colour, alpha }) => [[0, 0, 0, alpha], [...colour, alpha]]); // of rays and their ends
    this.reset(0);
  }

  reset(seed) {
    const count = this.world.starts.length, start = this.world.starts[((seed % count) + count) % count];
    this.seed = ((seed % count) + count) % count;
    this.random = generator(this.seed);
    this.s.set(start.s);
    this.T = this.program.tables.map(([, kind], i) => (kind === "b" ? Uint8Array : Float32Array).from(start.T[i]));
    this.observation = Object.fromEntries(Object.entries(start.o).map(([k, v]) => [k, Float32Array.from(v)]));
    this.state = Float32Array.from(start.state);
    this.before = this.state.slice();
    this.rays = Float32Array.from(start.rays);
    this.reward = Object.fromEntries(Object.keys(start.o).map((g) => [g, new Float32Array(this.world.groups[g].agents.length)]));
    this.returns = 0;
    this.steps = 0;
    this.done = false;
    this.owed = 0;
    this.held.clear();
    this.think();
  }

  think() { // what the policy would do, and what it expects
    this.wanted = this.policy.act(this.observation);
    this.values = this.policy.value(this.observation, this.state);
  }

  draw() { // the step's random numbers
    let k = 0;
    for (const [kind, count, p, q] of this.program.draws)
      for (let i = 0; i < count; i++) {
        const u = this.random();
        this.z[k++] = kind === "uniform" ? p + u * (q - p) : kind === "integers" ? p + Math.floor(u * (q - p))
          : p + q * Math.sqrt(-2 * Math.log(1 - u)) * Math.cos(2 * Math.PI * this.random());
      }
  }

  read(key) {
    const [first, count] = this.row[key];
    return this.o.slice(first, first + count);
  }

  step() {
    if (this.done) { if (this.again) this.reset(this.seed + 1); return; }
    const actions = {};
    for (const [group, { key }] of Object.entries(this.program.actions)) actions[key] = this.wanted[group];
    for (const [agent, action] of this.taken) {
      const [group, i] = this.where[agent];
      this.wanted[group].set(action, i * action.length);
    }
    const kept = [...this.frozen].map((name) => [this.entity(name), this.place(name)]);
    this.draw();
    this.program.step(this.s, actions, this.z, this.T, this.o);
    this.done = this.o[this.row.terminated[0]] !== 0 || this.o[this.row.truncated[0]] !== 0;
    for (const group of Object.keys(this.observation)) {
      this.observation[group] = this.read(`observation/${group}`);
      this.reward[group] = this.read(`reward/${group}`);
    }
    this.before = this.state;
    this.state = this.read("observation//state");
    if (this.row["observation//rays"]) this.rays = this.read("observation//rays");
    for (const [entity, place] of kept) this.put(entity, place.x, place.y, place.rot);
    for (const [name, [x, y]] of this.held) this.put(this.entity(name), x, y);
    const sums = Object.values(this.reward).map((r) => r.reduce((a, b) => a + b, 0) / r.length);
    this.returns += sums.reduce((a, b) => a + b, 0) / sums.length;
    this.steps++;
    this.think();
  }

  entity(name) { return this.world.entities.find((e) => e.name === name); }

  // Where an entity is, `part` of the way from the step before to now.
  place(name, part = 1) {
    const i = 6 * this.world.entities.findIndex((e) => e.name === name), a = this.before, b = this.state;
    const mix = (k) => a[i + k] + part * (b[i + k] - a[i + k]);
    return { name, x: mix(0), y: mix(1), rot: mix(4), radius: this.entity(name).radius };
  }

  put(entity, x, y, rot = null) { // there, and at rest
    const i = 6 * this.world.entities.indexOf(entity);
    const write = (field, value, k) => {
      if (field !== null && field !== undefined) this.s[field] = value;
      this.state[i + k] = this.before[i + k] = value;
    };
    write(entity.pos[0], x, 0);
    write(entity.pos[1], y, 1);
    write(entity.vel[0], 0, 2);
    write(entity.vel[1], 0, 3);
    if (rot !== null) write(entity.rot, rot, 4);
    write(entity.ang_vel, 0, 5);
  }

  // What a person does; the same words travel to a server (serve=true).
  // Returns what is wrong with them where it does nothing.
  command(told) {
    if (!understood(told)) return `command ${told.do}: not understood, its numbers must be finite`;
    if (told.do === "reset") this.reset(told.seed);
    else if (told.do === "play") this.playing = told.on;
    else if (told.do === "step") this.step();
    else if (told.do === "speed") this.speed = Math.min(Math.max(told.value, 0.01), 100);
    else if (told.do === "again") this.again = told.on;
    else if (told.do === "freeze") this.frozen[told.on ? "add" : "delete"](told.name);
    else if (told.do === "drag") { this.held.set(told.name, [told.x, told.y]); this.put(this.entity(told.name), told.x, told.y); }
    else if (told.do === "drop") this.held.delete(told.name);
    else if (told.do === "act") told.action ? this.taken.set(told.name, told.action) : this.taken.delete(told.name);
  }

  advance(seconds) { // of the wall clock
    if (!this.playing) return;
    this.owed += Math.min(seconds, 0.25) * this.speed / this.world.dt;
    for (; this.owed >= 1; this.owed--) this.step();
  }

  places() {
    const part = this.playing ? Math.min(1, this.owed) : 1;
    return this.world.entities.filter((e) => e.look).map((e) => ({ ...this.place(e.name, part), drags: e.pos[0] !== null }));
  }

  bounds() { // VMAS's camera: zooms out to keep all agents in sight
    const { width, height, zoom, origin, radius } = this.world.camera, aspect = width / height;
    const range = aspect < 1 ? [zoom, zoom / aspect] : [zoom * aspect, zoom];
    let largest = zoom;
    for (const name of this.names) {
      const { x, y } = this.place(name);
      const reach = [Math.abs(x - origin[0]), Math.abs(y - origin[1])];
      for (const k of [0, 1]) if (Number.isFinite(reach[k])) largest = Math.max(largest, (reach[k] + 2 * radius) / range[k]);
    }
    const [w, h] = range.map((r) => r * largest);
    return [origin[0] - w, origin[0] + w, origin[1] - h, origin[1] + h];
  }

  shapes(places) {
    const at = Object.fromEntries(places.map((p) => [p.name, p])), rows = [...this.world.still];
    for (const { name, look } of this.world.entities)
      if (look) rows.push([look[0], look[1], [at[name].x, at[name].y, at[name].rot], ...look.slice(3)]);
    let k = 0;
    for (const [sensor, { agent, angles, shown }] of this.world.sensors.entries()) {
      const from = at[agent], [ray, end] = this.ink[sensor];
      for (const angle of angles) {
        const far = this.rays[k++];
        if (!shown || !from) continue;
        const pose = [from.x, from.y, angle + from.rot];
        rows.push(["line", [0, 0, far, 0], pose, ray, 1, "sensor", agent, ""]);
        rows.push(["plain", DOT.map((v, i) => (i % 2 ? v : v + far)), pose, end, 1, "sensor", agent, ""]);
      }
    }
    return rows;
  }

  // What is known of an agent: observation, action, value, reward.
  about(name) {
    const [group, i] = this.where[name], { F, D } = this.world.groups[group];
    return { observation: Array.from(this.observation[group].subarray(i * F, (i + 1) * F)),
      action: this.taken.get(name) || Array.from(this.wanted[group].subarray(i * D, (i + 1) * D)),
      value: this.values[group] && this.values[group][i], reward: this.reward[group][i] };
  }
}
if (typeof module !== "undefined") module.exports = { LocalEngine, generator };
