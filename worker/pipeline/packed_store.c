#include "worker/pipeline/packed_store.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cpu/fp8.h"
#include "kernels/formats.h"
#include "worker/pipeline/quantize.h"

/* A Linear as it is held; all empty: as the model has it. */
struct held_linear {
    struct candidate candidate;
    int64_t rows, cols;
    struct packed packed;
    struct stored weight, bias;
};

struct held_block {
    struct held_linear linears[BLOCK_LINEARS_MAX];
    struct stored norm[INPUT_COUNT];
};

struct packed_store {
    const struct model *model;
    struct held_block *blocks; /* [arch.blocks + 1]: the last is lm_head's */
    int64_t bytes;
};

struct packed_store *packed_store_new(const struct model *model) {
    struct packed_store *s = xcalloc(1, sizeof *s);
    s->model = model;
    s->blocks = xcalloc((size_t)model->arch.blocks + 1, sizeof *s->blocks);
    return s;
}

static void release_block(struct held_block *b) {
    for (int i = 0; i < BLOCK_LINEARS_MAX; i++) {
        packed_release(&b->linears[i].packed);
        stored_release(&b->linears[i].weight);
        stored_release(&b->linears[i].bias);
    }
    for (int input = 0; input < INPUT_COUNT; input++)
        stored_release(&b->norm[input]);
}

void packed_store_free(struct packed_store *s) {
    if (!s) return;
    for (int block = 0; block <= s->model->arch.blocks; block++)
        release_block(&s->blocks[block]);
    free(s->blocks);
    free(s);
}

int64_t packed_store_bytes(const struct packed_store *s) {
    return s->bytes;
}

static struct held_block *held_block(const struct packed_store *s, int block) {
    return &s->blocks[block < 0 ? s->model->arch.blocks : block];
}

/* --- in --- */

static enum rc pack_linear(const struct job *job, const struct calibrated_linear *l, struct held_linear *held,
                           struct err *e) {
    if (!l->q.codes) return RC_OK;
    if (quantized_pack(job, &l->q, &l->candidate, &held->packed, e) == RC_OK) return RC_OK;
    return err_context(e, "%s", l->linear->name);
}

static int64_t take_stored(struct stored *to, struct stored *from) {
    *to = *from;
    *from = (struct stored){0};
    return stored_bytes(to);
}

static enum rc take_block(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e) {
    struct packed_store *s = ctx;
    struct held_block *held = held_block(s, block->block);
    for (int i = 0; i < block->count; i++) {
        struct calibrated_linear *l = &block->linears[i];
        struct held_linear *h = &held->linears[i];
        *h = (struct held_linear){.candidate = l->candidate, .rows = l->linear->rows, .cols = l->linear->cols};
        TRY(pack_linear(job, l, h, e));
        s->bytes += packed_bytes(&h->packed) + take_stored(&h->weight, &l->weight) + take_stored(&h->bias, &l->bias);
    }
    for (int input = 0; input < INPUT_COUNT; input++)
        s->bytes += take_stored(&held->norm[input], &block->norm[input]);
    return RC_OK;
}

struct calibration_sink packed_store_sink(struct packed_store *s) {
    return (struct calibration_sink){.ctx = s, .block = take_block};
}

/* --- from an artifact's shards --- */

/* A part of a packed Linear. Absent: zeros. */
static enum rc copy_part(const struct st_tensor *from, int64_t bytes, uint8_t **to, struct err *e) {
    if (bytes == 0) return RC_OK;
    *to = calloc(1, (size_t)bytes);
    if (!*to) return err_set(e, RC_NO_MEMORY, "no memory for %lld bytes of packed weights", (long long)bytes);
    if (from) memcpy(*to, from->data, (size_t)(from->bytes < bytes ? from->bytes : bytes));
    return RC_OK;
}

static enum rc read_codes(const struct packed_linear *from, struct held_linear *h, struct err *e) {
    struct packed *p = &h->packed;
    *p = packed_sizes(&h->candidate, h->rows, h->cols);
    TRY(copy_part(from->codes, p->codes_bytes, &p->codes, e));
    TRY(copy_part(from->scales, p->scales_bytes, &p->scales, e));
    TRY(copy_part(from->zeros, p->zeros_bytes, &p->zeros, e));
    return copy_part(from->order, p->group_of_bytes, &p->group_of, e);
}

