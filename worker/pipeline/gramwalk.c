#include "worker/pipeline/gramwalk.h"

#include "worker/pipeline/grams.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

struct gram_walker {
    const struct gram_walk *g;
    struct grams grams;
};

static const struct linear *linear_at(const struct gram_walk *g, int block, int position, int64_t *index) {
    *index = position < BLOCK_LINEARS_MAX ? g->model->blocks[block].linears[position] : -1;
    return *index < 0 ? NULL : &g->model->linears[*index];
}

static bool head_wanted(const struct gram_walk *g) {
    return g->wanted[g->model->linear_count - 1];
}

/* The inputs that a block's wanted Linears read. */
static void wanted_inputs(const struct gram_walk *g, int block, bool wanted[INPUT_COUNT]) {
    int64_t index;
    const struct linear *linear;
    for (int position = 0; (linear = linear_at(g, block, position, &index)); position++)
        if (g->wanted[index]) wanted[linear->input] = true;
}

static enum rc begin_block(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    (void)stream, (void)w;
    struct gram_walker *k = ctx;
    bool wanted[INPUT_COUNT] = {0};
    wanted_inputs(k->g, block, wanted);
    return grams_begin(&k->grams, wanted, e);
}

static enum rc add_input(void *ctx, const struct site *site, enum linear_input input, struct mat x, struct err *e) {
    (void)site;
    struct gram_walker *k = ctx;
    return grams_add(&k->grams, input, x, e);
}

static enum rc end_block(void *ctx, int block, const struct block_weights *w, struct err *e) {
    struct gram_walker *k = ctx;
    int64_t index;
    const struct linear *linear;
    TRY(grams_finish(&k->grams, e));
    for (int position = 0; (linear = linear_at(k->g, block, position, &index)); position++)
        if (k->g->wanted[index]) TRY(k->g->linear(k->g->ctx, index, w->linear[position], k->grams.h[linear->input], e));
    return RC_OK;
}

static enum rc add_final(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    struct gram_walker *k = ctx;
    bool only_head[INPUT_COUNT] = {[INPUT_HEAD] = true};
    if (window == 0) TRY(grams_begin(&k->grams, only_head, e));
    return grams_add(&k->grams, INPUT_HEAD, x[0], e);
}

static enum rc end_head(struct gram_walker *k, struct err *e) {
    const struct gram_walk *g = k->g;
    const struct linear *head = &g->model->linears[g->model->linear_count - 1];
    struct mat weights = {0};
    enum rc rc = grams_finish(&k->grams, e);
    if (rc == RC_OK) rc = upload_weights(g->job, head->weight, &weights, e);
    if (rc == RC_OK) rc = g->linear(g->ctx, g->model->linear_count - 1, weights, k->grams.h[INPUT_HEAD], e);
    if (weights.data) g->job->backend->free(g->job->device, weights.data);
    return rc;
}

static enum rc run_walk(struct gram_walker *k, int last_block, struct err *e) {
    const struct gram_walk *g = k->g;
    bool head = head_wanted(g);
    struct walk_hooks hooks = {
        .ctx = k, .weights = begin_block, .input = add_input, .block_end = end_block, .final = head ? add_final : NULL};
    struct walk walk = {.job = g->job,
                        .model = g->model,
                        .windows = g->windows,
                        .count = g->windows->count,
                        .streams = 1,
                        .last_block = head ? -1 : last_block,
                        .hooks = &hooks,
                        .reserved = k->grams.bytes,
                        .phase = g->phase,
                        .tokens_total = g->windows->count * g->windows->length};
    TRY(walk_run(&walk, e));
    return head ? end_head(k, e) : RC_OK;
}

enum rc gram_walk_run(const struct gram_walk *g, struct err *e) {
    int64_t width[INPUT_COUNT] = {0};
    int last_block = -1;
    for (int64_t i = 0; i < g->model->linear_count; i++) {
        const struct linear *linear = &g->model->linears[i];
        if (!g->wanted[i]) continue;
        if (linear->cols > width[linear->input]) width[linear->input] = linear->cols;
        if (linear->block > last_block) last_block = linear->block;
    }
    if (last_block < 0 && !head_wanted(g)) return RC_OK;
    struct gram_walker k = {.g = g};
    enum rc rc = grams_open(&k.grams, g->job, width, e);
    if (rc == RC_OK) rc = run_walk(&k, last_block, e);
    grams_release(&k.grams);
    return rc;
}
