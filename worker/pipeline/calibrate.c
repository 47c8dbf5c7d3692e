#include "worker/pipeline/calibrate.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/fold.h"
#include "worker/pipeline/gradwalk.h"
#include "worker/pipeline/grams.h"
#include "worker/pipeline/replaced.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

static const char row_phase[] = "_linear";

struct calibrator {
    const struct calibrate_args *a;
    const struct job *job;
    const struct model *model;
    struct calibration_plan plan;
    struct grams grams;
    struct replaced replaced;     /* what the stream sees, when sequential */
    struct calibrated_block made; /* the block at hand */
};

struct calibration_plan calibration_plan(const struct candidate *recipe, int64_t count) {
    struct calibration_plan plan = {0};
    int64_t plain = 0, sequential = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!candidate_needs_gram(&recipe[i])) continue;
        plan.needed = true;
        plan.guided = plan.guided || recipe[i].guided;
        *(recipe[i].sequential ? &sequential : &plain) += 1;
    }
    plan.sequential = sequential > 0 && !plan.guided;
    if (sequential > 0) plan.moved = plan.guided ? sequential : plain;
    return plan;
}

/* --- what reads which input --- */

static const struct candidate *head_recipe(const struct calibrator *k) {
    return &k->a->recipe[k->model->linear_count - 1];
}

static bool linear_needs_gram(const struct calibrator *k, int block, int position) {
    return candidate_needs_gram(&k->a->recipe[k->model->blocks[block].linears[position]]);
}

/* Those of a block's inputs whose H is looked at. */
static void wanted_inputs(const struct calibrator *k, int block, bool wanted[INPUT_COUNT]) {
    const struct linear *linear;
    for (int position = 0; (linear = block_linear(k->model, block, position)); position++)
        if (linear_needs_gram(k, block, position)) wanted[linear->input] = true;
}

static enum rc begin_inputs(struct calibrator *k, int block, struct err *e) {
    bool wanted[INPUT_COUNT] = {0};
    wanted_inputs(k, block, wanted);
    return grams_begin(&k->grams, wanted, e);
}

/* In stages, one after the other. */
static enum rc begin_input(struct calibrator *k, int block, enum linear_input input, struct err *e) {
    bool all[INPUT_COUNT] = {0}, wanted[INPUT_COUNT] = {0};
    wanted_inputs(k, block, all);
    wanted[input] = all[input];
    return grams_begin(&k->grams, wanted, e);
}

/* --- the Linears of one input --- */

/* In hand: what is made of them, and from what. */
struct hand {
    struct calibrator *k;
    struct calibrated_linear *linears; /* [group.count] of the block at hand */
    struct input_group group;
    struct awq_scale scale;
    struct fold fold;
};

static bool is_scaled(const struct hand *h) {
    return h->scale.by_col != NULL;
}

static bool wants_awq(const struct hand *h) {
    for (int i = 0; i < h->group.count; i++)
        if (candidate_uses_awq(&h->linears[i].candidate)) return true;
    return false;
}

static enum rc scale_group(struct hand *h, struct err *e) {
    const struct candidate *candidates[BLOCK_LINEARS_MAX];
    for (int i = 0; i < h->group.count; i++)
        candidates[i] = &h->linears[i].candidate;
    TRY(awq_search(&h->group, candidates, &h->scale, e));
    return is_scaled(h) ? fold_scale(&h->fold, &h->group, &h->scale, e) : RC_OK;
}

/* Kept in 16 bits: as it is, or with the scale in it. */
static enum rc keep_linear(struct hand *h, struct calibrated_linear *l, struct err *e) {
    if (!is_scaled(h)) return RC_OK;
    int64_t cols = l->linear->cols;
    TRY(stored_copy(&l->weight, l->linear->weight, e));
    float *by_col = xcalloc((size_t)cols, sizeof *by_col);
    for (int64_t k = 0; k < cols; k++)
        by_col[k] = (float)h->scale.by_channel[k];
    stored_scale_columns(&l->weight, cols, by_col);
    free(by_col);
    return RC_OK;
}

