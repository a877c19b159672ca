/* Rotary positions, the K/V cache, and attention over it.
 *
 * A cache block holds 16 tokens: of each layer, per K/V head, keys and then values, ordered as the
 * tile products read them:
 *     keys   [kv head][head_dim / 2][16 tokens][2 dims]
 *     values [kv head][8 token pairs][head_dim][2 tokens]
 * A span is a run of one request's tokens in the packed batch: its one new token while decoding, a
 * chunk of its prompt before. Query heads that share a K/V head are rows of the same tile (GQA:
 * Ainslie et al., 2023), so decoding and prompts are one path. Scores of a row tile are kept whole,
 * then normalised, then multiplied with the values: a row's result depends on nothing but its own
 * query and its own keys.
 */
#include "kernels.h"

/* Normalise (where the family does) and rotate one head; x is read and y written, both [dim]. */
static void rotate(float *y, const bf16 *x, const float *norm, const AttentionShape *shape,
                   int position) {
    int dim = shape->head_dim, half = dim / 2;
    const float *cos = shape->cos + (size_t)position * half;
    const float *sin = shape->sin + (size_t)position * half;
    __m512 scale = _mm512_set1_ps(1.0f);
    if (norm) {
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < dim; i += TILE) {
            __m512 v = load_bf16(x + i);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / dim + shape->norm_eps));
    }
    for (int i = 0; i < half; i += TILE) {
        __m512 a = load_bf16(x + i), b = load_bf16(x + half + i);
        if (norm) {
            a = _mm512_mul_ps(_mm512_mul_ps(a, scale), _mm512_loadu_ps(norm + i));
            b = _mm512_mul_ps(_mm512_mul_ps(b, scale), _mm512_loadu_ps(norm + half + i));
        }
        __m512 c = _mm512_loadu_ps(cos + i), s = _mm512_loadu_ps(sin + i);
        _mm512_storeu_ps(y + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        _mm512_storeu_ps(y + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

static void round_row(bf16 *out, const float *x, int n) {
    for (int i = 0; i < n; i += TILE) store_bf16(out + i, _mm512_loadu_ps(x + i));
}

/* Rotate one row's q in place; put k, rotated, and v into the cache. slot is block * 16 + offset. */
static void rope_store_row(bf16 *q, int position, int slot, const AttentionShape *shape,
                           const AttentionLayer *layer) {
    int dim = shape->head_dim, num_kv = shape->num_kv_heads;
    int block = slot / TILE, token = slot % TILE;
    float rotated[dim];
    bf16 rounded[dim], *k = q + shape->num_heads * dim;
    for (int h = 0; h < shape->num_heads; h++) {
        rotate(rotated, q + h * dim, layer->q_norm, shape, position);
        round_row(q + h * dim, rotated, dim);
    }
    for (int h = 0; h < num_kv; h++) {
        size_t place = block * shape->block_values + (size_t)h * TILE * dim;
        rotate(rotated, k + h * dim, layer->k_norm, shape, position);
        round_row(rounded, rotated, dim);
        uint32_t *keys = (uint32_t *)(layer->keys + place) + token;
        for (int i = 0; i < dim / 2; i++) memcpy(keys + i * TILE, rounded + 2 * i, 4);
        bf16 *values = layer->values + place + (size_t)(token / 2) * dim * 2 + token % 2;
        const bf16 *v = k + (num_kv + h) * dim;
        for (int i = 0; i < dim; i++) values[2 * i] = v[i];
    }
}

/* Tokens yet to come are 0 times the values in their place: they must not be NaN of a request that
 * had the block before. */
static void clear_rest(int slot, const AttentionShape *shape, const AttentionLayer *layer) {
    int dim = shape->head_dim;
    for (int h = 0; h < shape->num_kv_heads; h++) {
        bf16 *values = layer->values + slot / TILE * shape->block_values + (size_t)h * TILE * dim;
        for (int t = slot % TILE + 1; t < TILE; t++)
            for (int i = 0; i < dim; i++) values[t / 2 * dim * 2 + 2 * i + t % 2] = 0;
    }
}

static void rope_store_rows(const void *argument, int item, int thread) {
    const Attention *a = argument;
    int stride = (a->shape->num_heads + 2 * a->shape->num_kv_heads) * a->shape->head_dim;
    int end = (item + 1) * ROWS_PER_ITEM < a->num_rows ? (item + 1) * ROWS_PER_ITEM : a->num_rows;
    (void)thread;
    for (int row = item * ROWS_PER_ITEM; row < end; row++) {
        int slot = a->slots[row], token = slot % TILE;
        rope_store_row(a->qkv + (size_t)row * stride, a->positions[row], slot, a->shape, a->layer);
        int is_last = row + 1 == a->num_rows || a->slots[row + 1] != slot + 1;
        int is_new = row >= token && a->slots[row - token] == slot - token; /* begun in this step */
        if (is_last && is_new) clear_rest(slot, a->shape, a->layer);
    }
}

void rope_store(const Attention *attention) {
    share(rope_store_rows, attention, (attention->num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
}

/* Registers 0-3 sums, 4 queries, 5 keys, 6 probabilities of one block, 7 its values. */
static const TileConfig TILES = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, TILE * sizeof(bf16), 64},
    .rows = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE / 2},
};

/* scores [16][stride] = queries [16][dim] times the keys of num_blocks blocks, four at a time. */
static void score(float *scores, int stride, const bf16 *queries, const bf16 *keys, int dim,
                  const int32_t *blocks, int num_blocks, size_t block_values) {
    for (int b = 0; b < num_blocks; b += 4) {
        int n = num_blocks - b < 4 ? num_blocks - b : 4;
        const bf16 *k[4];
        for (int i = 0; i < 4; i++) k[i] = keys + blocks[b + (i < n ? i : 0)] * block_values;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int d = 0; d < dim; d += DEPTH) {
            _tile_loadd(4, queries + d, dim * 2);
            _tile_loadd(5, k[0] + d * TILE, 64);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(5, k[1] + d * TILE, 64);
            _tile_dpbf16ps(1, 4, 5);
            _tile_loadd(5, k[2] + d * TILE, 64);
            _tile_dpbf16ps(2, 4, 5);
            _tile_loadd(5, k[3] + d * TILE, 64);
            _tile_dpbf16ps(3, 4, 5);
        }
        float *to = scores + b * TILE;
        _tile_stored(0, to, stride * 4);
        if (n > 1) _tile_stored(1, to + TILE, stride * 4);
        if (n > 2) _tile_stored(2, to + 2 * TILE, stride * 4);
        if (n > 3) _tile_stored(3, to + 3 * TILE, stride * 4);
    }
}

/* e^(scale * (score - max)) of the first n of `padded` scores, as bf16 in their place, zeros after
 * them; returns their sum. */
static float soften(float *scores, int n, int padded, float scale) {
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < n; i += TILE) {
        __mmask16 mask = n - i < TILE ? (1u << (n - i)) - 1 : 0xffff;
        most = _mm512_mask_max_ps(most, mask, most, _mm512_loadu_ps(scores + i));
    }
    __m512 max = _mm512_set1_ps(_mm512_reduce_max_ps(most) * scale), sum = _mm512_setzero_ps();
    bf16 *out = (bf16 *)scores; /* half as wide: never ahead of what is still to be read */
    for (int i = 0; i < padded; i += TILE) {
        __mmask16 mask = n - i >= TILE ? 0xffff : n > i ? (1u << (n - i)) - 1 : 0;
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + i), _mm512_set1_ps(scale), max);
        x = _mm512_maskz_mov_ps(mask, exp_ps(x));
        sum = _mm512_add_ps(sum, x);
        store_bf16(out + i, x);
    }
    return _mm512_reduce_add_ps(sum);
}

