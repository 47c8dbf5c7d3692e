#include "worker/pipeline/gradwalk.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/pipeline/carve.h"
#include "worker/pipeline/divide.h"
#include "worker/pipeline/grams.h"
#include "worker/pipeline/kept_inputs.h"
#include "worker/pipeline/reverse.h"
#include "worker/pipeline/team.h"
#include "worker/pipeline/walk.h"

/* One walk, on however many devices. */
struct grad_run {
    const struct grad_walk *g;
    const struct model *model;
    int devices, first_block;        /* that has a wanted Linear */
    int64_t width[INPUT_COUNT];      /* the widest K of a wanted Linear with this input */
    int64_t rows[BLOCK_LINEARS_MAX]; /* the widest N of a wanted Linear at this position */
    int64_t most_weights;            /* of a block's wanted Linears */
    int64_t chunk, windows;          /* windows of one; that are scored, and those that fill their last chunk */
    struct grams *h, *h_w, *outer;   /* [devices]; without widths where they are not asked for */
    struct grad_walker *walkers;     /* [devices] */
    double *scores;                  /* [slots of a block, windows] by whoever has the window */
    bool keeps;                      /* what is scored, instead of another pass */
    _Atomic int64_t steps;
};

/* One device's part of it. */
struct grad_walker {
    struct grad_run *run;
    const struct grad_walk *g;
    const struct job *job; /* on the device */
    int member;
    struct grams *h, *h_w, *outer;
    struct kept_inputs kept;
    struct replaced shown;        /* what the walk sees of a block, where it is around a quantized model */
    int owner[BLOCK_LINEARS_MAX]; /* of the block: which device measures */
    bool inputs[INPUT_COUNT];     /* of the block: that wanted Linears read */
    bool fits;                    /* what would be kept */
    int64_t reserve;              /* of the device's room, for operations' workspaces */
    void *memory;                 /* [bytes] on the device: the next six */
    size_t bytes;
    char *differences;       /* of a block's wanted Linears, [candidates, N, K] each, activation type */
    double *norms;           /* [T] Σ‖g‖² of a chunk */
    float *roots;            /* [T] */
    void *weighed;           /* [T, K] of the widest, activation type */
    double *sums;            /* [slots of a block, windows] on the device */
    double *squares;         /* [windows] that no one reads */
    double *scores;          /* as sums, on the host */
    struct gram_slot *slots; /* [BLOCK_LINEARS_MAX, candidates] of the block */
};

static const struct linear *linear_at(const struct grad_run *run, int block, int position, int64_t *index) {
    const struct linear *linear = block_linear(run->model, block, position);
    *index = linear ? linear - run->model->linears : -1;
    return linear;
}

static bool is_wanted(const struct grad_run *run, int64_t index) {
    return run->g->gram.wanted[index];
}

static int64_t chunk_tokens(const struct grad_run *run) {
    return run->chunk * run->g->gram.windows->length;
}

static int64_t slot_count(const struct grad_run *run) {
    return (int64_t)run->g->candidates * BLOCK_LINEARS_MAX;
}

static bool scores_any(const struct grad_run *run) {
    return run->g->candidates > 0 && run->windows > 0;
}

/* Chunks go round: the reverse walk's order. Of the scored ones. */
static int64_t own_chunks(const struct grad_walker *k) {
    return (k->run->windows / k->run->chunk - k->member + k->run->devices - 1) / k->run->devices;
}

static bool is_own(const struct grad_walker *k, int64_t window) {
    return window / k->run->chunk % k->run->devices == k->member;
}

/* All devices have come; then one does `last`. */
static enum rc meet(struct grad_walker *k, enum rc (*last)(void *ctx, struct err *e), struct err *e) {
    if (k->run->devices > 1) return team_meet(k->job->team, last, k->run, e);
    return last ? last(k->run, e) : RC_OK;
}

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
    size_t gaps = (size_t)slot_count(run) * 256; /* between matrices */
    k->differences = carve(&c, k->g->candidates * (size_t)run->most_weights * value + gaps);
    k->sums = carve(&c, (size_t)(slot_count(run) * run->windows) * sizeof(double));
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
        asked[i] = (struct grams_args){.job = k->job, .count = INPUT_COUNT, .tokens = windows->count * windows->length};
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
    k->slots = xcalloc((size_t)slot_count(run) + 1, sizeof *k->slots);
    k->scores = xcalloc((size_t)(slot_count(run) * run->windows) + 1, sizeof *k->scores);
    TRY(open_grams(k, e));
    k->bytes = lay_out(k, NULL);
    if (k->job->backend->alloc(k->job->device, k->bytes, &k->memory, e) != RC_OK)
        return err_context(e, "what %zu candidate%s of one block's Linears", k->g->candidates,
                           k->g->candidates == 1 ? " makes" : "s make");
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

