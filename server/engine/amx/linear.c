/* Matrix products y = x W^T with adapters of many requests in the same pass.
 *
 * W [out, in] is reordered once into panels of two tiles, 32 outputs each:
 *     [panel][in / 32][2 tiles][16 input pairs][16 outputs][2]
 * so that a step reads every weight once, front to back, at the speed of memory. Two tiles hold
 * neighbouring outputs, or 16 gate and the matching 16 up outputs where SiLU(gate) * up is wanted.
 *
 * Low-rank adapters (LoRA: Hu et al., 2021; many in one batch: Punica, Chen et al., 2023) are more
 * inner steps of the same sum. First t = x A^T for every (row tile, adapter) pair that occurs, with
 * the rows of other adapters set to zero; then the product goes on over t B^T before it is rounded.
 * Only adapters of the batch are read, each with its own rank, and no row tile waits for another.
 */
#include "kernels.h"

enum { CHUNK = 256, MAX_GROUP = 16, MANY_ROWS = 160, PREFETCH = 2 * TILE_VALUES };

static const TileConfig TILES = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE},
};

/* ---- packing ------------------------------------------------------------------------------- */

/* One tile: B[k / 2][n][k % 2] from rows n of w. Rows at and past num_rows are zero. */
static void pack_tile(bf16 *out, const bf16 *w, int in, int num_rows) {
    memset(out, 0, TILE_VALUES * sizeof(bf16));
    for (int n = 0; n < num_rows; n++)
        for (int k = 0; k < DEPTH; k++)
            out[(k / 2 * TILE + n) * 2 + k % 2] = w[(size_t)n * in + k];
}

typedef struct {
    bf16 *packed;
    const bf16 *w;
    int num_rows, in, first_tile, stride;
} Packing;

static void pack_row_tile(const void *argument, int item, int thread) {
    const Packing *p = argument;
    int steps = p->in / DEPTH, tile = p->first_tile + item * p->stride;
    int left = p->num_rows - item * TILE;
    bf16 *out = p->packed + ((size_t)(tile / 2) * steps * 2 + tile % 2) * TILE_VALUES;
    (void)thread;
    for (int k = 0; k < steps; k++)
        pack_tile(out + (size_t)k * 2 * TILE_VALUES, p->w + (size_t)item * TILE * p->in + k * DEPTH,
                  p->in, left < TILE ? left : TILE);
}

/* Rows of w [num_rows, in] become tiles first_tile, first_tile + stride, … of a packed weight. */
void amx_pack(bf16 *packed, const bf16 *w, int num_rows, int in, int first_tile, int stride) {
    Packing packing = {packed, w, num_rows, in, first_tile, stride};
    share(pack_row_tile, &packing, tiles(num_rows));
}

/* a [rank, in] and b [out, rank] (scaling included) of one part into the layout of LoraPart. */
void amx_pack_lora(bf16 *packed_a, bf16 *packed_b, const bf16 *a, const bf16 *b, int rank, int in,
                   int out) {
    int steps = in / DEPTH, even = round_up(rank, 2);
    for (int i = 0; i < tiles(rank); i++) {
        int left = rank - i * TILE;
        for (int k = 0; k < steps; k++)
            pack_tile(packed_a + ((size_t)i * steps + k) * TILE_VALUES,
                      a + (size_t)i * TILE * in + k * DEPTH, in, left < TILE ? left : TILE);
    }
    for (int i = 0; i < out / TILE; i++)
        for (int n = 0; n < TILE; n++)
            for (int r = 0; r < even; r++)
                packed_b[((size_t)i * even / 2 + r / 2) * 2 * TILE + n * 2 + r % 2] =
                    r < rank ? b[(size_t)(i * TILE + n) * rank + r] : 0;
}