/* out [16][dim] = probabilities times values, up to 64 dims at a time. */
static void mix(float *out, const float *scores, int stride, const bf16 *values, int dim,
                const int32_t *blocks, int num_blocks, size_t block_values) {
    for (int d = 0; d < dim; d += 4 * TILE) {
        int n = dim - d < 4 * TILE ? (dim - d) / TILE : 4;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int b = 0; b < num_blocks; b++) {
            const bf16 *v = values + blocks[b] * block_values + d * 2;
            _tile_loadd(6, (const bf16 *)scores + b * TILE, stride * 4);
            _tile_loadd(7, v, dim * 4);
            _tile_dpbf16ps(0, 6, 7);
            _tile_loadd(7, v + 2 * TILE, dim * 4);
            _tile_dpbf16ps(1, 6, 7);
            if (n < 4) continue;
            _tile_loadd(7, v + 4 * TILE, dim * 4);
            _tile_dpbf16ps(2, 6, 7);
            _tile_loadd(7, v + 6 * TILE, dim * 4);
            _tile_dpbf16ps(3, 6, 7);
        }
        _tile_stored(0, out + d, dim * 4);
        _tile_stored(1, out + d + TILE, dim * 4);
        if (n < 4) continue;
        _tile_stored(2, out + d + 2 * TILE, dim * 4);
        _tile_stored(3, out + d + 3 * TILE, dim * 4);
    }
}

