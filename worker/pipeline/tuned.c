#include "worker/pipeline/tuned.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/carve.h"

/* A step at the full rate moves the outermost code of a group by about 1% of the distance between codes: what was found
 * to be good at 3 and at 4 bits. */
static const double rate_of_one_bit = 0.024;
static const float beta1 = 0.9f, beta2 = 0.99f, epsilon = 1e-8f;

struct tuned_linear {
    struct candidate candidate;
    struct quantized q;                          /* codes: where they are, if they stay there */
    int64_t codes_at;                            /* where they begin in their block's */
    float *base, *slope, *mean, *square, *theta; /* [N, G]; of those that are not tuned NULL */
    int block, position;
};

struct tuned {
    const struct job *job;
    const struct model *model;
    struct packed_store *store;
    struct replaced replaced;
    struct tuned_linear *linears; /* [linear_count] */
    bool *is_shown;               /* [linear_count] it is quantized */
    void *parameters;             /* on the device */
    int64_t *codes_at, *codes;    /* [blocks] where a block's begin among all, and their bytes */
    int64_t codes_total, codes_most;
    char *codes_device; /* all of them, or two blocks' */
    char *codes_host;   /* all of them, in memory that the device copies from; NULL: they are on the device */
    int held[2];        /* whose codes are in which of two, or on their way; −1: none */
};

bool tuned_by(const struct candidate *c) {
    return c->method != METHOD_NONE && c->method != METHOD_FP8;
}

/* --- where things lie --- */

static struct quantized sizes_of(const struct candidate *c, const struct linear *l) {
    int64_t group = c->group > 0 && c->group < l->cols ? c->group : l->cols;
    struct quantized q = {.rows = l->rows, .cols = l->cols, .groups = (l->cols + group - 1) / group};
    q.bits = c->bits;
    q.group = (int)group;
    q.fp8 = c->method == METHOD_FP8;
    return q;
}

static bool is_indexed(const struct candidate *c) {
    return candidate_uses_gptq(c) && c->order == ORDER_ACTIVATION;
}

static void place_linear(struct tuned_linear *l, struct carve *c) {
    size_t bytes = (size_t)(l->q.rows * l->q.groups) * sizeof(float);
    float **parts[] = {&l->q.scale, &l->q.zero, &l->base, &l->slope, &l->mean, &l->square, &l->theta};
    size_t count = sizeof parts / sizeof *parts;
    for (size_t i = 0; i < (tuned_by(&l->candidate) ? count : 2); i++)
        *parts[i] = carve(c, bytes);
    if (is_indexed(&l->candidate)) l->q.group_of = carve(c, (size_t)l->q.cols * sizeof *l->q.group_of);
}

/* Returns the number of bytes. Called twice: to measure, then to place. */
static size_t lay_out(struct tuned *t, void *base) {
    struct carve c = {.base = base};
    for (int64_t i = 0; i < t->model->linear_count; i++)
        if (t->is_shown[i]) place_linear(&t->linears[i], &c);
    return c.used;
}

int64_t tuned_bytes(const struct model *model, const struct candidate *recipe) {
    struct carve c = {0};
    for (int64_t i = 0; i < model->linear_count; i++) {
        struct tuned_linear l = {.candidate = recipe[i], .q = sizes_of(&recipe[i], &model->linears[i])};
        if (model->linears[i].block >= 0 && recipe[i].method != METHOD_NONE) place_linear(&l, &c);
    }
    return (int64_t)c.used;
}

static void find_linear(struct tuned *t, int block, int position, struct carve *codes) {
    struct candidate by;
    int index = t->model->blocks[block].linears[position];
    struct tuned_linear *l = &t->linears[index];
    if (!packed_store_codes(t->store, block, position, &by)) return;
    *l = (struct tuned_linear){.candidate = by,
                               .q = sizes_of(&by, &t->model->linears[index]),
                               .codes_at = (int64_t)codes->used,
                               .block = block,
                               .position = position};
    t->is_shown[index] = true;
    carve(codes, (size_t)(l->q.rows * l->q.cols));
}

static void find_all(struct tuned *t) {
    for (int block = 0; block < t->model->arch.blocks; block++) {
        struct carve codes = {0};
        for (int position = 0; block_linear(t->model, block, position); position++)
            find_linear(t, block, position, &codes);
        t->codes_at[block] = t->codes_total;
        t->codes[block] = (int64_t)codes.used;
        t->codes_total += t->codes[block];
        if (t->codes[block] > t->codes_most) t->codes_most = t->codes[block];
    }
}

static enum rc take_memory(struct tuned *t, struct err *e) {
    const struct backend *b = t->job->backend;
    size_t bytes = lay_out(t, NULL);
    TRY(b->alloc(t->job->device, bytes, &t->parameters, e));
    lay_out(t, t->parameters);
    TRY(b->clear(t->job->device, t->parameters, bytes, e));
    return replaced_open(t->job, t->model, &t->replaced, e);
}

