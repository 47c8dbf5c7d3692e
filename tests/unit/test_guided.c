/* Guided calibration: it quantizes from an H whose tokens gradients weigh, block by block from the last one, and leaves
 * what is not guided to the reference's H; and text that no one calibrated on is the better for it. */
#include "tests/unit/golden_model.h"
#include "tests/unit/run_job.h"

#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/gradwalk.h"

/* A sink that keeps the codes. */
struct outcome {
    struct golden *g;
    uint8_t **codes; /* [linear_count] */
    int blocks;
    bool back; /* they come from the last one */
};

static enum rc keep_codes(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e) {
    (void)job, (void)e;
    struct outcome *o = ctx;
    assert_int_equal(block->block, o->back ? o->g->model->arch.blocks - 1 - o->blocks : o->blocks);
    o->blocks++;
    for (int i = 0; i < block->count; i++) {
        const struct calibrated_linear *l = &block->linears[i];
        size_t count = (size_t)(l->linear->rows * l->linear->cols);
        o->codes[l->index] = arena_alloc(&o->g->arena, count);
        memcpy(o->codes[l->index], l->q.codes, count);
    }
    return RC_OK;
}

static void calibrate_golden(struct golden *g, const struct candidate *recipe, struct outcome *o) {
    *o = (struct outcome){.g = g, .back = calibration_plan(recipe, g->model->linear_count).guided};
    o->codes = arena_alloc(&g->arena, (size_t)g->model->linear_count * sizeof *o->codes);
    struct calibration_sink sink = {.ctx = o, .block = keep_codes};
    struct calibrate_args a = {
        .job = &g->job, .model = g->model, .windows = &g->windows, .recipe = recipe, .sink = &sink};
    golden_must(g, calibrate(&a, &g->err));
    assert_int_equal(o->blocks, g->model->arch.blocks);
}

static struct candidate *uniform(struct golden *g, struct candidate c) {
    struct candidate *recipe = arena_alloc(&g->arena, (size_t)g->model->linear_count * sizeof *recipe);
    for (int64_t i = 0; i < g->model->linear_count; i++)
        recipe[i] = g->model->linears[i].block >= 0 ? c : candidate_default(METHOD_NONE, 16, 0);
    return recipe;
}

/* A golden model's codes by H_w of its own walk, as far as they are those that calibration made. */
struct by_hand {
    const struct candidate *c;
    uint8_t *const *codes;
    int equal, linears;
};

static enum rc compare_codes(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    struct by_hand *h = ctx;
    struct input_group group = {.job = job, .gram.h = in->h_w, .w = in->w, .count = in->count};
    struct candidate c = *h->c;
    c.guided = false;
    for (int n = 0; n < in->count; n++) {
        struct quantized q;
        struct group_quantize_args a = {.group = &group, .index = n, .candidate = &c, .out = &q};
        TRY(quantized_alloc(job->backend, job->device, in->w[n].rows, in->w[n].cols, &c, &q, e));
        TRY(group_quantize(&a, 1, e));
        h->equal += !memcmp(q.codes, h->codes[in->index[n]], (size_t)(q.rows * q.cols));
        h->linears++;
        quantized_release(job->backend, job->device, &q);
    }
    input_group_release(&group);
    return RC_OK;
}

/* How many Linears have the codes that the guided candidate means, of all. */
static int equal_guided(struct golden *g, const struct candidate *c, uint8_t *const *codes) {
    struct by_hand hand = {.c = c, .codes = codes};
    bool *wanted = arena_alloc(&g->arena, (size_t)g->model->linear_count);
    for (int64_t i = 0; i < g->model->linear_count; i++)
        wanted[i] = g->model->linears[i].block >= 0;
    struct grad_walk walk = {.gram = {.job = &g->job,
                                      .model = g->model,
                                      .windows = &g->windows,
                                      .phase = "by hand",
                                      .wanted = wanted,
                                      .input = compare_codes,
                                      .ctx = &hand},
                             .guided = true};
    golden_must(g, grad_walk_run(&walk, &g->err));
    assert_int_equal(hand.linears, 7 * g->model->arch.blocks);
    return hand.equal;
}

static void guided_goes_by_gradients(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "llama");
    struct candidate guided = candidate_default(METHOD_GPTQ, 3, 16), plain;
    guided.sequential = false;
    guided.descend = 2;
    plain = guided;
    guided.guided = true;
    struct outcome o[2];
    calibrate_golden(&g, uniform(&g, guided), &o[0]);
    calibrate_golden(&g, uniform(&g, plain), &o[1]);
    assert_int_equal(equal_guided(&g, &guided, o[0].codes), 7 * g.model->arch.blocks);
    assert_true(equal_guided(&g, &guided, o[1].codes) < g.model->arch.blocks);
    golden_close(&g);
}

/* One recipe, one walk: what is not guided goes by the reference's H. */
static void unguided_beside_guided_is_static(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "llama");
    struct candidate gptq = candidate_default(METHOD_GPTQ, 3, 16), guided = gptq, alone = gptq;
    alone.sequential = guided.sequential = false;
    guided.guided = true;
    struct candidate *mixed = uniform(&g, gptq);
    mixed[g.model->blocks[0].linears[0]] = guided;
    struct outcome o[2];
    calibrate_golden(&g, mixed, &o[0]);
    calibrate_golden(&g, uniform(&g, alone), &o[1]);
    for (int64_t i = 0; i < g.model->linear_count - 1; i++) {
        const struct linear *l = &g.model->linears[i];
        bool equal = !memcmp(o[0].codes[i], o[1].codes[i], (size_t)(l->rows * l->cols));
        assert_true(equal == (i != g.model->blocks[0].linears[0]));
    }
    golden_close(&g);
}

/* Where calibration has text enough: weighed, fewer tokens carry it. */
static void held_out_text_loses_less(void **state) {
    (void)state;
#define SPEC(more)                                                                                                     \
    "{'kind':'eval','model':'M','dataset':'D','length':128,'windows':140,'refine':false,'uniform':{'method':'gptq','"  \
    "bits':3," more "},'calibration':{'dataset':'C','samples':300,'length':128,'sampling':'random'}}"
    static const char *const specs[] = {SPEC("'sequential':false"), SPEC("'guided':true")};
    double kl[2];
    for (int i = 0; i < 2; i++) {
        struct run r;
        run_init(&r);
        must_run(&r, FIXTURE "heldout.txt", specs[i], NULL);
        kl[i] = json_number_value(json_object_get(json_object_get(r.result, "kl"), "mean"));
        const json_t *calibration = json_object_get(r.result, "calibration"), *linears;
        linears = json_object_get(calibration, "linears");
        assert_true(json_is_true(json_object_get(calibration, "guided")) == (i == 1));
        assert_true(json_is_false(json_object_get(calibration, "sequential")));
        assert_int_equal(json_array_size(linears), 6 * 7);
        assert_string_equal(json_string_value(json_object_get(json_array_get(linears, 0), "name")),
                            "model.layers.0.self_attn.q_proj");
        run_release(&r);
    }
    print_message("GPTQ at 3 bits: KL %.5f by H, %.5f by H_w\n", kl[0], kl[1]);
    assert_true(kl[1] > 0 && kl[1] < 0.95 * kl[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guided_goes_by_gradients),
        cmocka_unit_test(unguided_beside_guided_is_static),
        cmocka_unit_test(held_out_text_loses_less),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
