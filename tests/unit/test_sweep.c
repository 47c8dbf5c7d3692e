/* A sweep's row is what an eval of that one Linear gives, whatever else is swept, in how many passes, however often the
 * job was interrupted. */
#include "tests/unit/late_copies.h"
#include "tests/unit/run_job.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/sweep_result.h"

#define HELDOUT FIXTURE "heldout.txt"
/* Of all the blocks, and of two of them. */
#define ALL(more) "{'kind':'sweep','model':'M','dataset':'D','length':64,'windows':4" more "}"
#define SWEEP(more) ALL(",'layers':'layers.(0|3)'" more)
#define RTN3 ",'candidate':{'method':'rtn','bits':3,'group':64}"
#define ON_C ",'calibration':{'dataset':'C','samples':8,'length':64,'sampling':'sequential'}"
enum { ALL_LINEARS = 42, LINEARS = 14, WINDOWS = 4, LENGTH = 64, HIDDEN = 128 };
static const int64_t stream_bytes = (int64_t)WINDOWS * LENGTH * HIDDEN * (int64_t)sizeof(float);

static double member(const json_t *object, const char *name) {
    assert_true(json_is_number(json_object_get(object, name)));
    return json_number_value(json_object_get(object, name));
}

static double nested(const struct run *r, const char *object, const char *name) {
    return member(json_object_get(r->result, object), name);
}

/* The row of a Linear. */
static const json_t *swept(const struct run *r, const char *name) {
    size_t i;
    json_t *row;
    json_array_foreach(r->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *of = json_string_value(json_object_get(data, "name"));
        if (of && !strcmp(of, name)) return data;
    }
    fail_msg("no row of %s", name);
    return NULL;
}

/* Of this run alone. */
static void without_run(json_t *result) {
    json_object_del(result, "tokens_per_second");
    json_object_del(result, "passes");
}

static int64_t passes(const struct run *r) {
    return json_integer_value(json_object_get(r->result, "passes"));
}

/* An eval in which one Linear has the candidate. */
static void eval_one(struct run *r, const char *name, const char *candidate, const char *calibration) {
    char spec[512];
    snprintf(spec, sizeof spec,
             "{'kind':'eval','model':'M','dataset':'D','length':64,'windows':4,'refine':false,'allocation':'A'%s}",
             calibration);
    json_t *inputs =
        json_pack("{s{s{s[{ss ss}]}}}", "allocation", "result", "assignment", "name", name, "candidate", candidate);
    if (run_job(r, FIXTURE "tiny", HELDOUT, spec, NULL, inputs) != RC_OK) fail_msg("%s", r->err.message);
    json_decref(inputs);
}

static void check_row(const struct run *sweep, const struct run *eval, const char *name, const char *candidate) {
    const json_t *row = swept(sweep, name);
    assert_string_equal(json_string_value(json_object_get(row, "candidate")), candidate);
    assert_true(member(row, "delta_kl") == nested(eval, "kl", "mean") && member(row, "delta_kl") > 0);
    assert_true(member(row, "delta_kl_se") == nested(eval, "kl", "se") && member(row, "delta_kl_se") > 0);
    assert_true(member(row, "delta_nll") == nested(eval, "delta", "nll") && member(row, "delta_nll") != 0);
    assert_true(member(row, "delta_nll_se") == nested(eval, "delta", "nll_se"));
    assert_int_equal(json_is_true(json_object_get(row, "improves")), member(row, "delta_nll") < 0);
    assert_true(nested(sweep, "reference", "nll") == nested(eval, "reference", "nll"));
    assert_true(nested(sweep, "reference", "ppl") == nested(eval, "reference", "ppl"));
}

/* Of each input, in either block. */
static const char *const names[] = {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj",
                                    "model.layers.3.self_attn.o_proj", "model.layers.3.mlp.up_proj"};
enum { NAMES = sizeof names / sizeof *names };