/* Row `id` of a packed weight, for bases whose embedding is their output matrix. */
void unpack_row(bf16 *out, const bf16 *packed, int in, int id) {
    const uint32_t *pairs = (const uint32_t *)packed +
                            ((size_t)(id / 32) * (in / DEPTH) * 2 + id % 32 / TILE) * TILE_VALUES / 2 +
                            id % TILE;
    uint32_t *to = (uint32_t *)out;
    for (int k = 0; k < in / DEPTH; k++, pairs += TILE_VALUES)
        for (int i = 0; i < TILE; i++) *to++ = pairs[i * TILE];
}

/* One call of linear(), for the threads that share it. */
typedef struct {
    const Linear *linear;
    const Rows *rows;
    const LoraPlan *plan;
    float *scratch;
    int num_panels, panels_per_item;
} Product;

/* ---- adapters ------------------------------------------------------------------------------ */

/* Segments, sorted by row, into slots. The caller gives room for row tiles + segments slots. */
void plan_lora(LoraPlan *plan, const LoraSegment *segments, int num_segments, int num_rows) {
    int n = 0, rank = 0;
    for (int s = 0; s < num_segments; s++) rank = segments[s].rank > rank ? segments[s].rank : rank;
    plan->rank_tiles = tiles(rank);
    for (int tile = 0; tile < tiles(num_rows); tile++) {
        plan->first_slot[tile] = n;
        for (int s = 0; s < num_segments; s++) {
            int first = segments[s].first_row - tile * TILE, end = segments[s].end_row - tile * TILE;
            if (first >= TILE || end <= 0) continue;
            plan->slots[n++] = (LoraSlot){segments[s].linears, tile, first > 0 ? first : 0,
                                          end < TILE ? end : TILE, 0};
        }
    }
    plan->first_slot[tiles(num_rows)] = n;
    plan->num_slots = n;
}

