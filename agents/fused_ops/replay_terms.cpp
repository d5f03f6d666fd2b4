// What losses of replayed steps compute of a minibatch's few numbers per agent, with derivatives, in one pass each.
#include "simd.h"

// log(1 + exp(x)) and 1 / (1 + exp(-x)), neither of which overflows.
static inline vf softplus(vf x) { return max_(x, K(0.0f)) + log1p_(exp_(neg_(abs_(x)))); }
static inline vf sigmoid(vf x) {
  const vf small = exp_(neg_(abs_(x)));
  return sel(lt(x, K(0.0f)), small, K(1.0f)) / (K(1.0f) + small);
}

static inline vf sign(vf x) { return sel(lt(x, K(0.0f)), K(-1.0f), sel(lt(K(0.0f), x), K(1.0f), x)); }
static inline float sum(vf x) {
  float all[W], total = 0;
  store(all, x);
  for (int l = 0; l < W; l++) total += all[l];
  return total;
}
// The smallest of `count` numbers, `step` apart; nan wins, as in torch.
static inline float smallest(const float* x, int64_t count, int64_t step) {
  float least = x[0];
  for (int64_t m = 1; m < count; m++) least = x[m * step] < least || x[m * step] != x[m * step] ? x[m * step] : least;
  return least;
}
// The hidden units from m on of one row of a mixer, before their activation; 0 where there is none.
static inline vf mixed_hidden(int64_t A, int64_t M, int64_t m, const float* values, const float* w1, const float* b1) {
  vf hidden = load(b1 + m, M - m);
  for (int64_t a = 0; a < A; a++) hidden = hidden + K(values[a]) * abs_(load(w1 + a * M + m, M - m));
  return hidden;
}

extern "C" {
int64_t width() { return W; }

// Errors of q [critics][rows * agents] against y = scale reward + discount (1 - terminated) (min over `targets` values -
// penalty). terminated: of each row, or with `apart` of each agent in it. penalty may be null.
// -> loss: the mean square, summed over the critics; mean: of q; slopes [critics][rows * agents]: of loss by q.
void td_error(int64_t critics, int64_t rows, int64_t agents, int64_t targets, float scale, int64_t apart,
              const float* q, const float* values, const float* penalty, const float* reward,
              const uint8_t* terminated, const float* discount, float* loss, float* mean, float* slopes) {
  const int64_t n = rows * agents;
  double squares = 0, total = 0;
  for (int64_t i = 0; i < n; i++) {
    const int64_t row = i / agents;
    float value = smallest(values + i, targets, n);
    if (penalty) value -= penalty[i];
    if (terminated[apart ? i : row]) value = 0;
    const float y = scale * reward[i] + discount[row] * value;
    for (int64_t k = 0; k < critics; k++) {
      const float error = q[k * n + i] - y;
      squares += (double)error * error;
      total += q[k * n + i];
      slopes[k * n + i] = error * (2.0f / n);
    }
  }
  *loss = squares / n;
  *mean = total / (critics * n);
}

// The loss of soft actor-critic, as `agents.algorithms.off_policy.sac` has it, and its derivatives, of n = rows * agents.
// q, values [critics][n]: of the actions that were taken and of those that were drawn, whose smallest counts for the
// actors. next_values [targets][n], log_prob, next_log_prob [n]. The rest as for `td_error`.
// -> loss; figures: the critics' part of it, the actors', the temperature's (0 where it does not learn), mean of q, entropy,
// temperature. slopes of loss: [critics][n] by q, [critics][n] by values (ties share), [n] by log_prob, 1 by the
// temperature's logarithm.
void soft(int64_t critics, int64_t rows, int64_t agents, int64_t targets, float scale, int64_t apart, int64_t learns,
          float target_entropy, const float* q, const float* next_values, const float* next_log_prob,
          const float* values, const float* log_prob, const float* log_temperature, const float* reward,
          const uint8_t* terminated, const float* discount, float* loss, float* figures, float* slopes) {
  const int64_t n = rows * agents;
  const float temperature = std::exp(*log_temperature);
  float* const by_values = slopes + critics * n;
  float* const by_log_prob = by_values + critics * n;
  double squares = 0, total = 0, wanted = 0, entropy = 0;
  for (int64_t i = 0; i < n; i++) {
    const int64_t row = i / agents;
    float following = smallest(next_values + i, targets, n) - temperature * next_log_prob[i];
    if (terminated[apart ? i : row]) following = 0;
    const float y = scale * reward[i] + discount[row] * following, least = smallest(values + i, critics, n);
    int64_t ties = 0;
    for (int64_t k = 0; k < critics; k++) {
      const float error = q[k * n + i] - y;
      squares += (double)error * error;
      total += q[k * n + i];
      slopes[k * n + i] = error * (2.0f / n);
      ties += values[k * n + i] == least;
    }
    for (int64_t k = 0; k < critics; k++) by_values[k * n + i] = values[k * n + i] == least ? -1.0f / n / ties : 0.0f;
    by_log_prob[i] = temperature / n;
    wanted += least - temperature * log_prob[i];
    entropy -= log_prob[i];
  }
  const float excess = entropy / n - target_entropy;
  by_log_prob[n] = learns ? excess : 0.0f;
  figures[0] = squares / n;
  figures[1] = -wanted / n;
  figures[2] = learns ? *log_temperature * excess : 0.0f;
  figures[3] = total / (critics * n);
  figures[4] = entropy / n;
  figures[5] = temperature;
  *loss = figures[0] + figures[1] + figures[2];
}

// Actions tanh(u), u = loc + std noise with std = softplus(x + bias) + min_std: params [n][2 D] (loc, then x), noise
// [n][D], mask [agents][D] or null -> action [n][D], its log-density [n], and for `squashed_back` std and its derivative
// by x, [n][D] each.
void squashed(int64_t n, int64_t D, int64_t agents, float bias, float min_std, const float* params,
              const float* noise, const float* mask, float* action, float* log_prob, float* std, float* std_by_x) {
  memset(log_prob, 0, n * 4);
  for (int64_t e = 0; e < n * D; e += W) {
    const int64_t left = n * D - e, lanes = left < W ? left : W;
    float loc[W] = {}, x[W] = {}, density[W];
    for (int64_t l = 0; l < lanes; l++) {
      const float* const row = params + (e + l) / D * 2 * D + (e + l) % D;
      loc[l] = row[0], x[l] = row[D];
    }
    const vf biased = load(x) + K(bias), deviation = softplus(biased) + K(min_std), z = load(noise + e, left);
    const vf u = load(loc) + deviation * z;
    store(density, K(-0.5f) * z * z - log_(deviation) - K(0.918938533f)
                       - K(2.0f) * (K(0.693147181f) - u - softplus(K(-2.0f) * u)));
    store(action + e, tanh_(u), left);
    store(std + e, deviation, left);
    store(std_by_x + e, sigmoid(biased), left);
    for (int64_t l = 0; l < lanes; l++) {
      const int64_t row = (e + l) / D;
      log_prob[row] += mask ? density[l] * mask[row % agents * D + (e + l) % D] : density[l];
    }
  }
}

// Gradients of params [n][2 D], given those of action [n][D] and of its log-density [n].
void squashed_back(int64_t n, int64_t D, int64_t agents, const float* noise, const float* mask, const float* action,
                   const float* std, const float* std_by_x, const float* by_action, const float* by_log_prob,
                   float* out) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < D; d++) {
      const int64_t e = i * D + d;
      const float by = by_log_prob[i] * (mask ? mask[i % agents * D + d] : 1.0f), a = action[e];
      const float by_u = by_action[e] * (1.0f - a * a) + 2.0f * by * a;
      out[i * 2 * D + d] = by_u;
      out[i * 2 * D + D + d] = (by_u * noise[e] - by / std[e]) * std_by_x[e];
    }
}