static void take_note(struct hand *h, bool awq, struct calibrated_linear *l) {
    l->note = (struct calibration_note){
        .awq = awq, .scaled = is_scaled(h), .ratio = h->scale.ratio, .duo = h->scale.duo, .gain = h->scale.gain};
    if (candidate_uses_gptq(&l->candidate)) l->note.damp = group_gram(&h->group, &h->scale, &l->candidate)->factor.damp;
}

static enum rc make_linear(struct hand *h, int i, struct err *e) {
    const struct job *job = h->k->job;
    struct calibrated_linear *l = &h->linears[i];
    if (l->candidate.method == METHOD_NONE) return keep_linear(h, l, e);
    const struct candidate c = candidate_for(&l->candidate, l->linear);
    struct group_quantize_args a = {.group = &h->group, .index = i, .candidate = &c, .scale = &h->scale, .out = &l->q};
    TRY(quantized_alloc(job->backend, job->device, l->linear->rows, l->linear->cols, &l->candidate, &l->q, e));
    return group_quantize(&a, 1, e);
}

static enum rc make_group(struct hand *h, struct err *e) {
    bool awq = wants_awq(h);
    if (awq) TRY(scale_group(h, e));
    for (int i = 0; i < h->group.count; i++) {
        if (make_linear(h, i, e) != RC_OK) return err_context(e, "%s", h->linears[i].linear->name);
        take_note(h, awq, &h->linears[i]);
    }
    return RC_OK;
}

static enum linear_input input_at(const struct calibrator *k, int position) {
    return k->model->linears[k->made.linears[position].index].input;
}

/* The first position with this input. */
static int first_position(const struct calibrator *k, enum linear_input input) {
    int at = 0;
    while (at < k->made.count && input_at(k, at) != input)
        at++;
    return at;
}

/* From its H and the reference's weights: the block's Linears with this input become what they will be, and so does
 * what makes it. */
static enum rc make_input(struct calibrator *k, enum linear_input input, const struct input_group *from,
                          struct err *e) {
    struct hand h = {.k = k,
                     .linears = &k->made.linears[first_position(k, input)],
                     .fold = {k->job, k->model, &k->made, input},
                     .group = *from};
    h.group.foldable = h.group.foldable && fold_possible(&h.fold);
    enum rc rc = make_group(&h, e);
    awq_scale_release(k->job, &h.scale);
    input_group_release(&h.group);
    return rc;
}

/* `w`: by position. */
static enum rc calibrate_input(struct calibrator *k, enum linear_input input, const struct mat *w, struct err *e) {
    int at = first_position(k, input);
    struct input_group from = {.job = k->job, .w = &w[at], .mean_abs = k->grams.mean_abs[input]};
    while (at + from.count < k->made.count && input_at(k, at + from.count) == input)
        from.count++;
    if (k->grams.active[input]) from.gram.h = k->grams.h[input];
    input_group_fold(&from, k->model, k->made.block, input);
    return make_input(k, input, &from, e);
}

/* --- what the stream sees --- */

static enum rc show_linear(struct calibrator *k, int position, struct block_weights *seen, struct err *e) {
    const struct job *job = k->job;
    const struct calibrated_linear *l = &k->made.linears[position];
    struct mat *w = &seen->linear[position];
    TRY(replaced_put_vector(job, k->replaced.room.bias[position], &l->bias, &seen->bias[position], e));
    if (l->weight.values) return replaced_put_linear(&k->replaced, job, position, &l->weight, w, e);
    if (!l->q.codes) return RC_OK;
    *w = replaced_linear(&k->replaced, job, position, *w);
    return job->backend->dequantize(job->device, &(struct dequantize_args){.q = &l->q, .out = *w}, e);
}

/* The Linears with this input, and what makes it. */
static enum rc show_input(struct calibrator *k, enum linear_input input, struct block_weights *seen, struct err *e) {
    const struct fold fold = {k->job, k->model, &k->made, input};
    const struct block_weights *room = &k->replaced.room;
    int producer = fold_position(&fold);
    for (int position = 0; position < k->made.count; position++)
        if (k->made.linears[position].linear->input == input || position == producer)
            TRY(show_linear(k, position, seen, e));
    if (input == INPUT_ATTENTION)
        return replaced_put_vector(k->job, room->input_norm, &k->made.norm[input], &seen->input_norm, e);
    return replaced_put_vector(k->job, room->post_norm, &k->made.norm[INPUT_MLP], &seen->post_norm, e);
}

