// W numbers side by side in a vector, of the longest kind that the processor has: for mlp.cpp and adam.cpp.
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { W = 16 };
#elif defined(__AVX__)
enum { W = 8 };
#else
enum { W = 4 };
#endif
typedef float vf __attribute__((vector_size(4 * W)));
typedef float vu __attribute__((vector_size(4 * W), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float* p) { return *(const vu*)p; }
INLINE void store(float* p, vf x) { *(vu*)p = x; }
INLINE vf all(float x) { return x - (vf){}; }
// The first n of them, where there are no more; the others are 0.
INLINE vf load(const float* p, int64_t n) {
    if (n >= W) return load(p);
    vf x = {};
    memcpy(&x, p, n * 4);
    return x;
}
INLINE void store(float* p, vf x, int64_t n) {
    if (n >= W) return store(p, x);
    memcpy(p, &x, n * 4);
}
