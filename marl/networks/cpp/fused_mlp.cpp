// An MLP's forward and backward pass over blocks of rows, all layers in one go; several passes side by side.
//
// Layers are called 0 … depth-1; layer l maps size[l] numbers to size[l+1]; the activation follows all but the last.
// Threads take blocks as they come (work_sharing.h), those of passes with the same weights one after the other: every
// thread packs the weights for itself, which takes less time than to read what another's cache holds. Gradients of
// weights are made of what the blocks left behind, panel by panel of outputs, and added up block after block: bitwise
// the same whatever the number of threads. Stands after work_sharing.h and fused_mlp_tiles.h, in one source.
#include <vector>

// Multiplications of a forward pass below which sharing them takes longer than it saves.
const int64_t SHARED = 1'000'000;
// Numbers that blocks may leave behind before gradients of weights are made of them: they should stay in the cache, a
// thread's own where it is alone.
const int64_t TOGETHER = 1 << 20, ALONE = 1 << 18;

// A pass, as its caller describes it.
struct Net {
    int64_t depth, rows, members, kind;  // members: threads that scratch has room for
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
    float* scratch;

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
        for (int64_t l = 0; l < depth; l++) {
            const int64_t a = padded(size[l + 1]) * size[l] + padded(size[l + 1]), b = padded(size[l]) * size[l + 1];
            n += a > b ? a : b;
        }
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
    int64_t round(int64_t most) const {  // blocks that leave behind up to so many numbers
        const int64_t fit = most / left(), n = fit > 2 * members ? fit : 2 * members;
        return n < blocks() ? n : blocks();
    }
    bool same_weights(const Net& other) const {
        if (depth != other.depth || !gradient != !other.gradient) return false;
        for (int64_t l = 0; l < depth; l++)
            if (weight[l] != other.weight[l] || (!gradient && bias[l] != other.bias[l])) return false;
        return true;
    }
    float* own(int64_t member) const { return scratch + members * packed() + member * 3 * widest(); }
    float* rooms() const { return own(members); }
};

#define TILED(columns, call)                           \
    if ((columns) > (N - 1) * W) { constexpr int V = N; call; } \
    else if (N > 2 && (columns) > W) { constexpr int V = N; call; } \
    else { constexpr int V = 1; call; }

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
            TILED(outs - p * P, for (int64_t r = 0; r < full; r += M) layer_tile<V>(
                in + r * P, packed + p * P * size[l], biases + p * P, size[l], result + (p * R + r) * P, activation))
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
            TILED(ins - p * P, for (int64_t r = 0; r < full; r += M) back_tile<V>(
                g + r * P, packed + p * P * outs, outs, l ? y + (p * R + r) * P : nullptr,
                result + (p * R + r) * P, net.kind))
        if (l == 0) from_panels(result, n, ins, net.dx + b * R * ins, ins);
    }
}