/* 16 ranks of one part's t: columns of [16 rows][rank rounded up to 32], zero outside the slot. */
static void shrink_tile(bf16 *t, const LoraPart *part, int tile, const bf16 *x, int in,
                        const LoraSlot *slot) {
    int width = round_up(part->rank, DEPTH), steps = in / DEPTH;
    const bf16 *a = part->a + (size_t)tile * steps * TILE_VALUES;
    float even[TILE * TILE] __attribute__((aligned(64))), odd[TILE * TILE] __attribute__((aligned(64)));
    _tile_zero(0);
    _tile_zero(1);
    for (int k = 0; k < steps; k += 2) { /* two sums, because one would wait for itself */
        for (int i = 0; i < 2 * TILE_VALUES; i += 32)
            _mm_prefetch(a + k * TILE_VALUES + PREFETCH + i, _MM_HINT_T1);
        _tile_loadd(4, x + k * DEPTH, in * 2);
        _tile_loadd(6, a + (size_t)k * TILE_VALUES, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (k + 1 == steps) break;
        _tile_loadd(5, x + (k + 1) * DEPTH, in * 2);
        _tile_loadd(7, a + (size_t)(k + 1) * TILE_VALUES, 64);
        _tile_dpbf16ps(1, 5, 7);
    }
    _tile_stored(0, even, 64);
    _tile_stored(1, odd, 64);
    int has_gap = tile + 1 == tiles(part->rank) && (tile + 1) * TILE < width; /* no tile covers it */
    for (int r = 0; r < TILE; r++) {
        __m512 sum = _mm512_add_ps(_mm512_load_ps(even + r * TILE), _mm512_load_ps(odd + r * TILE));
        int is_ours = r >= slot->first && r < slot->end;
        store_bf16(t + r * width + tile * TILE, is_ours ? sum : _mm512_setzero_ps());
        if (has_gap) store_bf16(t + r * width + (tile + 1) * TILE, _mm512_setzero_ps());
    }
}

/* Item: a slot, one of its parts, 16 of its ranks. */
static void shrink(const void *argument, int item, int thread) {
    const Product *product = argument;
    const LoraPlan *plan = product->plan;
    const Linear *linear = product->linear;
    int s = item / (MAX_PARTS * plan->rank_tiles), p = item / plan->rank_tiles % MAX_PARTS;
    int tile = item % plan->rank_tiles;
    const LoraSlot *slot = plan->slots + s;
    const LoraLinear *lora = slot->linears + linear->index;
    (void)thread;
    if (p >= lora->num_parts || tile >= tiles(lora->parts[p].rank)) return;
    bf16 *t = plan->t + (size_t)s * plan->slot_values;
    for (int i = 0; i < p; i++) t += TILE * round_up(lora->parts[i].rank, DEPTH);
    use_tiles(&TILES);
    shrink_tile(t, lora->parts + p, tile, product->rows->x + (size_t)slot->row_tile * TILE * linear->in,
                linear->in, slot);
}

/* B of a part for an output tile of the whole product; NULL if the tile is another part's. */
static inline const bf16 *b_of(const LoraPart *part, int tile) {
    int offset = tile - part->first_tile;
    if (offset < 0 || offset % part->stride || offset / part->stride >= part->num_tiles) return NULL;
    return part->b + (size_t)(offset / part->stride) * round_up(part->rank, 2) * TILE;
}

/* Have what expand will read on its way. */
static void fetch_expand(const Linear *linear, const LoraPlan *plan, int row_tile, int tile) {
    for (int s = plan->first_slot[row_tile]; s < plan->first_slot[row_tile + 1]; s++) {
        const LoraLinear *lora = plan->slots[s].linears + linear->index;
        for (int p = 0; p < lora->num_parts; p++)
            for (int j = 0; j < 2; j++) {
                const bf16 *b = b_of(lora->parts + p, tile + j);
                for (int i = 0; b && i < round_up(lora->parts[p].rank, 2) * TILE; i += 32)
                    _mm_prefetch(b + i, _MM_HINT_T1);
            }
    }
}

/* Go on with the sum in two tile registers: the adapters' part of tiles `tile` and `tile + 1`. */
static inline __attribute__((always_inline)) void expand(const Linear *linear, const LoraPlan *plan,
                                                         int row_tile, int tile, int is_lower) {
    for (int s = plan->first_slot[row_tile]; s < plan->first_slot[row_tile + 1]; s++) {
        const LoraLinear *lora = plan->slots[s].linears + linear->index;
        const bf16 *t = plan->t + (size_t)s * plan->slot_values;
        for (int p = 0; p < lora->num_parts; p++) {
            const LoraPart *part = lora->parts + p;
            int width = round_up(part->rank, DEPTH);
            for (int j = 0; j < 2; j++) {
                const bf16 *b = b_of(part, tile + j);
                /* A last step of fewer than 32 ranks reads on into the next tile, times zeros. */
                for (int k = 0; b && k < width; k += DEPTH) {
                    _tile_loadd(4, t + k, width * 2);
                    _tile_loadd(6, b + (size_t)k * TILE, 64);
                    if (is_lower) {
                        if (j) _tile_dpbf16ps(3, 4, 6);
                        else _tile_dpbf16ps(2, 4, 6);
                    } else {
                        if (j) _tile_dpbf16ps(1, 4, 6);
                        else _tile_dpbf16ps(0, 4, 6);
                    }
                }
            }
            t += TILE * width;
        }
    }
}

/* ---- product ------------------------------------------------------------------------------- */

/* Sums of up to 16 rows, [row][32 outputs of the panel], to where the epilogue puts them. */
static void finish(const Linear *linear, const Rows *rows, const float *sums, int row, int panel) {
    int tile = panel * 2, has_second = tile + 1 < linear->num_tiles;
    int num = rows->num_rows - row < TILE ? rows->num_rows - row : TILE;
    __m512 bias0 = _mm512_setzero_ps(), bias1 = bias0;
    if (linear->bias) {
        bias0 = _mm512_loadu_ps(linear->bias + tile * TILE);
        if (has_second) bias1 = _mm512_loadu_ps(linear->bias + (tile + 1) * TILE);
    }
    for (int r = 0; r < num; r++) {
        __m512 y0 = _mm512_add_ps(_mm512_loadu_ps(sums + r * 2 * TILE), bias0);
        __m512 y1 = _mm512_add_ps(_mm512_loadu_ps(sums + r * 2 * TILE + TILE), bias1);
        size_t at = (size_t)(row + r) * rows->y_stride + tile * TILE;
        bf16 *y = (bf16 *)rows->y + at;
        switch (linear->epilogue) {
        case ADD_BF16:
            y0 = _mm512_add_ps(y0, load_bf16(y));
            if (has_second) y1 = _mm512_add_ps(y1, load_bf16(y + TILE));
            /* fall through */
        case STORE_BF16:
            store_bf16(y, y0);
            if (has_second) store_bf16(y + TILE, y1);
            break;
        case SILU_MUL: {
            __m512 one = _mm512_set1_ps(1.0f);
            __m512 gate = _mm512_div_ps(
                y0, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), y0))));
            store_bf16((bf16 *)rows->y + (size_t)(row + r) * rows->y_stride + panel * TILE,
                       _mm512_mul_ps(gate, y1));
            break;
        }
        default:
            _mm512_storeu_ps((float *)rows->y + at, y0);
            if (has_second) _mm512_storeu_ps((float *)rows->y + at + TILE, y1);
        }
    }
}

