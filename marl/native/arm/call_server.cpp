// Calls functions of a library for another process: its memory comes by standard input and goes back by standard output.
//
// argv[1] is the library. A request is int64s: the name's length; the name, padded to eights; regions, relocations,
// integers, reals; a size for each region; (region, offset, target region, target offset) for each relocation; (region
// or -1, value or offset) for each integer; then the reals (float32, padded to eights) and the regions' bytes, padded.
// The answer: the result, the number of a region written past its end or -1, and the regions' bytes, padded.
//
// Arm passes the first eight integers and eight reals in registers and further integers on the stack, eight bytes each.
// So one type fits all functions: what a callee does not take it does not look at.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

typedef int64_t i64;
typedef i64 (*Any)(i64, i64, i64, i64, i64, i64, i64, i64, float, float, float, float, float, float, float, float, i64, i64,
                   i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64);
static const i64 GUARD = 256;  // bytes after a region that must stay as they are
static const int MARK = 0x5a;

static void get(void* to, i64 bytes) {
    if (bytes && fread(to, 1, bytes, stdin) != (size_t)bytes) exit(0);  // the caller has left
}
static i64 number() {
    i64 value;
    get(&value, 8);
    return value;
}
static i64 padded(i64 bytes) { return (bytes + 7) / 8 * 8; }

int main(int, char** argv) {
    void* library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    for (;;) {
        std::string name(number(), 0);
        std::vector<char> padding(padded(name.size()));
        get(padding.data(), padding.size());
        memcpy(name.data(), padding.data(), name.size());
        const i64 regions = number(), relocations = number(), integers = number(), reals = number();
        std::vector<i64> sizes(regions), moves(4 * relocations), given(2 * integers);
        get(sizes.data(), 8 * regions), get(moves.data(), 32 * relocations), get(given.data(), 16 * integers);
        float r[8] = {};
        for (i64 i = 0; i < reals; i++) {
            float both[2];
            get(both, 8);
            r[i] = both[0];
        }
        std::vector<char*> at(regions);
        for (i64 i = 0; i < regions; i++) {
            at[i] = (char*)aligned_alloc(64, (padded(sizes[i]) + GUARD + 63) / 64 * 64);
            get(at[i], padded(sizes[i]));
            memset(at[i] + sizes[i], MARK, GUARD);
        }
        for (i64 i = 0; i < relocations; i++) {
            char* target = at[moves[4 * i + 2]] + moves[4 * i + 3];
            memcpy(at[moves[4 * i]] + moves[4 * i + 1], &target, 8);
        }
        i64 n[24] = {};
        for (i64 i = 0; i < integers; i++)
            n[i] = given[2 * i] < 0 ? given[2 * i + 1] : (i64)(at[given[2 * i]] + given[2 * i + 1]);
        Any function = (Any)dlsym(library, name.c_str());
        if (!function || integers > 24 || reals > 8) return fprintf(stderr, "%s cannot be called\n", name.c_str()), 1;
        const i64 result = function(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], r[0], r[1], r[2], r[3], r[4], r[5], r[6],
                                    r[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], n[17], n[18], n[19],
                                    n[20], n[21], n[22], n[23]);
        i64 answer[2] = {result, -1};
        for (i64 i = 0; i < regions; i++)
            for (i64 k = 0; k < GUARD; k++)
                if (at[i][sizes[i] + k] != MARK) answer[1] = i;
        fwrite(answer, 8, 2, stdout);
        for (i64 i = 0; i < regions; i++) {
            fwrite(at[i], 1, padded(sizes[i]), stdout);
            free(at[i]);
        }
        fflush(stdout);
    }
}
