// The vectors of all compiled code: W floats side by side, and functions on them.
//
// Generated kernels hold W environments in a vector, losses W samples, networks and optimisers W neighbouring numbers.
// AVX-512, AVX2 and 64-bit Arm's NEON by intrinsics, anything else by the compiler's vector extension with lane loops.
// K(x) is a vector of equal numbers; load and store take a pointer of any alignment.
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__) && defined(__AVX512DQ__)
enum { W = 16 };
typedef __m512 vf;
typedef __mmask16 vb;
static inline vf K(float x) { return _mm512_set1_ps(x); }
static inline vf load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, vf x) { _mm512_storeu_ps(p, x); }
static inline vb lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline vb le(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
static inline vb eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline vb ne(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static inline vf sel(vb c, vf a, vf b) { return _mm512_mask_blend_ps(c, b, a); }
static inline vb sel(vb c, vb a, vb b) { return (vb)((c & a) | (~c & b)); }
static inline vb not_(vb a) { return (vb)~a; }
static inline vb B(bool x) { return x ? (vb)-1 : (vb)0; }
static inline bool any(vb a) { return a != 0; }
static inline vf abs_(vf a) { return _mm512_andnot_ps(K(-0.0f), a); }
static inline vf neg_(vf a) { return _mm512_xor_ps(K(-0.0f), a); }
static inline vf sqrt_(vf a) { return _mm512_sqrt_ps(a); }
static inline vf floor_(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
static inline vf ceil_(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
static inline vf trunc_(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
static inline vf round_(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf fma_(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf ldexp_(vf a, vf n) { return _mm512_scalef_ps(a, n); }
#define SLEEF(name) name##f16_u10
#define SLEEF_FMOD Sleef_fmodf16
#else
#if defined(__AVX__)
enum { W = 8 };
#define SLEEF(name) name##f8_u10
#define SLEEF_FMOD Sleef_fmodf8
#else
enum { W = 4 };
#define SLEEF(name) name##f4_u10
#define SLEEF_FMOD Sleef_fmodf4
#endif
typedef float vf __attribute__((vector_size(4 * W)));
typedef int vb __attribute__((vector_size(4 * W)));
static inline vf K(float x) { return x - (vf){}; }
static inline vf load(const float* p) { vf x; memcpy(&x, p, sizeof x); return x; }
static inline void store(float* p, vf x) { memcpy(p, &x, sizeof x); }
static inline vb lt(vf a, vf b) { return a < b; }
static inline vb le(vf a, vf b) { return a <= b; }
static inline vb eq(vf a, vf b) { return a == b; }
static inline vb ne(vf a, vf b) { return a != b; }
static inline vf sel(vb c, vf a, vf b) { return c ? a : b; }
static inline vb sel(vb c, vb a, vb b) { return (c & a) | (~c & b); }
static inline vb not_(vb a) { return ~a; }
static inline vb B(bool x) { return (vb){} - (int)x; }
#if defined(__aarch64__)
static inline bool any(vb a) { return vmaxvq_u32((uint32x4_t)a) != 0; }
#else
static inline bool any(vb a) { for (int l = 0; l < W; l++) if (a[l]) return true; return false; }
#endif
static inline vf abs_(vf a) { return (vf)((vb)a & 0x7fffffff); }
static inline vf neg_(vf a) { return -a; }
#define LANES(name, f) static inline vf name(vf a) { for (int l = 0; l < W; l++) a[l] = f(a[l]); return a; }
#if defined(__FMA__) && defined(__AVX__)
static inline vf fma_(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#elif defined(__aarch64__)
static inline vf fma_(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
static inline vf fma_(vf a, vf b, vf c) { return a * b + c; }
#endif
static inline vf ldexp_(vf a, vf n) {  // in two factors, so that results below 2^-126 come out right
  typedef int vi __attribute__((vector_size(4 * W)));
  const vf low = n < K(-250.0f) ? K(-250.0f) : n, all = low < K(250.0f) ? low : K(250.0f);
  const vi whole = __builtin_convertvector(all, vi), half = whole / 2;
  return a * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
}
#if defined(__AVX__)
static inline vf sqrt_(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
static inline vf floor_(vf a) { return (vf)_mm256_floor_ps((__m256)a); }
static inline vf ceil_(vf a) { return (vf)_mm256_ceil_ps((__m256)a); }
static inline vf trunc_(vf a) { return (vf)_mm256_round_ps((__m256)a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
static inline vf round_(vf a) { return (vf)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__aarch64__)
static inline vf sqrt_(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
static inline vf floor_(vf a) { return (vf)vrndmq_f32((float32x4_t)a); }
static inline vf ceil_(vf a) { return (vf)vrndpq_f32((float32x4_t)a); }
static inline vf trunc_(vf a) { return (vf)vrndq_f32((float32x4_t)a); }
static inline vf round_(vf a) { return (vf)vrndnq_f32((float32x4_t)a); }
#else
LANES(sqrt_, __builtin_sqrtf) LANES(floor_, __builtin_floorf) LANES(ceil_, __builtin_ceilf)
LANES(trunc_, __builtin_truncf) LANES(round_, __builtin_rintf)
#endif
#endif

// The first n numbers, where there are no more; a vector's others are 0.
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

static inline vb and_(vb a, vb b) { return a & b; }
static inline vb or_(vb a, vb b) { return a | b; }
static inline vb xor_(vb a, vb b) { return a ^ b; }
static inline vf add(vf a, vf b) { return a + b; }
static inline vf sub(vf a, vf b) { return a - b; }
static inline vf mul(vf a, vf b) { return a * b; }
static inline vf div_(vf a, vf b) { return a / b; }
static inline vf mul0(vf a, vf b) { return sel(eq(a, K(0.0f)), K(0.0f), a * b); }  // 0 times infinity is 0
static inline vf min_(vf a, vf b) { return sel(or_(lt(a, b), ne(a, a)), a, b); }  // nan wins, as in torch
static inline vf max_(vf a, vf b) { return sel(or_(lt(b, a), ne(a, a)), a, b); }
static inline vf num(vb a) { return sel(a, K(1.0f), K(0.0f)); }
static inline vb truth(vf a) { return ne(a, K(0.0f)); }

#ifdef USE_SLEEF  // the functions torch computes with; they live in libtorch_cpu
#define FUNCTION1(name, sleef, plain) \
  extern "C" vf SLEEF(sleef)(vf); \
  static inline vf name(vf a) { return SLEEF(sleef)(a); }
#define FUNCTION2(name, sleef, plain) \
  extern "C" vf SLEEF(sleef)(vf, vf); \
  static inline vf name(vf a, vf b) { return SLEEF(sleef)(a, b); }
extern "C" vf SLEEF_FMOD(vf, vf);
static inline vf fmod_(vf a, vf b) { return SLEEF_FMOD(a, b); }
#else
#define FUNCTION1(name, sleef, plain) \
  static inline vf name(vf a) { float x[W]; store(x, a); for (int l = 0; l < W; l++) x[l] = plain(x[l]); return load(x); }
#define FUNCTION2(name, sleef, plain) \
  static inline vf name(vf a, vf b) { \
    float x[W], y[W]; store(x, a); store(y, b); for (int l = 0; l < W; l++) x[l] = plain(x[l], y[l]); return load(x); }
FUNCTION2(fmod_, , fmodf)
#endif
FUNCTION1(sin_, Sleef_sin, sinf) FUNCTION1(cos_, Sleef_cos, cosf) FUNCTION1(tan_, Sleef_tan, tanf)
FUNCTION1(log_, Sleef_log, logf) FUNCTION1(log1p_some, Sleef_log1p, log1pf)
// Contacts are rare: where no lane is near another body, exp(-large) is 0, and so is log1p of it. Exact, and free.
static inline vf exp_(vf a) {  // the Cephes polynomial after reduction by ln 2 in two parts: below 1 ulp
  if (!any(not_(lt(a, K(-104.0f))))) return K(0.0f);
  const vf n = round_(a * K(1.44269504f));
  const vf r = fma_(n, K(2.12194440e-4f), fma_(n, K(-0.693359375f), a));
  vf y = fma_(K(1.9875691500e-4f), r, K(1.3981999507e-3f));
  y = fma_(y, r, K(8.3334519073e-3f));
  y = fma_(y, r, K(4.1665795894e-2f));
  y = fma_(y, r, K(1.6666665459e-1f));
  y = fma_(y, r, K(5.0000001201e-1f));
  y = ldexp_(fma_(y, r * r, r) + K(1.0f), n);
  return sel(lt(a, K(-104.0f)), K(0.0f), sel(lt(K(88.72284f), a), K(INFINITY), y));
}
static inline vf log1p_(vf a) {  // on [0, 1], where softplus needs it, the Cephes polynomial of log around 1
  if (!any(ne(a, K(0.0f)))) return a;
  if (any(not_(and_(le(K(0.0f), a), le(a, K(1.0f)))))) return log1p_some(a);
  const vb far = lt(K(0.41421356f), a);
  const vf z = sel(far, (a - K(1.0f)) * K(0.5f), a), q = z * z;
  vf y = fma_(K(7.0376836292e-2f), z, K(-1.1514610310e-1f));
  y = fma_(y, z, K(1.1676998740e-1f));
  y = fma_(y, z, K(-1.2420140846e-1f));
  y = fma_(y, z, K(1.4249322787e-1f));
  y = fma_(y, z, K(-1.6668057665e-1f));
  y = fma_(y, z, K(2.0000714765e-1f));
  y = fma_(y, z, K(-2.4999993993e-1f));
  y = fma_(y, z, K(3.3333331174e-1f));
  y = y * z * q + sel(far, K(-2.12194440e-4f), K(0.0f));
  y = fma_(q, K(-0.5f), y) + z;
  return sel(far, y + K(0.693359375f), y);
}
FUNCTION1(expm1_, Sleef_expm1, expm1f) FUNCTION1(tanh_, Sleef_tanh, tanhf) FUNCTION1(asin_, Sleef_asin, asinf)
FUNCTION1(acos_, Sleef_acos, acosf) FUNCTION1(atan_, Sleef_atan, atanf) FUNCTION1(sinh_, Sleef_sinh, sinhf)
FUNCTION1(cosh_, Sleef_cosh, coshf)
FUNCTION2(atan2_, Sleef_atan2, atan2f) FUNCTION2(pow_, Sleef_pow, powf)

// rows[j][l] = source[l * n + j]: the numbers of W environments, each of whose n lie together, become n vectors
template <typename T> static inline void take(float (*rows)[W], const T* source, long n, int lanes) {
  for (int l = 0; l < lanes; l++)
    for (long j = 0; j < n; j++) rows[j][l] = (float)source[l * n + j];
  for (int l = lanes; l < W; l++)
    for (long j = 0; j < n; j++) rows[j][l] = 0.0f;
}

#if defined(__AVX512F__) && defined(__AVX512DQ__)
__attribute__((always_inline)) static inline void transpose16(__m512 r[16]) {
  __m512 t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4)
    UNROLL for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
      r[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
    }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}

static inline void take(float (*rows)[W], const float* source, long n, int lanes) {
  for (long j = 0; j < n; j += 16) {
    const int rest = n - j < 16 ? (int)(n - j) : 16;
    const __mmask16 keep = (__mmask16)((1u << rest) - 1);
    __m512 r[16];
    UNROLL for (int l = 0; l < 16; l++) r[l] = _mm512_maskz_loadu_ps(l < lanes ? keep : (__mmask16)0, source + l * n + j);
    transpose16(r);
    for (int i = 0; i < rest; i++) _mm512_storeu_ps(rows[j + i], r[i]);
  }
}
#endif

// target[l * n + j] = rows[j][l], the inverse of take
static inline void put(float* target, const float (*rows)[W], long n, int lanes) {
  long j = 0;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  for (; j < n; j += 16) {
    const int rest = n - j < 16 ? (int)(n - j) : 16;
    const __mmask16 keep = (__mmask16)((1u << rest) - 1);
    __m512 r[16];
    UNROLL for (int i = 0; i < 16; i++) r[i] = i < rest ? load(rows[j + i]) : K(0.0f);
    transpose16(r);
    for (int l = 0; l < lanes; l++) _mm512_mask_storeu_ps(target + l * n + j, keep, r[l]);
  }
#endif
  for (; j < n; j++)
    for (int l = 0; l < lanes; l++) target[l * n + j] = rows[j][l];
}
