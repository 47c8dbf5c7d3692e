/* Two-sided GPTQ in jobs: it goes by H_w of the input and G at the output, the same codes whichever job asks, and each
 * Linear's rows are factored once for all candidates. */
#include "tests/unit/golden_model.h"
#include "tests/unit/run_job.h"

#include "kernels/cpu/cpu.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/gradwalk.h"

enum { BLOCKS = 6, PER_BLOCK = 7 };
#define CALIBRATION_TEXT FIXTURE "calibration.txt"
#define CALIBRATION "'samples':4,'length':64,'sampling':'sequential'"
#define TWO_SIDED "{'bits':3,'group':64,'two_sided':true}"
#define PROFILE(candidates, more)                                                                                      \
    "{'kind':'profile','model':'M','calibration':{'dataset':'D'," CALIBRATION "},'candidates':[" candidates "]" more "}"
#define WITH_CALIBRATION(kind, more)                                                                                   \
    "{'kind':'" kind "','model':'M'" more ",'calibration':{'dataset':'C'," CALIBRATION "}}"

/* --- calibration --- */

/* A sink that keeps the codes. */
struct outcome {
    struct golden *g;
    uint8_t **codes; /* [linear_count] */
    int equal, linears;
};

static enum rc keep_codes(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e) {
    (void)job, (void)e;
    struct outcome *o = ctx;
    for (int i = 0; i < block->count; i++) {
        const struct calibrated_linear *l = &block->linears[i];
        size_t count = (size_t)(l->linear->rows * l->linear->cols);
        o->codes[l->index] = arena_alloc(&o->g->arena, count);
        memcpy(o->codes[l->index], l->q.codes, count);
    }
    return RC_OK;
}

static struct factor factor_of(struct golden *g, struct mat h, enum column_order order, int group, double damp) {
    struct factor f;
    golden_must(g, factor_alloc(&backend_cpu, g->job.device, h.cols, &f, &g->err));
    struct factor_args a = {.h = h, .order = order, .group = group, .damp = damp, .out = &f};
    golden_must(g, backend_cpu.factor(g->job.device, &a, &g->err));
    return f;
}

/* The Linear's codes, straight from the operations. */
static void compare_linear(struct outcome *o, const struct gram_input *in, int n) {
    struct golden *g = o->g;
    struct candidate c = candidate_default(METHOD_GPTQ, 3, 16);
    struct factor cols = factor_of(g, in->h_w, c.order, c.group, (double)c.damp / PARTS);
    struct factor rows = factor_of(g, in->g[n], ORDER_ACTIVATION, 0, 0.5);
    struct quantized q;
    struct quantize_report report;
    golden_must(g, quantized_alloc(&backend_cpu, g->job.device, in->w[n].rows, in->w[n].cols, &c, &q, &g->err));
    struct quantize_args a = {
        .w = in->w[n], .candidate = c, .factor = &cols, .rows = &rows, .out = &q, .report = &report};
    golden_must(g, backend_cpu.quantize(g->job.device, &a, 1, &g->err));
    o->equal += !memcmp(q.codes, o->codes[in->index[n]], (size_t)(q.rows * q.cols));
    o->linears++;
    quantized_release(&backend_cpu, g->job.device, &q);
    factor_release(&backend_cpu, g->job.device, &cols);
    factor_release(&backend_cpu, g->job.device, &rows);
}

static enum rc compare_codes(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    (void)job, (void)e;
    for (int n = 0; n < in->count; n++)
        compare_linear(ctx, in, n);
    return RC_OK;
}

static void walk_by_hand(struct golden *g, struct outcome *o) {
    bool *wanted = arena_alloc(&g->arena, (size_t)g->model->linear_count);
    for (int64_t i = 0; i < g->model->linear_count; i++)
        wanted[i] = g->model->linears[i].block >= 0;
    struct gram_walk gram = {.job = &g->job,
                             .model = g->model,
                             .windows = &g->windows,
                             .phase = "by hand",
                             .wanted = wanted,
                             .input = compare_codes,
                             .ctx = o};
    struct grad_walk walk = {.gram = gram, .guided = true, .outer = true};
    golden_must(g, grad_walk_run(&walk, &g->err));
}