static void a_row_is_an_eval_of_that_linear(void **state) {
    (void)state;
    struct run sweep;
    run_init(&sweep);
    must_run(&sweep, HELDOUT, ALL(RTN3), NULL);
    assert_int_equal(json_array_size(sweep.rows), 1 + ALL_LINEARS);
    assert_int_equal(passes(&sweep), 1);
    for (int i = 0; i < NAMES; i++) {
        struct run eval;
        run_init(&eval);
        eval_one(&eval, names[i], "rtn3g64", "");
        check_row(&sweep, &eval, names[i], "rtn3g64");
        run_release(&eval);
    }
    run_release(&sweep);
}

/* By default a candidate is calibrated on the model quantized so far: with one Linear quantized, the reference. */
static void calibrated_candidates_are_those_of_an_eval(void **state) {
    (void)state;
    static const struct {
        const char *spec, *id;
    } cases[] = {
        {SWEEP(",'candidate':{'method':'gptq','bits':3,'group':64}" ON_C), "gptq3g64"},
        {SWEEP(",'candidate':{'method':'gptq','bits':3,'group':64,'guided':true}" ON_C), "gptq3g64-guided"},
        {SWEEP(",'candidate':{'bits':3,'group':64,'two_sided':true}" ON_C), "gptq3g64-guided-twosided"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct run sweep;
        run_init(&sweep);
        must_run(&sweep, HELDOUT, cases[c].spec, NULL);
        assert_int_equal(json_array_size(sweep.rows), 1 + LINEARS);
        assert_string_equal(json_string_value(json_object_get(json_object_get(sweep.result, "calibration"), "dataset")),
                            "C");
        for (int i = 0; i < NAMES; i++) {
            struct run eval;
            run_init(&eval);
            eval_one(&eval, names[i], cases[c].id, ON_C);
            check_row(&sweep, &eval, names[i], cases[c].id);
            run_release(&eval);
        }
        run_release(&sweep);
    }
}

/* Room for few streams; of less than two, hidden states go to a file. */
static void rows_do_not_depend_on_the_passes(void **state) {
    (void)state;
    static const struct {
        int64_t room, passes;
    } cases[] = {{1 + LINEARS, 1}, {LINEARS, 2}, {8, 2}, {7, 3}, {2, LINEARS}, {0, LINEARS}};
    struct run whole;
    run_init(&whole);
    must_run(&whole, HELDOUT, SWEEP(RTN3), NULL);
    without_run(whole.result);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run r;
        run_init(&r);
        r.ram_limit = cases[i].room * stream_bytes + 1;
        must_run(&r, HELDOUT, SWEEP(RTN3), NULL);
        assert_int_equal(passes(&r), cases[i].passes);
        without_run(r.result);
        assert_true(json_equal(whole.rows, r.rows) && json_equal(whole.result, r.result));
        run_release(&r);
    }
    run_release(&whole);
}

static void a_row_does_not_depend_on_what_else_is_swept(void **state) {
    (void)state;
    struct run whole, alone;
    run_init(&whole);
    run_init(&alone);
    must_run(&whole, HELDOUT, SWEEP(RTN3), NULL);
    must_run(&alone, HELDOUT, ALL(RTN3 ",'layers':'3.mlp.(up|down)'"), NULL);
    assert_int_equal(json_array_size(alone.rows), 1 + 2);
    assert_true(json_equal(swept(&alone, names[3]), swept(&whole, names[3])));
    run_release(&whole);
    run_release(&alone);
}

/* Also where the pass at hand was cut off among its rows. */
static void interrupted_sweeps_give_the_same_result(void **state) {
    (void)state;
    static const char *const specs[] = {SWEEP(RTN3), SWEEP(",'noise':0.2"),
                                        SWEEP(",'candidate':{'method':'gptq','bits':3,'group':64}" ON_C)};
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++) {
        struct run whole;
        run_init(&whole);
        must_run(&whole, HELDOUT, specs[s], NULL);
        without_run(whole.result);
        for (int64_t stop = 1; stop < 1 + LINEARS; stop += 6) {
            struct run cut, rest;
            run_init(&cut);
            run_init(&rest);
            cut.stop_after = stop;
            cut.ram_limit = s < 2 ? 8 * stream_bytes + 1 : 0; /* H takes more */
            if (run_job(&cut, FIXTURE "tiny", HELDOUT, specs[s], NULL, NULL) != RC_UNAVAILABLE)
                fail_msg("%s", cut.err.message);
            must_run(&rest, HELDOUT, specs[s], cut.rows);
            assert_int_equal(json_array_size(cut.rows) + json_array_size(rest.rows), 1 + LINEARS);
            without_run(rest.result);
            assert_true(json_equal(whole.result, rest.result));
            run_release(&cut);
            run_release(&rest);
        }
        run_release(&whole);
    }
}

