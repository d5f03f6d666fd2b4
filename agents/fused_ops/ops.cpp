// What PPO's loss computes of a minibatch's few numbers per agent, with derivatives: one pass each instead of an
// operation per step. W samples lie side by side in a vector (marl/native/simd.h).
//
// Elementwise the operations are torch's, in its order, so that gradients come out bitwise as torch's own. That is
// why Gaussians and surrogate take logarithms and exponentials that torch computed: its functions differ by the place of
// a number in a tensor. Sums over a minibatch or over choices are made in another order than torch's.
#include "simd.h"

FUNCTION1(exp_torch, Sleef_exp, expf)

// Sums in double precision of sums of some vectors.
struct Sum {
  vf part = K(0.0f);
  double total = 0;
  int held = 0;
  void add(vf x) {
    part = part + x;
    if (++held == 64) flush();
  }
  void flush() {
    float x[W];
    store(x, part);
    for (int l = 0; l < W; l++) total += x[l];
    part = K(0.0f), held = 0;
  }
  double all() { flush(); return total; }
};

// mask [agents][D] for dimension d of the samples from e on.
static inline vf of_agents(const float* mask, int64_t e, int64_t agents, int64_t D, int64_t d) {
  float x[W];
  for (int l = 0; l < W; l++) x[l] = mask[(e + l) % agents * D + d];
  return load(x);
}

