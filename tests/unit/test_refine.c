/* Refining: the slopes that scales go down are those of the KL, which falls; codes, zeros and what has no groups stay
 * as they are; and the bits that it ends in depend neither on how often it runs nor on where things are kept. */
#include "tests/unit/golden_model.h"
#include "tests/unit/late_copies.h"
#include "tests/unit/run_job.h"

#include "base/mem.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/refine.h"
#include "worker/pipeline/upload.h"

enum { SEED = 5 };

struct golden_store {
    struct golden *g;
    struct candidate *recipe;
    struct packed_store *store;
    struct refined refined;
};

static struct candidate *recipe_of(struct golden *g, struct candidate c) {
    struct candidate *recipe = arena_alloc(&g->arena, (size_t)g->model->linear_count * sizeof *recipe);
    for (int64_t i = 0; i < g->model->linear_count; i++)
        recipe[i] = g->model->linears[i].block >= 0 ? c : candidate_default(METHOD_NONE, 16, 0);
    return recipe;
}

static void calibrate_store(struct golden_store *s, struct golden *g, struct candidate *recipe) {
    *s = (struct golden_store){.g = g, .recipe = recipe, .store = packed_store_new(g->model)};
    struct calibration_sink sink = packed_store_sink(s->store);
    struct calibrate_args a = {
        .job = &g->job, .model = g->model, .windows = &g->windows, .recipe = recipe, .sink = &sink};
    golden_must(g, calibrate(&a, &g->err));
}

static enum rc refine_in_order(struct golden_store *s, int64_t seed) {
    struct refine_args a = {.job = &s->g->job,
                            .model = s->g->model,
                            .windows = &s->g->windows,
                            .recipe = s->recipe,
                            .store = s->store,
                            .seed = seed};
    return refine_run(&a, &s->refined, &s->g->err);
}

static enum rc refine_store(struct golden_store *s) {
    return refine_in_order(s, SEED);
}

/* --- slopes --- */

enum { LINEARS_MAX = 64, PROBED = 6 };
static const double part = 0.01; /* by which a scale is made to differ */

/* One batch alone: the first step's slopes are kept, or a scale is another one; then it is stopped. */
static struct {
    double kl; /* the loss */
    float *slopes[LINEARS_MAX];
    int64_t counts[LINEARS_MAX], last;
    int shown, linear; /* dequantized so far; whose scale differs */
    int64_t group;
    float factor;
} probe;

static enum rc probe_kl(struct backend_state *state, const struct kl_back_args *a, struct err *e) {
    TRY(backend_cpu.kl_back(state, a, e));
    for (int64_t t = 0; t < a->x.rows; t++)
        probe.kl += (double)a->weight[t] * a->kl[t];
    return RC_OK;
}

static enum rc probe_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e) {
    if (probe.shown++ == probe.linear) a->q->scale[probe.group] *= probe.factor;
    return backend_cpu.dequantize(state, a, e);
}

static enum rc probe_adam(struct backend_state *state, const struct adam_args *a, struct err *e) {
    (void)state;
    int i = (int)probe.last++;
    assert_int_equal(a->step, 1);
    probe.counts[i] = a->count;
    if (!probe.slopes[i]) probe.slopes[i] = xcalloc((size_t)a->count, sizeof(float));
    if (probe.linear < 0) memcpy(probe.slopes[i], a->slope, (size_t)a->count * sizeof(float));
    return i < probe.shown / 2 - 1 ? RC_OK : err_set(e, RC_UNAVAILABLE, "seen enough"); /* shown forward and back */
}

static double probed_kl(struct golden_store *s, int linear, int64_t group, double factor) {
    probe.kl = 0;
    probe.last = probe.shown = 0;
    probe.linear = linear;
    probe.group = group;
    probe.factor = (float)factor;
    assert_int_equal(refine_store(s), RC_UNAVAILABLE);
    return probe.kl;
}

static int64_t steepest(int linear) {
    int64_t best = 0;
    for (int64_t i = 0; i < probe.counts[linear]; i++)
        if (fabsf(probe.slopes[linear][i]) > fabsf(probe.slopes[linear][best])) best = i;
    return best;
}

