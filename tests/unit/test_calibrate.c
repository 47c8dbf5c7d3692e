/* Calibration: a fold leaves the model's function as it is, whatever the family stores together; what is sequential is
 * quantized from the H of the model quantized so far; and what the store shows is what the calibration saw. */
#include "tests/unit/golden_model.h"

#include "base/mem.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/fold.h"
#include "worker/pipeline/grams.h"
#include "worker/pipeline/gramwalk.h"
#include "worker/pipeline/packed_store.h"
#include "worker/pipeline/upload.h"

/* GQA in all; fused projections, biases, a q/k norm, multipliers, a head wider than hidden / heads. */
static const char *const families[] = {"llama", "phi3",    "phi4-mini",  "qwen2",
                                       "qwen3", "granite", "llama-bias", "llama-head-dim"};
enum { FAMILIES = sizeof families / sizeof *families };

/* --- the fold alone --- */

static void begin_block(const struct golden *g, int block, struct calibrated_block *made) {
    *made = (struct calibrated_block){.block = block};
    for (int i = 0; i < BLOCK_LINEARS_MAX && g->model->blocks[block].linears[i] >= 0; i++) {
        int index = g->model->blocks[block].linears[i];
        made->linears[made->count++] = (struct calibrated_linear){
            .linear = &g->model->linears[index], .index = index, .candidate = candidate_default(METHOD_NONE, 16, 0)};
    }
}

static void release_block(struct calibrated_block *made) {
    for (int i = 0; i < made->count; i++) {
        stored_release(&made->linears[i].weight);
        stored_release(&made->linears[i].bias);
    }
    for (int input = 0; input < INPUT_COUNT; input++)
        stored_release(&made->norm[input]);
}

static int64_t width_of(const struct calibrated_block *made, enum linear_input input) {
    for (int i = 0; i < made->count; i++)
        if (made->linears[i].linear->input == input) return made->linears[i].linear->cols;
    fail_msg("no Linear reads input %d", (int)input);
    return 0;
}

static void *device_memory(struct golden *g, int64_t bytes) {
    void *memory;
    golden_must(g, backend_cpu.alloc(g->job.device, (size_t)bytes, &memory, &g->err));
    memset(memory, 0, (size_t)bytes);
    return memory;
}

/* Anything from a quarter to four, equal where channels are tied, that the norm can be divided by where there is one.
 */
static void make_up_scale(struct golden *g, int64_t cols, const struct input_group *group, struct awq_scale *s) {
    const struct channel_ties *t = &group->ties;
    *s = (struct awq_scale){.by_channel = xcalloc((size_t)cols, sizeof *s->by_channel)};
    for (int64_t k = 0; k < cols; k++) {
        int64_t head = t->repeats > 1 ? k / t->width : 0,
                first = k - head % (t->repeats > 1 ? t->repeats : 1) * t->width;
        s->by_channel[k] = first < k ? s->by_channel[first] : exp2(4 * golden_uniform(g) - 2);
    }
    if (group->norm) golden_must(g, fold_round_scale(group->norm, s->by_channel, &g->err));
}

/* Whatever the norm is stored in, what it was divided by is what the columns are multiplied with. */
static void check_norm(const struct golden *g, const struct calibrated_block *made, enum linear_input input,
                       const struct awq_scale *s) {
    const struct block_tensors *b = &g->model->blocks[made->block];
    struct stored old = {0};
    struct err e;
    assert_int_equal(stored_copy(&old, input == INPUT_MLP ? b->post_norm : b->input_norm, &e), RC_OK);
    for (int64_t k = 0; k < old.count; k++) {
        double divided = stored_get(&made->norm[input], k), t = s->by_channel[k];
        assert_float_equal(divided * t, stored_get(&old, k), 1e-12);
    }
    stored_release(&old);
}