static bool same_values(const struct st_tensor *a, const struct st_tensor *b) {
    return a->type == b->type && a->bytes == b->bytes && memcmp(a->data, b->data, (size_t)a->bytes) == 0;
}

/* What is not the model's. */
static enum rc read_tensor(struct packed_store *s, const struct st_tensor *made, const struct st_tensor *own,
                           struct stored *to, struct err *e) {
    if (!made || same_values(made, own)) return RC_OK;
    TRY(stored_copy(to, made, e));
    s->bytes += stored_bytes(to);
    return RC_OK;
}

static enum rc read_linear(struct packed_store *s, const struct linear *made, const struct linear *own,
                           struct held_linear *h, struct err *e) {
    h->rows = own->rows;
    h->cols = own->cols;
    TRY(read_tensor(s, made->bias, own->bias, &h->bias, e));
    if (!made->packed) return read_tensor(s, made->weight, own->weight, &h->weight, e);
    TRY(read_codes(made->packed, h, e));
    s->bytes += packed_bytes(&h->packed);
    return RC_OK;
}

static enum rc read_block(struct packed_store *s, const struct model *made, const struct candidate *recipe, int block,
                          struct err *e) {
    struct held_block *held = held_block(s, block);
    const struct block_tensors *to = &made->blocks[block], *own = &s->model->blocks[block];
    for (int i = 0; i < BLOCK_LINEARS_MAX && own->linears[i] >= 0; i++) {
        int index = own->linears[i];
        held->linears[i].candidate = recipe[index];
        TRY(read_linear(s, &made->linears[index], &s->model->linears[index], &held->linears[i], e));
    }
    TRY(read_tensor(s, to->input_norm, own->input_norm, &held->norm[INPUT_ATTENTION], e));
    return read_tensor(s, to->post_norm, own->post_norm, &held->norm[INPUT_MLP], e);
}

/* lm_head and the norm before it. */
static enum rc read_rest(struct packed_store *s, const struct model *made, const struct candidate *recipe,
                         struct err *e) {
    struct held_block *held = held_block(s, -1);
    int64_t head = s->model->linear_count - 1;
    if (recipe[head].method == METHOD_NONE) return RC_OK;
    held->linears[0].candidate = recipe[head];
    TRY(read_linear(s, &made->linears[head], &s->model->linears[head], &held->linears[0], e));
    return read_tensor(s, made->final_norm, s->model->final_norm, &held->norm[INPUT_HEAD], e);
}

enum rc packed_store_read(struct packed_store *s, const struct model *made, const struct candidate *recipe,
                          struct err *e) {
    for (int block = 0; block < s->model->arch.blocks; block++)
        TRY(read_block(s, made, recipe, block, e));
    return read_rest(s, made, recipe, e);
}

/* --- out --- */

static enum rc expand_fp8(const struct held_linear *h, struct mat out) {
    struct stored values = {out.data, out.type, h->rows * h->cols};
    const uint16_t *scales = (const uint16_t *)h->packed.scales;
    int64_t each = h->candidate.fp8_scale == FP8_PER_TENSOR ? values.count : h->cols; /* weights with one scale */
#pragma omp parallel for
    for (int64_t i = 0; i < values.count; i++)
        stored_set(&values, i, e4m3_decode(h->packed.codes[i]) * bf16_to_f32(scales[i / each]));
    return RC_OK;
}

/* ŵ in host memory, to the bits that a backend dequantizes to. */
static enum rc expand(const struct held_linear *h, struct mat out, struct err *e) {
    const struct packed *p = &h->packed;
    const struct packed_view view = {h->candidate, p->codes, p->scales, p->zeros, DTYPE_F16, p->group_of};
    return h->candidate.method == METHOD_FP8 ? expand_fp8(h, out) : packed_expand(&view, out, e);
}

/* A block's Linears on their way to a device with memory of its own. */
struct shipment {
    struct load_item items[BLOCK_LINEARS_MAX];
    size_t count;
};

static void add_item(struct shipment *s, struct mat host, struct mat out) {
    if (host.data == out.data) return;
    s->items[s->count++] = (struct load_item){host.data, out.type, out.rows * out.cols, out.data, out.type};
}

static enum rc ship(const struct job *job, const struct shipment *s, struct err *e) {
    if (s->count == 0) return RC_OK;
    TRY(job->backend->load(job->device, s->items, s->count, e));
    return job->backend->loaded(job->device, e);
}