static void check_slopes(const char *name, struct candidate c) {
    struct golden g;
    struct golden_store s;
    struct backend b = backend_cpu;
    golden_open(&g, name);
    calibrate_store(&s, &g, recipe_of(&g, c));
    b.kl_back = probe_kl;
    b.dequantize = probe_dequantize;
    b.adam = probe_adam;
    g.job.backend = &b;
    memset(&probe, 0, sizeof probe);
    double kl = probed_kl(&s, -1, 0, 1), worst = 0;
    int linears = (int)probe.last;
    assert_int_equal(linears, 7 * g.model->arch.blocks);
    for (int linear = 0; linear < linears; linear++) {
        int64_t group = steepest(linear);
        double up = probed_kl(&s, linear, group, 1 + part), down = probed_kl(&s, linear, group, 1 - part);
        double want = (up - down) / (2 * part), got = probe.slopes[linear][group];
        worst = fmax(worst, fabs(got - want) / fabs(want));
        if (!(fabs(got - want) <= 0.03 * fabs(want)))
            fail_msg("%s: Linear %d, group %lld: slope %.6g, the KL says %.6g", name, linear, (long long)group, got,
                     want);
    }
    print_message("%s: KL %.4f, slopes differ from its by up to %.1e of theirs\n", name, kl, worst);
    for (int i = 0; i < linears; i++)
        free(probe.slopes[i]);
    packed_store_free(s.store);
    g.job.backend = &backend_cpu;
    golden_close(&g);
}

static void slopes_are_those_of_the_kl(void **state) {
    (void)state;
    struct candidate gptq = candidate_default(METHOD_GPTQ, 2, 16), awq = candidate_default(METHOD_AWQ, 3, 0);
    gptq.order = ORDER_ACTIVATION;
    check_slopes("llama", gptq);
    check_slopes("qwen3", awq); /* folded into norms, v and up; whole rows */
    check_slopes("granite", candidate_default(METHOD_RTN, 2, 16));
}

/* --- the loss --- */

/* The two models side by side, as an eval has them. */
struct beside {
    struct golden_store *s;
    struct replaced room;
    struct mat head, head_q;
    double kl;
};

static enum rc show_quantized(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    struct beside *b = ctx;
    return stream == 0 ? RC_OK : packed_store_show(b->s->store, &b->s->g->job, block, &b->room, w, e);
}

static enum rc score_all(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    (void)window;
    struct beside *b = ctx;
    double nll[GOLDEN_LENGTH], nll_q[GOLDEN_LENGTH], kl[GOLDEN_LENGTH];
    int32_t labels[GOLDEN_LENGTH] = {0};
    uint8_t agree[GOLDEN_LENGTH];
    struct score_args a = {.x = x[0],
                           .x_q = x[1],
                           .head = b->head,
                           .head_q = b->head_q,
                           .logit_scale = (float)(1 / b->s->g->model->arch.logits_scaling),
                           .labels = labels,
                           .nll = nll,
                           .nll_q = nll_q,
                           .kl = kl,
                           .top1_agree = agree};
    TRY(backend_cpu.score(b->s->g->job.device, &a, e));
    for (int t = 0; t < GOLDEN_LENGTH; t++)
        b->kl += kl[t];
    return RC_OK;
}

