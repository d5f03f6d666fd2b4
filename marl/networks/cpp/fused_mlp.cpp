// An MLP's forward and backward pass over blocks of rows, all layers in one go.
//
// Layers are called 0 … depth-1; layer l maps size[l] numbers to size[l+1]; the activation follows all but the last.
// Threads take blocks as they come (work_sharing.h); gradients of weights are summed up block after block, whichever
// made them: bitwise the same whatever the number of threads. Every thread packs the weights for itself, which takes
// less time than to read what another's cache holds. Stands after work_sharing.h and fused_mlp_tiles.h, in one source.
#include <vector>

// Numbers of gradients that blocks may keep side by side: they should stay in the cache.
const int64_t TOGETHER = 1 << 20;

struct Net {
    int64_t depth, rows, members;
    int kind;
    const int64_t* size;          // depth + 1 widths
    const float* const* weight;   // [size[l+1], size[l]]
    const float* const* bias;     // [size[l+1]]
    int64_t blocks() const { return (rows + R - 1) / R; }
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
    int64_t sums() const {  // gradients of weights, rows padded to tiles, and of biases
        int64_t n = 0;
        for (int64_t l = 0; l < depth; l++) n += padded(size[l + 1]) * (padded(size[l]) + 1);
        return n;
    }
    int64_t round() const {  // blocks whose gradients are kept side by side before they are added up in their order
        int64_t n = TOGETHER / sums();
        n = n > 2 * members ? n : 2 * members;
        return n < blocks() ? n : blocks();
    }
    float* own(float* buffers, int64_t member) const { return buffers + member * 3 * widest(); }
};

#define TILED(columns, call)                           \
    if ((columns) > (N - 1) * W) { constexpr int V = N; call; } \
    else if (N > 2 && (columns) > W) { constexpr int V = N; call; } \
    else { constexpr int V = 1; call; }