static void fold_input(struct golden *g, struct calibrated_block *made, enum linear_input input) {
    struct fold f = {&g->job, g->model, made, input};
    struct input_group group = {.job = &g->job};
    struct awq_scale s;
    int64_t cols = width_of(made, input);
    input_group_fold(&group, g->model, made->block, input);
    assert_true(group.foldable && fold_possible(&f));
    make_up_scale(g, cols, &group, &s);
    golden_must(g, fold_scale(&f, &group, &s, &g->err));
    if (fold_position(&f) < 0) check_norm(g, made, input, &s);
    float *by_col = arena_alloc(&g->arena, (size_t)cols * sizeof *by_col);
    for (int64_t k = 0; k < cols; k++)
        by_col[k] = (float)s.by_channel[k];
    for (int i = 0; i < made->count; i++) {
        struct calibrated_linear *l = &made->linears[i];
        if (l->linear->input != input) continue;
        golden_must(g, stored_copy(&l->weight, l->linear->weight, &g->err));
        stored_scale_columns(&l->weight, cols, by_col);
    }
    awq_scale_release(&g->job, &s);
}

struct shown {
    struct golden *g;
    struct calibrated_block *blocks;
    struct replaced room;
};

static enum rc show_folded(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    (void)stream;
    struct shown *s = ctx;
    const struct job *job = &s->g->job;
    const struct calibrated_block *made = &s->blocks[block];
    const struct block_weights *room = &s->room.room;
    for (int i = 0; i < made->count; i++) {
        TRY(replaced_put_linear(&s->room, job, i, &made->linears[i].weight, &w->linear[i], e));
        TRY(replaced_put_vector(job, room->bias[i], &made->linears[i].bias, &w->bias[i], e));
    }
    TRY(replaced_put_vector(job, room->input_norm, &made->norm[INPUT_ATTENTION], &w->input_norm, e));
    return replaced_put_vector(job, room->post_norm, &made->norm[INPUT_MLP], &w->post_norm, e);
}

/* How far the folded model strays from itself. */
static double fold_all(struct golden *g) {
    int blocks = g->model->arch.blocks;
    struct shown s = {.g = g, .blocks = xcalloc((size_t)blocks, sizeof *s.blocks)};
    golden_must(g, replaced_open(&g->job, g->model, &s.room, &g->err));
    for (int b = 0; b < blocks; b++) {
        begin_block(g, b, &s.blocks[b]);
        for (int input = INPUT_ATTENTION; input <= INPUT_DOWN; input++)
            fold_input(g, &s.blocks[b], (enum linear_input)input);
    }
    double distance = golden_distance(g, golden_finals(g, show_folded, &s), golden_finals(g, NULL, NULL));
    for (int b = 0; b < blocks; b++)
        release_block(&s.blocks[b]);
    free(s.blocks);
    replaced_release(&g->job, &s.room);
    return distance;
}

static void folds_leave_the_function_as_it_is(void **state) {
    (void)state;
    for (int i = 0; i < FAMILIES; i++) {
        struct golden g;
        golden_open(&g, families[i]);
        golden_widen_all(&g);
        double distance = fold_all(&g);
        if (!(distance > 0 && distance < 1e-5)) fail_msg("%s strays by %g", families[i], distance);
        golden_close(&g);
    }
}

/* Only rows and columns lose bits then; the norms' are made up for. */
static void folds_round_to_what_is_stored(void **state) {
    (void)state;
    static const char *const stored[] = {"qwen2", "phi3", "llama-f16"};
    for (size_t i = 0; i < sizeof stored / sizeof *stored; i++) {
        struct golden g;
        golden_open(&g, stored[i]);
        double distance = fold_all(&g);
        if (!(distance > 1e-5 && distance < 0.02)) fail_msg("%s strays by %g", stored[i], distance);
        golden_close(&g);
    }
}

/* --- whole calibrations --- */

/* A sink that also keeps the codes; the store has the rest. */
struct outcome {
    struct golden *g;
    struct packed_store *store;
    struct replaced room;
    uint8_t **codes; /* [linear_count] */
    json_t *notes;
    int blocks;
};

