#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/pipeline/carve.h"
#include "worker/pipeline/divide.h"
#include "worker/pipeline/gradrun.h"
#include "worker/pipeline/walk.h"

/* --- what it holds --- */

static int64_t widest(const int64_t width[INPUT_COUNT]) {
    int64_t most = 0;
    for (int i = 0; i < INPUT_COUNT; i++)
        if (width[i] > most) most = width[i];
    return most;
}

/* Returns the number of bytes. Called twice: to measure, then to place. */
static size_t lay_out(struct grad_walker *k, void *base) {
    const struct grad_run *run = k->run;
    struct carve c = {.base = base};
    size_t tokens = k->g->guided ? (size_t)chunk_tokens(run) : 0, value = dtype_size(k->job->backend->activation);
    k->differences = carve(&c, (size_t)run->plan.bytes);
    k->sums = carve(&c, (size_t)(grad_slots(run) * run->windows) * sizeof(double));
    k->squares = carve(&c, (size_t)run->windows * sizeof(double));
    k->norms = carve(&c, tokens * sizeof(double));
    k->roots = carve(&c, tokens * sizeof(float));
    k->weighed = carve(&c, tokens * (size_t)widest(run->width) * value);
    return c.used;
}

/* H, H_w and G, in this order. */
enum { GRAM_KINDS = 3 };

static void ask_grams(const struct grad_walker *k, struct grams_args asked[GRAM_KINDS]) {
    const struct grad_run *run = k->run;
    const struct windows *windows = k->g->gram.windows;
    for (int i = 0; i < GRAM_KINDS; i++)
        asked[i] = (struct grams_args){
            .job = k->job, .model = run->model, .count = INPUT_COUNT, .tokens = windows->count * windows->length};
    asked[0].stats = k->g->gram.stats;
    asked[2].count = BLOCK_LINEARS_MAX;
    if (k->g->unweighed) memcpy(asked[0].width, run->width, sizeof run->width);
    if (k->g->guided) memcpy(asked[1].width, run->width, sizeof run->width);
    if (k->g->outer) memcpy(asked[2].width, run->rows, sizeof run->rows);
}

static enum rc open_grams(struct grad_walker *k, struct err *e) {
    struct grams *grams[GRAM_KINDS] = {k->h, k->h_w, k->outer};
    struct grams_args asked[GRAM_KINDS];
    int64_t beside = 0;
    ask_grams(k, asked);
    for (int i = 0; i < GRAM_KINDS; i++) {
        asked[i].beside = beside;
        TRY(grams_open(grams[i], &asked[i], e));
        beside += grams[i]->bytes;
    }
    return RC_OK;
}

static enum rc decide_to_keep(void *ctx, struct err *e) {
    (void)e;
    struct grad_run *run = ctx;
    run->keeps = true;
    for (int i = 0; i < run->devices; i++)
        run->keeps = run->keeps && run->walkers[i].fits;
    return RC_OK;
}

/* Before anything of the walk is open. */
static int64_t reserve_of(const struct job *job) {
    return reverse_reserve(job->backend->room(job->device));
}

/* What the walk is still to take of the device, beside hidden states that could as well be elsewhere, and quantizing.
 */
static int64_t yet_to_take(const struct grad_walker *k) {
    static const struct reverse_hooks labels = {0};
    struct reverse_walk walk = {.job = k->job, .model = k->run->model, .windows = k->g->gram.windows, .hooks = &labels};
    return reverse_bytes(&walk) + k->reserve + k->g->gram.device_reserved;
}

/* Half of what is left then is for hidden states. The same on all devices, as their progress is one. */
static enum rc open_kept(struct grad_walker *k, struct err *e) {
    const struct grad_run *run = k->run;
    const struct backend *b = k->job->backend;
    struct kept_inputs_args a = {.job = k->job, .chunks = own_chunks(k), .rows = chunk_tokens(run)};
    memcpy(a.in, run->width, sizeof a.in);
    memcpy(a.out, run->rows, sizeof a.out);
    k->fits = b->own_memory && (int64_t)kept_inputs_bytes(&a) <= (b->room(k->job->device) - yet_to_take(k)) / 2;
    TRY(meet(k, decide_to_keep, e));
    return run->keeps ? kept_inputs_open(&k->kept, &a, e) : RC_OK;
}

