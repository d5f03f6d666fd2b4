// Products, bias, activation and their derivatives on tiles of a block of rows, for fused_mlp.cpp; on the vectors of
// simd.h.
//
// Within a block of R rows a matrix lies in panels of P columns, [panel][row][P]: a panel's row is N vectors, so that
// the same memory serves as the left side of a product (numbers broadcast one by one) and as the right side (vectors).
// Every product is made of tiles of M rows x P columns that stay in registers. AVX2's 16 registers hold tiles of TALL
// rows too, which keep both of its multipliers busy; each number is the same sum in any tile.
#include "simd.h"

enum { N = W == 4 ? 4 : 2, M = W == 16 ? 8 : 4, TALL = W == 8 ? 6 : M, P = W * N, R = 64 };  // M divides P and R

INLINE int64_t panels(int64_t n) { return (n + P - 1) / P; }
INLINE int64_t padded(int64_t n) { return panels(n) * P; }
INLINE int64_t rounded(int64_t n) { return (n + M - 1) / M * M; }

enum Activation { TANH = 0, RELU = 1 };

// The rational approximation of Eigen's and XLA's float tanh; NaN stays NaN.
INLINE vf rational_tanh(vf x) {
    const vf top = K(7.90531110763549805f);
    x = x > top ? top : x;
    x = x < -top ? -top : x;
    const vf s = x * x;
    vf p = K(-2.76076847742355e-16f);
    p = p * s + 2.00018790482477e-13f;
    p = p * s + -8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    vf q = K(1.19825839466702e-06f);
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p / q;
}
INLINE vf activate(vf x, int kind) { return kind == TANH ? rational_tanh(x) : (x < 0.0f ? (vf){} : x); }
// The derivative, given the activation's result.
INLINE vf slope(vf g, vf y, int kind) { return kind == TANH ? g * (1.0f - y * y) : (y <= 0.0f ? (vf){} : g); }

// acc[H][V] = sum over k of left[row][k] * right[k][column]: left in panels, right one packed panel [k][P].
template <int H, int V>
INLINE void product(const float* left, const float* right, int64_t depth, vf acc[H][V]) {
    UNROLL for (int i = 0; i < H; i++) UNROLL for (int v = 0; v < V; v++) acc[i][v] = (vf){};
    for (int64_t k0 = 0; k0 < depth; k0 += P, left += R * P) {
        const int n = depth - k0 < P ? depth - k0 : P;
        for (int k = 0; k < n; k++, right += P) {
            vf b[V];
            UNROLL for (int v = 0; v < V; v++) b[v] = load(right + v * W);
            UNROLL for (int i = 0; i < H; i++) {
                const vf a = K(left[i * P + k]);
                UNROLL for (int v = 0; v < V; v++) acc[i][v] += a * b[v];
            }
        }
    }
}

// One layer over a block: out panels = activation(in panels * packed + bias); the last layer has no activation.
template <int H, int V>
static void layer_tile(const float* in, const float* packed, const float* bias, int64_t depth, float* out, int kind) {
    vf acc[H][V];
    product<H, V>(in, packed, depth, acc);
    UNROLL for (int v = 0; v < V; v++) {
        const vf b = load(bias + v * W);
        UNROLL for (int i = 0; i < H; i++) acc[i][v] += b;
    }
    for (int v = 0; v < V; v++)
        for (int i = 0; i < H; i++) store(out + i * P + v * W, kind < 0 ? acc[i][v] : activate(acc[i][v], kind));
}

// Gradients of a layer's inputs over a block: out = (gradient panels * packed) * slope at the inputs y.
template <int H, int V>
static void back_tile(const float* in, const float* packed, int64_t depth, const float* y, float* out, int kind) {
    vf acc[H][V];
    product<H, V>(in, packed, depth, acc);
    UNROLL for (int i = 0; i < H; i++) UNROLL for (int v = 0; v < V; v++) {
        const int at = i * P + v * W;
        store(out + at, y ? slope(acc[i][v], load(y + at), kind) : acc[i][v]);
    }
}

