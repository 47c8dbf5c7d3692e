#include "worker/pipeline/gradwalk.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/pipeline/carve.h"
#include "worker/pipeline/grams.h"
#include "worker/pipeline/reverse.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

struct grad_walker {
    const struct grad_walk *g;
    const struct job *job;
    const struct model *model;
    int first_block;     /* that has a wanted Linear */
    int64_t chunk;       /* windows of one */
    int64_t windows;     /* that are scored, and those that fill their last chunk */
    struct grams h, h_w; /* h_w without widths where it is not asked for */
    void *memory;        /* [bytes] on the device: the next six */
    size_t bytes;
    char *effective;         /* of a block's wanted Linears, [candidates, N, K] fp32 each */
    double *norms;           /* [T] Σ‖g‖² of a chunk */
    float *roots;            /* [T] */
    void *weighed;           /* [T, K] of the widest, activation type */
    double *sums;            /* [slots of a block, windows] on the device */
    double *squares;         /* [windows] that no one reads */
    double *scores;          /* as sums, on the host */
    struct gram_slot *slots; /* [BLOCK_LINEARS_MAX, candidates] of the block */
};

static const struct linear *linear_at(const struct grad_walker *k, int block, int position, int64_t *index) {
    const struct linear *linear = block_linear(k->model, block, position);
    *index = linear ? linear - k->model->linears : -1;
    return linear;
}

static bool is_wanted(const struct grad_walker *k, int64_t index) {
    return k->g->gram.wanted[index];
}

static int64_t wanted_weights(const struct grad_walker *k, int block) {
    int64_t index, count = 0;
    const struct linear *linear;
    for (int position = 0; (linear = linear_at(k, block, position, &index)); position++)
        if (is_wanted(k, index)) count += linear->rows * linear->cols;
    return count;
}

/* --- what it holds --- */

static void find_wanted(struct grad_walker *k, int64_t width[INPUT_COUNT], int64_t *most_weights) {
    k->first_block = k->model->arch.blocks;
    for (int block = k->model->arch.blocks - 1; block >= 0; block--) {
        int64_t index, weights = wanted_weights(k, block);
        const struct linear *linear;
        if (weights > 0) k->first_block = block;
        if (weights > *most_weights) *most_weights = weights;
        for (int position = 0; (linear = linear_at(k, block, position, &index)); position++)
            if (is_wanted(k, index) && linear->cols > width[linear->input]) width[linear->input] = linear->cols;
    }
}

static int64_t widest(const int64_t width[INPUT_COUNT]) {
    int64_t most = 0;
    for (int i = 0; i < INPUT_COUNT; i++)
        if (width[i] > most) most = width[i];
    return most;
}

static int64_t slot_count(const struct grad_walker *k) {
    return (int64_t)k->g->candidates * BLOCK_LINEARS_MAX;
}

/* Returns the number of bytes. Called twice: to measure, then to place. */
static size_t lay_out(struct grad_walker *k, int64_t most_weights, int64_t cols, void *base) {
    struct carve c = {.base = base};
    size_t tokens = (size_t)(k->chunk * k->g->gram.windows->length);
    size_t gaps = (size_t)slot_count(k) * 256; /* between matrices */
    if (!k->g->guided) tokens = 0;
    k->effective = carve(&c, k->g->candidates * (size_t)most_weights * sizeof(float) + gaps);
    k->sums = carve(&c, (size_t)(slot_count(k) * k->windows) * sizeof(double));
    k->squares = carve(&c, (size_t)k->windows * sizeof(double));
    k->norms = carve(&c, tokens * sizeof(double));
    k->roots = carve(&c, tokens * sizeof(float));
    k->weighed = carve(&c, tokens * (size_t)cols * dtype_size(k->job->backend->activation));
    return c.used;
}