static void a_complete_sweep_computes_nothing(void **state) {
    (void)state;
    struct run whole, again;
    run_init(&whole);
    run_init(&again);
    must_run(&whole, HELDOUT, SWEEP(RTN3), NULL);
    must_run(&again, HELDOUT, SWEEP(RTN3), whole.rows);
    assert_int_equal(json_array_size(again.rows), 0);
    assert_int_equal(passes(&again), 0);
    without_run(whole.result);
    without_run(again.result);
    assert_true(json_equal(whole.result, again.result));
    run_release(&whole);
    run_release(&again);
}

static void rows_without_their_reference_are_refused(void **state) {
    (void)state;
    struct run whole, again;
    run_init(&whole);
    run_init(&again);
    must_run(&whole, HELDOUT, SWEEP(RTN3), NULL);
    json_array_remove(whole.rows, 0);
    assert_int_equal(run_job(&again, FIXTURE "tiny", HELDOUT, SWEEP(RTN3), whole.rows, NULL), RC_INVALID);
    run_release(&whole);
    run_release(&again);
}

/* The cpu as if it were a device with memory of its own, that takes two windows at a time. */
static struct backend device_like(void) {
    struct backend b = backend_cpu;
    b.chunk_tokens = 2 * LENGTH;
    b.own_memory = b.loads_ahead = true;
    return b;
}

static int64_t room;
static int64_t little_room(struct backend_state *state) {
    (void)state;
    return room;
}

/* However much of them the device holds, and though copies go on beside the work. */
static void hidden_states_that_do_not_fit_the_device_change_nothing(void **state) {
    (void)state;
    struct backend roomy = device_like(), narrow = with_late_copies(device_like());
    struct run whole;
    int64_t fewest = INT64_MAX, most = 0;
    narrow.room = little_room;
    run_init(&whole);
    whole.backend = &roomy;
    must_run(&whole, HELDOUT, SWEEP(RTN3), NULL);
    without_run(whole.result);
    for (int64_t streams = 0; streams < 45; streams += 8) { /* blocks and the like take some twenty of them */
        struct run r;
        run_init(&r);
        r.backend = &narrow;
        r.ram_limit = streams == 24 ? 2 * stream_bytes : 0; /* some in a file */
        room = ((int64_t)768 << 20) + streams * stream_bytes;
        must_run(&r, HELDOUT, SWEEP(RTN3), NULL);
        if (passes(&r) < fewest) fewest = passes(&r);
        if (passes(&r) > most) most = passes(&r);
        without_run(r.result);
        assert_true(json_equal(whole.rows, r.rows) && json_equal(whole.result, r.result));
        run_release(&r);
    }
    assert_true(most == LINEARS && fewest < LINEARS);
    run_release(&whole);
}

/* Of the same shape and noise, yet other numbers. */
static void check_noise_is_each_ones_own(const json_t *rows) {
    for (size_t i = 1; i < json_array_size(rows); i++)
        for (size_t j = i + 1; j < json_array_size(rows); j++) {
            const json_t *a = json_object_get(json_array_get(rows, i), "data");
            const json_t *b = json_object_get(json_array_get(rows, j), "data");
            if (!json_equal(json_object_get(a, "shape"), json_object_get(b, "shape"))) continue;
            assert_true(fabs(member(a, "relative_error") / member(b, "relative_error") - 1) > 1e-6);
        }
}