enum rc tuned_open(const struct job *job, const struct model *model, struct packed_store *store, struct tuned **out,
                   struct err *e) {
    struct tuned *t = xcalloc(1, sizeof *t);
    *t = (struct tuned){.job = job, .model = model, .store = store, .held = {-1, -1}};
    t->linears = xcalloc((size_t)model->linear_count, sizeof *t->linears);
    t->is_shown = xcalloc((size_t)model->linear_count, sizeof *t->is_shown);
    t->codes_at = xcalloc((size_t)model->arch.blocks, sizeof *t->codes_at);
    t->codes = xcalloc((size_t)model->arch.blocks, sizeof *t->codes);
    find_all(t);
    enum rc rc = take_memory(t, e);
    if (rc != RC_OK) {
        tuned_close(t);
        t = NULL;
    }
    *out = t;
    return rc;
}

void tuned_close(struct tuned *t) {
    struct err ignored; /* whoever closes knows of a worse one, or needs the codes no more */
    if (!t) return;
    const struct backend *b = t->job->backend;
    if (t->codes_host) (void)b->fetched(t->job->device, &ignored);
    replaced_release(t->job, &t->replaced);
    if (t->parameters) b->free(t->job->device, t->parameters);
    if (t->codes_device) b->free(t->job->device, t->codes_device);
    if (t->codes_host) b->host_free(t->job->device, t->codes_host);
    free(t->linears);
    free(t->is_shown);
    free(t->codes_at);
    free(t->codes);
    free(t);
}

int64_t tuned_code_bytes(const struct tuned *t) {
    return t->codes_total;
}

const bool *tuned_shown(const struct tuned *t) {
    return t->is_shown;
}

static bool is_tuned(const struct tuned *t, int64_t index) {
    return t->is_shown[index] && tuned_by(&t->linears[index].candidate);
}

/* --- from the store, and back to it --- */

static int64_t parameters_of(const struct tuned_linear *l) {
    return l->q.rows * l->q.groups;
}

/* A Linear unpacked in the host's memory; codes of those that stay there lie where they will. */
static enum rc unpack_linear(const struct tuned *t, const struct tuned_linear *l, struct quantized *host,
                             struct err *e) {
    struct candidate by;
    const struct packed *packed = packed_store_codes(t->store, l->block, l->position, &by);
    *host = l->q;
    host->codes = t->codes_host ? (uint8_t *)t->codes_host + t->codes_at[l->block] + l->codes_at
                                : xcalloc((size_t)(l->q.rows * l->q.cols / 4 + 1), sizeof(float));
    host->scale = xcalloc((size_t)parameters_of(l), sizeof(float));
    host->zero = xcalloc((size_t)parameters_of(l), sizeof(float));
    host->group_of = l->q.group_of ? xcalloc((size_t)l->q.cols, sizeof *host->group_of) : NULL;
    return unpack(packed, &l->candidate, host, e);
}

/* Bytes as they are: what keeps its type is copied. */
static struct load_item raw(const void *host, int64_t bytes, void *out) {
    return (struct load_item){host, DTYPE_F32, (bytes + 3) / 4, out, DTYPE_F32};
}

static enum rc send_linear(const struct tuned *t, const struct tuned_linear *l, const struct quantized *host,
                           struct err *e) {
    const struct backend *b = t->job->backend;
    int64_t floats = parameters_of(l) * (int64_t)sizeof(float);
    struct load_item items[5] = {raw(host->scale, floats, l->q.scale), raw(host->zero, floats, l->q.zero)};
    size_t count = 2;
    if (l->base) items[count++] = raw(host->scale, floats, l->base);
    if (host->group_of)
        items[count++] = raw(host->group_of, l->q.cols * (int64_t)sizeof *host->group_of, l->q.group_of);
    if (l->q.codes) items[count++] = raw(host->codes, l->q.rows * l->q.cols, l->q.codes);
    TRY(b->load(t->job->device, items, count, e));
    return b->loaded(t->job->device, e);
}

static enum rc load_linear(struct tuned *t, struct tuned_linear *l, struct err *e) {
    struct quantized host;
    if (!t->codes_host) l->q.codes = (uint8_t *)t->codes_device + t->codes_at[l->block] + l->codes_at;
    enum rc rc = unpack_linear(t, l, &host, e);
    if (rc == RC_OK) rc = send_linear(t, l, &host, e);
    if (!t->codes_host) free(host.codes);
    free(host.scale);
    free(host.zero);
    free(host.group_of);
    return rc;
}

static enum rc place_codes(struct tuned *t, int64_t reserve, struct err *e) {
    const struct backend *b = t->job->backend;
    bool stay = !b->own_memory || b->room(t->job->device) - reserve >= t->codes_total;
    void *memory = NULL;
    TRY(b->alloc(t->job->device, (size_t)(stay ? t->codes_total : 2 * t->codes_most), &memory, e));
    t->codes_device = memory;
    if (stay) return RC_OK;
    TRY(b->host_alloc(t->job->device, (size_t)t->codes_total, &memory, e));
    t->codes_host = memory;
    return RC_OK;
}

