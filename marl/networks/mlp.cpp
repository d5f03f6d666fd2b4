// An MLP's forward and backward pass over blocks of rows: products, bias, activation and their derivatives in one go.
//
// Layers are called 0 … depth-1; layer l maps size[l] numbers to size[l+1]; the activation follows all but the last.
// Within a block of R rows a matrix lies in panels of P columns, [panel][row][P]: a panel's row is N vectors, so that
// the same memory serves as the left side of a product (numbers broadcast one by one) and as the right side (vectors).
// Every product is made of tiles of M rows x P columns that stay in registers. Rows are split over the threads by
// blocks, statically: the same number of threads gives the same bits.
#include <cstdint>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__)
enum { W = 16, N = 2, M = 8 };
#elif defined(__AVX__)
enum { W = 8, N = 2, M = 4 };
#else
enum { W = 4, N = 4, M = 4 };
#endif
enum { P = W * N, R = 64 };  // M divides P and R
typedef float vf __attribute__((vector_size(4 * W)));
typedef float vu __attribute__((vector_size(4 * W), aligned(4), may_alias));
#define FIXED _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))
#ifdef _OPENMP
INLINE int64_t thread() { return omp_get_thread_num(); }
INLINE int64_t threads_here() { return omp_get_num_threads(); }
#else
INLINE int64_t thread() { return 0; }
INLINE int64_t threads_here() { return 1; }
#endif

INLINE vf load(const float* p) { return *(const vu*)p; }
INLINE void store(float* p, vf x) { *(vu*)p = x; }
INLINE vf all(float x) { return x - (vf){}; }
INLINE int64_t panels(int64_t n) { return (n + P - 1) / P; }
INLINE int64_t padded(int64_t n) { return panels(n) * P; }
INLINE int64_t rounded(int64_t n) { return (n + M - 1) / M * M; }

enum Activation { TANH = 0, RELU = 1 };

// The rational approximation of Eigen's and XLA's float tanh; NaN stays NaN.
INLINE vf tanh_(vf x) {
    const vf top = all(7.90531110763549805f);
    x = x > top ? top : x;
    x = x < -top ? -top : x;
    const vf s = x * x;
    vf p = all(-2.76076847742355e-16f);
    p = p * s + 2.00018790482477e-13f;
    p = p * s + -8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    vf q = all(1.19825839466702e-06f);
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p / q;
}
INLINE vf activate(vf x, int kind) { return kind == TANH ? tanh_(x) : (x < 0.0f ? (vf){} : x); }
// The derivative, given the activation's result.
INLINE vf slope(vf g, vf y, int kind) { return kind == TANH ? g * (1.0f - y * y) : (y <= 0.0f ? (vf){} : g); }

// acc[M][V] = sum over k of left[row][k] * right[k][column]: left in panels, right one packed panel [k][P].
template <int V>
INLINE void product(const float* left, const float* right, int64_t depth, vf acc[M][V]) {
    FIXED for (int i = 0; i < M; i++) FIXED for (int v = 0; v < V; v++) acc[i][v] = (vf){};
    for (int64_t k0 = 0; k0 < depth; k0 += P, left += R * P) {
        const int n = depth - k0 < P ? depth - k0 : P;
        for (int k = 0; k < n; k++, right += P) {
            vf b[V];
            FIXED for (int v = 0; v < V; v++) b[v] = load(right + v * W);
            FIXED for (int i = 0; i < M; i++) {
                const vf a = all(left[i * P + k]);
                FIXED for (int v = 0; v < V; v++) acc[i][v] += a * b[v];
            }
        }
    }
}

// One layer over a block: out panels = activation(in panels * packed + bias); the last layer has no activation.
template <int V>
static void layer_tile(const float* in, const float* packed, const float* bias, int64_t depth, float* out, int kind) {
    vf acc[M][V];
    product<V>(in, packed, depth, acc);
    FIXED for (int v = 0; v < V; v++) {
        const vf b = load(bias + v * W);
        FIXED for (int i = 0; i < M; i++) acc[i][v] += b;
    }
    for (int v = 0; v < V; v++)
        for (int i = 0; i < M; i++) store(out + i * P + v * W, kind < 0 ? acc[i][v] : activate(acc[i][v], kind));
}

// Gradients of a layer's inputs over a block: out = (gradient panels * packed) * slope at the inputs y.
template <int V>
static void back_tile(const float* in, const float* packed, int64_t depth, const float* y, float* out, int kind) {
    vf acc[M][V];
    product<V>(in, packed, depth, acc);
    FIXED for (int i = 0; i < M; i++) FIXED for (int v = 0; v < V; v++) {
        const int at = i * P + v * W;
        store(out + at, y ? slope(acc[i][v], load(y + at), kind) : acc[i][v]);
    }
}