/* As much as was asked for, and nothing that is stored; another seed is other noise. */
static void noise_is_as_large_as_asked(void **state) {
    (void)state;
    static const double sizes[] = {0.01, 0.1};
    const double four_sigma = 4 / sqrt(2 * 16384 * LINEARS); /* 128 × 128 is about the mean */
    struct run r[2], other;
    for (int t = 0; t < 2; t++) {
        char spec[256];
        double mean = 0;
        run_init(&r[t]);
        snprintf(spec, sizeof spec, SWEEP(",'noise':%g"), sizes[t]);
        must_run(&r[t], HELDOUT, spec, NULL);
        for (size_t i = 1; i < json_array_size(r[t].rows); i++) {
            const json_t *row = json_object_get(json_array_get(r[t].rows, i), "data");
            double relative = member(row, "relative_error") / sizes[t];
            assert_true(fabs(relative - 1) < 4 / sqrt(2 * member(row, "params")));
            assert_true(json_is_null(json_object_get(row, "candidate")) && member(row, "noise") == sizes[t]);
            assert_true(json_is_null(json_object_get(row, "bytes")));
            mean += relative / LINEARS;
        }
        assert_true(four_sigma < 0.01 && fabs(mean - 1) < 0.01);
    }
    check_noise_is_each_ones_own(r[1].rows);
    double ratio = member(swept(&r[1], names[1]), "delta_kl") / member(swept(&r[0], names[1]), "delta_kl");
    assert_true(ratio > 50 && ratio < 200); /* to second order in the noise */
    run_init(&other);
    must_run(&other, HELDOUT, SWEEP(",'noise':0.1,'seed':1"), NULL);
    assert_true(member(swept(&other, names[1]), "delta_kl") != member(swept(&r[1], names[1]), "delta_kl"));
    run_release(&r[0]);
    run_release(&r[1]);
    run_release(&other);
}

/* One window has no standard error, and that is no failure, also when the row comes back. */
static void one_window_has_no_error(void **state) {
    (void)state;
    static const char spec[] = "{'kind':'sweep','model':'M','dataset':'D','length':128,'windows':1,'layers':'0.mlp'}";
    struct run r, again;
    run_init(&r);
    run_init(&again);
    must_run(&r, HELDOUT, spec, NULL);
    const json_t *row = swept(&r, names[1]);
    assert_string_equal(json_string_value(json_object_get(row, "candidate")), "hqq3g64");
    assert_true(json_is_null(json_object_get(row, "delta_kl_se")));
    assert_true(json_is_null(json_object_get(row, "delta_nll_se")));
    must_run(&again, HELDOUT, spec, r.rows);
    assert_true(json_equal(json_object_get(r.result, "ranked"), json_object_get(again.result, "ranked")));
    run_release(&r);
    run_release(&again);
}

static void progress_counts_tokens_once_a_linear(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    r.ram_limit = 8 * stream_bytes + 1;
    must_run(&r, HELDOUT, SWEEP(RTN3), NULL);
    assert_string_equal(r.phase, "sweep");
    assert_true(r.done == r.total && r.total == (int64_t)LINEARS * WINDOWS * LENGTH);
    assert_false(r.went_back);
    run_release(&r);
}

static void a_cancelled_sweep_ends(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    atomic_store(&r.cancelled, true);
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, SWEEP(RTN3), NULL, NULL), RC_CANCELLED);
    run_release(&r);
}

static void layers_that_match_nothing_are_refused(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, ALL(RTN3 ",'layers':'lm_head'"), NULL, NULL), RC_INVALID);
    assert_string_equal(r.err.pointer, "/layers");
    assert_non_null(strstr(r.err.message, "their names are like model.layers.0.self_attn.q_proj"));
    run_release(&r);
}

/* --- the result --- */

enum { BLOCKS = 4, EACH = 2 };

struct made {
    struct model model;
    struct linear linears[BLOCKS * EACH];
    int64_t place[BLOCKS * EACH];
    struct swept rows[BLOCKS * EACH];
    struct candidate candidate;
    struct sweep_table table;
};