static void both_sides_are_gone_by(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "llama");
    struct outcome o = {.g = &g};
    struct candidate *recipe = arena_alloc(&g.arena, (size_t)g.model->linear_count * sizeof *recipe), c;
    golden_must(&g, candidate_from_id("gptq3g16-guided-twosided", &c, &g.err));
    for (int64_t i = 0; i < g.model->linear_count; i++)
        recipe[i] = g.model->linears[i].block >= 0 ? c : candidate_default(METHOD_NONE, 16, 0);
    o.codes = arena_alloc(&g.arena, (size_t)g.model->linear_count * sizeof *o.codes);
    struct calibration_sink sink = {.ctx = &o, .block = keep_codes};
    struct calibrate_args a = {.job = &g.job, .model = g.model, .windows = &g.windows, .recipe = recipe, .sink = &sink};
    golden_must(&g, calibrate(&a, &g.err));
    walk_by_hand(&g, &o);
    assert_int_equal(o.linears, PER_BLOCK * g.model->arch.blocks);
    assert_int_equal(o.equal, o.linears);
    golden_close(&g);
}

/* --- jobs --- */

static int quantized, factored, most_together, calls;
static uint64_t all_codes; /* of what was quantized two-sided, whatever the order */

static uint64_t hash(const void *data, size_t size, uint64_t h) {
    for (size_t i = 0; i < size; i++)
        h = (h ^ ((const uint8_t *)data)[i]) * 0x100000001b3;
    return h;
}

static void note_codes(const struct quantized *q) {
    size_t parameters = (size_t)(q->rows * q->groups) * sizeof(float);
    uint64_t h = hash(q->codes, (size_t)(q->rows * q->cols), 0xcbf29ce484222325);
    all_codes += hash(q->zero, parameters, hash(q->scale, parameters, h));
    quantized++;
}

static enum rc watch_quantize(struct backend_state *state, const struct quantize_args *a, int count, struct err *e) {
    TRY(backend_cpu.quantize(state, a, count, e));
    calls += a[0].rows != NULL;
    if (count > most_together) most_together = count;
    for (int i = 0; i < count; i++)
        if (a[i].rows) note_codes(a[i].out);
    return RC_OK;
}

static enum rc watch_factor(struct backend_state *state, const struct factor_args *a, struct err *e) {
    factored += a->order == ORDER_ACTIVATION;
    return backend_cpu.factor(state, a, e);
}

static void watch(struct run *r, const char *spec, const char *artifact) {
    struct backend watching = backend_cpu;
    watching.quantize = watch_quantize;
    watching.factor = watch_factor;
    quantized = factored = most_together = 0;
    all_codes = 0;
    run_init(r);
    r->backend = &watching;
    r->artifact = artifact;
    must_run(r, CALIBRATION_TEXT, spec, NULL);
}

/* What was scored is what is run. */
static void a_profile_measures_what_an_eval_runs(void **state) {
    (void)state;
    struct run r;
    uint64_t profiled;
    watch(&r, PROFILE(TWO_SIDED, ""), NULL);
    assert_int_equal(quantized, BLOCKS * PER_BLOCK);
    profiled = all_codes;
    run_release(&r);
    watch(&r, WITH_CALIBRATION("eval", ",'dataset':'D','length':64,'windows':1,'refine':false,'uniform':" TWO_SIDED),
          NULL);
    assert_int_equal(quantized, BLOCKS * PER_BLOCK);
    assert_true(all_codes == profiled);
    run_release(&r);
}

static void rows_are_factored_once_for_all_candidates(void **state) {
    (void)state;
    struct run many, single;
    watch(&many, PROFILE("{'bits':[2,3,4],'group':[32,64],'two_sided':[false,true]}", ",'layers':'layers\\\\.1\\\\.'"),
          NULL);
    assert_int_equal(quantized, 6 * PER_BLOCK);
    assert_int_equal(factored, PER_BLOCK);
    watch(&single, PROFILE(TWO_SIDED, ",'layers':'layers\\\\.1\\\\.'"), NULL);
    size_t i;
    json_t *row;
    assert_int_equal(json_array_size(single.rows), PER_BLOCK);
    json_array_foreach(single.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *name = json_string_value(json_object_get(data, "name"));
        const json_t *other = row_of(&many, name, "gptq3g64-guided-twosided");
        const json_t *one_sided = row_of(&many, name, "gptq3g64-descend2-guided");
        assert_true(json_equal(data, other));
        assert_false(json_equal(json_object_get(data, "drift"), json_object_get(one_sided, "drift")));
    }
    run_release(&many);
    run_release(&single);
}

#define TOGETHER(candidates)                                                                                           \
    PROFILE(candidates, ",'layers':'layers\\\\.1\\\\.','scores':['fisher','kfac'],'fisher_windows':2")

