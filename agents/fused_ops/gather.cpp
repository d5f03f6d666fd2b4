// Rows of many tables by their numbers, in one call: what a minibatch of replayed steps is made of.
#include <cstdint>
#include <cstring>

extern "C" {
int64_t width() { return 1; }

// For each of `tables`: to[b] = rows[index[b]], `bytes` each. Of those that have `other`, where number[b] >= 0:
// other[number[b]] instead.
void gather(int64_t count, int64_t tables, const char* const* rows, const int64_t* const* index,
            const char* const* other, const int32_t* number, const int64_t* bytes, char* const* to) {
    for (int64_t t = 0; t < tables; t++) {
        const int64_t size = bytes[t];
        char* place = to[t];
        for (int64_t b = 0; b < count; b++, place += size) {
            const bool apart = other[t] && number[b] >= 0;
            memcpy(place, apart ? other[t] + number[b] * size : rows[t] + index[t][b] * size, size);
        }
    }
}
}