/* q_proj and down_proj of four blocks, with these effects. */
static void make(struct made *m, const double *delta_kl) {
    *m = (struct made){.candidate = candidate_default(METHOD_RTN, 4, 64)};
    for (int i = 0; i < BLOCKS * EACH; i++) {
        bool attention = i % EACH == 0;
        m->linears[i] = (struct linear){.name = "l",
                                        .projection = attention ? "q_proj" : "down_proj",
                                        .block = i / EACH,
                                        .input = attention ? INPUT_ATTENTION : INPUT_DOWN,
                                        .rows = 4,
                                        .cols = 8};
        m->place[i] = i;
        m->rows[i] = (struct swept){.delta_kl = delta_kl[i], .delta_kl_se = 0.5, .delta_nll_se = 0.5, .known = true};
    }
    m->model.linears = m->linears;
    m->model.arch.blocks = BLOCKS;
    m->table = (struct sweep_table){
        .model = &m->model, .place = m->place, .count = BLOCKS * EACH, .candidate = &m->candidate, .rows = m->rows};
}

static const char *text(const json_t *list, size_t i, const char *name) {
    return json_string_value(json_object_get(json_array_get(list, i), name));
}

static double value(const json_t *list, size_t i, const char *name) {
    return member(json_array_get(list, i), name);
}

/* The mean is 1. */
static const double effects[] = {4, 0.25, 0.1, 0.9, 0.1, 0.9, 0.75, 1};

static void linears_are_ranked_by_what_they_do(void **state) {
    (void)state;
    static const struct {
        double delta_kl;
        const char *category, *recommendation;
    } want[] = {{4, "first-block attention", "8-bit g64"},
                {1, "last-block MLP", "4-bit g64"},
                {0.9, "middle MLP", "default"},
                {0.9, "middle MLP", "default"},
                {0.75, "last-block attention", "default"},
                {0.25, "first-block MLP", "default"},
                {0.1, "middle attention", "default"},
                {0.1, "middle attention", "default"}};
    struct made m;
    make(&m, effects);
    json_t *result = json_object();
    sweep_result_add(&m.table, result);
    const json_t *ranked = json_object_get(result, "ranked");
    assert_int_equal(json_array_size(ranked), BLOCKS * EACH);
    for (size_t i = 0; i < BLOCKS * EACH; i++) {
        assert_true(value(ranked, i, "delta_kl") == want[i].delta_kl && value(ranked, i, "se") == 0.5);
        assert_true(fabs(value(ranked, i, "share") - want[i].delta_kl / 8) < 1e-12);
        assert_string_equal(text(ranked, i, "category"), want[i].category);
        assert_string_equal(text(ranked, i, "recommendation"), want[i].recommendation);
    }
    assert_true(member(result, "delta_kl_mean") == 1 && member(result, "delta_kl_sum") == 8);
    json_decref(result);
}

/* Each from its threshold on. */
static void recommendations_follow_the_stated_thresholds(void **state) {
    (void)state;
    struct made m;
    make(&m, effects);
    struct linear linears[128];
    int64_t place[128];
    struct swept rows[128] = {0};
    static const double most[] = {16, 15.9, 8, 7.9, 4, 3.9, 1, 0.9};
    static const char *const want[] = {"16 bits",   "fp8",       "fp8",       "8-bit g64",
                                       "8-bit g64", "4-bit g64", "4-bit g64", "default"};
    double rest = 128; /* so that the mean is 1 */
    for (int i = 0; i < 128; i++) {
        linears[i] = m.linears[0];
        place[i] = i;
        if (i < 8) rest -= rows[i].delta_kl = most[i];
    }
    for (int i = 8; i < 128; i++)
        rows[i].delta_kl = rest / 120;
    m.model.linears = linears;
    struct sweep_table table = {.model = &m.model, .place = place, .count = 128, .rows = rows};
    json_t *result = json_object();
    sweep_result_add(&table, result);
    const json_t *thresholds = json_object_get(result, "thresholds");
    double mean = member(result, "delta_kl_mean");
    for (size_t i = 0; i < 8; i++) {
        size_t t = 0;
        double delta_kl = value(json_object_get(result, "ranked"), i, "delta_kl");
        while (delta_kl < value(thresholds, t, "times_mean") * mean)
            t++;
        const char *recommended = text(json_object_get(result, "ranked"), i, "recommendation");
        assert_string_equal(recommended, text(thresholds, t, "recommendation"));
        if (i % 2) assert_string_equal(recommended, want[i]);
    }
    json_decref(result);
}

