/* A second round of scores: around the quantized model that an allocation describes, what is measured is what a walk of
 * that very model says of the reference's weights; around a model that keeps all it is the first round; and it survives
 * interruption bit for bit. */
#include "tests/unit/golden_model.h"
#include "tests/unit/run_job.h"

#include "worker/pipeline/gradwalk.h"
#include "worker/pipeline/quantized_model.h"
#include "worker/pipeline/refine.h"

/* --- the walk --- */

enum { LINEARS_MAX = 32, SCORED = 5, SEED = 3 };

/* What one walk hands over. */
struct told {
    struct golden *g;
    const struct mat *w; /* [linear_count] of the reference, in place of what the walk has; NULL: what it has */
    double *h[LINEARS_MAX], *h_w[LINEARS_MAX], *outer[LINEARS_MAX], fisher[LINEARS_MAX];
};

static double *copy_square(struct golden *g, struct mat m) {
    size_t bytes = (size_t)(m.rows * m.rows) * sizeof(double);
    return memcpy(arena_alloc(&g->arena, bytes), m.data, bytes);
}

/* D = w − ŵ, where ŵ is half of w. */
static enum rc take_input(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    (void)job, (void)e;
    struct told *t = ctx;
    for (int n = 0; n < in->count; n++) {
        int64_t index = in->index[n];
        struct mat w = t->w ? t->w[index] : in->w[n];
        t->h[index] = copy_square(t->g, in->h);
        t->h_w[index] = copy_square(t->g, in->h_w);
        t->outer[index] = copy_square(t->g, in->g[n]);
        for (int64_t i = 0; i < w.rows * w.cols; i++)
            ((float *)in->slots[n][0].d.data)[i] = f32_row(w, 0)[i] / 2;
        in->slots[n][0].filled = true;
    }
    return RC_OK;
}

static enum rc take_score(void *ctx, const struct job *job, int64_t linear, size_t candidate, double fisher,
                          struct err *e) {
    (void)job, (void)candidate, (void)e;
    ((struct told *)ctx)->fisher[linear] = fisher;
    return RC_OK;
}

static void walk(struct golden *g, const struct packed_store *around, const struct mat *w, struct told *t) {
    bool wanted[LINEARS_MAX] = {0};
    *t = (struct told){.g = g, .w = w};
    for (int64_t i = 0; i < g->model->linear_count; i++)
        wanted[i] = g->model->linears[i].block >= 0;
    struct grad_walk a = {.gram = {.job = &g->job,
                                   .model = g->model,
                                   .windows = &g->windows,
                                   .phase = "golden",
                                   .wanted = wanted,
                                   .candidates = 1,
                                   .input = take_input,
                                   .ctx = t},
                          .unweighed = true,
                          .guided = true,
                          .outer = true,
                          .scored = SCORED,
                          .seed = SEED,
                          .around = around,
                          .score = take_score};
    golden_must(g, grad_walk_run(&a, &g->err));
}

/* The Linears of the store become the model's; `own` gets what they were. */
static void replace_all(struct golden *g, const struct packed_store *store, struct mat *own) {
    golden_widen_all(g);
    for (int b = 0; b < g->model->arch.blocks; b++)
        for (int p = 0; p < BLOCK_LINEARS_MAX && g->model->blocks[b].linears[p] >= 0; p++) {
            int index = g->model->blocks[b].linears[p];
            struct linear *l = &g->model->linears[index];
            own[index] = matf((float *)l->weight->data, l->rows, l->cols);
            l->weight = golden_widen(g, l->weight);
            golden_must(g, packed_store_linear(store, &g->job, b, p, matf((float *)l->weight->data, l->rows, l->cols),
                                               &g->err));
        }
}

static struct packed_store *make_store(struct golden *g, struct candidate c) {
    struct candidate *recipe = arena_alloc(&g->arena, (size_t)g->model->linear_count * sizeof *recipe);
    struct packed_store *store;
    struct refined refined;
    for (int64_t i = 0; i < g->model->linear_count; i++)
        recipe[i] = g->model->linears[i].block >= 0 ? c : candidate_default(METHOD_NONE, 16, 0);
    struct quantized_model_args a = {.job = &g->job,
                                     .model = g->model,
                                     .windows = &g->windows,
                                     .recipe = recipe,
                                     .refine = refine_wanted(false, false, recipe, g->model)};
    golden_must(g, quantized_model_make(&a, &store, &refined, &g->err));
    assert_int_equal(refined.epochs, c.guided ? REFINE_EPOCHS : 0);
    return store;
}

