/* The kernels' inputs. library.py mirrors what Python fills in. */
#ifndef LORALOOP_AMX_KERNELS_H
#define LORALOOP_AMX_KERNELS_H

#include "common.h"

/* ---- linear.c ------------------------------------------------------------------------------ */

enum { STORE_BF16, ADD_BF16, SILU_MUL, STORE_F32 };
enum { MAX_PARTS = 3 };

typedef struct {
    const bf16 *weight; /* packed as linear.c says */
    const float *bias;  /* [num_tiles * 16] in the order of the tiles, or NULL */
    int32_t in, num_tiles, epilogue, index; /* index: which entry of an adapter's table is ours */
} Linear;

/* One projection's matrices: q of q/k/v, say. Its outputs are tiles first_tile + i * stride. */
typedef struct {
    const bf16 *a; /* [rank tiles][in / 32] tiles */
    const bf16 *b; /* [num_tiles][rank / 2][16][2], rank even, scaling included */
    int32_t first_tile, stride, num_tiles, rank;
} LoraPart;

typedef struct {
    int32_t num_parts, pad;
    LoraPart parts[MAX_PARTS];
} LoraLinear;

typedef struct {
    const LoraLinear *linears; /* the adapter's table */
    int32_t first_row, end_row, rank, pad; /* rank: the adapter's highest */
} LoraSegment;

/* Where an adapter meets a row tile: rows first..end of it are the adapter's. */
typedef struct {
    const LoraLinear *linears;
    int32_t row_tile, first, end, pad;
} LoraSlot;

typedef struct {
    LoraSlot *slots; /* in the order of row tiles */
    int32_t *first_slot; /* [row tiles + 1] */
    bf16 *t;         /* [slots][slot_values] */
    int32_t num_slots, slot_values, rank_tiles, pad;
} LoraPlan;

typedef struct {
    const bf16 *x;
    void *y;
    int32_t num_rows, y_stride; /* x: `in` values per row, rows up to a multiple of 32 readable */
} Rows;

void linear(const Linear *linear, const Rows *rows, const LoraPlan *plan, float *scratch);
void plan_lora(LoraPlan *plan, const LoraSegment *segments, int num_segments, int num_rows);
void unpack_row(bf16 *out, const bf16 *packed, int in, int id);

/* ---- attention.c --------------------------------------------------------------------------- */

typedef struct {
    int32_t num_heads, num_kv_heads, head_dim, max_len; /* head_dim a multiple of 32 */
    float norm_eps, scale;
    const float *cos, *sin; /* [max_len][head_dim / 2] */
    size_t block_values;    /* from a cache block to the next: all layers' keys and values */
} AttentionShape;

typedef struct {
    bf16 *keys, *values;          /* of this layer in the first block */
    const float *q_norm, *k_norm; /* [head_dim], or NULL */
} AttentionLayer;

typedef struct {
    const int32_t *blocks; /* cache blocks of context and span, in order */
    int32_t first_row, num_tokens, num_context, pad;
} Span;

/* One layer's attention of one step. qkv [rows][q, k and v heads * head_dim]; q is changed. */
typedef struct {
    const AttentionShape *shape;
    const AttentionLayer *layer;
    bf16 *qkv, *out;
    const int32_t *positions, *slots; /* [rows]; a slot is block * 16 + offset */
    const Span *spans;
    float *scratch;
    int32_t num_rows, num_spans;
} Attention;

void rope_store(const Attention *attention);
void attend(const Attention *attention);

#endif