static enum rc walker_open(struct grad_walker *k, struct err *e) {
    const struct grad_run *run = k->run;
    k->slots = xcalloc((size_t)grad_slots(run) + 1, sizeof *k->slots);
    k->scores = xcalloc((size_t)(grad_slots(run) * run->windows) + 1, sizeof *k->scores);
    TRY(open_grams(k, e));
    k->bytes = lay_out(k, NULL);
    if (k->job->backend->alloc(k->job->device, k->bytes, &k->memory, e) != RC_OK)
        return err_context(e, "what candidates change");
    lay_out(k, k->memory);
    if (k->g->around) TRY(replaced_open(k->job, run->model, &k->shown, e));
    if (k->g->around) TRY(replaced_stage(k->job, run->model, &k->shown, e));
    return scores_any(run) ? open_kept(k, e) : RC_OK;
}

static void walker_release(struct grad_walker *k) {
    kept_inputs_release(&k->kept);
    replaced_release(k->job, &k->shown);
    if (k->memory) k->job->backend->free(k->job->device, k->memory);
    if (k->outer->job) grams_release(k->outer);
    if (k->h_w->job) grams_release(k->h_w);
    if (k->h->job) grams_release(k->h);
    free(k->slots);
    free(k->scores);
}

/* --- the first visit: H --- */

static enum rc begin_block(void *ctx, int block, const struct block_weights *w, struct err *e) {
    (void)w;
    struct grad_walker *k = ctx;
    bool positions[BLOCK_LINEARS_MAX] = {0};
    int64_t index;
    const struct linear *linear;
    memset(k->inputs, 0, sizeof k->inputs);
    for (int position = 0; (linear = linear_at(k->run, block, position, &index)); position++) {
        positions[position] = is_wanted(k->run, index);
        if (positions[position]) k->inputs[linear->input] = true;
    }
    divide_linears(k->run->model, k->g->gram.wanted, block, k->run->devices, k->owner);
    if (k->g->guided) TRY(grams_begin(k->h_w, k->inputs, e));
    if (k->g->outer) TRY(grams_begin(k->outer, positions, e));
    return k->g->unweighed ? grams_begin(k->h, k->inputs, e) : RC_OK;
}

/* Rows of windows that are not there have no gradient, and so no weight. */
static enum rc add_weighed(struct grad_walker *k, const struct linear_gradient *at, struct err *e) {
    const struct backend *b = k->job->backend;
    if (!k->h_w->active[at->input]) return RC_OK;
    struct row_norms_args norms = {
        .g = at->g, .add = !at->first, .norms = k->norms, .roots = at->last ? k->roots : NULL};
    TRY(b->row_norms(k->job->device, &norms, e));
    if (!at->last) return RC_OK;
    struct mat weighed = {k->weighed, at->x.rows, at->x.cols, at->x.cols, at->x.type};
    struct scale_args scale = {.m = at->x, .by_row = k->roots, .out = weighed};
    TRY(b->scale(k->job->device, &scale, e));
    return grams_add(k->h_w, at->input, weighed, e);
}

static enum rc keep_input(struct grad_walker *k, const struct linear_gradient *at, struct err *e) {
    int64_t chunk = at->site->window / k->run->chunk / k->run->devices;
    if (at->site->window >= k->run->windows || !k->inputs[at->input]) return RC_OK;
    return kept_inputs_add(&k->kept, chunk, at, e);
}

static enum rc add_input(void *ctx, const struct linear_gradient *at, struct err *e) {
    struct grad_walker *k = ctx;
    int64_t rows = at->site->windows * k->g->gram.windows->length; /* without padding */
    if (at->first) TRY(grams_add(k->h, at->input, mat_rows(at->x, 0, rows), e));
    TRY(grams_add(k->outer, at->position, mat_rows(at->g, 0, rows), e));
    if (k->run->keeps) TRY(keep_input(k, at, e));
    return k->g->guided ? add_weighed(k, at, e) : RC_OK;
}

static enum rc combine(void *ctx, struct err *e) {
    struct grad_run *run = ctx;
    if (run->devices == 1) return RC_OK;
    TRY(grams_combine(run->h, run->devices, e));
    TRY(grams_combine(run->h_w, run->devices, e));
    return grams_combine(run->outer, run->devices, e);
}

/* From here on every device has the sums over all windows. */
static enum rc finish_grams(struct grad_walker *k, struct err *e) {
    TRY(meet(k, combine, e));
    TRY(grams_finish(k->h, e));
    TRY(grams_finish(k->h_w, e));
    return grams_finish(k->outer, e);
}

static bool gather_input(const struct grad_walker *k, const struct block_weights *w, struct gram_input *out) {
    const struct linear *linear;
    int64_t index;
    bool any = false;
    for (int position = 0; (linear = linear_at(k->run, out->block, position, &index)); position++) {
        if (linear->input != out->input) continue;
        out->index[out->count] = index;
        out->w[out->count] = w->linear[position];
        if (k->outer->active[position]) out->g[out->count] = k->outer->h[position];
        if (scores_any(k->run)) out->slots[out->count] = grad_slots_at(k, position);
        bool mine = grad_in_round(k, position) && k->owner[position] == k->member;
        out->mine[out->count++] = mine;
        any = any || mine;
    }
    return any;
}

