#include "worker/pipeline/gramwalk.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/pipeline/divide.h"
#include "worker/pipeline/grams.h"
#include "worker/pipeline/team.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

/* One walk, on however many devices. */
struct gram_run {
    const struct gram_walk *g;
    int devices, last_block;    /* −1: none has a wanted Linear */
    int64_t width[INPUT_COUNT]; /* K of the wanted inputs */
    struct grams *grams;        /* [devices] */
    _Atomic int64_t tokens_done;
};

/* One device's part of it. */
struct gram_walker {
    struct gram_run *run;
    const struct gram_walk *g;
    const struct job *job; /* on the device */
    int member;
    struct grams *grams;
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

/* --- hooks --- */

static enum rc begin_block(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    (void)stream, (void)w;
    struct gram_walker *k = ctx;
    bool wanted[INPUT_COUNT] = {0};
    wanted_inputs(k->g, block, wanted);
    return grams_begin(k->grams, wanted, e);
}

static enum rc add_input(void *ctx, const struct site *site, enum linear_input input, struct mat x, struct err *e) {
    (void)site;
    struct gram_walker *k = ctx;
    return grams_add(k->grams, input, x, e);
}

static enum rc combine(void *ctx, struct err *e) {
    struct gram_run *run = ctx;
    return grams_combine(run->grams, run->devices, e);
}

/* From here on every device has the H of all windows. The next block may begin on one while others still measure: what
 * it clears is its own. */
static enum rc finish_grams(struct gram_walker *k, struct err *e) {
    if (k->run->devices > 1) TRY(team_meet(k->job->team, combine, k->run, e));
    return grams_finish(k->grams, e);
}

/* The Linears that read the input, as far as it is one that this device has something to do for. */
static bool gather_input(const struct gram_walker *k, int block, const int owner[BLOCK_LINEARS_MAX],
                         const struct block_weights *w, struct gram_input *out) {
    int64_t index;
    const struct linear *linear;
    bool any = false;
    for (int position = 0; (linear = linear_at(k->g, block, position, &index)); position++) {
        if (linear->input != out->input) continue;
        out->index[out->count] = index;
        out->w[out->count] = w->linear[position];
        out->mine[out->count++] = owner[position] == k->member;
        any = any || owner[position] == k->member;
    }
    return any;
}

static enum rc measure_linears(struct gram_walker *k, int block, const struct block_weights *w, struct err *e) {
    int owner[BLOCK_LINEARS_MAX];
    divide_linears(k->g->model, k->g->wanted, block, k->run->devices, owner);
    for (int input = 0; input < INPUT_HEAD; input++) {
        struct gram_input in = {.block = block,
                                .input = (enum linear_input)input,
                                .h = k->grams->h[input],
                                .mean_abs = k->grams->mean_abs[input],
                                .candidates = {0, k->g->candidates}};
        if (gather_input(k, block, owner, w, &in)) TRY(k->g->input(k->g->ctx, k->job, &in, e));
    }
    return RC_OK;
}

static enum rc end_block(void *ctx, int block, const struct block_weights *w, struct err *e) {
    static const bool only_head[INPUT_COUNT] = {[INPUT_HEAD] = true};
    struct gram_walker *k = ctx;
    TRY(finish_grams(k, e));
    TRY(measure_linears(k, block, w, e));
    bool head_follows = head_wanted(k->g) && block == k->g->model->arch.blocks - 1;
    return head_follows ? grams_begin(k->grams, only_head, e) : RC_OK;
}

static enum rc add_final(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    (void)window;
    struct gram_walker *k = ctx;
    return grams_add(k->grams, INPUT_HEAD, x[0], e);
}

/* --- the walk --- */

static enum rc measure_head(struct gram_walker *k, struct err *e) {
    const struct gram_walk *g = k->g;
    struct gram_input in = {.block = -1,
                            .input = INPUT_HEAD,
                            .h = k->grams->h[INPUT_HEAD],
                            .mean_abs = k->grams->mean_abs[INPUT_HEAD],
                            .candidates = {0, g->candidates},
                            .count = 1,
                            .index = {g->model->linear_count - 1},
                            .mine = {true}};
    enum rc rc = upload_linear(k->job, &g->model->linears[in.index[0]], &in.w[0], e);
    if (rc == RC_OK) rc = g->input(g->ctx, k->job, &in, e);
    if (in.w[0].data) k->job->backend->free(k->job->device, in.w[0].data);
    return rc;
}

static enum rc end_head(struct gram_walker *k, struct err *e) {
    TRY(finish_grams(k, e));
    return k->member == 0 ? measure_head(k, e) : RC_OK;
}

static enum rc walk_windows(struct gram_walker *k, struct err *e) {
    const struct gram_walk *g = k->g;
    bool head = head_wanted(g);
    struct span all = {0, g->windows->count};
    struct span share = walk_share(k->job, g->windows, all, k->member, k->run->devices);
    struct walk_hooks hooks = {
        .ctx = k, .weights = begin_block, .input = add_input, .block_end = end_block, .final = head ? add_final : NULL};
    struct walk walk = {.job = k->job,
                        .model = g->model,
                        .windows = g->windows,
                        .first = share.first,
                        .count = share.count,
                        .streams = 1,
                        .last_block = head ? -1 : k->run->last_block,
                        .hooks = &hooks,
                        .reserved = k->grams->bytes + g->reserved,
                        .device_reserved = g->device_reserved,
                        .phase = g->phase,
                        .tokens_total = g->windows->count * g->windows->length,
                        .tally = &k->run->tokens_done};
    TRY(walk_run(&walk, e));
    return head ? end_head(k, e) : RC_OK;
}

static enum rc run_member(void *ctx, int member, const struct job *job, struct err *e) {
    struct gram_run *run = ctx;
    struct gram_walker k = {.run = run, .g = run->g, .job = job, .member = member, .grams = &run->grams[member]};
    struct grams_args a = {.job = job,
                           .model = run->g->model,
                           .count = INPUT_COUNT,
                           .tokens = run->g->windows->count * run->g->windows->length,
                           .stats = run->g->stats};
    memcpy(a.width, run->width, sizeof run->width);
    enum rc rc = grams_open(k.grams, &a, e);
    if (rc == RC_OK) rc = walk_windows(&k, e);
    grams_release(k.grams);
    return rc;
}

static void find_wanted(struct gram_run *run) {
    const struct gram_walk *g = run->g;
    for (int64_t i = 0; i < g->model->linear_count; i++) {
        const struct linear *linear = &g->model->linears[i];
        if (!g->wanted[i]) continue;
        if (linear->cols > run->width[linear->input]) run->width[linear->input] = linear->cols;
        if (linear->block > run->last_block) run->last_block = linear->block;
    }
}

enum rc gram_walk_run(const struct gram_walk *g, struct err *e) {
    struct gram_run run = {.g = g, .devices = team_size(g->job), .last_block = -1};
    find_wanted(&run);
    if (run.last_block < 0 && !head_wanted(g)) return RC_OK;
    run.grams = xcalloc((size_t)run.devices, sizeof *run.grams);
    enum rc rc = team_run(g->job, run_member, &run, e);
    free(run.grams);
    return rc;
}

struct input_group gram_input_group(const struct job *job, const struct model *model, const struct gram_input *in) {
    struct input_group g = {.job = job,
                            .gram = {.h = in->h},
                            .guided = {.h = in->h_w},
                            .mean_abs = in->mean_abs,
                            .w = in->w,
                            .g = in->g,
                            .count = in->count};
    input_group_fold(&g, model, in->block, in->input);
    return g;
}
