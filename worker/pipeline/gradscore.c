#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/pipeline/carve.h"
#include "worker/pipeline/gradrun.h"

struct gram_slot *grad_slots_at(const struct grad_walker *k, int position) {
    return &k->slots[(size_t)position * k->run->plan.candidates];
}

bool grad_in_round(const struct grad_walker *k, int position) {
    return position >= k->round.first && position < k->round.end;
}

void grad_place_slots(struct grad_walker *k, int block) {
    struct carve c = {.base = k->differences};
    enum dtype type = k->job->backend->activation;
    int64_t index;
    memset(k->slots, 0, (size_t)grad_slots(k->run) * sizeof *k->slots);
    for (int position = k->round.first; position < k->round.end; position++) {
        const struct linear *linear = linear_at(k->run, block, position, &index);
        for (size_t i = k->round.candidates.first; is_wanted(k->run, index) && i < k->round.candidates.end; i++) {
            void *values = carve(&c, (size_t)(linear->rows * linear->cols) * dtype_size(type));
            grad_slots_at(k, position)[i].d = (struct mat){values, linear->rows, linear->cols, linear->cols, type};
        }
    }
}

/* --- what was made, to all devices --- */

enum rc grad_clear_others(struct grad_walker *k, struct err *e) {
    for (int position = k->round.first; position < k->round.end; position++)
        for (size_t i = 0; i < k->run->plan.candidates; i++) {
            struct mat d = grad_slots_at(k, position)[i].d;
            if (!d.data || k->owner[position] == k->member) continue;
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

enum rc grad_share_slots(void *ctx, struct err *e) {
    struct grad_run *run = ctx;
    enum rc rc = RC_OK;
    struct mat *parts = xcalloc((size_t)run->devices, sizeof *parts);
    for (int64_t slot = 0; rc == RC_OK && slot < grad_slots(run); slot++)
        rc = share_slot(run, slot, parts, e);
    free(parts);
    return rc;
}

/* --- scores --- */

/* What a chunk from this window has of every candidate. */
static enum rc score_linear(struct grad_walker *k, int position, struct mat x, struct mat g, int64_t window,
                            struct err *e) {
    for (size_t i = 0; i < k->run->plan.candidates; i++) {
        const struct gram_slot *slot = &grad_slots_at(k, position)[i];
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
enum rc grad_add_score(void *ctx, const struct linear_gradient *at, struct err *e) {
    return score_linear(ctx, at->position, at->x, at->g, at->site->window, e);
}

static enum rc score_kept_linear(struct grad_walker *k, int block, int position, struct err *e) {
    int64_t index;
    const struct linear *linear = linear_at(k->run, block, position, &index);
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

/* Or none. */
enum rc grad_score_kept(struct grad_walker *k, int block, struct err *e) {
    for (int position = k->round.first; position < k->round.end; position++)
        TRY(score_kept_linear(k, block, position, e));
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
    int64_t count = grad_slots(k->run) * k->run->windows;
    TRY(k->job->backend->download(k->job->device, k->sums, (size_t)count * sizeof *k->scores, k->scores, e));
    for (int64_t i = 0; i < count; i++)
        if (is_own(k, i % k->run->windows)) k->run->scores[i] = k->scores[i];
    return RC_OK;
}

/* The others may go on: what is handed out is written again when all have met after the next round's measuring. */
enum rc grad_hand_scores(struct grad_walker *k, int block, struct err *e) {
    int64_t index;
    TRY(gather_scores(k, e));
    TRY(meet(k, NULL, e));
    for (int position = 0; k->member == 0 && linear_at(k->run, block, position, &index); position++)
        for (size_t i = 0; i < k->run->plan.candidates; i++) {
            const struct gram_slot *slot = &grad_slots_at(k, position)[i];
            if (!slot->filled) continue;
            TRY(k->g->score(k->g->gram.ctx, k->job, index, i, fisher_of(k->run, slot - k->slots), e));
        }
    return RC_OK;
}