// One block forward; the weights lie packed, buffers of widest() each are the caller's own.
static void block_forward(const Net& net, int64_t b, const float* x, const float* packed, float* kept, float* out,
                          float* buffers) {
    const int64_t depth = net.depth, n = net.in_block(b), full = rounded(n);
    const int64_t* size = net.size;
    float* const buffer[3] = {buffers, buffers + net.widest(), buffers + 2 * net.widest()};
    into_panels(x + b * R * size[0], size[0], n, size[0], buffer[2]);
    const float* in = buffer[2];
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

// One block backward: its gradients of weights and biases are added to `sums`, or stand there alone (fresh), padding
// left as it is; null = they are not asked for. `end` is where the packed weights end.
static void block_backward(const Net& net, int64_t b, const float* x, const float* kept, const float* gradient,
                           const float* end, float* sums, bool fresh, float* dx, float* buffers) {
    const int64_t depth = net.depth, n = net.in_block(b), full = rounded(n);
    const int64_t* size = net.size;
    float* const buffer[3] = {buffers, buffers + net.widest(), buffers + 2 * net.widest()};
    into_panels(gradient + b * R * size[depth], size[depth], n, size[depth], buffer[depth % 2]);
    into_panels(x + b * R * size[0], size[0], n, size[0], buffer[2]);
    const float* y = kept + (b + 1) * net.hidden();
    const float* packed = end;
    float* layer = sums ? sums + net.sums() : nullptr;
    for (int64_t l = depth - 1; l >= 0; l--) {
        const int64_t outs = size[l + 1], ins = size[l], stride = padded(ins);
        const float* g = buffer[(l + 1) % 2];
        y = l ? y - padded(ins) * R : buffer[2];
        if (sums) {
            layer -= padded(outs) * (stride + 1);
            for (int64_t p = 0; p < panels(ins); p++)
                TILED(ins - p * P, for (int64_t o = 0; o < outs; o += M) weight_tile<V>(
                    g + o / P * R * P + o % P, y + p * R * P, full, layer + o * stride + p * P, stride, fresh))
            float* sum_bias = layer + padded(outs) * stride;
            for (int64_t p = 0; p < panels(outs); p++)
                for (int v = 0; v < N; v++) {
                    float* sum = sum_bias + p * P + v * W;
                    vf total = (vf){};
                    for (int64_t r = 0; r < full; r++) total += load(g + (p * R + r) * P + v * W);
                    store(sum, fresh ? total : load(sum) + total);
                }
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

// sums[i] += slots[0][i] + slots[1][i] + …, in this order, for `count` of the numbers from `first` on.
static void add_up(float* sums, const float* slots, int64_t slot, int64_t used, int64_t first, int64_t count) {
    int64_t i = first;
    for (; i + W <= first + count; i += W) {
        vf total = load(sums + i);
        for (int64_t s = 0; s < used; s++) total += load(slots + s * slot + i);
        store(sums + i, total);
    }
}

// The sums without their padding, each to where it belongs.
static void hand_out(const Net& net, const float* from, float* const* dweight, float* const* dbias) {
    for (int64_t l = 0; l < net.depth; l++) {
        const int64_t outs = net.size[l + 1], ins = net.size[l], stride = padded(ins);
        if (dweight[l])
            for (int64_t o = 0; o < outs; o++) memcpy(dweight[l] + o * ins, from + o * stride, ins * 4);
        if (dbias[l]) memcpy(dbias[l], from + padded(outs) * stride, outs * 4);
        from += padded(outs) * (stride + 1);
    }
}

// The weights as the passes read them, packed by each member when it begins with its first block.
class Packed {
    const Net& net;
    float* const room;  // packed() numbers for each member
    const bool outputs;
    const int64_t first;
    std::vector<char> ready;

public:
    // outputs: for a forward pass, all layers, with the biases; else for a backward pass, the layers from `first` on.
    Packed(const Net& net, float* room, bool outputs, int64_t first = 0)
        : net(net), room(room), outputs(outputs), first(first), ready(net.members) {}

    const float* begin(int64_t member) {
        float* const own = room + member * net.packed();
        if (!ready[member]) fill(own);
        ready[member] = 1;
        return own;
    }
    const float* end(int64_t member) {
        const float* at = begin(member);
        for (int64_t l = first; l < net.depth; l++) at += padded(net.size[l]) * net.size[l + 1];
        return at;
    }

private:
    void fill(float* at) const {
        for (int64_t l = first; l < net.depth; l++) {
            const int64_t outs = net.size[l + 1], ins = net.size[l];
            for (int64_t p = 0; p < panels(outputs ? outs : ins); p++)
                outputs ? pack_outputs(net.weight[l], outs, ins, p, at) : pack_inputs(net.weight[l], outs, ins, p, at);
            at += outputs ? padded(outs) * ins : padded(ins) * outs;
            if (!outputs) continue;
            memcpy(at, net.bias[l], outs * 4);
            memset(at + outs, 0, (padded(outs) - outs) * 4);
            at += padded(outs);
        }
    }
};

extern "C" {
int64_t width() { return W; }
// Units that helpers did, and times that they backed off, since the process began.
int64_t helped() { return helpers::ours()->helped.load(); }
int64_t backoffs() { return helpers::ours()->backoffs.load(); }

// Numbers of scratch memory, and of what the forward pass keeps for the backward pass.
int64_t scratch_size(int64_t depth, int64_t rows, int64_t members, const int64_t* size) {
    Net net{depth, rows, members, 0, size, nullptr, nullptr};
    return members * (net.packed() + 3 * net.widest()) + (1 + (members > 1 ? net.round() : 0)) * net.sums() + 64;
}
int64_t kept_size(int64_t depth, int64_t rows, const int64_t* size) {
    Net net{depth, rows, 1, 0, size, nullptr, nullptr};
    return net.blocks() * net.hidden();
}

// out [rows, size[depth]] from x [rows, size[0]]; kept: kept_size numbers, or null. Up to `members` threads.
void forward(int64_t depth, int64_t rows, int64_t members, int64_t kind, const int64_t* size, const float* x,
             const float* const* weight, const float* const* bias, float* kept, float* out, float* scratch) {
    const Net net{depth, rows, members, (int)kind, size, weight, bias};
    float* const buffers = scratch + members * net.packed();
    Packed packed(net, scratch, true);
    helpers::Shift shift(members);
    shift.share(net.blocks(), [&](int64_t b, int64_t member) {
        block_forward(net, b, x, packed.begin(member), kept, out, net.own(buffers, member));
    });
}

// Gradients of weights, biases and (where dx is not null) of x, given those of out and what forward kept.
void backward(int64_t depth, int64_t rows, int64_t members, int64_t kind, const int64_t* size, const float* x,
              const float* const* weight, const float* kept, const float* gradient, float* const* dweight,
              float* const* dbias, float* dx, float* scratch) {
    const Net net{depth, rows, members, (int)kind, size, weight, nullptr};
    float* const buffers = scratch + members * net.packed();
    Packed packed(net, scratch, false, dx ? 0 : 1);
    helpers::Shift shift(members);
    bool asked = false;
    for (int64_t l = 0; l < depth; l++) asked = asked || dweight[l] || dbias[l];
    const auto block = [&](int64_t b, int64_t member, float* sums, bool fresh) {
        block_backward(net, b, x, kept, gradient, packed.end(member), sums, fresh, dx, net.own(buffers, member));
    };
    if (!asked) return shift.share(net.blocks(), [&](int64_t b, int64_t member) { block(b, member, nullptr, true); });
    float* const sums = buffers + members * 3 * net.widest();
    float* const slots = sums + net.sums();
    const int64_t slot = net.sums(), round = net.round();
    memset(sums, 0, slot * 4);
    for (int64_t b = 0; b < net.blocks();) {
        if (!shift.helped() || b + 1 == net.blocks()) {  // alone: straight into the sums
            block(b++, 0, sums, false);
            continue;
        }
        const int64_t used = net.blocks() - b < round ? net.blocks() - b : round;
        shift.share(used, [&](int64_t i, int64_t member) { block(b + i, member, slots + i * slot, true); });
        const int64_t parts = 2 * members, part = (slot / W + parts - 1) / parts * W;
        shift.share(parts, [&](int64_t i, int64_t) {
            const int64_t from = i * part < slot ? i * part : slot;
            add_up(sums, slots, slot, used, from, slot - from < part ? slot - from : part);
        });
        b += used;
    }
    hand_out(net, sums, dweight, dbias);
}
}