static enum rc keep_codes(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e) {
    struct outcome *o = ctx;
    assert_int_equal(block->block, o->blocks < o->g->model->arch.blocks ? o->blocks : -1);
    o->blocks++;
    for (int i = 0; i < block->count; i++) {
        const struct calibrated_linear *l = &block->linears[i];
        size_t count = (size_t)(l->linear->rows * l->linear->cols);
        if (!l->q.codes) continue;
        o->codes[l->index] = arena_alloc(&o->g->arena, count);
        memcpy(o->codes[l->index], l->q.codes, count);
    }
    struct calibration_sink store = packed_store_sink(o->store);
    return store.block(store.ctx, job, block, e);
}

static void calibrate_golden(struct golden *g, const struct candidate *recipe, struct outcome *o) {
    *o = (struct outcome){.g = g, .store = packed_store_new(g->model), .notes = json_array()};
    o->codes = arena_alloc(&g->arena, (size_t)g->model->linear_count * sizeof *o->codes);
    struct calibration_sink sink = {.ctx = o, .block = keep_codes};
    struct calibrate_args a = {
        .job = &g->job, .model = g->model, .windows = &g->windows, .recipe = recipe, .sink = &sink, .notes = o->notes};
    golden_must(g, calibrate(&a, &g->err));
    golden_must(g, replaced_open(&g->job, g->model, &o->room, &g->err));
}

static void outcome_release(struct outcome *o) {
    packed_store_free(o->store);
    replaced_release(&o->g->job, &o->room);
    json_decref(o->notes);
}

static enum rc show_store(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    (void)stream;
    struct outcome *o = ctx;
    return packed_store_show(o->store, &o->g->job, block, &o->room, w, e);
}

static double stray(struct golden *g, const struct candidate *recipe) {
    struct outcome o;
    calibrate_golden(g, recipe, &o);
    double distance = golden_distance(g, golden_finals(g, show_store, &o), golden_finals(g, NULL, NULL));
    outcome_release(&o);
    return distance;
}

static struct candidate *uniform(struct golden *g, struct candidate c) {
    struct candidate *recipe = arena_alloc(&g->arena, (size_t)g->model->linear_count * sizeof *recipe);
    for (int64_t i = 0; i < g->model->linear_count; i++)
        recipe[i] = g->model->linears[i].block >= 0 ? c : candidate_default(METHOD_NONE, 16, 0);
    return recipe;
}

static void set(const struct golden *g, struct candidate *recipe, const char *projection, struct candidate c) {
    for (int64_t i = 0; i < g->model->linear_count; i++)
        if (!strcmp(g->model->linears[i].projection, projection)) recipe[i] = c;
}

/* A few channels of every input are loud, so that AWQ has something to scale. */
static void make_loud(struct golden *g) {
    golden_widen_all(g);
    for (int b = 0; b < g->model->arch.blocks; b++) {
        float *norms[] = {(float *)g->model->blocks[b].input_norm->data, (float *)g->model->blocks[b].post_norm->data};
        for (int i = 0; i < 2; i++)
            norms[i][3] *= 12, norms[i][17] *= 7;
    }
    for (int64_t i = 0; i < g->model->linear_count; i++) {
        const struct linear *l = &g->model->linears[i];
        if (l->block < 0 || l->input == INPUT_OUTPUT || l->input == INPUT_DOWN) continue;
        for (int64_t k = 0; k < l->cols; k++)
            ((float *)l->weight->data)[(l->rows - 2) * l->cols + k] *= 9;
    }
}

static int scaled_notes(const json_t *notes) {
    size_t i;
    int count = 0;
    json_t *note;
    json_array_foreach(notes, i, note) {
        const json_t *awq = json_object_get(note, "awq");
        count += json_number_value(json_object_get(awq, "ratio")) > 0;
    }
    return count;
}

static struct candidate eight(enum method method) {
    struct candidate c = candidate_default(method, 8, 16);
    c.range = RANGE_FULL;
    return c;
}