static enum rc walker_open(struct grad_walker *k, const int64_t width[INPUT_COUNT], int64_t most_weights,
                           struct err *e) {
    const struct windows *windows = k->g->gram.windows;
    struct grams_args a = {.job = k->job, .tokens = windows->count * windows->length, .stats = k->g->gram.stats};
    struct grams_args weighed = {.job = k->job, .tokens = a.tokens};
    memcpy(a.width, width, sizeof a.width);
    if (k->g->guided) memcpy(weighed.width, width, sizeof weighed.width);
    k->slots = xcalloc((size_t)slot_count(k) + 1, sizeof *k->slots);
    k->scores = xcalloc((size_t)(slot_count(k) * k->windows) + 1, sizeof *k->scores);
    TRY(grams_open(&k->h, &a, e));
    TRY(grams_open(&k->h_w, &weighed, e));
    k->bytes = lay_out(k, most_weights, widest(width), NULL);
    if (k->job->backend->alloc(k->job->device, k->bytes, &k->memory, e) != RC_OK)
        return err_context(e, "what %zu candidates make of one block's Linears", k->g->candidates);
    lay_out(k, most_weights, widest(width), k->memory);
    return RC_OK;
}

static void walker_release(struct grad_walker *k) {
    if (k->memory) k->job->backend->free(k->job->device, k->memory);
    if (k->h_w.job) grams_release(&k->h_w);
    if (k->h.job) grams_release(&k->h);
    free(k->slots);
    free(k->scores);
}

/* --- the first visit: H --- */

static void place_slots(struct grad_walker *k, int block) {
    struct carve c = {.base = k->effective};
    const struct linear *linear;
    int64_t index;
    memset(k->slots, 0, (size_t)slot_count(k) * sizeof *k->slots);
    for (int position = 0; (linear = linear_at(k, block, position, &index)); position++)
        for (size_t i = 0; is_wanted(k, index) && i < k->g->candidates; i++) {
            float *values = carve(&c, (size_t)(linear->rows * linear->cols) * sizeof *values);
            k->slots[(size_t)position * k->g->candidates + i].w_hat = matf(values, linear->rows, linear->cols);
        }
}

static enum rc begin_block(void *ctx, int block, const struct block_weights *w, struct err *e) {
    (void)w;
    struct grad_walker *k = ctx;
    bool wanted[INPUT_COUNT] = {0};
    int64_t index;
    const struct linear *linear;
    for (int position = 0; (linear = linear_at(k, block, position, &index)); position++)
        if (is_wanted(k, index)) wanted[linear->input] = true;
    place_slots(k, block);
    if (k->g->guided) TRY(grams_begin(&k->h_w, wanted, e));
    return grams_begin(&k->h, wanted, e);
}

/* Rows of windows that are not there have no gradient, and so no weight. */
static enum rc add_weighed(struct grad_walker *k, const struct linear_gradient *at, struct err *e) {
    const struct backend *b = k->job->backend;
    if (!k->h_w.active[at->input]) return RC_OK;
    struct row_norms_args norms = {
        .g = at->g, .add = !at->first, .norms = k->norms, .roots = at->last ? k->roots : NULL};
    TRY(b->row_norms(k->job->device, &norms, e));
    if (!at->last) return RC_OK;
    struct mat weighed = {k->weighed, at->x.rows, at->x.cols, at->x.cols, at->x.type};
    struct scale_args scale = {.m = at->x, .by_row = k->roots, .out = weighed};
    TRY(b->scale(k->job->device, &scale, e));
    return grams_add(&k->h_w, at->input, weighed, e);
}

static enum rc add_input(void *ctx, const struct linear_gradient *at, struct err *e) {
    struct grad_walker *k = ctx;
    struct mat x = at->x;
    x.rows = at->site->windows * k->g->gram.windows->length;
    if (at->first) TRY(grams_add(&k->h, at->input, x, e));
    return k->g->guided ? add_weighed(k, at, e) : RC_OK;
}

static bool gather_input(const struct grad_walker *k, const struct block_weights *w, struct gram_input *out) {
    const struct linear *linear;
    int64_t index;
    bool any = false;
    for (int position = 0; (linear = linear_at(k, out->block, position, &index)); position++) {
        if (linear->input != out->input) continue;
        out->index[out->count] = index;
        out->w[out->count] = w->linear[position];
        if (k->g->candidates > 0) out->slots[out->count] = &k->slots[(size_t)position * k->g->candidates];
        out->mine[out->count++] = is_wanted(k, index);
        any = any || is_wanted(k, index);
    }
    return any;
}