static enum rc measure_linears(struct grad_walker *k, int block, const struct block_weights *w, struct err *e) {
    const struct gram_walk *g = &k->g->gram;
    for (int input = 0; input < INPUT_HEAD; input++) {
        struct gram_input in = {.block = block,
                                .input = (enum linear_input)input,
                                .h = k->h->h[input],
                                .h_w = k->h_w->h[input],
                                .mean_abs = k->h->mean_abs[input],
                                .candidates = {0, g->candidates}};
        if (scores_any(k->run)) in.candidates = k->round.candidates;
        if (gather_input(k, w, &in)) TRY(g->input(g->ctx, k->job, &in, e));
    }
    return RC_OK;
}

/* --- rounds --- */

/* Or none is left. */
static enum rc measure_next(struct grad_walker *k, int block, const struct block_weights *w, struct err *e) {
    bool shares = scores_any(k->run) && k->run->devices > 1;
    if (!rounds_next(&k->run->plan, block, &k->round)) return RC_OK;
    grad_place_slots(k, block);
    if (shares) TRY(grad_clear_others(k, e));
    TRY(measure_linears(k, block, w, e));
    return shares ? meet(k, grad_share_slots, e) : RC_OK;
}

/* What was measured has been scored. */
static enum rc end_round(void *ctx, int block, const struct block_weights *w, struct err *e) {
    struct grad_walker *k = ctx;
    TRY(grad_hand_scores(k, block, e));
    return measure_next(k, block, w, e);
}

static enum rc end_block(void *ctx, int block, const struct block_weights *w, struct err *e) {
    struct grad_walker *k = ctx;
    k->round = (struct round){0};
    TRY(finish_grams(k, e));
    TRY(measure_next(k, block, w, e));
    for (int64_t left = k->run->keeps ? k->run->rounds[block] : 0; left > 0; left--) {
        TRY(grad_score_kept(k, block, e));
        TRY(end_round(k, block, w, e));
    }
    return RC_OK;
}

/* --- the walk --- */

static enum rc show_block(void *ctx, int block, int next, struct block_weights *w, struct err *e) {
    (void)next;
    const struct grad_walker *k = ctx;
    return packed_store_show(k->g->around, k->job, block, &k->shown, w, e);
}

/* The store is there once for all devices. */
static int64_t held_bytes(const struct grad_walker *k) {
    int64_t store = k->g->around ? packed_store_bytes(k->g->around) / k->run->devices : 0;
    return k->h->bytes + k->h_w->bytes + k->outer->bytes + (int64_t)k->bytes + store;
}

static enum rc walk_back(struct grad_walker *k, struct err *e) {
    const struct grad_walk *g = k->g;
    bool again = scores_any(k->run) && !k->run->keeps;
    struct reverse_hooks hooks = {.ctx = k,
                                  .weights = g->around ? show_block : NULL,
                                  .begin = begin_block,
                                  .linear = add_input,
                                  .end = end_block,
                                  .linear_again = again ? grad_add_score : NULL,
                                  .done = again ? end_round : NULL};
    struct reverse_walk walk = {.job = k->job,
                                .model = k->run->model,
                                .windows = g->gram.windows,
                                .first_block = k->run->first_block,
                                .seed = g->seed,
                                .again = g->scored,
                                .rounds = k->run->rounds,
                                .part = k->member,
                                .parts = k->run->devices,
                                .hooks = &hooks,
                                .reserved = held_bytes(k) + g->gram.reserved,
                                .device_reserved = g->gram.device_reserved,
                                .phase = g->gram.phase,
                                .tokens_before = g->tokens_before,
                                .tokens_total = g->tokens_total,
                                .tally = &k->run->steps};
    return reverse_walk_run(&walk, e);
}

static enum rc run_member(void *ctx, int member, const struct job *job, struct err *e) {
    struct grad_run *run = ctx;
    struct grad_walker *k = &run->walkers[member];
    *k = (struct grad_walker){.run = run,
                              .g = run->g,
                              .job = job,
                              .member = member,
                              .reserve = reserve_of(job),
                              .h = &run->h[member],
                              .h_w = &run->h_w[member],
                              .outer = &run->outer[member]};
    enum rc rc = walker_open(k, e);
    if (rc == RC_OK) rc = walk_back(k, e);
    walker_release(k);
    return rc;
}

static void note_linear(struct grad_run *run, const struct linear *linear, int position) {
    int64_t *width = &run->width[linear->input], *rows = &run->rows[position];
    if (linear->cols > *width) *width = linear->cols;
    if (linear->rows > *rows) *rows = linear->rows;
}

