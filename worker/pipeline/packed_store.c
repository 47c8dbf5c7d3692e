#include "worker/pipeline/packed_store.h"

#include <stdlib.h>

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

/* --- out --- */

static enum rc expand_fp8(const struct held_linear *h, struct mat out) {
    struct stored values = {out.data, out.type, h->rows * h->cols};
    const uint16_t *scales = (const uint16_t *)h->packed.scales;
#pragma omp parallel for
    for (int64_t i = 0; i < values.count; i++)
        stored_set(&values, i, e4m3_decode(h->packed.codes[i]) * bf16_to_f32(scales[i / h->cols]));
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
    TRY(replaced_put_vector(job, room->room.bias[position], &h->bias, &seen->bias[position], e));
    if (h->weight.values) return replaced_put_linear(room, job, position, &h->weight, w, e);
    if (!h->packed.codes) return RC_OK;
    *w = replaced_linear(room, job, position, *w);
    struct mat host = replaced_host(room, *w);
    add_item(s, host, *w);
    return expand(h, host, e);
}

enum rc packed_store_show(const struct packed_store *s, const struct job *job, int block, const struct replaced *room,
                          struct block_weights *seen, struct err *e) {
    const struct held_block *held = held_block(s, block);
    struct shipment shipment = {0};
    if (job->backend->own_memory && !room->staging) return err_set(e, RC_INTERNAL, "nothing to stage weights in");
    for (int i = 0; i < BLOCK_LINEARS_MAX; i++)
        TRY(show_linear(job, &held->linears[i], i, room, seen, &shipment, e));
    TRY(ship(job, &shipment, e));
    TRY(replaced_put_vector(job, room->room.input_norm, &held->norm[INPUT_ATTENTION], &seen->input_norm, e));
    return replaced_put_vector(job, room->room.post_norm, &held->norm[INPUT_MLP], &seen->post_norm, e);
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
