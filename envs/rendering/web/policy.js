// A policy's networks: observations to actions and values, as agents/models/actor.py and agents/models/critic.py
// compute them.
"use strict";

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function erf(x) { // Numerical Recipes' erfc by Chebyshev's approximation: relative error below 1.2e-7
  const z = Math.abs(x), t = 2 / (2 + z);
  const r = t * Math.exp(-z * z - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 +
    t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277)))))))));
  return x >= 0 ? 1 - r : r - 1;
}
const softplus = (x) => (x > 20 ? x : Math.log1p(Math.exp(x)));
const ACTIVATION = {
  tanh: Math.tanh,
  relu: (x) => Math.max(x, 0),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  silu: (x) => x / (1 + Math.exp(-x)),
  elu: (x) => (x > 0 ? x : Math.expm1(x)),
  leaky_relu: (x) => (x > 0 ? x : 0.01 * x),
  mish: (x) => x * Math.tanh(softplus(x)),
};

// A function of a Float32Array, from the layers that agents/deploy/web_weights.py lists.
function network(layers) {
  const made = layers.map((layer) => {
    if (layer.kind === "linear") {
      const weight = floats(layer.weight), bias = layer.bias && floats(layer.bias), out = new Float32Array(layer.out);
      return (x) => {
        for (let i = 0, k = 0; i < layer.out; i++) {
          let sum = bias ? bias[i] : 0;
          for (let j = 0; j < layer.in; j++) sum += weight[k++] * x[j];
          out[i] = sum;
        }
        return out;
      };
    }
    if (layer.kind === "norm") {
      const weight = floats(layer.weight), bias = floats(layer.bias);
      return (x) => {
        const mean = x.reduce((a, b) => a + b, 0) / x.length;
        const variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length;
        return x.map((v, i) => ((v - mean) / Math.sqrt(variance + layer.eps)) * weight[i] + bias[i]);
      };
    }
    const activation = ACTIVATION[layer.kind];
    return (x) => x.map(activation);
  });
  return (x) => made.reduce((value, layer) => layer(value), x);
}

// A function of `count` agents' features (or of one state), from what agents/deploy/web_weights.py tells of a network's
// inputs.
function inputs({ norm, ids }, features) {
  const scale = norm && floats(norm.scale), shift = norm && floats(norm.shift);
  const whiten = (v, k) => Math.min(norm.limit, Math.max(-norm.limit, v * scale[k % features] + shift[k % features]));
  const normal = norm ? (x) => x.map(whiten) : (x) => x;
  return (x, agent, agents) => (ids ? Float32Array.of(...normal(x), ...Array.from({ length: agents }, (_, i) => +(i === agent)))
    : normal(x));
}

// {act(observations), value(observations, state)}: {group: Float32Array of all agents' features} to {group: numbers};
// values of the groups that have a critic of states.
function makePolicy(groups) {
  const made = {};
  for (const [name, group] of Object.entries(groups))
    made[name] = {
      ...group, actors: group.networks.map(network), before: inputs(group.inputs, group.features),
      ...(group.critic && {
        critics: group.critic.networks.map(network), beforeCritic: inputs(group.critic.inputs, group.features),
        beforeState: inputs(group.critic.state_inputs, Infinity),
      }),
    };

  function action(group, params, agent, out) {
    const D = group.size, C = D - group.nvec.length; // C continuous numbers, then choices, whose logits come last
    let start = params.length - group.nvec.reduce((sum, n) => sum + n, 0);
    for (const [k, n] of group.nvec.entries()) {
      let best = 0;
      for (let i = 1; i < n; i++) if (params[start + i] > params[start + best]) best = i;
      out[agent * D + C + k] = best;
      start += n;
    }
    for (let d = 0; d < C; d++) {
      const low = group.low[agent * C + d], high = group.high[agent * C + d];
      out[agent * D + d] = group.head === "clipped_normal" ? Math.min(high, Math.max(low, params[d]))
        : (high + low) / 2 + ((high - low) / 2) * Math.tanh(params[d]);
    }
  }

  return {
    act(observations) {
      const out = {};
      for (const [name, group] of Object.entries(made)) {
        const F = group.features, actions = (out[name] = new Float32Array(group.agents * group.size));
        for (let i = 0; i < group.agents; i++) {
          const seen = group.before(observations[name].subarray(i * F, (i + 1) * F), i, group.agents);
          const params = group.actors[group.actors.length > 1 ? i : 0](seen);
          action(group, params, i, actions);
        }
      }
      return out;
    },
    value(observations, state) {
      const out = {};
      for (const [name, group] of Object.entries(made)) {
        if (!group.critic) continue;
        const { kind, joint, mean_std: [mean, std] } = group.critic, F = group.features;
        const own = (i) => group.beforeCritic(observations[name].subarray(i * F, (i + 1) * F), i, group.agents);
        const input = (i) => (kind === "concat" ? group.beforeCritic(observations[name])
          : kind === "state" ? group.beforeState(state)
          : kind === "local" ? own(i) : Float32Array.of(...group.beforeState(state), ...own(i)));
        const values = joint ? group.critics[0](input(0)) : Array.from({ length: group.agents }, (_, i) =>
          group.critics[group.critics.length > 1 ? i : 0](input(i))[0]);
        out[name] = Float32Array.from(values, (v) => v * std + mean);
      }
      return out;
    },
  };
}