static void run_on(struct run *r, struct backend *b, const char *spec) {
    b->quantize = watch_quantize;
    quantized = most_together = 0;
    run_init(r);
    r->backend = b;
    must_run(r, CALIBRATION_TEXT, spec, NULL);
}

static int64_t no_room(struct backend_state *state) {
    (void)state;
    return 0;
}

/* Those of one factor go together, two-sided ones alone, and it is not to be seen in what they are found to be. */
static void going_together_changes_no_bit(void **state) {
    (void)state;
    static const char spec[] =
        TOGETHER("{'bits':3,'group':32,'two_sided':[true,false]},{'method':'rtn','bits':3,'group':64},"
                 "{'bits':[2,3,4],'group':64,'two_sided':true,'range':['minmax','mse']},"
                 "{'bits':3,'group':16,'two_sided':true,'order':['natural','static_groups'],'symmetric':[false,true]}");
    struct backend wide = backend_cpu, narrow = backend_cpu;
    struct run together, alone;
    narrow.room = no_room; /* for no more than one at a time */
    run_on(&together, &wide, spec);
    assert_int_equal(quantized, 11 * PER_BLOCK);
    assert_int_equal(most_together, 6);
    run_on(&alone, &narrow, spec);
    assert_int_equal(quantized, 11 * PER_BLOCK);
    assert_int_equal(most_together, 1);
    assert_int_equal(json_array_size(alone.rows), 13 * PER_BLOCK);
    assert_true(json_equal(alone.rows, together.rows));
    run_release(&together);
    run_release(&alone);
}

/* --- within a device's memory --- */

static int64_t limit;                       /* of device memory */
static struct backend_state *_Atomic small; /* of several devices the one that has that; others have twice as much */

static enum rc note_small(struct backend_state *state, struct err *e) {
    if (!small) small = state;
    return backend_cpu.attach(state, e);
}

static void set_limit(struct backend_state *state) {
    state->limit = !small || state == small ? limit : 2 * limit;
}

static enum rc limited_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    set_limit(state);
    return backend_cpu.alloc(state, bytes, memory, e);
}

static int64_t boast; /* room that there is not */

static int64_t limited_room(struct backend_state *state) {
    set_limit(state);
    return boast + backend_cpu.room(state);
}

static struct backend limited_device(int64_t bytes) {
    struct backend device = backend_cpu;
    device.own_memory = device.loads_ahead = true;
    device.alloc = limited_alloc;
    device.room = limited_room;
    device.attach = note_small;
    device.quantize = watch_quantize;
    limit = bytes;
    small = NULL;
    most_together = calls = 0;
    return device;
}

static int64_t count_of(const struct run *r, const char *what) {
    return json_integer_value(json_object_get(json_object_get(r->result, "rows"), what));
}

static enum rc run_within(const char *spec, int64_t bytes) {
    struct backend device = limited_device(bytes);
    struct run r;
    run_init(&r);
    r.backend = &device;
    enum rc rc = run_job(&r, FIXTURE "tiny", CALIBRATION_TEXT, spec, NULL, NULL);
    if (rc == RC_OK) assert_int_equal(json_array_size(r.rows), count_of(&r, "computed"));
    run_release(&r);
    return rc;
}

static int64_t least_limit(const char *spec) {
    int64_t too_little = 1 << 20, enough = 1 << 26;
    while (enough - too_little > 1 << 12) {
        int64_t half = (too_little + enough) / 2;
        if (run_within(spec, half) == RC_OK)
            enough = half;
        else
            too_little = half;
    }
    return enough;
}

/* A device that is too small for several at once takes as many as it can. */
static void what_one_fits_in_is_enough_for_many(void **state) {
    (void)state;
#define BITS(bits)                                                                                                     \
    PROFILE("{'bits':" bits ",'group':64,'two_sided':true}", ",'layers':'layers\\\\.1\\\\.','scores':['drift']")
    int64_t enough = least_limit(BITS("4"));
    assert_int_equal(run_within(BITS("[2,3,4,5,6,8]"), enough), RC_OK);
    assert_true(calls > PER_BLOCK);
    assert_int_equal(run_within(BITS("[2,3,4,5,6,8]"), 2 * enough), RC_OK);
    assert_int_equal(calls, PER_BLOCK);
    assert_int_equal(most_together, 6);
}

/* None of them is another's next in bits, so that no inversion is looked into after the walks. */
#define ONE_SCORED "{'bits':3,'group':16,'two_sided':true}"
#define SEVEN_SCORED                                                                                                   \
    "{'bits':3,'group':64,'two_sided':[false,true],'range':['minmax','mse']},{'method':'rtn','bits':4,'group':64},"    \
    "{'bits':3,'group':[16,32],'two_sided':true}"