enum rc tuned_load(struct tuned *t, int64_t reserve, struct err *e) {
    TRY(place_codes(t, reserve, e));
    for (int64_t i = 0; i < t->model->linear_count; i++) {
        if (job_cancelled(t->job)) return err_set(e, RC_CANCELLED, "cancelled");
        if (t->is_shown[i]) TRY(load_linear(t, &t->linears[i], e));
    }
    return RC_OK;
}

/* fp16 is what storage keeps; a scale that is too small for it stays what it was. */
static float stored_scale(float scale, float base) {
    float rounded = round_to(DTYPE_F16, scale);
    return rounded != 0 ? rounded : base;
}

static enum rc store_linear(struct tuned *t, const struct tuned_linear *l, float *scale, float *base, struct err *e) {
    const struct backend *b = t->job->backend;
    size_t bytes = (size_t)parameters_of(l) * sizeof *scale;
    TRY(b->download(t->job->device, l->q.scale, bytes, scale, e));
    TRY(b->download(t->job->device, l->base, bytes, base, e));
    for (int64_t i = 0; i < parameters_of(l); i++) {
        if (!isfinite(scale[i]))
            return err_set(e, RC_INVALID, "a refined scale of %s is not finite",
                           t->model->linears[l - t->linears].name);
        scale[i] = stored_scale(scale[i], base[i]);
    }
    packed_store_rescale(t->store, l->block, l->position, scale);
    return RC_OK;
}

enum rc tuned_store(struct tuned *t, struct err *e) {
    enum rc rc = RC_OK;
    for (int64_t i = 0; rc == RC_OK && i < t->model->linear_count; i++) {
        const struct tuned_linear *l = &t->linears[i];
        if (!is_tuned(t, i)) continue;
        float *scale = xcalloc(2 * (size_t)parameters_of(l), sizeof *scale);
        rc = store_linear(t, l, scale, scale + parameters_of(l), e);
        free(scale);
    }
    return rc;
}

/* --- a block --- */

static char *codes_buffer(const struct tuned *t, int block) {
    return t->codes_device + block % 2 * t->codes_most;
}

static enum rc begin_fetch(struct tuned *t, int block, struct err *e) {
    if (!t->codes_host || block < 0 || t->held[block % 2] == block) return RC_OK;
    t->held[block % 2] = block;
    return t->job->backend->fetch(t->job->device, t->codes_host + t->codes_at[block], (size_t)t->codes[block],
                                  codes_buffer(t, block), e);
}

static enum rc bring_codes(struct tuned *t, int block, int next, struct err *e) {
    if (!t->codes_host) return RC_OK;
    TRY(begin_fetch(t, block, e));
    TRY(t->job->backend->fetched(t->job->device, e));
    return begin_fetch(t, next, e);
}

static enum rc show_linear(struct tuned *t, const struct tuned_linear *l, struct block_weights *seen, struct err *e) {
    struct quantized q = l->q;
    struct mat *w = &seen->linear[l->position];
    if (t->codes_host) q.codes = (uint8_t *)codes_buffer(t, l->block) + l->codes_at;
    *w = replaced_linear(&t->replaced, t->job, l->position, *w);
    return t->job->backend->dequantize(t->job->device, &(struct dequantize_args){.q = &q, .out = *w}, e);
}

enum rc tuned_show(struct tuned *t, int block, int next, struct block_weights *seen, struct err *e) {
    const int *linears = t->model->blocks[block].linears;
    TRY(bring_codes(t, block, next, e));
    for (int position = 0; block_linear(t->model, block, position); position++)
        if (t->is_shown[linears[position]]) TRY(show_linear(t, &t->linears[linears[position]], seen, e));
    return packed_store_show_kept(t->store, t->job, block, &t->replaced, seen, e);
}

/* --- a step --- */

enum rc tuned_add(struct tuned *t, const struct linear_gradient *at, struct err *e) {
    int index = t->model->blocks[at->site->block].linears[at->position];
    const struct tuned_linear *l = &t->linears[index];
    if (!is_tuned(t, index)) return RC_OK;
    struct scale_back_args a = {
        .x = at->x, .g = at->g, .w_hat = at->w, .group = l->q.group, .group_of = l->q.group_of, .slope = l->slope};
    return t->job->backend->scale_back(t->job->device, &a, e);
}

enum rc tuned_step(struct tuned *t, int64_t step, double share, struct err *e) {
    for (int64_t i = 0; i < t->model->linear_count; i++) {
        const struct tuned_linear *l = &t->linears[i];
        if (!is_tuned(t, i)) continue;
        struct adam_args a = {.count = parameters_of(l),
                              .rate = (float)(share * ldexp(rate_of_one_bit, -l->q.bits)),
                              .beta1 = beta1,
                              .beta2 = beta2,
                              .epsilon = epsilon,
                              .step = step,
                              .base = l->base,
                              .slope = l->slope,
                              .mean = l->mean,
                              .square = l->square,
                              .theta = l->theta,
                              .scale = l->q.scale};
        TRY(t->job->backend->adam(t->job->device, &a, e));
    }
    return RC_OK;
}