/* 8 bits lose next to nothing, with scales or without; a scale that is not taken out again loses everything. */
static void awq_strays_no_more_than_rounding(void **state) {
    (void)state;
    for (int i = 0; i < FAMILIES; i++)
        for (int sequential = 0; sequential < 2; sequential++) {
            struct golden g;
            golden_open(&g, families[i]);
            make_loud(&g);
            struct candidate awq = eight(METHOD_AWQ);
            awq.sequential = sequential;
            struct outcome o;
            calibrate_golden(&g, uniform(&g, awq), &o);
            double with = golden_distance(&g, golden_finals(&g, show_store, &o), golden_finals(&g, NULL, NULL));
            double without = stray(&g, uniform(&g, eight(METHOD_RTN)));
            assert_true(scaled_notes(o.notes) >= 4);
            if (!(with < 2 * without && without < 0.2)) fail_msg("%s: %g, %g", families[i], with, without);
            outcome_release(&o);
            golden_close(&g);
        }
}

/* Beside AWQ's, the Linears of an input may be kept, or rounded by anything; so may what makes it. */
static void neighbours_of_awq_are_scaled_too(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "qwen2");
    make_loud(&g);
    struct candidate none = candidate_default(METHOD_NONE, 16, 0), *recipe = uniform(&g, eight(METHOD_AWQ));
    static const char *const kept[] = {"k_proj", "gate_proj", "up_proj"};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        set(&g, recipe, kept[i], none);
    set(&g, recipe, "v_proj", eight(METHOD_RTN));
    double mixed = stray(&g, recipe), all = stray(&g, uniform(&g, eight(METHOD_RTN)));
    if (!(mixed < 1.2 * all && all < 0.2)) fail_msg("%g, %g", mixed, all);
    golden_close(&g);
}

static const json_t *note_of(const struct outcome *o, const char *name) {
    size_t i;
    json_t *note;
    json_array_foreach(o->notes, i, note) {
        if (!strcmp(json_string_value(json_object_get(note, "name")), name)) return note;
    }
    fail_msg("no note of %s", name);
    return NULL;
}

/* One fp8 scale for all rows of v cannot be divided row by row: o does without, and the note says so. */
static void scales_that_cannot_be_taken_out_are_not_put_in(void **state) {
    (void)state;
    struct golden g;
    struct outcome o;
    golden_open(&g, "llama");
    make_loud(&g);
    struct candidate tensor = candidate_default(METHOD_FP8, 8, 0), *recipe = uniform(&g, eight(METHOD_AWQ));
    tensor.fp8_scale = FP8_PER_TENSOR;
    set(&g, recipe, "v_proj", tensor);
    set(&g, recipe, "up_proj", candidate_default(METHOD_FP8, 8, 0));
    calibrate_golden(&g, recipe, &o);
    assert_true(json_is_null(json_object_get(note_of(&o, "model.layers.0.self_attn.o_proj"), "awq")));
    assert_true(json_is_object(json_object_get(note_of(&o, "model.layers.0.self_attn.q_proj"), "awq")));
    assert_true(json_is_object(json_object_get(note_of(&o, "model.layers.0.mlp.down_proj"), "awq")));
    double distance = golden_distance(&g, golden_finals(&g, show_store, &o), golden_finals(&g, NULL, NULL));
    assert_true(distance > 0 && distance < 0.5);
    outcome_release(&o);
    golden_close(&g);
}

/* What a profile would score of a recipe's Linears: how many have the codes that a calibration made. */
struct comparison {
    struct golden *g;
    struct outcome *made;
    struct candidate candidate;
    int equal, all, scaled;
};