static enum rc end_block(void *ctx, int block, const struct block_weights *w, struct err *e) {
    struct grad_walker *k = ctx;
    const struct gram_walk *g = &k->g->gram;
    TRY(grams_finish(&k->h, e));
    TRY(grams_finish(&k->h_w, e));
    for (int input = 0; input < INPUT_HEAD; input++) {
        struct gram_input in = {.block = block,
                                .input = (enum linear_input)input,
                                .h = k->h.h[input],
                                .h_w = k->h_w.h[input],
                                .mean_abs = k->h.mean_abs[input]};
        if (gather_input(k, w, &in)) TRY(g->input(g->ctx, k->job, &in, e));
    }
    return RC_OK;
}

/* --- the second: scores --- */

static enum rc add_score(void *ctx, const struct linear_gradient *at, struct err *e) {
    struct grad_walker *k = ctx;
    for (size_t i = 0; i < k->g->candidates; i++) {
        size_t slot = (size_t)at->position * k->g->candidates + i;
        if (!k->slots[slot].filled) continue;
        struct fisher_args a = {.x = at->x,
                                .g = at->g,
                                .w = at->w,
                                .w_hat = k->slots[slot].w_hat,
                                .length = k->g->gram.windows->length,
                                .sum = k->sums + (int64_t)slot * k->windows + at->site->window,
                                .squares = k->squares};
        TRY(k->job->backend->fisher(k->job->device, &a, e));
    }
    return RC_OK;
}

static double fisher_of(const struct grad_walker *k, size_t slot) {
    struct windows scored = *k->g->gram.windows;
    double sum = 0;
    if (k->g->scored < scored.count) scored.count = k->g->scored;
    for (int64_t window = 0; window < scored.count; window++)
        sum += k->scores[(int64_t)slot * k->windows + window];
    int64_t tokens = reverse_scored(&scored);
    return tokens > 0 ? sum / 2 / (double)tokens : 0;
}

static enum rc hand_scores(void *ctx, int block, const struct block_weights *w, struct err *e) {
    (void)w;
    struct grad_walker *k = ctx;
    int64_t index;
    size_t bytes = (size_t)(slot_count(k) * k->windows) * sizeof *k->scores;
    TRY(k->job->backend->download(k->job->device, k->sums, bytes, k->scores, e));
    for (int position = 0; linear_at(k, block, position, &index); position++)
        for (size_t i = 0; i < k->g->candidates; i++) {
            size_t slot = (size_t)position * k->g->candidates + i;
            if (k->slots[slot].filled) TRY(k->g->score(k->g->gram.ctx, index, i, fisher_of(k, slot), e));
        }
    return RC_OK;
}

/* --- the walk --- */

static enum rc walk_back(struct grad_walker *k, struct err *e) {
    const struct grad_walk *g = k->g;
    bool scores = g->candidates > 0 && g->scored > 0;
    struct reverse_hooks hooks = {.ctx = k,
                                  .begin = begin_block,
                                  .linear = add_input,
                                  .end = end_block,
                                  .linear_again = scores ? add_score : NULL,
                                  .done = scores ? hand_scores : NULL};
    struct reverse_walk walk = {.job = k->job,
                                .model = k->model,
                                .windows = g->gram.windows,
                                .first_block = k->first_block,
                                .seed = g->seed,
                                .again = g->scored,
                                .hooks = &hooks,
                                .reserved = k->h.bytes + k->h_w.bytes + (int64_t)k->bytes + g->gram.reserved,
                                .device_reserved = g->gram.device_reserved,
                                .phase = g->gram.phase};
    return reverse_walk_run(&walk, e);
}

enum rc grad_walk_run(const struct grad_walk *g, struct err *e) {
    struct grad_walker k = {.g = g, .job = g->gram.job, .model = g->gram.model};
    int64_t width[INPUT_COUNT] = {0}, most_weights = 0, scored = g->scored, count = g->gram.windows->count;
    find_wanted(&k, width, &most_weights);
    if (most_weights == 0) return RC_OK;
    k.chunk = walk_chunk(k.job, g->gram.windows);
    k.windows = ((scored < count ? scored : count) + k.chunk - 1) / k.chunk * k.chunk;
    enum rc rc = walker_open(&k, width, most_weights, e);
    if (rc == RC_OK) rc = walk_back(&k, e);
    walker_release(&k);
    return rc;
}
