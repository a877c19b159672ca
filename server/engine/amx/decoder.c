/* A step of the whole decoder in one call, so that Python's lock is free while it runs. */
#include "kernels.h"

typedef struct {
    Linear linears[4]; /* qkv, o, gate_up, down */
    AttentionLayer attention;
    const float *input_norm, *mlp_norm;
} Layer;

typedef struct {
    const Layer *layers;
    Linear head;
    const float *norm;
    const bf16 *embedding; /* [vocab, hidden]; NULL: the rows of head's weight */
    AttentionShape attention;
    int32_t num_layers, hidden, inner, vocab, num_threads, pad;
    /* activations, [most rows of a step, up to a multiple of 32] each */
    bf16 *x, *normed, *qkv, *attended, *activated, *picked;
    float *logits;
    float *scratch, *scores;
    LoraPlan lora;
} Model;

typedef struct {
    const int32_t *token_ids, *positions, *slots, *sampled_rows;
    const Span *spans;
    const LoraSegment *segments; /* by first row */
    int32_t num_rows, num_sampled, num_spans, num_segments;
} Step;

typedef struct {
    bf16 *y;
    const bf16 *x;
    const float *weight;
    int num_rows, width;
    float eps;
} Norm;

static void rms_norm_rows(const void *argument, int item, int thread) {
    const Norm *n = argument;
    int end = (item + 1) * ROWS_PER_ITEM < n->num_rows ? (item + 1) * ROWS_PER_ITEM : n->num_rows;
    (void)thread;
    for (int row = item * ROWS_PER_ITEM; row < end; row++) {
        const bf16 *x = n->x + (size_t)row * n->width;
        bf16 *y = n->y + (size_t)row * n->width;
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < n->width; i += TILE) {
            __m512 v = load_bf16(x + i);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        __m512 scale =
            _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / n->width + n->eps));
        for (int i = 0; i < n->width; i += TILE)
            store_bf16(y + i, _mm512_mul_ps(_mm512_mul_ps(load_bf16(x + i), scale),
                                            _mm512_loadu_ps(n->weight + i)));
    }
}

/* y = x / rms(x) * weight (RMSNorm: Zhang & Sennrich, 2019). */
static void rms_norm(const Model *model, bf16 *y, const bf16 *x, const float *weight, int num_rows) {
    Norm norm = {y, x, weight, num_rows, model->hidden, model->attention.norm_eps};
    share(rms_norm_rows, &norm, (num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
}

static void embed(const Model *model, const Step *step) {
    for (int i = 0; i < step->num_rows; i++) {
        bf16 *x = model->x + (size_t)i * model->hidden;
        if (model->embedding)
            memcpy(x, model->embedding + (size_t)step->token_ids[i] * model->hidden,
                   model->hidden * sizeof(bf16));
        else
            unpack_row(x, model->head.weight, model->hidden, step->token_ids[i]);
    }
}

static void forward_layer(const Model *model, const Layer *layer, const Step *step,
                          const LoraPlan *lora) {
    int num_rows = step->num_rows, hidden = model->hidden;
    const AttentionShape *shape = &model->attention;
    int q_width = shape->num_heads * shape->head_dim;
    int qkv_width = q_width + 2 * shape->num_kv_heads * shape->head_dim;
    Rows qkv = {model->normed, model->qkv, num_rows, qkv_width};
    Rows out = {model->attended, model->x, num_rows, hidden}; /* adds to x */
    Rows gate_up = {model->normed, model->activated, num_rows, model->inner};
    Rows down = {model->activated, model->x, num_rows, hidden}; /* adds to x */
    Attention attention = {shape,       &layer->attention, model->qkv,    model->attended,
                           step->positions, step->slots,   step->spans,   model->scores,
                           num_rows,    step->num_spans};

    rms_norm(model, model->normed, model->x, layer->input_norm, num_rows);
    linear(&layer->linears[0], &qkv, lora, model->scratch);
    rope_store(&attention);
    attend(&attention);
    linear(&layer->linears[1], &out, lora, model->scratch);
    rms_norm(model, model->normed, model->x, layer->mlp_norm, num_rows);
    linear(&layer->linears[2], &gate_up, lora, model->scratch);
    linear(&layer->linears[3], &down, lora, model->scratch);
}

/* model->logits [num_sampled][vocab] of the sampled rows; the cache gains the step's K/V. */
void amx_forward(Model *model, const Step *step) {
    use_threads(model->num_threads); /* scratch and scores have room for so many */
    embed(model, step);
    if (step->num_segments)
        plan_lora(&model->lora, step->segments, step->num_segments, step->num_rows);
    for (int i = 0; i < model->num_layers; i++)
        forward_layer(model, &model->layers[i], step, step->num_segments ? &model->lora : NULL);
    if (!step->num_sampled) return; /* only beginnings of prompts: spare the largest product */
    for (int i = 0; i < step->num_sampled; i++)
        memcpy(model->picked + (size_t)i * model->hidden,
               model->x + (size_t)step->sampled_rows[i] * model->hidden,
               model->hidden * sizeof(bf16));
    rms_norm(model, model->picked, model->picked, model->norm, step->num_sampled);
    Rows head = {model->picked, model->logits, step->num_sampled, model->vocab};
    linear(&model->head, &head, NULL, model->scratch);
}

int amx_num_threads(void) { return num_threads(); }

/* Whether the structures are as large as library.py thinks. */
int amx_fits(size_t model, size_t layer, size_t step, size_t lora) {
    return model == sizeof(Model) && layer == sizeof(Layer) && step == sizeof(Step) &&
           lora == sizeof(LoraLinear);
}
