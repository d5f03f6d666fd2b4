// A pass of an MLP, and what is done to a block of its rows or a panel of its gradients, for fused_mlp.cpp.
//
// Stands after fused_mlp_tiles.h, in one source.

// A pass, as its caller describes it.
struct Net {
    int64_t depth, rows, kind;
    const int64_t* size;          // depth + 1 widths
    const float* x;               // [rows, size[0]]
    const float* const* weight;   // [size[l+1], size[l]]
    const float* const* bias;     // [size[l+1]]; of a forward pass
    float* kept;                  // kept_size numbers; a forward pass may have none
    float* out;                   // [rows, size[depth]]; of a forward pass
    const float* gradient;        // that of out; of a backward pass, null in a forward one
    float* const* dweight;        // null where they are not asked for
    float* const* dbias;
    float* dx;

    int64_t blocks() const { return (rows + R - 1) / R; }
    int64_t in_block(int64_t b) const { return rows - b * R < R ? rows - b * R : R; }
    int64_t hidden() const { return sum(1, depth) * R; }         // numbers of the hidden layers' results, per block
    int64_t left() const { return sum(0, depth + 1) * R; }       // what a block leaves behind: x, gradients of layers
    int64_t sum(int64_t from, int64_t to) const {                // padded widths
        int64_t n = 0;
        for (int64_t l = from; l < to; l++) n += padded(size[l]);
        return n;
    }
    int64_t widest() const {
        int64_t n = 0;
        for (int64_t l = 0; l <= depth; l++) n = size[l] > n ? size[l] : n;
        return padded(n) * R;
    }
    int64_t packed() const {
        int64_t n = 0;
        for (int64_t l = 0; l < depth; l++)
            n += gradient ? padded(size[l]) * size[l + 1] : padded(size[l + 1]) * (size[l] + 1);
        return n;
    }
    int64_t work() const {
        int64_t n = 0;
        for (int64_t l = 0; l < depth; l++) n += size[l] * size[l + 1];
        return n * rows;
    }
    bool asked() const {  // for gradients of weights
        for (int64_t l = 0; gradient && l < depth; l++)
            if (dweight[l] || dbias[l]) return true;
        return false;
    }
    int64_t round(int64_t most, int64_t least) const {  // blocks that leave behind up to so many numbers
        const int64_t fit = most / left(), n = fit > least ? fit : least;
        return n < blocks() ? n : blocks();
    }
    bool same_weights(const Net& other) const {
        if (depth != other.depth || !gradient != !other.gradient) return false;
        for (int64_t l = 0; l < depth; l++)
            if (weight[l] != other.weight[l] || (!gradient && bias[l] != other.bias[l])) return false;
        return true;
    }
};

#define TILED(columns, call)                           \
    if ((columns) > (N - 1) * W) { constexpr int V = N; call; } \
    else if (N > 2 && (columns) > W) { constexpr int V = N; call; } \
    else { constexpr int V = 1; call; }
// Rows, whole tiles of M, in tiles of TALL and what is left in tiles of M: 64 are ten of 6 and one of 4.
#define STACKED(rows, r, call)                                                                \
    for (int64_t r = 0, left = rows; left > 0;)                                               \
        if (left >= TALL && left != 2 * M) { constexpr int H = TALL; call; r += H; left -= H; } \
        else { constexpr int H = M; call; r += H; left -= H; }

// One block forward; the weights lie packed, buffers of widest() each are the caller's own.
static void block_forward(const Net& net, int64_t b, const float* packed, float* buffers) {
    const int64_t depth = net.depth, n = net.in_block(b), full = rounded(n);
    const int64_t* size = net.size;
    float* const buffer[3] = {buffers, buffers + net.widest(), buffers + 2 * net.widest()};
    into_panels(net.x + b * R * size[0], size[0], n, size[0], buffer[2]);
    const float* in = buffer[2];
    float* keep = net.kept ? net.kept + b * net.hidden() : nullptr;
    for (int64_t l = 0; l < depth; l++) {
        const int64_t outs = size[l + 1];
        const float* biases = packed + padded(outs) * size[l];
        const int activation = l + 1 < depth ? net.kind : -1;
        float* result = keep && l + 1 < depth ? keep : buffer[l % 2];
        for (int64_t p = 0; p < panels(outs); p++)
            TILED(outs - p * P, STACKED(full, r, (layer_tile<H, V>(
                in + r * P, packed + p * P * size[l], biases + p * P, size[l], result + (p * R + r) * P, activation))))
        if (keep) keep += padded(outs) * R;
        in = result;
        packed = biases + padded(outs);
    }
    from_panels(in, n, size[depth], net.out + b * R * size[depth], size[depth]);
}