static double mean_kl(struct golden_store *s) {
    struct golden *g = s->g;
    const struct stored *folded = packed_store_final_norm(s->store);
    struct beside b = {.s = s};
    float *norm = arena_alloc(&g->arena, (size_t)g->model->arch.hidden * sizeof *norm);
    assert_int_equal(folded->count, g->model->arch.hidden);
    for (int64_t i = 0; i < folded->count; i++)
        norm[i] = stored_get(folded, i);
    golden_must(g, replaced_open(&g->job, g->model, &b.room, &g->err));
    golden_must(g, upload_linear(&g->job, &g->model->linears[g->model->linear_count - 1], &b.head, &g->err));
    float *head_q = arena_alloc(&g->arena, (size_t)(b.head.rows * b.head.cols) * sizeof *head_q);
    b.head_q = matf(head_q, b.head.rows, b.head.cols);
    golden_must(g, packed_store_head(s->store, &g->job, b.head_q, &g->err));
    struct walk_hooks hooks = {.ctx = &b, .weights = show_quantized, .final = score_all};
    struct walk walk = {.job = &g->job,
                        .model = g->model,
                        .windows = &g->windows,
                        .count = GOLDEN_WINDOWS,
                        .streams = 2,
                        .last_block = -1,
                        .hooks = &hooks,
                        .final_norms = (const float *const[]){NULL, norm},
                        .phase = "beside",
                        .tokens_total = GOLDEN_WINDOWS * GOLDEN_LENGTH};
    golden_must(g, walk_run(&walk, &g->err));
    replaced_release(&g->job, &b.room);
    backend_cpu.free(g->job.device, b.head.data);
    return b.kl / (GOLDEN_WINDOWS * GOLDEN_LENGTH);
}

static enum rc stand_still(struct backend_state *state, const struct adam_args *a, struct err *e) {
    (void)state, (void)a, (void)e;
    return RC_OK;
}

/* With everything that a model quantized by AWQ has replaced, down to its head and the norm before it. */
static void the_loss_is_an_evals_kl(void **state) {
    (void)state;
    struct golden g;
    struct golden_store s;
    struct backend still = backend_cpu;
    still.adam = stand_still;
    golden_open(&g, "llama");
    assert_false(g.model->arch.tied);
    struct candidate *recipe = recipe_of(&g, candidate_default(METHOD_AWQ, 3, 16));
    recipe[1] = candidate_default(METHOD_NONE, 16, 0);
    recipe[g.model->linear_count - 1] = candidate_default(METHOD_AWQ, 3, 16);
    calibrate_store(&s, &g, recipe);
    g.job.backend = &still;
    golden_must(&g, refine_store(&s));
    g.job.backend = &backend_cpu;
    double kl = mean_kl(&s);
    print_message("mean KL %.9g, of both epochs %.9g and %.9g\n", kl, s.refined.kl_before, s.refined.kl_after);
    assert_true(kl > 0 && fabs(s.refined.kl_before - kl) < 1e-5 * kl && fabs(s.refined.kl_after - kl) < 1e-5 * kl);
    packed_store_free(s.store);
    golden_close(&g);
}

/* --- what changes --- */

static struct candidate *mixed_recipe(struct golden *g) {
    struct candidate gptq = candidate_default(METHOD_GPTQ, 3, 16);
    struct candidate *recipe = recipe_of(g, gptq);
    gptq.sequential = false;
    gptq.guided = true;
    recipe[1] = candidate_default(METHOD_NONE, 16, 0);
    recipe[2] = candidate_default(METHOD_FP8, 8, 0); /* v, whose rows nothing is folded into */
    recipe[3] = gptq;
    recipe[8] = candidate_default(METHOD_HQQ, 4, 16);
    return recipe;
}

static int64_t different(const uint8_t *a, const uint8_t *b, int64_t bytes) {
    int64_t count = 0;
    for (int64_t i = 0; i < bytes; i += 2)
        count += memcmp(a + i, b + i, 2) != 0;
    return count;
}

/* Returns how many scales differ; nothing else may. */
static int64_t changed_scales(const struct golden_store *a, const struct golden_store *b) {
    const struct model *m = a->g->model;
    int64_t changed = 0;
    for (int block = 0; block < m->arch.blocks; block++)
        for (int i = 0; block_linear(m, block, i); i++) {
            struct candidate by;
            const struct packed *p = packed_store_codes(a->store, block, i, &by);
            const struct packed *q = packed_store_codes(b->store, block, i, &by);
            assert_true((p == NULL) == (q == NULL));
            if (!p || !q) continue;
            assert_memory_equal(p->codes, q->codes, p->codes_bytes);
            if (p->zeros_bytes > 0) assert_memory_equal(p->zeros, q->zeros, p->zeros_bytes);
            int64_t here = different(p->scales, q->scales, p->scales_bytes);
            if (by.method == METHOD_FP8) assert_int_equal(here, 0);
            changed += here;
        }
    return changed;
}

