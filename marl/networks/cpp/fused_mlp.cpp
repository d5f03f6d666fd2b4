// An MLP's forward and backward pass over blocks of rows, all layers in one go; several passes side by side.
//
// Layers are called 0 … depth-1; layer l maps size[l] numbers to size[l+1]; the activation follows all but the last.
// Threads take blocks as they come (work_sharing.h), those of passes with the same weights one after the other: every
// thread packs the weights for itself, which takes less time than to read what another's cache holds, into memory that
// stays in its cache. Gradients of weights are made of what the blocks left behind, panel by panel of outputs,
// and added up block after block: bitwise the same whatever the number of threads. Stands after work_sharing.h and
// fused_mlp_blocks.h, in one source.
#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

// Multiplications of a forward pass below which sharing them takes longer than it saves.
const int64_t SHARED = 1'000'000;
// Numbers that blocks may leave behind before gradients of weights are made of them: they should stay in the cache, a
// thread's own where it is alone.
const int64_t TOGETHER = 1 << 20, ALONE = 1 << 18;

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

struct Unit { int64_t pass, at, panel, work; };  // a block, or a layer and a panel of its outputs

// Long units to both ends, from which they are taken, so that threads end with short ones at about the same time.
static void long_ones_first(std::vector<Unit>& units) {
    std::vector<Unit> sorted(units);
    std::stable_sort(sorted.begin(), sorted.end(), [](const Unit& a, const Unit& b) { return a.work > b.work; });
    for (size_t i = 0; i < sorted.size(); i++) units[i % 2 ? sorted.size() - 1 - i / 2 : i / 2] = sorted[i];
}

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
                for (int64_t q = 0; q < panels(nets[i]->size[l + 1]); q++) {
                    const int64_t outs = nets[i]->size[l + 1] - q * P;
                    units.push_back({i, l, q, now[i] * panels(nets[i]->size[l]) * (outs < P ? outs : P)});
                }
        long_ones_first(units);
        shift.share(units.size(), [&](int64_t unit, int64_t) {
            const auto [i, l, q, work] = units[unit];
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