/* What the stream sees of it; ŵ when `ship` has brought it. */
static enum rc show_linear(const struct job *job, const struct held_linear *h, int position,
                           const struct replaced *room, struct block_weights *seen, struct shipment *s, struct err *e) {
    struct mat *w = &seen->linear[position];
    if (!h->packed.codes) return RC_OK;
    *w = replaced_linear(room, job, position, *w);
    struct mat host = replaced_host(room, *w);
    add_item(s, host, *w);
    return expand(h, host, e);
}

static enum rc show_kept(const struct job *job, const struct held_linear *h, int position, const struct replaced *room,
                         struct block_weights *seen, struct err *e) {
    TRY(replaced_put_vector(job, room->room.bias[position], &h->bias, &seen->bias[position], e));
    if (!h->weight.values) return RC_OK;
    return replaced_put_linear(room, job, position, &h->weight, &seen->linear[position], e);
}

enum rc packed_store_show_kept(const struct packed_store *s, const struct job *job, int block,
                               const struct replaced *room, struct block_weights *seen, struct err *e) {
    const struct held_block *held = held_block(s, block);
    for (int i = 0; i < BLOCK_LINEARS_MAX; i++)
        TRY(show_kept(job, &held->linears[i], i, room, seen, e));
    TRY(replaced_put_vector(job, room->room.input_norm, &held->norm[INPUT_ATTENTION], &seen->input_norm, e));
    return replaced_put_vector(job, room->room.post_norm, &held->norm[INPUT_MLP], &seen->post_norm, e);
}

enum rc packed_store_show(const struct packed_store *s, const struct job *job, int block, const struct replaced *room,
                          struct block_weights *seen, struct err *e) {
    const struct held_block *held = held_block(s, block);
    struct shipment shipment = {0};
    if (job->backend->own_memory && !room->staging) return err_set(e, RC_INTERNAL, "nothing to stage weights in");
    for (int i = 0; i < BLOCK_LINEARS_MAX; i++)
        TRY(show_linear(job, &held->linears[i], i, room, seen, &shipment, e));
    TRY(ship(job, &shipment, e));
    return packed_store_show_kept(s, job, block, room, seen, e);
}

const struct packed *packed_store_codes(const struct packed_store *s, int block, int position, struct candidate *by) {
    const struct held_linear *h = &held_block(s, block)->linears[position];
    *by = h->candidate;
    return h->packed.codes ? &h->packed : NULL;
}

void packed_store_rescale(struct packed_store *s, int block, int position, const float *scales) {
    struct packed *p = &held_block(s, block)->linears[position].packed;
    for (int64_t i = 0; i < p->scales_bytes / (int64_t)sizeof(uint16_t); i++) {
        uint16_t half = f32_to_f16(scales[i]);
        memcpy(p->scales + (size_t)i * sizeof half, &half, sizeof half);
    }
}

static enum rc load_expanded(const struct job *job, const struct held_linear *h, struct mat out, struct err *e) {
    struct shipment shipment = {0};
    struct mat host = out;
    if (!job->backend->own_memory) return expand(h, out, e);
    host.data = malloc((size_t)(out.rows * out.cols) * dtype_size(out.type));
    if (!host.data) return err_set(e, RC_NO_MEMORY, "no memory for %lld weights", (long long)(out.rows * out.cols));
    add_item(&shipment, host, out);
    enum rc rc = expand(h, host, e);
    if (rc == RC_OK) rc = ship(job, &shipment, e);
    free(host.data);
    return rc;
}

enum rc packed_store_linear(const struct packed_store *s, const struct job *job, int block, int position,
                            struct mat out, struct err *e) {
    const struct held_linear *h = &held_block(s, block)->linears[position];
    if (!h->packed.codes) return err_set(e, RC_INTERNAL, "the store has no Linear %d of block %d", position, block);
    return load_expanded(job, h, out, e);
}

enum rc packed_store_head(const struct packed_store *s, const struct job *job, struct mat out, struct err *e) {
    const struct held_linear *h = &held_block(s, -1)->linears[0];
    if (!h->packed.codes) return err_set(e, RC_INTERNAL, "the store has no lm_head");
    return load_expanded(job, h, out, e);
}

const struct stored *packed_store_final_norm(const struct packed_store *s) {
    return &held_block(s, -1)->norm[INPUT_HEAD];
}