/* --- blocks --- */

static void add_linear(struct calibrator *k, int64_t index) {
    k->made.linears[k->made.count++] = (struct calibrated_linear){
        .linear = &k->model->linears[index], .index = index, .candidate = k->a->recipe[index]};
}

static void begin_made(struct calibrator *k, int block) {
    k->made = (struct calibrated_block){.block = block};
    for (int position = 0; block >= 0 && block_linear(k->model, block, position); position++)
        add_linear(k, k->model->blocks[block].linears[position]);
    if (block < 0) add_linear(k, k->model->linear_count - 1);
}

static void release_made(struct calibrator *k) {
    for (int i = 0; i < k->made.count; i++) {
        struct calibrated_linear *l = &k->made.linears[i];
        quantized_release(k->job->backend, k->job->device, &l->q);
        stored_release(&l->weight);
        stored_release(&l->bias);
    }
    for (int input = 0; input < INPUT_COUNT; input++)
        stored_release(&k->made.norm[input]);
    k->made = (struct calibrated_block){0};
}

json_t *calibrated_linear_json(const struct calibrated_linear *l) {
    char id[CANDIDATE_ID_SIZE];
    const struct calibration_note *n = &l->note;
    json_t *row = json_pack("{ss ss}", "name", l->linear->name, "candidate", candidate_id(&l->candidate, id));
    if (n->damp > 0) json_object_set_new(row, "damp", json_real(n->damp));
    if (n->awq)
        json_object_set_new(row, "awq",
                            n->scaled ? json_pack("{sf sb sf}", "ratio", n->ratio, "duo", n->duo, "gain", n->gain)
                                      : json_null());
    return row;
}

/* In model order, also where blocks come from the last one. */
static enum rc send_notes(const struct calibrator *k, struct err *e) {
    bool before = k->plan.guided && k->made.block >= 0;
    size_t at = before ? 0 : json_array_size(k->a->notes);
    for (int i = 0; i < k->made.count; i++) {
        const struct calibrated_linear *l = &k->made.linears[i];
        bool plain = l->candidate.method == METHOD_NONE && !l->note.scaled;
        if (plain) continue;
        json_t *row = calibrated_linear_json(l);
        json_array_insert_new(k->a->notes, at++, row);
        if (!job_row(k->job, row_phase, l->index)) TRY(emit_row(k->job, row_phase, l->index, row, NULL, e));
    }
    return RC_OK;
}

static enum rc hand_over(struct calibrator *k, struct err *e) {
    enum rc rc = k->a->sink->block(k->a->sink->ctx, k->job, &k->made, e);
    if (rc == RC_OK && k->a->notes) rc = send_notes(k, e);
    release_made(k);
    return rc;
}

void calibration_earlier_notes(const struct job *job, const struct model *model, json_t *notes) {
    for (int64_t i = 0; i < model->linear_count; i++) {
        const json_t *row = job_row(job, row_phase, i);
        if (row) json_array_append(notes, (json_t *)row);
    }
}

/* --- hooks --- */

static enum rc begin_block(void *ctx, int stream, int block, struct block_weights *seen, struct err *e) {
    (void)stream, (void)seen;
    struct calibrator *k = ctx;
    if (block < k->a->first) return RC_OK;
    begin_made(k, block);
    return k->plan.sequential ? begin_input(k, block, INPUT_ATTENTION, e) : begin_inputs(k, block, e);
}

static enum rc add_input(void *ctx, const struct site *site, enum linear_input input, struct mat x, struct err *e) {
    (void)site;
    struct calibrator *k = ctx;
    return grams_add(&k->grams, input, x, e);
}

static bool looks_at(void *ctx, int block, enum linear_input input) {
    bool wanted[INPUT_COUNT] = {0};
    wanted_inputs(ctx, block, wanted);
    return wanted[input];
}

static enum rc end_stage(void *ctx, int block, enum linear_input input, struct block_weights *seen, struct err *e) {
    struct calibrator *k = ctx;
    TRY(grams_finish(&k->grams, e));
    TRY(calibrate_input(k, input, seen->linear, e)); /* of this input they are the reference's still */
    TRY(show_input(k, input, seen, e));
    return input < INPUT_DOWN ? begin_input(k, block, input + 1, e) : RC_OK;
}