static void same_square(const double *a, const double *b, int64_t n) {
    assert_memory_equal(a, b, (size_t)(n * n) * sizeof *a);
}

/* As on a GPU: the block that comes next is loaded while this one is replaced, from staging; what is scored is kept. */
static void walk_on_device(struct golden *g, const struct packed_store *store, struct told *t) {
    struct backend device = backend_cpu;
    device.own_memory = device.loads_ahead = true;
    g->job.backend = &device;
    walk(g, store, NULL, t);
    g->job.backend = &backend_cpu;
}

static void check_walk(const char *name, struct candidate c) {
    struct golden g;
    static struct told around, direct, reference, device;
    struct mat own[LINEARS_MAX] = {0};
    golden_open(&g, name);
    assert_in_range(g.model->linear_count, 2, LINEARS_MAX);
    struct packed_store *store = make_store(&g, c);
    walk(&g, NULL, NULL, &reference);
    walk(&g, store, NULL, &around);
    walk_on_device(&g, store, &device);
    replace_all(&g, store, own);
    walk(&g, NULL, own, &direct);
    for (int64_t i = 0; i < g.model->linear_count - 1; i++) {
        const struct linear *l = &g.model->linears[i];
        same_square(around.h[i], direct.h[i], l->cols);
        same_square(around.h_w[i], direct.h_w[i], l->cols);
        same_square(around.outer[i], direct.outer[i], l->rows);
        assert_true(around.fisher[i] == direct.fisher[i] && around.fisher[i] > 0);
        assert_true(around.fisher[i] != reference.fisher[i]);
        same_square(device.h_w[i], direct.h_w[i], l->cols);
        assert_true(device.fisher[i] == direct.fisher[i]);
    }
    packed_store_free(store);
    golden_close(&g);
}

static void scores_are_those_of_a_model_of_the_quantized_weights(void **state) {
    (void)state;
    struct candidate guided = candidate_default(METHOD_GPTQ, 2, 16);
    guided.guided = true;
    check_walk("llama", guided); /* and refined */
    check_walk("qwen2", candidate_default(METHOD_RTN, 2, 16));
    check_walk("phi3", candidate_default(METHOD_HQQ, 3, 16));
}

/* --- the job --- */

#define CALIBRATION FIXTURE "calibration.txt"
#define SPEC(candidates, more)                                                                                         \
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':4,'length':64,'sampling':'sequential'},"     \
    "'candidates':[" candidates "],'scores':['drift','fisher','kfac','diag'],'fisher_windows':3" more "}"
#define TRIED "{'method':['rtn','gptq'],'bits':[2,4],'group':64},{'method':'none'}"
#define LAYERS ",'layers':'layers\\\\.[14]\\\\.'"
static const char first[] = SPEC(TRIED, LAYERS), second[] = SPEC(TRIED, LAYERS ",'around':'A'");
static const char split[] = SPEC(TRIED, LAYERS ",'around':'A','devices':'all'");
enum { LINEARS = 2 * 7, CANDIDATES = 5 };

static const char *const attention[] = {"q_proj", "k_proj", "v_proj", "o_proj"};
static const char *const mlp[] = {"gate_proj", "up_proj", "down_proj"};

static void assign(json_t *assignment, int block, const char *part, const char *projection, const char *candidate) {
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.%s", block, part, projection);
    json_array_append_new(assignment, json_pack("{ss ss}", "name", name, "candidate", candidate));
}

/* Of blocks 0 to 5, as an allocation's result has it. */
static json_t *inputs_of(const char *fingerprint, const char *candidate) {
    json_t *assignment = json_array();
    for (int block = 0; block < 6; block++) {
        for (size_t i = 0; i < sizeof attention / sizeof *attention; i++)
            assign(assignment, block, "self_attn", attention[i], candidate);
        for (size_t i = 0; i < sizeof mlp / sizeof *mlp; i++)
            assign(assignment, block, "mlp", mlp[i], candidate);
    }
    return json_pack("{s{s{ss so}}}", "around", "result", "fingerprint", fingerprint, "assignment", assignment);
}