static void find_wanted(struct grad_run *run) {
    run->first_block = run->model->arch.blocks;
    for (int block = run->model->arch.blocks - 1; block >= 0; block--) {
        int64_t index;
        const struct linear *linear;
        for (int position = 0; (linear = linear_at(run, block, position, &index)); position++) {
            if (!is_wanted(run, index)) continue;
            note_linear(run, linear, position);
            run->first_block = block;
        }
    }
}

static struct grams *grams_of_all(const struct grad_run *run) {
    return xcalloc((size_t)run->devices, sizeof(struct grams));
}

static int64_t clamp(int64_t value, int64_t least, int64_t most) {
    value = value < most ? value : most;
    return value > least ? value : least;
}

static struct rounds plan_of(const struct grad_walk *g, int64_t bytes) {
    struct rounds plan = {.model = g->gram.model,
                          .wanted = g->gram.wanted,
                          .candidates = g->scored > 0 ? g->gram.candidates : 0,
                          .value_size = dtype_size(g->gram.job->backend->activation)};
    plan.bytes = clamp(bytes, rounds_least_bytes(&plan), rounds_most_bytes(&plan));
    return plan;
}

static struct grad_run measured_run(const struct grad_walk *g, struct rounds plan) {
    struct grad_run run = {.g = g, .model = g->gram.model, .devices = team_size(g->gram.job), .plan = plan};
    int64_t scored = g->scored, count = g->gram.windows->count;
    find_wanted(&run);
    run.chunk = walk_chunk(g->gram.job, g->gram.windows);
    run.windows = ((scored < count ? scored : count) + run.chunk - 1) / run.chunk * run.chunk;
    return run;
}

/* Of a device on which nothing of it is open yet. Operations of large models hardly work in all that is reserved for
 * them, and hold some of it already. */
static int64_t whole_bytes(struct grad_run *run, const struct job *job) {
    static const int64_t worked_in = 512 << 20;
    struct grad_walker k = {.run = run, .g = run->g, .job = job, .reserve = reserve_of(job)};
    if (k.reserve > worked_in) k.reserve = worked_in;
    struct grams_args asked[GRAM_KINDS];
    int64_t bytes = (int64_t)lay_out(&k, NULL) + yet_to_take(&k);
    ask_grams(&k, asked);
    for (int i = 0; i < GRAM_KINDS; i++)
        bytes += grams_bytes(&asked[i]);
    return run->g->around ? bytes + (int64_t)replaced_bytes(job, run->model) : bytes;
}

int64_t grad_walk_differences(const struct grad_walk *g, int64_t most) {
    struct rounds plan = plan_of(g, most), none = plan;
    none.bytes = 0;
    struct grad_run run = measured_run(g, none);
    int64_t bytes = plan.bytes;
    for (int i = run.devices - 1; i >= 0; i--) {
        struct job job = team_job(g->gram.job, i);
        if (!job.backend->own_memory) continue;
        int64_t room = job.backend->room(job.device) - whole_bytes(&run, &job);
        bytes = clamp(bytes, 0, room);
    }
    return plan_of(g, bytes).bytes;
}

int64_t grad_walk_rounds(const struct grad_walk *g, int64_t differences) {
    struct rounds plan = plan_of(g, differences);
    int64_t most = 0;
    for (int block = 0; block < g->gram.model->arch.blocks; block++)
        most = clamp(most, rounds_count(&plan, block), INT64_MAX);
    return most;
}

static void count_rounds(struct grad_run *run) {
    run->rounds = xcalloc((size_t)run->model->arch.blocks, sizeof *run->rounds);
    for (int block = 0; block < run->model->arch.blocks; block++)
        run->rounds[block] = rounds_count(&run->plan, block);
}

enum rc grad_walk_run(const struct grad_walk *g, struct err *e) {
    struct grad_run run = measured_run(g, plan_of(g, g->differences > 0 ? g->differences : INT64_MAX));
    if (run.first_block == run.model->arch.blocks) return RC_OK;
    count_rounds(&run);
    run.h = grams_of_all(&run);
    run.h_w = grams_of_all(&run);
    run.outer = grams_of_all(&run);
    run.walkers = xcalloc((size_t)run.devices, sizeof *run.walkers);
    run.scores = xcalloc((size_t)(grad_slots(&run) * run.windows) + 1, sizeof *run.scores);
    enum rc rc = team_run(g->gram.job, run_member, &run, e);
    free(run.rounds);
    free(run.h);
    free(run.h_w);
    free(run.outer);
    free(run.walkers);
    free(run.scores);
    return rc;
}