#define SCORED(candidates, windows, more)                                                                              \
    PROFILE(candidates, ",'layers':'layers\\\\.[12]\\\\.','scores':['drift','fisher','kfac']"                          \
                        ",'fisher_windows':" windows more)
enum { SEVEN = 7, SCORED_ROWS = SEVEN * 2 * PER_BLOCK, MOST_ROUNDS = SEVEN * PER_BLOCK, TOKENS = 4 * 64 };

static int64_t least_for_one;

static int find_least_for_one(void **state) {
    (void)state;
    least_for_one = least_limit(SCORED(ONE_SCORED, "1", ""));
    return 0;
}

/* More memory, of which some is then kept for inputs, leaves no less to quantizing. */
static void kept_inputs_leave_room_to_quantize(void **state) {
    (void)state;
    for (int part = 0; part <= 16; part++)
        if (run_within(SCORED(ONE_SCORED, "4", ""), least_for_one + least_for_one * part / 16) != RC_OK)
            fail_msg("fails with %d sixteenths more than enough", part);
}

static int64_t rounds_of(const struct run *r) {
    return count_of(r, "rounds");
}

/* `r` as run_init leaves it, or with what it says next. */
static enum rc run_seven(struct run *r, int64_t bytes, json_t *earlier) {
    struct backend device = limited_device(bytes);
    const char *spec = r->devices ? SCORED(SEVEN_SCORED, "3", ",'devices':'all'") : SCORED(SEVEN_SCORED, "3", "");
    r->backend = &device;
    return run_job(r, FIXTURE "tiny", CALIBRATION_TEXT, spec, earlier, NULL);
}

/* By Linear and candidate, whatever order they came in. */
static void same_rows(const struct run *a, const struct run *b) {
    size_t i;
    json_t *row;
    assert_int_equal(json_array_size(a->rows), SCORED_ROWS);
    assert_int_equal(json_array_size(b->rows), SCORED_ROWS);
    json_array_foreach(a->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *name = json_string_value(json_object_get(data, "name"));
        assert_true(json_equal(data, row_of(b, name, json_string_value(json_object_get(data, "candidate")))));
    }
}

static void must_run_seven(struct run *r, int64_t bytes, const char *devices) {
    run_init(r);
    r->devices = devices;
    if (run_seven(r, bytes, NULL) != RC_OK) fail_msg("%s", r->err.message);
    assert_false(r->went_back);
    assert_string_equal(r->phase, "calibrate");
    assert_int_equal(r->done, r->total);
    assert_int_equal(r->total, TOKENS);
}

static const int64_t plenty = 1 << 30;

/* Each a few more than the last, as memory grows. */
static void candidates_that_do_not_fit_together_come_in_rounds(void **state) {
    (void)state;
    struct run all, some;
    must_run_seven(&all, plenty, NULL);
    assert_int_equal(rounds_of(&all), 1);
    int64_t last = MOST_ROUNDS;
    bool several = false;
    for (int part = 0; last > 1; part++) {
        must_run_seven(&some, least_for_one + least_for_one * part / 8, NULL);
        same_rows(&all, &some);
        assert_in_range(rounds_of(&some), 1, last);
        last = rounds_of(&some);
        several = several || (last > 1 && last < PER_BLOCK);
        assert_true(part > 0 || last > 1);
        run_release(&some);
    }
    assert_true(several);
    run_release(&all);
}

/* A worker that is lost has left the rows of earlier rounds and blocks. */
static void rounds_go_on_where_they_were(void **state) {
    (void)state;
    struct run all, some;
    must_run_seven(&all, plenty, NULL);
    run_init(&some);
    some.stop_after = SCORED_ROWS / 2;
    assert_int_equal(run_seven(&some, least_for_one, NULL), RC_UNAVAILABLE);
    some.stop_after = 0;
    json_t *earlier = json_deep_copy(some.rows);
    json_object_clear(some.cache);
    assert_int_equal(run_seven(&some, least_for_one, earlier), RC_OK);
    const json_t *counts = json_object_get(some.result, "rows");
    assert_int_equal(json_integer_value(json_object_get(counts, "resumed")), SCORED_ROWS / 2);
    assert_int_equal(json_integer_value(json_object_get(counts, "computed")), SCORED_ROWS / 2);
    assert_in_range(rounds_of(&some), 2, MOST_ROUNDS);
    same_rows(&all, &some);
    json_decref(earlier);
    run_release(&some);
    run_release(&all);
}