/* One panel for up to 16 rows: every weight is fetched once, a little ahead of its use. */
static void panel_16(const Linear *linear, const Rows *rows, const LoraPlan *plan, int panel) {
    float sums[2 * TILE * TILE] __attribute__((aligned(64)));
    int steps = linear->in / DEPTH;
    const bf16 *w = linear->weight + (size_t)panel * steps * 2 * TILE_VALUES;
    if (plan) fetch_expand(linear, plan, 0, panel * 2);
    _tile_zero(0);
    _tile_zero(1);
    for (int k = 0; k < steps; k++, w += 2 * TILE_VALUES) {
        for (int i = 0; i < 2 * TILE_VALUES; i += 32) _mm_prefetch(w + PREFETCH + i, _MM_HINT_T1);
        _tile_loadd(4, rows->x + k * DEPTH, linear->in * 2);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w + TILE_VALUES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    if (plan) expand(linear, plan, 0, panel * 2, 0);
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + TILE, 128);
    finish(linear, rows, sums, 0, panel);
}

/* 32 rows times a panel, inner steps first..end; sums go on from `sums` unless first is 0. With
 * each step `num_ahead` values at `ahead` start on their way from memory. */
static void block_32(const Linear *linear, const bf16 *x, const bf16 *w, int first, int end,
                     const float *sums, const bf16 *ahead, int num_ahead) {
    if (first) {
        _tile_loadd(0, sums, 128);
        _tile_loadd(1, sums + TILE, 128);
        _tile_loadd(2, sums + 2 * TILE * TILE, 128);
        _tile_loadd(3, sums + 2 * TILE * TILE + TILE, 128);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const bf16 *lower = x + (size_t)TILE * linear->in;
    w += (size_t)first * 2 * TILE_VALUES;
    for (int k = first; k < end; k++, w += 2 * TILE_VALUES, ahead += num_ahead) {
        for (int i = 0; i < num_ahead; i += 32) _mm_prefetch(ahead + i, _MM_HINT_T1);
        _tile_loadd(4, x + k * DEPTH, linear->in * 2);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w + TILE_VALUES, 64);
        _tile_loadd(5, lower + k * DEPTH, linear->in * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static void store_block(float *sums) {
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + TILE, 128);
    _tile_stored(2, sums + 2 * TILE * TILE, 128);
    _tile_stored(3, sums + 2 * TILE * TILE + TILE, 128);
}

/* Panels first..end for all rows. Inner sums of several blocks go in chunks, so that the weight's
 * piece stays in the first-level cache for all of them. */
static void panels(const Product *product, int first, int end, float *scratch) {
    const Linear *linear = product->linear;
    const Rows *rows = product->rows;
    const LoraPlan *plan = product->plan;
    int steps = linear->in / DEPTH, blocks = (rows->num_rows + 31) / 32;
    int chunk = blocks > 1 ? CHUNK / DEPTH : steps;
    /* What comes after this piece of the weight is fetched meanwhile, by all blocks between them. */
    int num_ahead = round_up(2 * TILE_VALUES / blocks, 32);
    for (int k = 0; k < steps; k += chunk) {
        int k_end = k + chunk < steps ? k + chunk : steps;
        for (int panel = first; panel < end; panel++) {
            const bf16 *w = linear->weight + (size_t)panel * steps * 2 * TILE_VALUES;
            const bf16 *next = w + (size_t)(end - first > 1 ? steps + k : k_end) * 2 * TILE_VALUES;
            if (blocks == 1) next = w + PREFETCH;
            for (int m = 0; m < blocks; m++) {
                float *sums = scratch + ((size_t)(panel - first) * blocks + m) * 4 * TILE * TILE;
                block_32(linear, rows->x + (size_t)m * 32 * linear->in, w, k, k_end, sums,
                         next + (size_t)m * (k_end - k) * num_ahead, num_ahead);
                if (k_end < steps) {
                    store_block(sums);
                    continue;
                }
                int has_lower = m * 32 + TILE < rows->num_rows;
                if (plan) expand(linear, plan, m * 2, panel * 2, 0);
                if (plan && has_lower) expand(linear, plan, m * 2 + 1, panel * 2, 1);
                store_block(sums);
                finish(linear, rows, sums, m * 32, panel);
                if (has_lower) finish(linear, rows, sums + 2 * TILE * TILE, m * 32 + TILE, panel);
            }
        }
    }
}

/* float32 values that linear() needs as scratch for up to num_rows rows. */
static size_t scratch_per_thread(int num_rows) {
    return (size_t)MAX_GROUP * ((num_rows + 31) / 32) * 4 * TILE * TILE;
}

size_t amx_scratch_values(int num_rows) { return num_threads() * scratch_per_thread(num_rows); }

static void multiply(const void *argument, int item, int thread) {
    const Product *p = argument;
    int first = item * p->panels_per_item, end = first + p->panels_per_item;
    if (end > p->num_panels) end = p->num_panels;
    use_tiles(&TILES);
    float *scratch = p->scratch + thread * scratch_per_thread(p->rows->num_rows);
    if (p->rows->num_rows > MANY_ROWS)
        panels(p, first, end, scratch);
    else
        for (int panel = first; panel < end; panel++)
            if (p->rows->num_rows > TILE)
                panels(p, panel, panel + 1, scratch);
            else
                panel_16(p->linear, p->rows, p->plan, panel);
}

/* y = epilogue(x W^T + adapters). plan is NULL for a batch of base requests. */
void linear(const Linear *linear, const Rows *rows, const LoraPlan *plan, float *scratch) {
    int num_panels = (linear->num_tiles + 1) / 2;
    int per_thread = (num_panels + num_threads() - 1) / num_threads();
    /* Few rows: many items, so that nobody waits long. Many rows: x is read once per item. */
    int group = rows->num_rows > TILE ? per_thread : per_thread / 16 + 1;
    if (group > MAX_GROUP) group = MAX_GROUP;
    Product product = {linear, rows, plan, scratch, num_panels, group};
    if (plan) share(shrink, &product, plan->num_slots * MAX_PARTS * plan->rank_tiles);
    share(multiply, &product, (num_panels + group - 1) / group);
}