// sums[H][V] += over rows of gradient[row][i] * input[row][column], or = where nothing is there yet (fresh); a block is
// added up by itself, so that rounding grows with the number of blocks and not of rows.
template <int H, int V>
static void weight_tile(const float* gradient, const float* input, int64_t rows, float* sums, int64_t stride,
                        bool fresh) {
    vf acc[H][V];
    UNROLL for (int i = 0; i < H; i++) UNROLL for (int v = 0; v < V; v++) acc[i][v] = (vf){};
    for (int64_t r = 0; r < rows; r++, gradient += P, input += P) {
        vf b[V];
        UNROLL for (int v = 0; v < V; v++) b[v] = load(input + v * W);
        UNROLL for (int i = 0; i < H; i++) {
            const vf a = K(gradient[i]);
            UNROLL for (int v = 0; v < V; v++) acc[i][v] += a * b[v];
        }
    }
    UNROLL for (int i = 0; i < H; i++) UNROLL for (int v = 0; v < V; v++) {
        float* sum = sums + i * stride + v * W;
        store(sum, fresh ? acc[i][v] : load(sum) + acc[i][v]);
    }
}

// Rows of up to P columns from one place to another.
static void copy_rows(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    for (int64_t r = 0; r < rows; r++, from += stride, to += to_stride)
        if (columns == P) UNROLL for (int v = 0; v < N; v++) store(to + v * W, load(from + v * W));
        else memcpy(to, from, columns * 4);
}

// Rows [rows, columns] into panels; what is missing to whole tiles and panels is 0.
static void into_panels(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to) {
    for (int64_t c = 0; c < columns; c += P, to += R * P) {
        const int64_t n = columns - c < P ? columns - c : P;
        for (int64_t r = 0; r < rows; r++) {
            memcpy(to + r * P, from + r * stride + c, n * 4);
            memset(to + r * P + n, 0, (P - n) * 4);
        }
        memset(to + rows * P, 0, (rounded(rows) - rows) * P * 4);
    }
}

static void from_panels(const float* from, int64_t rows, int64_t columns, float* to, int64_t stride) {
    for (int64_t c = 0; c < columns; c += P, from += R * P) {
        const int64_t n = columns - c < P ? columns - c : P;
        for (int64_t r = 0; r < rows; r++) memcpy(to + r * stride + c, from + r * P, n * 4);
    }
}

// to[i][j] = from[j][i] of W x W numbers in rows `stride` and P apart.
INLINE void transpose(const float* from, int64_t stride, float* to) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    __m512 a[16], b[16];
    UNROLL for (int j = 0; j < 16; j++) a[j] = load(from + j * stride);
    UNROLL for (int j = 0; j < 16; j += 2) {
        b[j] = _mm512_unpacklo_ps(a[j], a[j + 1]);
        b[j + 1] = _mm512_unpackhi_ps(a[j], a[j + 1]);
    }
    UNROLL for (int j = 0; j < 16; j += 4) UNROLL for (int h = 0; h < 2; h++) {
        const __m512d low = _mm512_castps_pd(b[j + h]), high = _mm512_castps_pd(b[j + 2 + h]);
        a[j + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        a[j + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
    UNROLL for (int i = 0; i < 4; i++) {  // a[4 g + i] holds columns i, 4 + i, 8 + i, 12 + i of rows 4 g … 4 g + 3
        const __m512 p = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88), q = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88);
        const __m512 r = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd), s = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
        store(to + i * P, _mm512_shuffle_f32x4(p, q, 0x88));
        store(to + (8 + i) * P, _mm512_shuffle_f32x4(p, q, 0xdd));
        store(to + (4 + i) * P, _mm512_shuffle_f32x4(r, s, 0x88));
        store(to + (12 + i) * P, _mm512_shuffle_f32x4(r, s, 0xdd));
    }
#else
    for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) to[i * P + j] = from[j * stride + i];
#endif
}

// Panel p of a weight [outs, ins] transposed: [ins][P] of its outputs.
static void pack_outputs(const float* weight, int64_t outs, int64_t ins, int64_t p, float* to) {
    const int64_t o = p * P, n = outs - o < P ? outs - o : P;
    to += p * ins * P;
    int64_t k = 0;
    for (; n == P && k + W <= ins; k += W)
        for (int64_t j = 0; j < P; j += W) transpose(weight + (o + j) * ins + k, ins, to + k * P + j);
    for (; k < ins; k++) {
        for (int64_t j = 0; j < n; j++) to[k * P + j] = weight[(o + j) * ins + k];
        for (int64_t j = n; j < P; j++) to[k * P + j] = 0;
    }
}

// Panel p of a weight [outs, ins]: [outs][P] of its inputs.
static void pack_inputs(const float* weight, int64_t outs, int64_t ins, int64_t p, float* to) {
    const int64_t i = p * P, n = ins - i < P ? ins - i : P;
    to += p * outs * P;
    for (int64_t o = 0; o < outs; o++, to += P) {
        memcpy(to, weight + o * ins + i, n * 4);
        memset(to + n, 0, (P - n) * 4);
    }
}