/* Its Linears all at once, from what is known of their inputs by now. */
static enum rc calibrate_block(struct calibrator *k, const struct block_weights *reference, struct err *e) {
    for (int input = INPUT_ATTENTION; input <= INPUT_DOWN; input++)
        TRY(calibrate_input(k, input, reference->linear, e));
    return RC_OK;
}

static enum rc end_block(void *ctx, int block, const struct block_weights *reference, struct err *e) {
    static const bool only_head[INPUT_COUNT] = {[INPUT_HEAD] = true};
    struct calibrator *k = ctx;
    if (block >= k->a->first && !k->plan.sequential) {
        TRY(grams_finish(&k->grams, e));
        TRY(calibrate_block(k, reference, e));
    }
    if (block >= k->a->first) TRY(hand_over(k, e));
    bool head_follows = block == k->model->arch.blocks - 1 && candidate_needs_gram(head_recipe(k));
    return head_follows ? grams_begin(&k->grams, only_head, e) : RC_OK;
}

static enum rc add_final(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    (void)window;
    struct calibrator *k = ctx;
    return grams_add(&k->grams, INPUT_HEAD, x[0], e);
}

static enum rc calibrate_head(struct calibrator *k, struct err *e) {
    struct mat w = {0};
    if (head_recipe(k)->method == METHOD_NONE) return RC_OK;
    bool looks = candidate_needs_gram(head_recipe(k));
    begin_made(k, -1);
    if (looks) TRY(grams_finish(&k->grams, e));
    enum rc rc = upload_linear(k->job, &k->model->linears[k->model->linear_count - 1], &w, e);
    if (rc == RC_OK) rc = calibrate_input(k, INPUT_HEAD, &w, e);
    if (w.data) k->job->backend->free(k->job->device, w.data);
    return rc == RC_OK ? hand_over(k, e) : rc;
}

/* --- the walk --- */

static bool any_candidate(const struct calibrator *k, bool (*is)(const struct candidate *)) {
    return candidates_any(k->a->recipe, (size_t)k->model->linear_count, is);
}

static bool uses_awq(const struct calibrator *k) {
    return any_candidate(k, candidate_uses_awq);
}

static struct grams_args grams_needed(const struct calibrator *k) {
    const struct windows *windows = k->a->windows;
    struct grams_args a = {.job = k->job,
                           .model = k->model,
                           .count = INPUT_COUNT,
                           .tokens = windows->count * windows->length,
                           .stats = uses_awq(k)};
    for (int64_t i = 0; i < k->model->linear_count; i++) {
        const struct linear *linear = &k->model->linears[i];
        if (!candidate_needs_gram(&k->a->recipe[i])) continue;
        if (linear->cols > a.width[linear->input]) a.width[linear->input] = linear->cols;
    }
    return a;
}

/* Beside what an input takes: the codes of a block and their parameters. */
static int64_t working_bytes(const struct calibrator *k) {
    int64_t codes = 0;
    const struct linear *linear;
    for (int position = 0; (linear = block_linear(k->model, 0, position)); position++)
        codes += linear->rows * linear->cols;
    return codes + codes / 2 + input_group_bytes(k->model, any_candidate(k, candidate_is_two_sided));
}

static enum rc walk_windows(struct calibrator *k, struct err *e) {
    const struct windows *windows = k->a->windows;
    bool head = candidate_needs_gram(head_recipe(k));
    struct walk_hooks hooks = {.ctx = k,
                               .weights = begin_block,
                               .input = add_input,
                               .stage = k->plan.sequential ? end_stage : NULL,
                               .looks = looks_at,
                               .block_end = end_block,
                               .final = head ? add_final : NULL};
    struct walk walk = {.job = k->job,
                        .model = k->plan.sequential && k->a->first > 0 ? k->a->made : k->model,
                        .windows = windows,
                        .count = windows->count,
                        .streams = 1,
                        .whole_blocks = k->a->first,
                        .last_block = head ? -1 : k->model->arch.blocks - 1,
                        .hooks = &hooks,
                        .reserved = k->grams.bytes + k->a->reserved,
                        .device_reserved = working_bytes(k),
                        .inputs_stay = !uses_awq(k),
                        .phase = "calibrate",
                        .tokens_total = windows->count * windows->length};
    bool nothing_left = k->a->first == k->model->arch.blocks && !head;
    if (!nothing_left) TRY(walk_run(&walk, e));
    return calibrate_head(k, e);
}