static const char *fingerprint_of(const struct run *r) {
    return json_string_value(json_object_get(json_object_get(r->result, "model"), "fingerprint"));
}

static void run_first(struct run *r) {
    run_init(r);
    must_run(r, CALIBRATION, first, NULL);
}

static void run_around(struct run *r, const char *spec, json_t *inputs, json_t *earlier) {
    if (run_job(r, FIXTURE "tiny", CALIBRATION, spec, earlier, inputs) != RC_OK) fail_msg("%s", r->err.message);
    assert_false(r->went_back);
}

static void same_rows(const struct run *a, const struct run *b) {
    size_t i;
    json_t *row;
    assert_true(json_array_size(a->rows) > 0);
    json_array_foreach(a->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *name = json_string_value(json_object_get(data, "name"));
        if (!json_object_get(data, "fisher")) continue; /* an inversion */
        assert_true(json_equal(data, row_of(b, name, json_string_value(json_object_get(data, "candidate")))));
    }
}

static void around_a_model_that_keeps_all_it_is_the_first_round(void **state) {
    (void)state;
    struct run before, after;
    run_first(&before);
    run_init(&after);
    json_t *inputs = inputs_of(fingerprint_of(&before), "none");
    run_around(&after, second, inputs, NULL);
    assert_int_equal(json_array_size(after.rows), json_array_size(before.rows));
    same_rows(&before, &after);
    assert_true(json_equal(json_object_get(before.result, "totals"), json_object_get(after.result, "totals")));
    assert_true(json_equal(json_object_get(before.result, "inversions"), json_object_get(after.result, "inversions")));
    assert_null(json_object_get(before.result, "around"));
    json_t *told = json_pack("{ss si sn}", "allocation", "A", "bytes", 0, "refined");
    assert_true(json_equal(json_object_get(after.result, "around"), told));
    json_decref(told);
    json_decref(inputs);
    run_release(&before);
    run_release(&after);
}

/* The reference's rows are not taken for those, nor these left for others. */
static void another_model_has_other_scores_and_the_cache_no_part_in_them(void **state) {
    (void)state;
    struct run before, after;
    size_t i;
    json_t *row;
    run_first(&before);
    run_init(&after);
    json_object_update(after.cache, before.cache);
    json_t *inputs = inputs_of(fingerprint_of(&before), "gptq2g64-guided");
    run_around(&after, second, inputs, NULL);
    assert_int_equal(json_object_size(after.cache), json_object_size(before.cache));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(after.result, "rows"), "computed")),
                     LINEARS * CANDIDATES);
    json_array_foreach(before.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *name = json_string_value(json_object_get(data, "name")),
                   *candidate = json_string_value(json_object_get(data, "candidate"));
        if (!candidate || !strcmp(candidate, "none")) continue;
        const json_t *other = row_of(&after, name, candidate);
        static const char *const scores[] = {"drift", "fisher", "kfac", "diag"};
        for (size_t s = 0; s < sizeof scores / sizeof *scores; s++)
            assert_false(json_equal(json_object_get(data, scores[s]), json_object_get(other, scores[s])));
        bool rtn = !strncmp(candidate, "rtn", 3); /* of the reference's weights: as far off as ever */
        if (rtn)
            assert_true(json_equal(json_object_get(data, "relative_error"), json_object_get(other, "relative_error")));
    }
    const json_t *around = json_object_get(after.result, "around");
    assert_true(json_integer_value(json_object_get(around, "bytes")) > 0);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(around, "refined"), "epochs")), REFINE_EPOCHS);
    json_decref(inputs);
    run_release(&before);
    run_release(&after);
}

