// The engine of a served page: Python runs the scenario, this shows its frames and sends what a person does.
"use strict";

class RemoteEngine {
  constructor(world, socket) {
    Object.assign(this, { world, socket });
    this.names = Object.values(world.groups).flatMap((g) => g.agents);
    this.frozen = new Set();
    this.playing = true;
  }
  show(frame) { // the newest frame, as properties
    Object.assign(this, frame, { frozen: new Set(frame.frozen), rows: frame.shapes, spots: frame.places, limits: frame.bounds,
      told: frame.about });
    for (const key of ["shapes", "places", "bounds", "about"]) delete this[key]; // methods of these names are below
  }
  command(told) { // returns what is wrong with it where it is not sent
    if (!understood(told)) return `command ${told.do}: not understood, its numbers must be finite`;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(told));
  }
  advance() {}
  places() { return this.spots; }
  bounds() { return this.limits; }
  shapes() { return this.rows; }
  about(name) { return this.told[name]; }
}

function connect() {
  const socket = new WebSocket(`ws://${location.host}/ws`), note = document.getElementById("note");
  let engine = null, world = null;
  socket.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (told.error) note.textContent = told.error;
    else if (told.hello) world = told.hello;
    else if (!engine) {
      engine = new RemoteEngine(world, socket);
      engine.show(told);
      start(engine, world);
    } else engine.show(told);
  };
  socket.onclose = () => { note.textContent = note.textContent || "The connection has ended: reload the page."; };
}
