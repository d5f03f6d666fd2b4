// An MLP's forward and backward pass over blocks of rows, all layers in one go; several passes side by side.
//
// Layers are called 0 … depth-1; layer l maps size[l] numbers to size[l+1]; the activation follows all but the last.
// Threads take blocks as they come (work_sharing.h), those of passes with the same weights one after the other: every
// thread packs the weights for itself, which takes less time than to read what another's cache holds, into memory that
// stays in its cache. Gradients of weights are made of what the blocks left behind, panel by panel of outputs,
// and added up block after block: bitwise the same whatever the number of threads. Stands after work_sharing.h and
// fused_mlp_tiles.h, in one source.
#include <cstdlib>
#include <new>
#include <vector>

// Multiplications of a forward pass below which sharing them takes longer than it saves.
const int64_t SHARED = 1'000'000;
// Numbers that blocks may leave behind before gradients of weights are made of them: they should stay in the cache, a
// thread's own where it is alone.
const int64_t TOGETHER = 1 << 20, ALONE = 1 << 18;

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

// Memory of a thread, kept from call to call.
struct Memory {
    float* at = nullptr;
    int64_t size = 0;
    ~Memory() { free(at); }
    float* of(int64_t numbers) {
        if (numbers > size) {
            free(at);
            size = numbers;
            at = (float*)aligned_alloc(64, (numbers * 4 + 63) / 64 * 64);
            if (!at) throw std::bad_alloc();
        }
        return at;
    }
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
    std::vector<int64_t> owner, first;  // of each pass the first that has its weights, and what is packed of these
    std::vector<int64_t> ready;         // of each member whose weights it has packed, + 1

public:
    Packed(const Net* const* nets, int64_t count, int64_t members)
        : nets(nets), owner(count), first(count), ready(members) {
        for (int64_t i = 0; i < count; i++) {
            while (!nets[owner[i]]->same_weights(*nets[i])) owner[i]++;
            first[i] = nets[i]->gradient && !nets[i]->dx;
            if (first[i] < first[owner[i]]) first[owner[i]] = first[i];
        }
    }
    // Those of pass i in the member's memory; where a forward pass's begin, where a backward pass's end.
    const float* of(int64_t i, int64_t member, float* place) {
        const Net& net = *nets[i];
        if (ready[member] != owner[i] + 1) fill(net, first[owner[i]], place);
        ready[member] = owner[i] + 1;
        for (int64_t l = first[owner[i]]; net.gradient && l < net.depth; l++)
            place += padded(net.size[l]) * net.size[l + 1];
        return place;
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

// Passes that do not depend on one another, by up to `members` threads.
static void run(const Net* const* nets, int64_t count, int64_t members) {
    static thread_local Memory own, behind;  // packed weights and buffers; what blocks leave behind
    int64_t work = 0, packed_size = 0;
    for (int64_t i = 0; i < count; i++) {
        work += nets[i]->work();
        packed_size = nets[i]->packed() > packed_size ? nets[i]->packed() : packed_size;
    }
    helpers::Shift shift(work < SHARED ? 1 : members);
    Packed packed(nets, count, members);
    std::vector<int64_t> done(count), now(count), room(count);
    std::vector<Unit> units;
    for (;;) {
        units.clear();
        const bool helped = shift.helped();
        const int64_t most = helped ? TOGETHER : ALONE, least = helped ? 2 * members : 1;
        int64_t rooms = 0;
        for (int64_t i = 0; i < count; i++) {
            const Net& net = *nets[i];
            const int64_t open = net.blocks() - done[i], round = net.asked() ? net.round(most, least) : open;
            now[i] = open < round ? open : round;
            room[i] = rooms;
            rooms += net.asked() ? now[i] * net.left() : 0;
            for (int64_t b = 0; b < now[i]; b++) units.push_back({i, b});
        }
        if (units.empty()) return;
        float* const left = behind.of(rooms);
        shift.share(units.size(), [&](int64_t unit, int64_t member) {
            const int64_t i = units[unit].pass, b = units[unit].at;
            const Net& net = *nets[i];
            float* const place = own.of(packed_size + 3 * net.widest());
            const float* const weights = packed.of(i, member, place);
            float* const buffers = place + packed_size;
            if (!net.gradient) return block_forward(net, done[i] + b, weights, buffers);
            block_backward(net, done[i] + b, weights, net.asked() ? left + room[i] + b * net.left() : nullptr, buffers);
        });
        units.clear();
        for (int64_t i = 0; i < count; i++)
            for (int64_t l = 0; now[i] && nets[i]->asked() && l < nets[i]->depth; l++)
                for (int64_t q = 0; q < panels(nets[i]->size[l + 1]); q++) units.push_back({i, l, q});
        shift.share(units.size(), [&](int64_t unit, int64_t) {
            const auto [i, l, q] = units[unit];
            panel_gradients(*nets[i], l, q, done[i], now[i], !done[i], left + room[i]);
        });
        for (int64_t i = 0; i < count; i++) done[i] += now[i];
    }
}

extern "C" {
int64_t width() { return W; }
// Units that helpers did, and times that they backed off, since the process began.
int64_t helped() { return helpers::ours()->helped.load(); }
int64_t backoffs() { return helpers::ours()->backoffs.load(); }

// Numbers of what the forward pass keeps for the backward pass.
int64_t kept_size(int64_t depth, int64_t rows, const int64_t* size) {
    const Net net{depth, rows, 0, size};
    return net.blocks() * net.hidden();
}

// out [rows, size[depth]] from x [rows, size[0]]; kept: kept_size numbers, or null. Up to `members` threads.
void forward(int64_t members, int64_t depth, int64_t rows, int64_t kind, const int64_t* size, const float* x,
             const float* const* weight, const float* const* bias, float* kept, float* out) {
    const Net net{depth, rows, kind, size, x, weight, bias, kept, out};
    const Net* const only = &net;
    run(&only, 1, members);
}

// Gradients of weights, biases and (where dx is not null) of x, given those of out and what forward kept.
void backward(int64_t members, int64_t depth, int64_t rows, int64_t kind, const int64_t* size, const float* x,
              const float* const* weight, float* kept, const float* gradient, float* const* dweight,
              float* const* dbias, float* dx) {
    const Net net{depth, rows, kind, size, x, weight, nullptr, kept, nullptr, gradient, dweight, dbias, dx};
    const Net* const only = &net;
    run(&only, 1, members);
}

// Passes side by side that do not depend on one another.
void passes(int64_t members, int64_t count, const Net* const* nets) { run(nets, count, members); }
}