static enum rc compare_codes(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    struct comparison *c = ctx;
    const struct candidate *all[BLOCK_LINEARS_MAX];
    struct input_group group = gram_input_group(job, c->g->model, in);
    struct awq_scale scale;
    for (int i = 0; i < in->count; i++)
        all[i] = &c->candidate;
    TRY(awq_search(&group, all, &scale, e));
    c->scaled += scale.ratio > 0;
    for (int i = 0; i < in->count; i++, c->all++) {
        struct quantized q;
        struct group_quantize_args a = {&group, i, &c->candidate, &scale, &q};
        TRY(quantized_alloc(job->backend, job->device, in->w[i].rows, in->w[i].cols, &c->candidate, &q, e));
        TRY(group_quantize(&a, 1, e));
        c->equal += !memcmp(q.codes, c->made->codes[in->index[i]], (size_t)(q.rows * q.cols));
        quantized_release(job->backend, job->device, &q);
    }
    awq_scale_release(job, &scale);
    input_group_release(&group);
    return RC_OK;
}

/* Also where the norm that takes the scale up is rounded to 16 bits. */
static void what_a_profile_scores_is_what_is_made(void **state) {
    (void)state;
    static const char *const stored[] = {"qwen2", "phi3", "llama-f16", "llama"};
    for (size_t i = 0; i < sizeof stored / sizeof *stored; i++) {
        struct golden g;
        struct outcome o;
        golden_open(&g, stored[i]);
        struct candidate awq = candidate_default(METHOD_AWQ, 4, 16);
        struct comparison c = {.g = &g, .made = &o, .candidate = awq};
        bool *wanted = arena_alloc(&g.arena, (size_t)g.model->linear_count);
        for (int64_t l = 0; l < g.model->linear_count; l++)
            wanted[l] = g.model->linears[l].block >= 0;
        calibrate_golden(&g, uniform(&g, awq), &o);
        struct gram_walk walk = {.job = &g.job,
                                 .model = g.model,
                                 .windows = &g.windows,
                                 .phase = "calibrate",
                                 .wanted = wanted,
                                 .stats = true,
                                 .input = compare_codes,
                                 .ctx = &c};
        golden_must(&g, gram_walk_run(&walk, &g.err));
        assert_true(c.scaled > 0 && c.all > 0);
        if (c.equal != c.all) fail_msg("%s: %d of %d Linears have the same codes", stored[i], c.equal, c.all);
        outcome_release(&o);
        golden_close(&g);
    }
}

/* --- whose H --- */

/* H of every input of one block, in a plain walk. */
struct measured {
    struct outcome *o; /* whose weights are seen; NULL: the reference's */
    struct golden *g;
    int block;
    struct grams grams;
};

static enum rc show_measured(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    struct measured *m = ctx;
    return m->o ? show_store(m->o, stream, block, w, e) : RC_OK;
}

static enum rc add_input(void *ctx, const struct site *site, enum linear_input input, struct mat x, struct err *e) {
    struct measured *m = ctx;
    return site->block == m->block ? grams_add(&m->grams, input, x, e) : RC_OK;
}

static void measure(struct measured *m) {
    static const bool all[INPUT_COUNT] = {true, true, true, true};
    struct golden *g = m->g;
    struct grams_args a = {
        .job = &g->job, .model = g->model, .count = INPUT_COUNT, .tokens = GOLDEN_WINDOWS * GOLDEN_LENGTH};
    for (int i = 0; i < BLOCK_LINEARS_MAX && g->model->blocks[m->block].linears[i] >= 0; i++) {
        const struct linear *l = &g->model->linears[g->model->blocks[m->block].linears[i]];
        a.width[l->input] = l->cols;
    }
    struct walk_hooks hooks = {.ctx = m, .weights = show_measured, .input = add_input};
    struct walk walk = {.job = &g->job,
                        .model = g->model,
                        .windows = &g->windows,
                        .count = GOLDEN_WINDOWS,
                        .streams = 1,
                        .last_block = m->block,
                        .hooks = &hooks,
                        .phase = "measure",
                        .tokens_total = a.tokens};
    golden_must(g, grams_open(&m->grams, &a, &g->err));
    golden_must(g, grams_begin(&m->grams, all, &g->err));
    golden_must(g, walk_run(&walk, &g->err));
    golden_must(g, grams_finish(&m->grams, &g->err));
}

