// One step of Adam or AdamW over many tensors, the gradients' norms and clipping included, in one call.
//
// The operations are those of torch's fused kernel and of its norm, in the same order, so that the bits are torch's own
// where vectors are as long as torch's; explicit fused multiply-adds stand where its compiler makes them. Idle threads
// take tensors, then parts of them: the bits stay the same. Stands after work_sharing.h, in one source.
#include <vector>
#include "simd.h"

const int64_t PART = 1 << 14;    // numbers of a tensor that one thread steps with, a multiple of every vector
const int64_t SHARED = 1 << 16;  // numbers below which sharing them takes longer than it saves

static float norm(const float* x, int64_t n) {
    typedef float eight __attribute__((vector_size(32)));  // as many as torch's norm takes, whatever the processor
    eight sums = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        eight v;
        memcpy(&v, x + i, 32);
        sums += v * v;
    }
    float sum = sums[0];
    for (int j = 1; j < 8; j++) sum += sums[j];
    for (int64_t four = i + (n - i) / 4 * 4; i < four; i++) sum += x[i] * x[i];
    for (; i < n; i++) sum = std::fma(x[i], x[i], sum);
    return std::sqrt(sum);
}

struct Rates {  // of a group of parameters
    double lr, beta1, beta2, eps, weight_decay, decoupled;
};

static void one(int64_t first, int64_t n, float scale, const Rates& r, int64_t step, float* param, const float* grad,
                float* m, float* v) {
    const double size = r.lr / (1 - std::pow(r.beta1, step)), root2 = std::sqrt(1 - std::pow(r.beta2, step));
    const vf by1 = K(1 - r.beta1), by2 = K(1 - r.beta2), beta2 = K(r.beta2);
    const int64_t end = n - first < PART ? n : first + PART;
    for (int64_t i = first; i < end; i += W) {
        const int64_t left = n - i;
        vf p = load(param + i, left), g = load(grad + i, left) * scale, a = load(m + i, left), b = load(v + i, left);
        if (r.weight_decay != 0) {
            if (r.decoupled) p = p * K(1 - r.lr * r.weight_decay);
            else g = fma_(p, K(r.weight_decay), g);
        }
        a = fma_(by1, g - a, a);
        vf square = fma_(by2 * g, g, b * beta2);
        if (left < W) {  // after the last eight, torch's compiler fuses the other product
            const vf other = fma_(b, beta2, by2 * g * g);
            for (int64_t l = left & ~7; l < left; l++) square[l] = other[l];
        }
        p = p - K(size) * a / (sqrt_(square) / K(root2) + K(r.eps));
        store(param + i, p, left), store(m + i, a, left), store(v + i, square, left);
    }
}

extern "C" {
int64_t width() { return W; }

// Clip each part's gradient to `most` (0: not at all) and step, by up to `members` threads. part, group: of each tensor,
// parts one after the other. total: the norm of all gradients before that.
void step(int64_t members, int64_t tensors, const int64_t* sizes, const int64_t* part, const int64_t* group,
          const Rates* rates, float most, float* const* param, float* const* grad, float* const* m, float* const* v,
          float* const* steps, float* norms, float* total) {
    int64_t numbers = 0, parts = 0;
    for (int64_t t = 0; t < tensors; t++) numbers += sizes[t];
    helpers::Shift shift(numbers < SHARED ? 1 : members);
    shift.share(tensors, [&](int64_t t, int64_t) { norms[t] = norm(grad[t], sizes[t]); });
    std::vector<float> scales(tensors);
    std::vector<std::pair<int64_t, int64_t>> pieces;  // tensor, first number
    for (int64_t begin = 0, end; begin < tensors; begin = end) {
        for (end = begin; end < tensors && part[end] == part[begin];) end++;
        const float whole = norm(norms + begin, end - begin);
        float scale = 1.0f / (whole + 1e-6f) * most;
        scale = most == 0 || scale > 1.0f ? 1.0f : scale;
        for (int64_t t = begin; t < end; t++) {
            *steps[t] += 1.0f;
            scales[t] = scale;
            for (int64_t at = 0; at < sizes[t]; at += PART) pieces.push_back({t, at});
        }
        norms[parts++] = whole;
    }
    shift.share(pieces.size(), [&](int64_t piece, int64_t) {
        const auto [t, at] = pieces[piece];
        one(at, sizes[t], scales[t], rates[group[t]], (int64_t)*steps[t], param[t], grad[t], m[t], v[t]);
    });
    *total = parts > 1 ? norm(norms, parts) : norms[0];
}
}