static void groups_add_up(void **state) {
    (void)state;
    struct made m;
    make(&m, effects);
    json_t *result = json_object();
    sweep_result_add(&m.table, result);
    const json_t *projections = json_object_get(result, "by_projection"), *blocks = json_object_get(result, "by_block");
    const json_t *pattern = json_object_get(result, "pattern"), *ratios = json_object_get(pattern, "ratios");
    assert_int_equal(json_array_size(projections), 2);
    assert_int_equal(json_array_size(blocks), BLOCKS);
    assert_string_equal(text(projections, 1, "projection"), "down_proj");
    assert_true(fabs(value(projections, 1, "sum") - 3.05) < 1e-12 && value(projections, 1, "linears") == 4);
    assert_true(fabs(value(projections, 1, "mean") - 3.05 / 4) < 1e-12);
    assert_true(fabs(value(projections, 1, "share") - 3.05 / 8) < 1e-12);
    assert_true(value(blocks, 3, "block") == 3 && value(blocks, 3, "sum") == 1.75);
    assert_true(member(pattern, "first_block") == 4.25 && member(pattern, "last_block") == 1.75);
    assert_true(fabs(member(pattern, "middle_mean") - 1) < 1e-12);
    assert_true(fabs(member(ratios, "first") - 4.25) < 1e-12 && fabs(member(ratios, "last") - 1.75) < 1e-12);
    json_decref(result);
}

/* Nothing that was swept does anything; and there is no block between the first and the last. */
static void what_cannot_be_computed_is_null(void **state) {
    (void)state;
    static const double nothing[BLOCKS * EACH];
    struct made m;
    make(&m, nothing);
    m.table.count = EACH;
    m.model.arch.blocks = 1;
    json_t *result = json_object();
    sweep_result_add(&m.table, result);
    const json_t *pattern = json_object_get(result, "pattern");
    assert_true(json_is_null(json_object_get(json_array_get(json_object_get(result, "ranked"), 0), "share")));
    assert_string_equal(text(json_object_get(result, "ranked"), 0, "recommendation"), "default");
    assert_true(json_is_null(json_object_get(pattern, "middle_mean")));
    assert_true(json_is_null(json_object_get(pattern, "last_block")));
    assert_true(member(pattern, "first_block") == 0);
    json_decref(result);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_is_an_eval_of_that_linear),
        cmocka_unit_test(calibrated_candidates_are_those_of_an_eval),
        cmocka_unit_test(rows_do_not_depend_on_the_passes),
        cmocka_unit_test(a_row_does_not_depend_on_what_else_is_swept),
        cmocka_unit_test(interrupted_sweeps_give_the_same_result),
        cmocka_unit_test(a_complete_sweep_computes_nothing),
        cmocka_unit_test(rows_without_their_reference_are_refused),
        cmocka_unit_test(hidden_states_that_do_not_fit_the_device_change_nothing),
        cmocka_unit_test(noise_is_as_large_as_asked),
        cmocka_unit_test(one_window_has_no_error),
        cmocka_unit_test(progress_counts_tokens_once_a_linear),
        cmocka_unit_test(a_cancelled_sweep_ends),
        cmocka_unit_test(layers_that_match_nothing_are_refused),
        cmocka_unit_test(linears_are_ranked_by_what_they_do),
        cmocka_unit_test(recommendations_follow_the_stated_thresholds),
        cmocka_unit_test(groups_add_up),
        cmocka_unit_test(what_cannot_be_computed_is_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