static void an_interrupted_second_round_ends_with_the_same_rows(void **state) {
    (void)state;
    enum { CUT = 40 };
    struct run before, whole, cut, rest;
    run_first(&before);
    run_init(&whole);
    run_init(&cut);
    run_init(&rest);
    json_t *inputs = inputs_of(fingerprint_of(&before), "gptq2g64-guided");
    run_around(&whole, second, inputs, NULL);
    cut.stop_after = CUT;
    assert_int_equal(run_job(&cut, FIXTURE "tiny", CALIBRATION, second, NULL, inputs), RC_UNAVAILABLE);
    run_around(&rest, second, inputs, cut.rows);
    assert_int_equal(json_array_size(cut.rows) + json_array_size(rest.rows), json_array_size(whole.rows));
    same_rows(&cut, &whole);
    same_rows(&rest, &whole);
    static const char *const members[] = {"totals", "inversions", "around"};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        assert_true(json_equal(json_object_get(rest.result, members[i]), json_object_get(whole.result, members[i])));
    json_decref(inputs);
    run_release(&before);
    run_release(&whole);
    run_release(&cut);
    run_release(&rest);
}

/* Each device shows its own walk the model that the first one made. */
static void split_second_round_equals_the_whole(void **state) {
    (void)state;
    struct run before, one, many;
    size_t i;
    json_t *row;
    run_first(&before);
    run_init(&one);
    run_init(&many);
    many.devices = "cpu,cpu,cpu";
    json_t *inputs = inputs_of(fingerprint_of(&before), "gptq2g64-guided");
    run_around(&one, second, inputs, NULL);
    run_around(&many, split, inputs, NULL);
    assert_int_equal(json_array_size(one.rows), json_array_size(many.rows));
    json_array_foreach(one.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        if (!json_object_get(data, "fisher")) continue;
        const json_t *other = row_of(&many, json_string_value(json_object_get(data, "name")),
                                     json_string_value(json_object_get(data, "candidate")));
        double want = json_number_value(json_object_get(data, "fisher")),
               got = json_number_value(json_object_get(other, "fisher"));
        assert_true(fabs(got - want) <= 1e-6 * fabs(want));
    }
    json_decref(inputs);
    run_release(&before);
    run_release(&one);
    run_release(&many);
}

static void refuse(const struct run *before, json_t *inputs, enum rc rc, const char *words) {
    struct run r;
    run_init(&r);
    json_object_update(r.cache, before->cache);
    assert_int_equal(run_job(&r, FIXTURE "tiny", CALIBRATION, second, NULL, inputs), rc);
    assert_string_equal(r.err.pointer, "/around");
    if (!strstr(r.err.message, words)) fail_msg("%s", r.err.message);
    assert_int_equal(json_array_size(r.rows), 0);
    json_decref(inputs);
    run_release(&r);
}

static json_t *with_another(const char *fingerprint, const char *name, const char *candidate) {
    json_t *inputs = inputs_of(fingerprint, "rtn4g64");
    json_array_append_new(json_object_get(json_object_get(json_object_get(inputs, "around"), "result"), "assignment"),
                          json_pack("{ss ss}", "name", name, "candidate", candidate));
    return inputs;
}

static void what_cannot_be_walked_around_is_refused(void **state) {
    (void)state;
    struct run before;
    run_first(&before);
    const char *own = fingerprint_of(&before);
    refuse(&before, inputs_of("f00d", "rtn4g64"), RC_INVALID, "f00d");
    refuse(&before, json_object(), RC_INVALID, "no assignment");
    refuse(&before, with_another(own, "model.layers.77.mlp.up_proj", "rtn4g64"), RC_INVALID, "layers.77");
    refuse(&before, with_another(own, "lm_head", "rtn4g64"), RC_UNSUPPORTED, "lm_head");
    refuse(&before, with_another(own, "model.layers.3.mlp.up_proj", "awq4g64"), RC_UNSUPPORTED, "AWQ");
    refuse(&before, with_another(own, "model.layers.0.self_attn.q_proj", "awq4g64"), RC_UNSUPPORTED, "AWQ");
    run_release(&before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_those_of_a_model_of_the_quantized_weights),
        cmocka_unit_test(around_a_model_that_keeps_all_it_is_the_first_round),
        cmocka_unit_test(another_model_has_other_scores_and_the_cache_no_part_in_them),
        cmocka_unit_test(an_interrupted_second_round_ends_with_the_same_rows),
        cmocka_unit_test(split_second_round_equals_the_whole),
        cmocka_unit_test(what_cannot_be_walked_around_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