/* How many of a block's Linears have the codes that those H give. */
static int equal_linears(struct measured *m, const struct candidate *c, uint8_t *const *codes) {
    struct golden *g = m->g;
    const struct backend *b = g->job.backend;
    int equal = 0;
    for (int i = 0; i < BLOCK_LINEARS_MAX && g->model->blocks[m->block].linears[i] >= 0; i++) {
        int index = g->model->blocks[m->block].linears[i];
        const struct linear *l = &g->model->linears[index];
        struct mat w;
        struct quantized q;
        struct input_group group = {.job = &g->job, .gram.h = m->grams.h[l->input], .w = &w, .count = 1};
        golden_must(g, upload_linear(&g->job, l, &w, &g->err));
        golden_must(g, quantized_alloc(b, g->job.device, l->rows, l->cols, c, &q, &g->err));
        struct group_quantize_args a = {.group = &group, .candidate = c, .out = &q};
        golden_must(g, group_quantize(&a, 1, &g->err));
        equal += !memcmp(q.codes, codes[index], (size_t)(l->rows * l->cols));
        quantized_release(b, g->job.device, &q);
        input_group_release(&group);
        b->free(g->job.device, w.data);
    }
    return equal;
}

/* In the last block, behind everything that is quantized by then; down sees o, gate and up of its own block. */
static void sequential_is_what_the_quantized_model_computes(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "llama");
    struct candidate gptq = candidate_default(METHOD_GPTQ, 3, 16), alone = gptq;
    int last = g.model->arch.blocks - 1;
    alone.sequential = false;
    struct outcome o[2];
    calibrate_golden(&g, uniform(&g, gptq), &o[0]);
    calibrate_golden(&g, uniform(&g, alone), &o[1]);
    assert_int_equal(o[0].blocks, g.model->arch.blocks);
    struct measured quantized = {.o = &o[0], .g = &g, .block = last}, reference = {.g = &g, .block = last};
    measure(&quantized);
    measure(&reference);
    assert_int_equal(equal_linears(&quantized, &gptq, o[0].codes), 7);
    assert_int_equal(equal_linears(&reference, &alone, o[1].codes), 7);
    assert_int_equal(equal_linears(&reference, &gptq, o[0].codes), 0);
    grams_release(&quantized.grams);
    grams_release(&reference.grams);
    outcome_release(&o[0]);
    outcome_release(&o[1]);
    golden_close(&g);
}

/* Scales too: the stream sees what they were taken out of. */
static void sequential_sees_folds(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "qwen2");
    make_loud(&g);
    struct candidate gptq = candidate_default(METHOD_GPTQ, 3, 16), awq = eight(METHOD_AWQ);
    struct candidate *recipe = uniform(&g, gptq);
    int last = g.model->arch.blocks - 1;
    awq.sequential = true;
    for (int64_t i = 0; i < g.model->linear_count; i++)
        if (g.model->linears[i].block >= 0 && g.model->linears[i].block < last) recipe[i] = awq;
    recipe[g.model->blocks[0].linears[4]] = candidate_default(METHOD_FP8, 8, 0); /* gate_proj */
    struct outcome o;
    calibrate_golden(&g, recipe, &o);
    assert_true(scaled_notes(o.notes) >= 4);
    struct measured quantized = {.o = &o, .g = &g, .block = last};
    measure(&quantized);
    assert_int_equal(equal_linears(&quantized, &gptq, o.codes), 7);
    grams_release(&quantized.grams);
    outcome_release(&o);
    golden_close(&g);
}