static void only_scales_change(void **state) {
    (void)state;
    struct golden g;
    struct golden_store before, once, twice;
    golden_open(&g, "llama");
    struct candidate *recipe = mixed_recipe(&g);
    calibrate_store(&before, &g, recipe);
    calibrate_store(&once, &g, recipe);
    calibrate_store(&twice, &g, recipe);
    assert_int_equal(changed_scales(&before, &once), 0);
    golden_must(&g, refine_store(&once));
    golden_must(&g, refine_store(&twice));
    assert_true(changed_scales(&before, &once) > 100);
    assert_int_equal(changed_scales(&once, &twice), 0);
    assert_int_equal(once.refined.steps, 2 * GOLDEN_WINDOWS / 4);
    assert_true(once.refined.kl_after < once.refined.kl_before);
    assert_true(once.refined.kl_after == twice.refined.kl_after);
    packed_store_free(before.store);
    packed_store_free(once.store);
    packed_store_free(twice.store);
    golden_close(&g);
}

static void the_seed_says_in_which_order_windows_come(void **state) {
    (void)state;
    struct golden g;
    struct golden_store one, other;
    golden_open(&g, "llama");
    struct candidate *recipe = mixed_recipe(&g);
    calibrate_store(&one, &g, recipe);
    calibrate_store(&other, &g, recipe);
    golden_must(&g, refine_in_order(&one, 1));
    golden_must(&g, refine_in_order(&other, 2));
    assert_true(changed_scales(&one, &other) > 0);
    packed_store_free(one.store);
    packed_store_free(other.store);
    golden_close(&g);
}

/* Four windows a chunk, the last one of ten padded, against a window a chunk, where nothing is. */
static void padding_has_no_say(void **state) {
    (void)state;
    struct golden g;
    struct golden_store whole, padded;
    struct backend together = backend_cpu;
    together.chunk_tokens = 4 * GOLDEN_LENGTH;
    golden_open(&g, "llama");
    g.windows.count = 10;
    struct candidate *recipe = mixed_recipe(&g);
    calibrate_store(&whole, &g, recipe);
    calibrate_store(&padded, &g, recipe);
    golden_must(&g, refine_store(&whole));
    g.job.backend = &together;
    golden_must(&g, refine_store(&padded));
    double difference = padded.refined.kl_after / whole.refined.kl_after - 1;
    if (fabs(difference) > 1e-5) fail_msg("%g: padding moves the KL", difference);
    packed_store_free(whole.store);
    packed_store_free(padded.store);
    golden_close(&g);
}

/* --- where things are --- */

static int64_t little_room(struct backend_state *state) {
    (void)state;
    return (int64_t)1 << 30; /* less than what codes leave to workspaces */
}

/* Codes and hidden states that come from the host's memory while the device computes; then from a file. Windows that
 * leave the last batch short. */
static void where_things_are_changes_nothing(void **state) {
    (void)state;
    struct golden g;
    struct golden_store here, there, spilled;
    struct backend far = with_late_copies(backend_cpu);
    far.own_memory = far.loads_ahead = true;
    far.room = little_room;
    golden_open(&g, "llama");
    g.windows.count = 10;
    struct candidate *recipe = mixed_recipe(&g);
    calibrate_store(&here, &g, recipe);
    calibrate_store(&there, &g, recipe);
    calibrate_store(&spilled, &g, recipe);
    golden_must(&g, refine_store(&here));
    assert_int_equal(here.refined.steps, 2 * 3);
    g.job.backend = &far;
    golden_must(&g, refine_store(&there));
    g.job.backend = &backend_cpu;
    g.job.ram_limit = 1;
    golden_must(&g, refine_store(&spilled));
    assert_int_equal(changed_scales(&here, &there), 0);
    assert_int_equal(changed_scales(&here, &spilled), 0);
    assert_true(here.refined.kl_after == there.refined.kl_after);
    packed_store_free(here.store);
    packed_store_free(there.store);
    packed_store_free(spilled.store);
    golden_close(&g);
}