/* Row tile `tile` of a span's (token, head) rows for one K/V head. */
static void attend_tile(bf16 *out, const bf16 *qkv, const Span *span, int head, int tile,
                        const AttentionShape *shape, const AttentionLayer *layer, float *scores) {
    int dim = shape->head_dim, group = shape->num_heads / shape->num_kv_heads;
    int stride = (shape->num_heads + 2 * shape->num_kv_heads) * dim;
    int first = tile * TILE, num = span->num_tokens * group - first;
    if (num > TILE) num = TILE;
    bf16 queries[TILE * dim];
    float mixed[TILE * dim], sums[TILE];
    memset(queries, 0, sizeof queries);
    for (int i = 0; i < num; i++) {
        int token = (first + i) / group, h = head * group + (first + i) % group;
        memcpy(queries + i * dim, qkv + (size_t)(span->first_row + token) * stride + h * dim, dim * 2);
    }
    int num_keys = span->num_context + (first + num - 1) / group + 1;
    int num_blocks = tiles(num_keys), padded = num_blocks * TILE;
    size_t block_values = shape->block_values;
    size_t head_offset = (size_t)head * TILE * dim;
    stores_before_tiles();
    score(scores, padded, queries, layer->keys + head_offset, dim, span->blocks, num_blocks,
          block_values);
    for (int i = 0; i < TILE; i++) {
        int n = i < num ? span->num_context + (first + i) / group + 1 : 0;
        sums[i] = soften(scores + (size_t)i * padded, n, padded, shape->scale);
    }
    stores_before_tiles();
    mix(mixed, scores, padded, layer->values + head_offset, dim, span->blocks, num_blocks,
        block_values);
    for (int i = 0; i < num; i++) {
        int token = (first + i) / group, h = head * group + (first + i) % group;
        bf16 *to = out + ((size_t)(span->first_row + token) * shape->num_heads + h) * dim;
        __m512 scale = _mm512_set1_ps(1.0f / sums[i]);
        for (int d = 0; d < dim; d += TILE)
            store_bf16(to + d, _mm512_mul_ps(_mm512_loadu_ps(mixed + i * dim + d), scale));
    }
}

static size_t scratch_per_thread(const AttentionShape *shape) {
    return (size_t)TILE * round_up(shape->max_len, TILE);
}

/* float32 values that attend() needs as scratch. */
size_t amx_attention_scratch_values(const AttentionShape *shape) {
    return num_threads() * scratch_per_thread(shape);
}

static int num_items(const Span *span, const AttentionShape *shape) {
    int group = shape->num_heads / shape->num_kv_heads;
    return tiles(span->num_tokens * group) * shape->num_kv_heads;
}

static void attend_item(const void *argument, int item, int thread) {
    const Attention *a = argument;
    const Span *span = a->spans;
    for (int n; item >= (n = num_items(span, a->shape)); span++) item -= n;
    use_tiles(&TILES);
    attend_tile(a->out, a->qkv, span, item % a->shape->num_kv_heads, item / a->shape->num_kv_heads,
                a->shape, a->layer, a->scratch + thread * scratch_per_thread(a->shape));
}

/* out [rows][num_heads * head_dim]: every span's queries over its own cached keys and values. */
void attend(const Attention *attention) {
    int total = 0;
    for (int s = 0; s < attention->num_spans; s++)
        total += num_items(attention->spans + s, attention->shape);
    share(attend_item, attention, total);
}
