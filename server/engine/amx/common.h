/* What the kernels share: number formats, tile registers, threads, exp.
 *
 * Everything is bfloat16 in memory and float32 in registers. A result row depends on its own input
 * row only, and its sums always run in the same order: the batch around a token cannot change its
 * answer, not even in the last bit.
 */
#ifndef LORALOOP_AMX_COMMON_H
#define LORALOOP_AMX_COMMON_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

enum {
    TILE = 16,                 /* rows of a tile; also float32 columns, and tokens per KV block */
    DEPTH = 32,                /* bf16 values that one tile row holds: a product's inner step */
    TILE_VALUES = TILE * DEPTH, /* bf16 values per full tile, 1 KiB */
    ROWS_PER_ITEM = 16         /* where rows are shared out one by one, not in tiles */
};

/* Item `item` of a shared piece of work, done by thread 0 (the caller) … num_threads() - 1. */
typedef void Work(const void *argument, int item, int thread);
void share(Work *work, const void *argument, int num_items); /* returns when all items are done */
int num_threads(void); /* that share the work of the calling thread */
void use_threads(int num);

/* GCC's tile loads do not say that they read memory: without this, stores could move behind them. */
static inline void stores_before_tiles(void) { __asm__ volatile("" ::: "memory"); }

static inline int tiles(int n) { return (n + TILE - 1) / TILE; }
static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

typedef struct __attribute__((packed)) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Configure this thread's tile registers until the current item's end. config stays the caller's. */
void use_tiles(const TileConfig *config);

static inline __m512 load_bf16(const bf16 *p) {
    __m256i raw = _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

static inline void store_bf16(bf16 *p, __m512 x) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
}

/* e^x within 2 units in the last place for x <= 88; 0 for -inf. Cephes' reduction: e^x = 2^n e^r,
 * |r| <= ln(2) / 2, and a polynomial of degree 6 for e^r. */
static inline __m512 exp_ps(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x); /* in this order NaN stays NaN */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

#endif