static struct gram_slot *slots_at(const struct grad_walker *k, int position) {
    return &k->slots[(size_t)position * k->g->candidates];
}

static void place_slots(struct grad_walker *k, int block) {
    struct carve c = {.base = k->differences};
    enum dtype type = k->job->backend->activation;
    const struct linear *linear;
    int64_t index;
    memset(k->slots, 0, (size_t)slot_count(k->run) * sizeof *k->slots);
    for (int position = 0; (linear = linear_at(k->run, block, position, &index)); position++)
        for (size_t i = 0; is_wanted(k->run, index) && i < k->g->candidates; i++) {
            void *values = carve(&c, (size_t)(linear->rows * linear->cols) * dtype_size(type));
            slots_at(k, position)[i].d = (struct mat){values, linear->rows, linear->cols, linear->cols, type};
        }
}

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
    place_slots(k, block);
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
        if (k->g->candidates > 0) out->slots[out->count] = slots_at(k, position);
        out->mine[out->count++] = k->owner[position] == k->member;
        any = any || k->owner[position] == k->member;
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
                                .mean_abs = k->h->mean_abs[input]};
        if (gather_input(k, w, &in)) TRY(g->input(g->ctx, k->job, &in, e));
    }
    return RC_OK;
}

/* --- what was made gets to all devices: others bring zeros to a sum --- */

static enum rc clear_others(struct grad_walker *k, int block, struct err *e) {
    int64_t index;
    for (int position = 0; linear_at(k->run, block, position, &index); position++)
        for (size_t i = 0; is_wanted(k->run, index) && i < k->g->candidates; i++) {
            struct mat d = slots_at(k, position)[i].d;
            if (k->owner[position] == k->member) continue;
            TRY(k->job->backend->clear(k->job->device, d.data, (size_t)(d.rows * d.cols) * dtype_size(d.type), e));
        }
    return RC_OK;
}

static enum rc share_slot(struct grad_run *run, int64_t slot, struct mat *parts, struct err *e) {
    const struct job *job = run->g->gram.job;
    bool any = false;
    for (int i = 0; i < run->devices; i++)
        any = any || run->walkers[i].slots[slot].filled;
    if (!any) return RC_OK;
    for (int i = 0; i < run->devices; i++) {
        run->walkers[i].slots[slot].filled = true;
        parts[i] = run->walkers[i].slots[slot].d;
    }
    return job->backend->combine(&(struct combine_args){.states = job->devices, .parts = parts, .count = run->devices},
                                 e);
}

static enum rc share_slots(void *ctx, struct err *e) {
    struct grad_run *run = ctx;
    enum rc rc = RC_OK;
    struct mat *parts = xcalloc((size_t)run->devices, sizeof *parts);
    for (int64_t slot = 0; rc == RC_OK && slot < slot_count(run); slot++)
        rc = share_slot(run, slot, parts, e);
    free(parts);
    return rc;
}

/* --- scores --- */

/* What a chunk from this window has of every candidate. */
static enum rc score_linear(struct grad_walker *k, int position, struct mat x, struct mat g, int64_t window,
                            struct err *e) {
    for (size_t i = 0; i < k->g->candidates; i++) {
        const struct gram_slot *slot = &slots_at(k, position)[i];
        if (!slot->filled) continue;
        struct fisher_args a = {.x = x,
                                .g = g,
                                .d = slot->d,
                                .length = k->g->gram.windows->length,
                                .sum = k->sums + (slot - k->slots) * k->run->windows + window,
                                .squares = k->squares};
        TRY(k->job->backend->fisher(k->job->device, &a, e));
    }
    return RC_OK;
}

/* The second visit of the block. */
static enum rc add_score(void *ctx, const struct linear_gradient *at, struct err *e) {
    return score_linear(ctx, at->position, at->x, at->g, at->site->window, e);
}

/* Or none. */
static enum rc score_kept(struct grad_walker *k, int block, struct err *e) {
    int64_t index;
    const struct linear *linear;
    for (int position = 0; (linear = linear_at(k->run, block, position, &index)); position++)
        for (int64_t chunk = 0; is_wanted(k->run, index) && chunk < own_chunks(k); chunk++) {
            struct mat x = kept_input(&k->kept, chunk, linear);
            struct mat g = kept_gradient(&k->kept, chunk, position, linear);
            int64_t window = (chunk * k->run->devices + k->member) * k->run->chunk;
            if (job_cancelled(k->job)) return err_set(e, RC_CANCELLED, "cancelled");
            TRY(score_linear(k, position, x, g, window, e));
            TRY(k->job->backend->keep_pace(k->job->device, e));
        }
    return RC_OK;
}