/* Inputs come as they do in a block. */
static enum rc calibrate_guided(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    struct calibrator *k = ctx;
    struct input_group from = gram_input_group(job, k->model, in);
    if (in->input == INPUT_ATTENTION) begin_made(k, in->block);
    TRY(make_input(k, in->input, &from, e));
    return in->input == INPUT_DOWN ? hand_over(k, e) : RC_OK;
}

/* On the first device, as every calibration. */
static enum rc walk_back(struct calibrator *k, struct err *e) {
    const struct calibrate_args *a = k->a;
    struct job alone = *k->job;
    alone.device_count = 1;
    bool *wanted = xcalloc((size_t)k->model->linear_count, sizeof *wanted);
    for (int64_t i = 0; i < k->model->linear_count; i++) {
        int block = k->model->linears[i].block;
        wanted[i] = block >= 0 && !(a->done && a->done[block]);
    }
    struct grad_walk g = {.gram = {.job = &alone,
                                   .model = k->model,
                                   .windows = a->windows,
                                   .phase = "calibrate",
                                   .wanted = wanted,
                                   .stats = uses_awq(k),
                                   .reserved = a->reserved,
                                   .device_reserved = working_bytes(k),
                                   .input = calibrate_guided,
                                   .ctx = k},
                          .unweighed = any_candidate(k, candidate_needs_unweighed_gram),
                          .guided = true,
                          .outer = any_candidate(k, candidate_is_two_sided),
                          .seed = (uint64_t)a->seed};
    enum rc rc = RC_OK;
    if (candidate_needs_gram(head_recipe(k)))
        rc = err_set(e, RC_UNSUPPORTED, "lm_head has no candidate that is calibrated where others are guided");
    if (rc == RC_OK) rc = grad_walk_run(&g, e);
    free(wanted);
    return rc == RC_OK ? calibrate_head(k, e) : rc;
}

/* Without windows: what is quantized follows from the weights alone. */
static enum rc quantize_blocks(struct calibrator *k, struct block *b, struct err *e) {
    int blocks = k->model->arch.blocks;
    for (int block = k->a->first; block < blocks; block++) {
        TRY(emit_progress(k->job, "quantize", block, blocks, "blocks", e));
        TRY(block_load(b, block, e));
        TRY(k->job->backend->loaded(k->job->device, e));
        begin_made(k, block);
        TRY(calibrate_block(k, &b->weights, e));
        TRY(hand_over(k, e));
    }
    return emit_progress(k->job, "quantize", blocks, blocks, "blocks", e);
}

static enum rc walk_weights(struct calibrator *k, struct err *e) {
    struct block b;
    enum rc rc = block_open(k->job, k->model, k->model->arch.blocks - 1, &b, e);
    if (rc == RC_OK) rc = quantize_blocks(k, &b, e);
    block_close(&b);
    return rc == RC_OK ? calibrate_head(k, e) : rc;
}

enum rc calibrate(const struct calibrate_args *a, struct err *e) {
    struct calibrator k = {.a = a,
                           .job = a->job,
                           .model = a->model,
                           .plan = calibration_plan(a->recipe, a->model->linear_count),
                           .grams.job = a->job};
    if (!k.plan.needed || k.plan.guided) {
        enum rc rc = k.plan.guided ? walk_back(&k, e) : walk_weights(&k, e);
        release_made(&k);
        return rc;
    }
    struct grams_args grams = grams_needed(&k);
    enum rc rc = grams_open(&k.grams, &grams, e);
    if (rc == RC_OK && k.plan.sequential) rc = replaced_open(a->job, a->model, &k.replaced, e);
    if (rc == RC_OK) rc = walk_windows(&k, e);
    release_made(&k);
    replaced_release(a->job, &k.replaced);
    grams_release(&k.grams);
    return rc;
}