// One block backward: gradients of layers, which with x stay in `room` (left() numbers) if that is not null. `end` is
// where the packed weights end.
static void block_backward(const Net& net, int64_t b, const float* end, float* room, float* buffers) {
    const int64_t depth = net.depth, n = net.in_block(b), full = rounded(n);
    const int64_t* size = net.size;
    float* const buffer[2] = {buffers, buffers + net.widest()};
    if (room) into_panels(net.x + b * R * size[0], size[0], n, size[0], room);
    float* at = room ? room + net.sum(0, depth) * R : buffer[depth % 2];
    into_panels(net.gradient + b * R * size[depth], size[depth], n, size[depth], at);
    const float* y = net.kept + (b + 1) * net.hidden();
    const float* packed = end;
    for (int64_t l = depth - 1; l >= (net.dx ? 0 : 1); l--) {
        const int64_t outs = size[l + 1], ins = size[l];
        const float* g = at;
        if (l) y -= padded(ins) * R;
        packed -= padded(ins) * outs;
        float* result = at = room && l ? at - padded(ins) * R : buffer[l % 2];
        for (int64_t p = 0; p < panels(ins); p++)
            TILED(ins - p * P, STACKED(full, r, (back_tile<H, V>(
                g + r * P, packed + p * P * outs, outs, l ? y + (p * R + r) * P : nullptr,
                result + (p * R + r) * P, net.kind))))
        if (l == 0) from_panels(result, n, ins, net.dx + b * R * ins, ins);
    }
}

// Gradients of layer l's weights and biases of panel q of its outputs, over the blocks from `first` on, which left what
// they did in `rooms`: added to what is there, or alone (fresh).
static void panel_gradients(const Net& net, int64_t l, int64_t q, int64_t first, int64_t blocks, bool fresh,
                            const float* rooms) {
    const int64_t ins = net.size[l], o = q * P, outs = net.size[l + 1] - o < P ? net.size[l + 1] - o : P;
    const int64_t step = l ? net.hidden() : net.left();
    const float* const g = rooms + net.sum(0, l + 1) * R + q * R * P;
    const float* const y = l ? net.kept + first * net.hidden() + net.sum(1, l) * R : rooms;
    alignas(64) float sums[P * P];
    for (int64_t p = 0; p < panels(ins) && net.dweight[l]; p++) {
        const int64_t columns = ins - p * P < P ? ins - p * P : P;
        float* const to = net.dweight[l] + o * ins + p * P;
        if (!fresh) copy_rows(to, ins, outs, columns, sums, P);
        for (int64_t b = 0; b < blocks; b++)
            TILED(columns, STACKED(rounded(outs), i, (weight_tile<H, V>(
                g + b * net.left() + i, y + b * step + p * R * P, rounded(net.in_block(first + b)), sums + i * P, P,
                fresh && !b))))
        copy_rows(sums, P, outs, columns, to, ins);
    }
    if (!net.dbias[l]) return;
    if (!fresh) memcpy(sums, net.dbias[l] + o, outs * 4);
    for (int64_t b = 0; b < blocks; b++)
        for (int v = 0; v < N; v++) {
            vf total = (vf){};
            const float* column = g + b * net.left() + v * W;
            for (int64_t r = 0; r < rounded(net.in_block(first + b)); r++, column += P) total += load(column);
            store(sums + v * W, fresh && !b ? total : load(sums + v * W) + total);
        }
    memcpy(net.dbias[l] + o, sums, outs * 4);
}