/* Clipped, q and k would lose what rope and softmax amplify; stored with v they are not told apart. */
static void awq_leaves_the_range_of_q_and_k(void **state) {
    (void)state;
    const struct candidate gptq = candidate_default(METHOD_GPTQ, 4, 64);
    struct candidate awq = candidate_default(METHOD_AWQ, 4, 64);
    awq.range = RANGE_OUTPUT;
    static const char *const projections[] = {"q_proj", "k_proj", "qkv_proj", "v_proj", "o_proj", "gate_up_proj"};
    for (int i = 0; i < 6; i++) {
        const struct linear linear = {.projection = projections[i]};
        assert_int_equal(candidate_for(&awq, &linear).range, i < 3 ? RANGE_FULL : RANGE_OUTPUT);
        assert_int_equal(candidate_for(&gptq, &linear).range, gptq.range);
    }
}

static void plans_say_what_is_asked_for(void **state) {
    (void)state;
    struct candidate gptq = candidate_default(METHOD_GPTQ, 4, 64), awq = candidate_default(METHOD_AWQ, 4, 64);
    struct candidate rtn = candidate_default(METHOD_RTN, 4, 64);
    struct calibration_plan none = calibration_plan((struct candidate[]){rtn, rtn}, 2);
    struct calibration_plan plain = calibration_plan((struct candidate[]){rtn, awq}, 2);
    struct calibration_plan both = calibration_plan((struct candidate[]){awq, gptq, awq, rtn}, 4);
    assert_false(none.needed || none.sequential || none.moved);
    assert_true(plain.needed && !plain.sequential && plain.moved == 0);
    assert_true(both.needed && both.sequential && both.moved == 2);
    struct candidate guided = awq;
    guided.guided = true;
    struct calibration_plan back = calibration_plan((struct candidate[]){guided, gptq, awq, rtn}, 4);
    assert_true(back.needed && back.guided && !back.sequential && back.moved == 1 && !both.guided);
}

/* lm_head may be scaled through the final norm, which the store then has. */
static void head_is_calibrated_last(void **state) {
    (void)state;
    struct golden g;
    struct outcome o;
    golden_open(&g, "llama");
    struct candidate *recipe = uniform(&g, candidate_default(METHOD_NONE, 16, 0));
    set(&g, recipe, "lm_head", eight(METHOD_AWQ));
    calibrate_golden(&g, recipe, &o);
    assert_int_equal(o.blocks, g.model->arch.blocks + 1);
    const struct linear *head = &g.model->linears[g.model->linear_count - 1];
    const struct stored *norm = packed_store_final_norm(o.store);
    struct stored weight = {0}, old = {0};
    float *w = device_memory(&g, head->rows * head->cols * (int64_t)sizeof *w);
    golden_must(&g, packed_store_head(o.store, &g.job, matf(w, head->rows, head->cols), &g.err));
    golden_must(&g, stored_copy(&weight, head->weight, &g.err));
    golden_must(&g, stored_copy(&old, g.model->final_norm, &g.err));
    for (int64_t i = 0; i < weight.count; i++) {
        int64_t k = i % head->cols;
        double back = (double)w[i] * stored_get(norm, k) / stored_get(&old, k);
        assert_float_equal((float)back, stored_get(&weight, i), 0.02f);
    }
    stored_release(&weight);
    stored_release(&old);
    backend_cpu.free(g.job.device, w);
    outcome_release(&o);
    golden_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folds_leave_the_function_as_it_is),
        cmocka_unit_test(folds_round_to_what_is_stored),
        cmocka_unit_test(awq_strays_no_more_than_rounding),
        cmocka_unit_test(neighbours_of_awq_are_scaled_too),
        cmocka_unit_test(scales_that_cannot_be_taken_out_are_not_put_in),
        cmocka_unit_test(what_a_profile_scores_is_what_is_made),
        cmocka_unit_test(sequential_is_what_the_quantized_model_computes),
        cmocka_unit_test(sequential_sees_folds),
        cmocka_unit_test(awq_leaves_the_range_of_q_and_k),
        cmocka_unit_test(plans_say_what_is_asked_for),
        cmocka_unit_test(head_is_calibrated_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