/* In the order of windows, whoever had them. */
static double fisher_of(const struct grad_run *run, int64_t slot) {
    struct windows scored = *run->g->gram.windows;
    double sum = 0;
    if (run->g->scored < scored.count) scored.count = run->g->scored;
    for (int64_t window = 0; window < scored.count; window++)
        sum += run->scores[slot * run->windows + window];
    int64_t tokens = reverse_scored(&scored);
    return tokens > 0 ? sum / 2 / (double)tokens : 0;
}

double kfac_score(const struct windows *windows, double trace) {
    double tokens = (double)(windows->count * windows->length), scored = (double)reverse_scored(windows);
    return scored > 0 ? trace / 2 / tokens / scored : 0;
}

/* The scores of one's own windows, to where all are. */
static enum rc gather_scores(struct grad_walker *k, struct err *e) {
    int64_t count = slot_count(k->run) * k->run->windows;
    TRY(k->job->backend->download(k->job->device, k->sums, (size_t)count * sizeof *k->scores, k->scores, e));
    for (int64_t i = 0; i < count; i++)
        if (is_own(k, i % k->run->windows)) k->run->scores[i] = k->scores[i];
    return RC_OK;
}

/* The others may begin the next block: what is handed out is written again when all have met at its end. */
static enum rc hand_scores(void *ctx, int block, const struct block_weights *w, struct err *e) {
    (void)w;
    struct grad_walker *k = ctx;
    int64_t index;
    TRY(gather_scores(k, e));
    TRY(meet(k, NULL, e));
    for (int position = 0; k->member == 0 && linear_at(k->run, block, position, &index); position++)
        for (size_t i = 0; i < k->g->candidates; i++) {
            const struct gram_slot *slot = &slots_at(k, position)[i];
            if (!slot->filled) continue;
            TRY(k->g->score(k->g->gram.ctx, k->job, index, i, fisher_of(k->run, slot - k->slots), e));
        }
    return RC_OK;
}

static enum rc end_block(void *ctx, int block, const struct block_weights *w, struct err *e) {
    struct grad_walker *k = ctx;
    TRY(finish_grams(k, e));
    bool shares = scores_any(k->run) && k->run->devices > 1;
    if (shares) TRY(clear_others(k, block, e));
    TRY(measure_linears(k, block, w, e));
    if (shares) TRY(meet(k, share_slots, e));
    if (!k->run->keeps) return RC_OK;
    TRY(score_kept(k, block, e));
    return hand_scores(k, block, w, e);
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
                                  .linear_again = again ? add_score : NULL,
                                  .done = again ? hand_scores : NULL};
    struct reverse_walk walk = {.job = k->job,
                                .model = k->run->model,
                                .windows = g->gram.windows,
                                .first_block = k->run->first_block,
                                .seed = g->seed,
                                .again = g->scored,
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
        int64_t index, weights = 0;
        const struct linear *linear;
        for (int position = 0; (linear = linear_at(run, block, position, &index)); position++) {
            if (!is_wanted(run, index)) continue;
            note_linear(run, linear, position);
            weights += linear->rows * linear->cols;
        }
        if (weights > 0) run->first_block = block;
        if (weights > run->most_weights) run->most_weights = weights;
    }
}

static struct grams *grams_of_all(const struct grad_run *run) {
    return xcalloc((size_t)run->devices, sizeof(struct grams));
}

static struct grad_run measured_run(const struct grad_walk *g) {
    struct grad_run run = {.g = g, .model = g->gram.model, .devices = team_size(g->gram.job)};
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

bool grad_walk_fits(const struct grad_walk *g) {
    struct grad_run run = measured_run(g);
    bool fits = true;
    for (int i = run.devices - 1; i >= 0; i--) {
        struct job job = team_job(g->gram.job, i);
        fits = fits && (!job.backend->own_memory || whole_bytes(&run, &job) <= job.backend->room(job.device));
    }
    return fits;
}

enum rc grad_walk_run(const struct grad_walk *g, struct err *e) {
    struct grad_run run = measured_run(g);
    if (run.most_weights == 0) return RC_OK;
    run.h = grams_of_all(&run);
    run.h_w = grams_of_all(&run);
    run.outer = grams_of_all(&run);
    run.walkers = xcalloc((size_t)run.devices, sizeof *run.walkers);
    run.scores = xcalloc((size_t)(slot_count(&run) * run.windows) + 1, sizeof *run.scores);
    enum rc rc = team_run(g->gram.job, run_member, &run, e);
    free(run.h);
    free(run.h_w);
    free(run.outer);
    free(run.walkers);
    free(run.scores);
    return rc;
}