// sums[M][V] += over rows of gradient[row][i] * input[row][column]; a block is added up by itself, so that rounding
// grows with the number of blocks and not of rows.
template <int V>
static void weight_tile(const float* gradient, const float* input, int64_t rows, float* sums, int64_t stride) {
    vf acc[M][V];
    FIXED for (int i = 0; i < M; i++) FIXED for (int v = 0; v < V; v++) acc[i][v] = (vf){};
    for (int64_t r = 0; r < rows; r++, gradient += P, input += P) {
        vf b[V];
        FIXED for (int v = 0; v < V; v++) b[v] = load(input + v * W);
        FIXED for (int i = 0; i < M; i++) {
            const vf a = all(gradient[i]);
            FIXED for (int v = 0; v < V; v++) acc[i][v] += a * b[v];
        }
    }
    FIXED for (int i = 0; i < M; i++) FIXED for (int v = 0; v < V; v++) {
        float* sum = sums + i * stride + v * W;
        store(sum, load(sum) + acc[i][v]);
    }
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

// Panel p of a weight [outs, ins] transposed: [ins][P] of its outputs.
static void pack_outputs(const float* weight, int64_t outs, int64_t ins, int64_t p, float* to) {
    const int64_t o = p * P, n = outs - o < P ? outs - o : P;
    to += p * ins * P;
    for (int64_t k = 0; k < ins; k++, to += P) {
        for (int64_t j = 0; j < n; j++) to[j] = weight[(o + j) * ins + k];
        for (int64_t j = n; j < P; j++) to[j] = 0;
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

struct Net {
    int64_t depth, rows, threads;
    int kind;
    const int64_t* size;          // depth + 1 widths
    const float* const* weight;   // [size[l+1], size[l]]
    const float* const* bias;     // [size[l+1]]
    int64_t blocks() const { return (rows + R - 1) / R; }
    int64_t first(int64_t me, int64_t team) const { return blocks() * me / team; }  // block of a thread
    int64_t in_block(int64_t b) const { return rows - b * R < R ? rows - b * R : R; }
    int64_t hidden() const {  // numbers of the hidden layers' results, per block
        int64_t n = 0;
        for (int64_t l = 1; l < depth; l++) n += padded(size[l]) * R;
        return n;
    }
    int64_t widest() const {
        int64_t n = 0;
        for (int64_t l = 0; l <= depth; l++) n = size[l] > n ? size[l] : n;
        return padded(n) * R;
    }
    int64_t packed() const {
        int64_t n = 0;
        for (int64_t l = 0; l < depth; l++) {
            const int64_t a = padded(size[l + 1]) * size[l] + padded(size[l + 1]), b = padded(size[l]) * size[l + 1];
            n += a > b ? a : b;
        }
        return n;
    }
    int64_t sums() const {  // of one thread: gradients of weights, rows padded to tiles, and of biases
        int64_t n = 0;
        for (int64_t l = 0; l < depth; l++) n += padded(size[l + 1]) * (padded(size[l]) + 1);
        return n;
    }
};

#define TILED(columns, call)                           \
    if ((columns) > (N - 1) * W) { constexpr int V = N; call; } \
    else if (N > 2 && (columns) > W) { constexpr int V = N; call; } \
    else { constexpr int V = 1; call; }

extern "C" {
int64_t width() { return W; }

// Numbers of scratch memory, and of what the forward pass keeps for the backward pass.
int64_t scratch_size(int64_t depth, int64_t rows, int64_t threads, const int64_t* size) {
    Net net{depth, rows, threads, 0, size, nullptr, nullptr};
    return net.packed() + threads * (net.sums() + 3 * net.widest()) + 64;
}
int64_t kept_size(int64_t depth, int64_t rows, const int64_t* size) {
    Net net{depth, rows, 1, 0, size, nullptr, nullptr};
    return net.blocks() * net.hidden();
}

// out [rows, size[depth]] from x [rows, size[0]]; kept: kept_size numbers, or null.
void forward(int64_t depth, int64_t rows, int64_t threads, int64_t kind, const int64_t* size, const float* x,
             const float* const* weight, const float* const* bias, float* kept, float* out, float* scratch) {
    Net net{depth, rows, threads, (int)kind, size, weight, bias};
    float* own = scratch + net.packed();
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t me = thread(), team = threads_here();
        float* to = scratch;
        int64_t turn = 0;
        for (int64_t l = 0; l < depth; l++) {
            for (int64_t p = 0; p < panels(size[l + 1]); p++)
                if (turn++ % team == me) pack_outputs(weight[l], size[l + 1], size[l], p, to);
            to += padded(size[l + 1]) * size[l];
            if (me == 0) {
                memcpy(to, bias[l], size[l + 1] * 4);
                memset(to + size[l + 1], 0, (padded(size[l + 1]) - size[l + 1]) * 4);
            }
            to += padded(size[l + 1]);
        }
#pragma omp barrier
        float* const mine = own + me * 3 * net.widest();
        float* const buffer[3] = {mine, mine + net.widest(), mine + 2 * net.widest()};
        const int64_t first = net.first(me, team), last = net.first(me + 1, team);
        for (int64_t b = first; b < last; b++) {
            const int64_t n = net.in_block(b), full = rounded(n);
            into_panels(x + b * R * size[0], size[0], n, size[0], buffer[2]);
            const float *in = buffer[2], *packed = scratch;
            float* keep = kept ? kept + b * net.hidden() : nullptr;
            for (int64_t l = 0; l < depth; l++) {
                const int64_t outs = size[l + 1];
                const float* biases = packed + padded(outs) * size[l];
                const int activation = l + 1 < depth ? net.kind : -1;
                float* result = keep && l + 1 < depth ? keep : buffer[l % 2];
                for (int64_t p = 0; p < panels(outs); p++)
                    TILED(outs - p * P, for (int64_t r = 0; r < full; r += M) layer_tile<V>(
                        in + r * P, packed + p * P * size[l], biases + p * P, size[l], result + (p * R + r) * P, activation))
                if (keep) keep += padded(outs) * R;
                in = result;
                packed = biases + padded(outs);
            }
            from_panels(in, n, size[depth], out + b * R * size[depth], size[depth]);
        }
    }
}

// Gradients of weights, biases and (where dx is not null) of x, given those of out and what forward kept.
void backward(int64_t depth, int64_t rows, int64_t threads, int64_t kind, const int64_t* size, const float* x,
              const float* const* weight, const float* kept, const float* gradient, float* const* dweight,
              float* const* dbias, float* dx, float* scratch) {
    Net net{depth, rows, threads, (int)kind, size, weight, nullptr};
    float* all_sums = scratch + net.packed();
    float* own = all_sums + threads * net.sums();
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t me = thread(), team = threads_here();
        float* to = scratch;
        int64_t turn = 0;
        for (int64_t l = dx ? 0 : 1; l < depth; l++) {
            for (int64_t p = 0; p < panels(size[l]); p++)
                if (turn++ % team == me) pack_inputs(weight[l], size[l + 1], size[l], p, to);
            to += padded(size[l]) * size[l + 1];
        }
        float* sums = all_sums + me * net.sums();
        memset(sums, 0, net.sums() * 4);
#pragma omp barrier
        float* const mine = own + me * 3 * net.widest();
        float* const buffer[3] = {mine, mine + net.widest(), mine + 2 * net.widest()};
        const int64_t first = net.first(me, team), last = net.first(me + 1, team);
        for (int64_t b = first; b < last; b++) {
            const int64_t n = net.in_block(b), full = rounded(n);
            into_panels(gradient + b * R * size[depth], size[depth], n, size[depth], buffer[depth % 2]);
            into_panels(x + b * R * size[0], size[0], n, size[0], buffer[2]);
            const float* y = kept + (b + 1) * net.hidden();
            const float* packed = to;
            float* layer = sums + net.sums();
            for (int64_t l = depth - 1; l >= 0; l--) {
                const int64_t outs = size[l + 1], ins = size[l], stride = padded(ins);
                const float* g = buffer[(l + 1) % 2];
                y = l ? y - padded(ins) * R : buffer[2];
                layer -= padded(outs) * (stride + 1);
                for (int64_t p = 0; p < panels(ins); p++)
                    TILED(ins - p * P, for (int64_t o = 0; o < outs; o += M) weight_tile<V>(
                        g + o / P * R * P + o % P, y + p * R * P, full, layer + o * stride + p * P, stride))
                float* sum_bias = layer + padded(outs) * stride;
                for (int64_t p = 0; p < panels(outs); p++)
                    for (int v = 0; v < N; v++) {
                        float* sum = sum_bias + p * P + v * W;
                        vf total = (vf){};
                        for (int64_t r = 0; r < full; r++) total += load(g + (p * R + r) * P + v * W);
                        store(sum, load(sum) + total);
                    }
                if (l == 0 && !dx) break;
                packed -= padded(ins) * outs;
                float* result = buffer[l % 2];
                for (int64_t p = 0; p < panels(ins); p++)
                    TILED(ins - p * P, for (int64_t r = 0; r < full; r += M) back_tile<V>(
                        g + r * P, packed + p * P * outs, outs, l ? y + (p * R + r) * P : nullptr,
                        result + (p * R + r) * P, net.kind))
                if (l == 0) from_panels(result, n, ins, dx + b * R * ins, ins);
            }
        }
#pragma omp barrier
        const float* from = all_sums;
        turn = 0;
        for (int64_t l = 0; l < depth; l++) {
            const int64_t outs = size[l + 1], ins = size[l], stride = padded(ins);
            for (int64_t o = 0; o <= outs; o++) {  // the last turn is the biases'
                if (turn++ % team != me) continue;
                const float* row = from + (o < outs ? o * stride : padded(outs) * stride);
                float* target = o < outs ? dweight[l] : dbias[l];
                if (!target) continue;
                if (o < outs) target += o * ins;
                const int64_t count = o < outs ? ins : outs;
                for (int64_t i = 0; i < count; i++) target[i] = row[i];
                for (int64_t t = 1; t < team; t++)
                    for (int64_t i = 0; i < count; i++) target[i] += row[t * net.sums() + i];
            }
            from += padded(outs) * (stride + 1);
        }
    }
}
}