// The team's value of QMIX: out = b2 + sum over m of |w2[m]| elu(b1[m] + sum over a of values[a] |w1[a][m]|), of n rows:
// values [n][A], w1 [n][A][M], b1, w2 [n][M], b2 [n].
void mixed(int64_t n, int64_t A, int64_t M, const float* values, const float* w1, const float* b1, const float* w2,
           const float* b2, float* out) {
  for (int64_t i = 0; i < n; i++, values += A, w1 += A * M, b1 += M, w2 += M) {
    vf total = K(0.0f);
    for (int64_t m = 0; m < M; m += W) {
      const vf hidden = mixed_hidden(A, M, m, values, w1, b1);
      total = total + sel(lt(K(0.0f), hidden), hidden, expm1_(hidden)) * abs_(load(w2 + m, M - m));
    }
    out[i] = b2[i] + sum(total);
  }
}

// Gradients of all that `mixed` reads, given that of `out`; those of b2 are `by` itself.
void mixed_back(int64_t n, int64_t A, int64_t M, const float* values, const float* w1, const float* b1,
                const float* w2, const float* by, float* by_values, float* by_w1, float* by_b1, float* by_w2) {
  for (int64_t i = 0; i < n; i++) {
    const float* const v = values + i * A;
    const vf g = K(by[i]);
    for (int64_t a = 0; a < A; a++) by_values[i * A + a] = 0;
    for (int64_t m = 0; m < M; m += W) {
      const int64_t left = M - m, at = i * M + m;
      const vf hidden = mixed_hidden(A, M, m, v, w1 + i * A * M, b1 + i * M), second = load(w2 + at, left);
      const vf low = expm1_(hidden);
      const vb up = lt(K(0.0f), hidden);
      store(by_w2 + at, g * sel(up, hidden, low) * sign(second), left);
      const vf slope = g * abs_(second) * sel(up, K(1.0f), low + K(1.0f));
      store(by_b1 + at, slope, left);
      for (int64_t a = 0; a < A; a++) {
        const vf first = load(w1 + (i * A + a) * M + m, left);
        store(by_w1 + (i * A + a) * M + m, slope * K(v[a]) * sign(first), left);
        by_values[i * A + a] += sum(slope * abs_(first));
      }
    }
  }
}
}