/* As many as fit on the smaller. */
static void devices_of_unlike_room_agree(void **state) {
    (void)state;
    struct run all, some;
    must_run_seven(&all, plenty, "cpu,cpu");
    for (int part = 2; part <= 3; part++) {
        must_run_seven(&some, least_for_one + least_for_one * part / 8, "cpu,cpu");
        assert_in_range(rounds_of(&some), 2, MOST_ROUNDS);
        same_rows(&all, &some);
        run_release(&some);
    }
    run_release(&all);
}

/* What was planned does not fit then: another walk, with fewer at a time. */
static void a_device_with_less_room_than_it_says_takes_more_rounds(void **state) {
    (void)state;
    struct run all, some;
    must_run_seven(&all, plenty, NULL);
    boast = least_for_one / 4;
    run_init(&some);
    enum rc rc = run_seven(&some, least_for_one, NULL);
    boast = 0;
    if (rc != RC_OK) fail_msg("%s", some.err.message);
    assert_in_range(rounds_of(&some), 2, MOST_ROUNDS);
    assert_int_equal(some.done, some.total);
    assert_true(some.total > TOKENS && !some.went_back);
    same_rows(&all, &some);
    run_release(&some);
    run_release(&all);
}

static void who_has_no_room_for_one_is_told_what_to_do(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    assert_int_equal(run_seven(&r, least_for_one / 2, NULL), RC_NO_MEMORY);
    print_message("%s\n", r.err.message);
    assert_non_null(strstr(r.err.message, "one candidate of one Linear at a time"));
    assert_non_null(strstr(r.err.message, "--vram-limit"));
    assert_non_null(strstr(r.err.message, "shorter windows"));
    assert_non_null(strstr(r.err.message, "\"two_sided\": false"));
    run_release(&r);
}

/* Scores of the loss come beside, and G serves both. */
static void scores_change_nothing(void **state) {
    (void)state;
    struct run plain, scored;
    watch(&plain, PROFILE(TWO_SIDED, ",'layers':'layers\\\\.1\\\\.'"), NULL);
    uint64_t codes = all_codes;
    watch(&scored, PROFILE(TWO_SIDED, ",'layers':'layers\\\\.1\\\\.','scores':['fisher','kfac'],'fisher_windows':2"),
          NULL);
    assert_true(all_codes == codes);
    size_t i;
    json_t *row;
    json_array_foreach(scored.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        assert_true(json_number_value(json_object_get(data, "fisher")) > 0);
        assert_true(json_number_value(json_object_get(data, "kfac")) > 0);
    }
    run_release(&plain);
    run_release(&scored);
}

/* Where calibration has text enough. */
static void held_out_text_loses_less(void **state) {
    (void)state;
#define SPEC(more)                                                                                                     \
    "{'kind':'eval','model':'M','dataset':'D','length':128,'windows':140,'refine':false,'uniform':{'bits':3" more "}," \
    "'calibration':{'dataset':'C','samples':300,'length':128,'sampling':'random'}}"
    static const char *const specs[] = {SPEC(",'two_sided':false"), SPEC("")};
    double kl[2];
    for (int i = 0; i < 2; i++) {
        struct run r;
        run_init(&r);
        must_run(&r, FIXTURE "heldout.txt", specs[i], NULL);
        kl[i] = json_number_value(json_object_get(json_object_get(r.result, "kl"), "mean"));
        run_release(&r);
    }
    print_message("guided GPTQ at 3 bits: KL %.5f descended, %.5f two-sided\n", kl[0], kl[1]);
    assert_true(kl[1] > 0 && kl[1] < kl[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_are_gone_by),
        cmocka_unit_test(a_profile_measures_what_an_eval_runs),
        cmocka_unit_test(rows_are_factored_once_for_all_candidates),
        cmocka_unit_test(going_together_changes_no_bit),
        cmocka_unit_test(what_one_fits_in_is_enough_for_many),
        cmocka_unit_test_setup(kept_inputs_leave_room_to_quantize, find_least_for_one),
        cmocka_unit_test(candidates_that_do_not_fit_together_come_in_rounds),
        cmocka_unit_test(rounds_go_on_where_they_were),
        cmocka_unit_test(devices_of_unlike_room_agree),
        cmocka_unit_test(a_device_with_less_room_than_it_says_takes_more_rounds),
        cmocka_unit_test(who_has_no_room_for_one_is_told_what_to_do),
        cmocka_unit_test(scores_change_nothing),
        cmocka_unit_test(held_out_text_loses_less),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