static void a_device_without_room_is_told_of_before(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "llama");
    struct candidate *recipe = mixed_recipe(&g);
    golden_must(&g, refine_check(&g.job, g.model, recipe, &g.err));
    backend_cpu.close(g.job.device);
    static const struct backend_options little = {.threads = 1, .memory_limit = 1 << 14};
    golden_must(&g, backend_cpu.open(&little, &g.job.device, &g.err));
    assert_int_equal(refine_check(&g.job, g.model, recipe, &g.err), RC_NO_MEMORY);
    assert_non_null(strstr(g.err.message, "\"refine\": false"));
    golden_close(&g);
}

static atomic_bool cancelled;

static enum rc cancel_at_step(struct backend_state *state, const struct adam_args *a, struct err *e) {
    atomic_store(&cancelled, true);
    return backend_cpu.adam(state, a, e);
}

static void a_cancel_is_seen_between_steps(void **state) {
    (void)state;
    struct golden g;
    struct golden_store before, s;
    struct backend b = backend_cpu;
    golden_open(&g, "llama");
    struct candidate *recipe = mixed_recipe(&g);
    calibrate_store(&before, &g, recipe);
    calibrate_store(&s, &g, recipe);
    b.adam = cancel_at_step;
    g.job.backend = &b;
    g.job.cancelled = &cancelled;
    assert_int_equal(refine_store(&s), RC_CANCELLED);
    assert_int_equal(changed_scales(&before, &s), 0);
    packed_store_free(before.store);
    packed_store_free(s.store);
    golden_close(&g);
}

/* --- as a job has it --- */

#define SPEC(more)                                                                                                     \
    "{'kind':'eval','model':'M','dataset':'D','length':64,'windows':24" more                                           \
    ",'calibration':{'dataset':'C','samples':24,'length':64,'sampling':'sequential'}}"

static double kl_of(const char *spec, bool refined, bool by_default) {
    struct run r;
    run_init(&r);
    must_run(&r, FIXTURE "calibration.txt", spec, NULL);
    const json_t *told = json_object_get(r.result, "refined");
    assert_true((told != NULL) == refined);
    if (refined) {
        assert_true(json_is_true(json_object_get(told, "default")) == by_default);
        assert_int_equal(json_integer_value(json_object_get(told, "epochs")), 2);
        assert_int_equal(json_integer_value(json_object_get(told, "steps")), 12);
    }
    assert_false(r.went_back);
    double kl = json_number_value(json_object_get(json_object_get(r.result, "kl"), "mean"));
    run_release(&r);
    return kl;
}

/* Told by an eval of the windows that it was refined on. */
static void the_kl_falls(void **state) {
    (void)state;
#define GPTQ(more) ",'uniform':{'method':'gptq','bits':3,'group':64" more "}"
    double plain = kl_of(SPEC(GPTQ("")), false, false), refined = kl_of(SPEC(GPTQ("") ",'refine':true"), true, false);
    double guided = kl_of(SPEC(GPTQ(",'guided':true") ",'refine':false"), false, false);
    double both = kl_of(SPEC(GPTQ(",'guided':true")), true, true);
    double rtn = kl_of(SPEC(",'refine':true,'uniform':{'method':'rtn','bits':3,'group':64}"), true, false);
    print_message("KL %.5f, refined %.5f; guided %.5f, refined %.5f; rounded to nearest and refined %.5f\n", plain,
                  refined, guided, both, rtn);
    assert_true(refined < 0.9 * plain && both < 0.9 * guided);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slopes_are_those_of_the_kl),
        cmocka_unit_test(the_loss_is_an_evals_kl),
        cmocka_unit_test(only_scales_change),
        cmocka_unit_test(the_seed_says_in_which_order_windows_come),
        cmocka_unit_test(padding_has_no_say),
        cmocka_unit_test(where_things_are_changes_nothing),
        cmocka_unit_test(a_device_without_room_is_told_of_before),
        cmocka_unit_test(a_cancel_is_seen_between_steps),
        cmocka_unit_test(the_kl_falls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