extern "C" {
int width() { return W; }

// Gaussians: params [n][2 D] (loc, then x), raw, std and its derivative by x [n][D], mask [agents][D] or null ->
// half [n][D] (-z^2/2); slopes [n][2 D]: the log-density's derivatives by params.
void normal(int64_t n, int64_t D, int64_t agents, const float* params, const float* raw, const float* std,
            const float* std_by_x, const float* mask, float* half, float* slopes) {
  float p[2 * D][W], u[D][W], s[D][W], r[D][W];
  for (int64_t e = 0; e < n; e += W) {
    const int lanes = n - e < W ? n - e : W;
    take(p, params + e * 2 * D, 2 * D, lanes);
    take(u, raw + e * D, D, lanes);
    take(s, std + e * D, D, lanes);
    take(r, std_by_x + e * D, D, lanes);
    for (int64_t d = 0; d < D; d++) {
      const vf deviation = load(s[d]), z = (load(u[d]) - load(p[d])) / deviation, square = z * z;
      vf by_loc = z / deviation, by_x = (square - K(1.0f)) / deviation * load(r[d]);
      if (mask) {
        const vf used = of_agents(mask, e, agents, D, d);
        by_loc = by_loc * used, by_x = by_x * used;
      }
      store(p[d], by_loc);
      store(p[D + d], by_x);
      store(u[d], square * K(-0.5f));
    }
    put(slopes + e * 2 * D, p, 2 * D, lanes);
    put(half + e * D, u, D, lanes);
  }
}

// log_prob [n], the sum of half - log std - log sqrt(2 pi) over the dimensions.
void normal_sum(int64_t n, int64_t D, int64_t agents, const float* half, const float* log_std, const float* mask,
                float* log_prob) {
  float h[D][W], s[D][W];
  for (int64_t e = 0; e < n; e += W) {
    const int lanes = n - e < W ? n - e : W;
    take(h, half + e * D, D, lanes);
    take(s, log_std + e * D, D, lanes);
    vf total = K(0.0f);
    for (int64_t d = 0; d < D; d++) {
      vf term = load(h[d]) - load(s[d]) - K(0.918938533204672741780f);
      if (mask) term = term * of_agents(mask, e, agents, D, d);
      total = d ? total + term : term;
    }
    store(log_prob + e, total, n - e);
  }
}

// log p(choice) and entropy of categoricals: logits [n][C], choice [n] -> [n] twice; p and log_p [n][C] are kept.
void categorical(int64_t n, int64_t C, const float* logits, const int64_t* choice, float* log_prob, float* entropy,
                 float* kept_p, float* kept_log_p) {
  float x[C][W], p[C][W];
  for (int64_t e = 0; e < n; e += W) {
    const int lanes = n - e < W ? n - e : W;
    take(x, logits + e * C, C, lanes);
    vf top = load(x[0]), total = K(0.0f), h = K(0.0f);
    for (int64_t c = 1; c < C; c++) top = max_(top, load(x[c]));
    for (int64_t c = 0; c < C; c++) {
      const vf shifted = load(x[c]) - top, y = exp_torch(shifted);
      store(x[c], shifted);
      store(p[c], y);
      total = total + y;
    }
    const vf log_total = log_(total);
    for (int64_t c = 0; c < C; c++) {
      const vf log_p = load(x[c]) - log_total, y = load(p[c]) / total;
      store(x[c], log_p);
      store(p[c], y);
      h = h + y * log_p;
    }
    for (int l = 0; l < lanes; l++) {
      const int64_t c = choice[e + l];
      log_prob[e + l] = c >= 0 && c < C ? x[c][l] : NAN;  // no choice at all must not be read, and is not passed over
    }
    store(entropy + e, neg_(h), n - e);
    put(kept_p + e * C, p, C, lanes);
    put(kept_log_p + e * C, x, C, lanes);
  }
}

// d/d logits [n][C], given those of log_prob and entropy [n].
void categorical_back(int64_t n, int64_t C, const int64_t* choice, const float* entropy, const float* kept_p,
                      const float* kept_log_p, const float* by_log_prob, const float* by_entropy, float* out) {
  for (int64_t e = 0; e < n; e++) {
    const float g = by_log_prob[e], f = by_entropy[e], h = entropy[e];
    for (int64_t c = e * C; c < (e + 1) * C; c++) out[c] = -(((kept_log_p[c] + h) * f + g) * kept_p[c]);
    if (choice[e] >= 0 && choice[e] < C) out[e * C + choice[e]] += g;
  }
}

// out [n][F] = numbers [n][F] times factors [n].
void scale(int64_t n, int64_t F, const float* factors, const float* numbers, float* out) {
  for (int64_t e = 0; e < n; e++)
    for (int64_t f = e * F; f < (e + 1) * F; f++) out[f] = factors[e] * numbers[f];
}

// PPO's clipped surrogate [n] -> the means loss, approx_kl and clip_fraction; slopes [n]: the loss's derivatives by
// log_ratio. clip: where the coefficient lies, or null: low, high and its value are given. dual: 0 = none.
void surrogate(int64_t n, float low, float high, float value, float dual, const float* log_ratio,
               const float* ratio_minus_1, const float* advantage, const float* weight, const float* clip, float* loss,
               float* approx_kl, float* clip_fraction, float* slopes) {
  if (clip) value = *clip, low = 1.0f - value, high = 1.0f + value;
  Sum total, kl, beyond;
  for (int64_t e = 0; e < n; e += W) {
    const vf x = load(log_ratio + e, n - e), a = load(advantage + e, n - e);
    const vf less = load(ratio_minus_1 + e, n - e), ratio = less + K(1.0f), free = ratio * a;
    const vf raised = sel(lt(ratio, K(low)), K(low), ratio), clipped = sel(lt(K(high), raised), K(high), raised) * a;
    vf least = min_(free, clipped);
    vb counts = le(free, clipped);
    if (dual) {
      const vf bound = sel(lt(a, K(0.0f)), K(dual) * a, K(-INFINITY));
      counts = and_(counts, le(bound, free));
      least = max_(least, bound);
    }
    const vf w = weight ? load(weight + e, n - e) : K(1.0f), kept = sel(counts, free, K(0.0f));
    total.add(least * w);
    kl.add((less - x) * w);
    beyond.add(num(lt(K(value), abs_(less))) * w);
    store(slopes + e, weight ? neg_(kept * w) : kept / K(-(float)n), n - e);
  }
  const double share = weight ? 1.0 : 1.0 / n;
  *loss = -total.all() * share;
  *approx_kl = kl.all() * share;
  *clip_fraction = beyond.all() * share;
}

// The critic's loss per sample and its derivative by `value`: squared, or Huber's where delta > 0. old: null, or the
// prediction that `value` may be `clip` away from, the worse of both losses counting.
void value_loss(int64_t n, float clip, float delta, const float* value, const float* target, const float* old,
                float* loss, float* slopes) {
  const auto distance = [&](vf error, vf& slope) {
    if (delta == 0) {
      slope = K(2.0f) * error;
      return error * error;
    }
    const vf size = abs_(error);
    slope = sel(lt(error, K(-delta)), K(-delta), sel(lt(K(delta), error), K(delta), error));
    return sel(le(size, K(delta)), K(0.5f) * error * error, K(delta) * (size - K(0.5f * delta)));
  };
  for (int64_t e = 0; e < n; e += W) {
    const vf v = load(value + e, n - e), t = load(target + e, n - e);
    vf slope, far;
    vf worst = distance(v - t, slope);
    if (old) {
      const vf o = load(old + e, n - e), moved = v - o;
      const vf raised = sel(lt(moved, K(-clip)), K(-clip), moved), held = sel(lt(K(clip), raised), K(clip), raised);
      const vf other = distance(o + held - t, far);
      far = sel(and_(le(K(-clip), moved), le(moved, K(clip))), far, K(0.0f));
      const vf half = K(0.5f) * slope + K(0.5f) * far;
      slope = sel(lt(worst, other), far, sel(lt(other, worst), slope, half));
      worst = max_(worst, other);
    }
    store(loss + e, worst, n - e);
    store(slopes + e, slope, n - e);
  }
}
}
