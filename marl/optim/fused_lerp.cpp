// Weights that follow others, of many tensors in one call: to += by (from - to), with torch's rounding.
//
// Idle threads take parts of them: the bits stay the same. Stands after work_sharing.h, in one source.
#include <utility>
#include <vector>
#include "simd.h"

const int64_t PART = 1 << 14;    // numbers of a tensor that one thread takes, a multiple of every vector
const int64_t SHARED = 1 << 16;  // numbers below which sharing them takes longer than it saves

extern "C" {
int64_t width() { return W; }

void lerp(int64_t members, int64_t tensors, const int64_t* sizes, float by, float* const* to, const float* const* from) {
    std::vector<std::pair<int64_t, int64_t>> pieces;  // tensor, first number
    int64_t numbers = 0;
    for (int64_t t = 0; t < tensors; numbers += sizes[t++])
        for (int64_t at = 0; at < sizes[t]; at += PART) pieces.push_back({t, at});
    helpers::Shift shift(numbers < SHARED ? 1 : members);
    shift.share(pieces.size(), [&](int64_t piece, int64_t) {
        const auto [t, first] = pieces[piece];
        const int64_t end = sizes[t] - first < PART ? sizes[t] : first + PART;
        for (int64_t i = first; i < end; i += W) {
            const vf a = load(to[t] + i, end - i), b = load(from[t] + i, end - i);
            const vf moved = by < 0.5f ? fma_(K(by), b - a, a) : fma_(K(by - 1.0f), b - a, b);  // exact at both ends
            store(to[t] + i, moved, end - i);
        }
    });
}
}