// Gradients of layer l's weights and biases of panel q of its outputs, over the blocks from `first` on, which left what
// they did in rooms(): added to what is there, or alone (fresh).
static void panel_gradients(const Net& net, int64_t l, int64_t q, int64_t first, int64_t blocks, bool fresh) {
    const int64_t ins = net.size[l], o = q * P, outs = net.size[l + 1] - o < P ? net.size[l + 1] - o : P;
    const int64_t step = l ? net.hidden() : net.left();
    const float* const g = net.rooms() + net.sum(0, l + 1) * R + q * R * P;
    const float* const y = l ? net.kept + first * net.hidden() + net.sum(1, l) * R : net.rooms();
    alignas(64) float sums[P * P];
    for (int64_t p = 0; p < panels(ins) && net.dweight[l]; p++) {
        const int64_t columns = ins - p * P < P ? ins - p * P : P;
        float* const to = net.dweight[l] + o * ins + p * P;
        if (!fresh) copy_rows(to, ins, outs, columns, sums, P);
        for (int64_t b = 0; b < blocks; b++)
            TILED(columns, for (int64_t i = 0; i < outs; i += M) weight_tile<V>(
                g + b * net.left() + i, y + b * step + p * R * P, rounded(net.in_block(first + b)), sums + i * P, P,
                fresh && !b))
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

// The weights of passes as they are read, packed by each member when it begins with the first block of those that share
// them: for a forward pass all layers, with the biases; for a backward one the layers from `first` on.
class Packed {
    const Net* const* const nets;
    const int64_t members;
    std::vector<int64_t> owner, first;  // of each pass whose packed weights it reads, and what lies there
    std::vector<char> ready;

public:
    Packed(const Net* const* nets, int64_t count, int64_t members)
        : nets(nets), members(members), owner(count), first(count), ready(count * members) {
        for (int64_t i = 0; i < count; i++) {
            while (!nets[owner[i]]->same_weights(*nets[i])) owner[i]++;
            first[i] = nets[i]->gradient && !nets[i]->dx;
            if (first[i] < first[owner[i]]) first[owner[i]] = first[i];
        }
    }
    const float* begin(int64_t i, int64_t member) {
        const Net& net = *nets[owner[i]];
        float* const place = net.scratch + member * net.packed();
        char& done = ready[owner[i] * members + member];
        if (!done) fill(net, first[owner[i]], place);
        done = 1;
        return place;
    }
    const float* end(int64_t i, int64_t member) {
        const float* at = begin(i, member);
        const Net& net = *nets[i];
        for (int64_t l = first[owner[i]]; l < net.depth; l++) at += padded(net.size[l]) * net.size[l + 1];
        return at;
    }

private:
    static void fill(const Net& net, int64_t first, float* at) {
        for (int64_t l = first; l < net.depth; l++) {
            const int64_t outs = net.size[l + 1], ins = net.size[l];
            for (int64_t p = 0; p < panels(net.gradient ? ins : outs); p++)
                (net.gradient ? pack_inputs : pack_outputs)(net.weight[l], outs, ins, p, at);
            at += net.gradient ? padded(ins) * outs : padded(outs) * ins;
            if (net.gradient) continue;
            memcpy(at, net.bias[l], outs * 4);
            memset(at + outs, 0, (padded(outs) - outs) * 4);
            at += padded(outs);
        }
    }
};

struct Unit { int64_t pass, at, panel; };  // a block, or a layer and a panel of its outputs

// Passes that do not depend on one another. All have room for the same number of members.
static void run(const Net* const* nets, int64_t count) {
    const int64_t members = nets[0]->members;
    int64_t work = 0;
    for (int64_t i = 0; i < count; i++) work += nets[i]->work();
    helpers::Shift shift(work < SHARED ? 1 : members);
    Packed packed(nets, count, members);
    std::vector<int64_t> done(count), now(count);
    std::vector<Unit> units;
    for (;;) {
        units.clear();
        const int64_t most = shift.helped() ? TOGETHER : ALONE;
        for (int64_t i = 0; i < count; i++) {
            const int64_t open = nets[i]->blocks() - done[i], round = nets[i]->asked() ? nets[i]->round(most) : open;
            now[i] = open < round ? open : round;
            for (int64_t b = 0; b < now[i]; b++) units.push_back({i, b});
        }
        if (units.empty()) return;
        shift.share(units.size(), [&](int64_t unit, int64_t member) {
            const int64_t i = units[unit].pass, b = units[unit].at;
            const Net& net = *nets[i];
            if (!net.gradient) return block_forward(net, done[i] + b, packed.begin(i, member), net.own(member));
            float* const room = net.asked() ? net.rooms() + b * net.left() : nullptr;
            block_backward(net, done[i] + b, packed.end(i, member), room, net.own(member));
        });
        units.clear();
        for (int64_t i = 0; i < count; i++)
            for (int64_t l = 0; now[i] && nets[i]->asked() && l < nets[i]->depth; l++)
                for (int64_t q = 0; q < panels(nets[i]->size[l + 1]); q++) units.push_back({i, l, q});
        shift.share(units.size(), [&](int64_t unit, int64_t) {
            const auto [i, l, q] = units[unit];
            panel_gradients(*nets[i], l, q, done[i], now[i], !done[i]);
        });
        for (int64_t i = 0; i < count; i++) done[i] += now[i];
    }
}

extern "C" {
int64_t width() { return W; }
// Units that helpers did, and times that they backed off, since the process began.
int64_t helped() { return helpers::ours()->helped.load(); }
int64_t backoffs() { return helpers::ours()->backoffs.load(); }

// Numbers of scratch memory, and of what the forward pass keeps for the backward pass.
int64_t scratch_size(int64_t depth, int64_t rows, int64_t members, const int64_t* size) {
    const Net net{depth, rows, members, 0, size};
    return members * (net.packed() + 3 * net.widest()) + net.round(TOGETHER) * net.left() + 64;
}
int64_t kept_size(int64_t depth, int64_t rows, const int64_t* size) {
    const Net net{depth, rows, 1, 0, size};
    return net.blocks() * net.hidden();
}

// out [rows, size[depth]] from x [rows, size[0]]; kept: kept_size numbers, or null. Up to `members` threads.
void forward(int64_t depth, int64_t rows, int64_t members, int64_t kind, const int64_t* size, const float* x,
             const float* const* weight, const float* const* bias, float* kept, float* out, float* scratch) {
    const Net net{depth, rows, members, kind,    size,    x,       weight, bias,
                  kept,  out,  nullptr, nullptr, nullptr, nullptr, scratch};
    const Net* const only = &net;
    run(&only, 1);
}

// Gradients of weights, biases and (where dx is not null) of x, given those of out and what forward kept.
void backward(int64_t depth, int64_t rows, int64_t members, int64_t kind, const int64_t* size, const float* x,
              const float* const* weight, float* kept, const float* gradient, float* const* dweight,
              float* const* dbias, float* dx, float* scratch) {
    const Net net{depth, rows,    members,  kind,    size,  x,  weight, nullptr,
                  kept,  nullptr, gradient, dweight, dbias, dx, scratch};
    const Net* const only = &net;
    run(&only, 1);
}

// Passes side by side that do not depend on one another, each with scratch of its own.
void passes(int64_t count, const Net* const* nets) { run(nets, count); }
}
