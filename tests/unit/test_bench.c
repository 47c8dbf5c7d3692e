/* The bench: its floors are counted as they would be by hand, and its report says what was measured and no more. */
#include "tests/unit/bare_job.h"
#include "tests/unit/scratch.h"

#include <jansson.h>

#include "base/json.h"
#include "worker/bench/bench.h"
#include "worker/bench/calibration.h"
#include "worker/bench/work.h"

#define GOLDEN "tests/golden/models/"
static struct err err;

static struct model *must_open(const char *path) {
    struct model *m;
    if (model_open("m", path, &m, &err) != RC_OK) fail_msg("%s: %s", path, err.message);
    return m;
}

/* D 32, I 48, V 128, 4 heads of 8 over 2, 2 blocks. */
static void floors_are_counted_from_the_shapes(void **state) {
    (void)state;
    enum { WINDOWS = 3, LENGTH = 5, TOKENS = WINDOWS * LENGTH, BLOCKS = 2, PAIRS = 1 + 2 + 3 + 4 + 5 };
    enum { Q = 32 * 32, KV = 16 * 32, O = 32 * 32, UP = 48 * 32, DOWN = 32 * 48 };
    struct model *m = must_open(GOLDEN "llama");
    double linears = Q + 2 * KV + O + 2 * UP + DOWN, attention = 2 * 32 * PAIRS * WINDOWS;
    assert_true(work_forward(m, WINDOWS, LENGTH) == 2 * BLOCKS * (TOKENS * linears + attention));
    assert_true(work_head(m, WINDOWS, LENGTH) == 2.0 * WINDOWS * (LENGTH - 1) * 128 * 32);
    assert_true(work_gram(m, TOKENS) == 2.0 * BLOCKS * TOKENS * (3 * 32 * 32 + 48 * 48));
    struct candidate three[] = {{.method = METHOD_NONE}, {.method = METHOD_RTN}, {.method = METHOD_HQQ}};
    double once = 2.0 * BLOCKS * ((linears - DOWN) * 32 + DOWN * 48);
    assert_true(work_drift(m, three, 2) == 2 * once); /* the denominator, and RTN's */
    assert_true(work_drift(m, three, 3) == 4 * once); /* HQQ's, and its twin's */
    double block = 2 * (TOKENS * linears + attention), heads = 1 + BLOCKS * 7;
    assert_true(work_sweep(m, WINDOWS, LENGTH) == (2 + 7 * 2 + 7) * block + heads * work_head(m, WINDOWS, LENGTH));
    double back = 2 * linears - DOWN, twice = 2 * work_head(m, WINDOWS, LENGTH);
    assert_true(work_back(m, WINDOWS, LENGTH) == 2 * BLOCKS * (TOKENS * back + 3 * attention) + twice);
    assert_true(work_fisher(m, TOKENS, three, 3) == 2 * (2.0 * BLOCKS * TOKENS * linears));
    model_close(m);
}

static double pairs_seen(const struct arch *a, int block, int64_t length) {
    double pairs = 0;
    for (int64_t q = 0; q < length; q++)
        for (int64_t k = 0; k <= q; k++)
            pairs += a->window[block] == 0 || q - k < a->window[block];
    return pairs;
}

static void sliding_windows_see_less(void **state) {
    (void)state;
    static const char *const folders[] = {GOLDEN "mistral", GOLDEN "qwen2-sliding", GOLDEN "llama"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        struct model *m = must_open(folders[i]);
        const struct arch *a = &m->arch;
        for (int64_t length = 2; length < 40; length += 7) {
            double want = 0;
            for (int64_t l = 0; l < m->linear_count - 1; l++)
                want += 2.0 * (double)(length * m->linears[l].rows * m->linears[l].cols);
            for (int block = 0; block < a->blocks; block++)
                want += 4.0 * a->heads * a->head_dim * pairs_seen(a, block, length);
            assert_true(work_forward(m, 1, length) == want);
        }
        model_close(m);
    }
}

static enum rc run(const struct bench_options *options, FILE *out) {
    struct worker worker = {0};
    struct worker_options cpu = {.devices = "cpu", .threads = 1, .scratch = "/tmp"};
    assert_int_equal(worker_open(&cpu, &worker, &err), RC_OK);
    enum rc rc = bench_run(&worker, options, out, &err);
    worker_release(&worker);
    return rc;
}

/* Two windows of one block; what it wrote as JSON. */
static json_t *measured(const char *config, const char *phases) {
    struct scratch s = scratch_open();
    char path[96];
    json_t *report;
    FILE *out = tmpfile();
    assert_non_null(out);
    snprintf(path, sizeof path, "%s/bench.json", s.path);
    struct bench_options options = {.config = config,
                                    .synthetic = true,
                                    .windows = 2,
                                    .length = 16,
                                    .blocks = 1,
                                    .candidates = "rtn4g64",
                                    .phases = phases,
                                    .json = path};
    if (run(&options, out) != RC_OK) fail_msg("%s", err.message);
    fclose(out);
    if (json_parse_file(path, 1 << 20, &report, &err) != RC_OK) fail_msg("%s", err.message);
    scratch_close(&s);
    return report;
}

static void check_phase(const json_t *phase, const char *name) {
    assert_string_equal(json_string_value(json_object_get(phase, "phase")), name);
    assert_int_equal(json_integer_value(json_object_get(phase, "tokens")), 32);
    assert_true(json_real_value(json_object_get(phase, "seconds")) > 0);
}

/* Phases come in their own order whatever is asked. */
static void what_was_not_measured_is_null(void **state) {
    (void)state;
    json_t *report = measured(GOLDEN "granite/config.json", "profile,eval");
    const json_t *phases = json_object_get(report, "phases"), *eval = json_array_get(phases, 0);
    assert_int_equal(json_array_size(phases), 3);
    check_phase(eval, "eval");
    assert_true(json_is_null(json_object_get(eval, "ratio")));
    assert_true(json_is_null(json_object_get(report, "paired_ratio")));
    assert_true(json_is_real(json_object_get(report, "candidate_seconds")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(report, "model"), "blocks")), 1);
    json_decref(report);
}

/* Beside the eval of the same windows. */
static void scores_are_timed_against_a_forward_pass(void **state) {
    (void)state;
    json_t *report = measured(GOLDEN "llama/config.json", "fisher,eval");
    const json_t *phases = json_object_get(report, "phases");
    check_phase(json_array_get(phases, 0), "eval");
    check_phase(json_array_get(phases, 1), "fisher, 1 candidate");
    double ratio = json_real_value(json_object_get(json_array_get(phases, 1), "seconds")) /
                   json_real_value(json_object_get(json_array_get(phases, 0), "seconds"));
    assert_true(json_real_value(json_object_get(report, "fisher_ratio")) == ratio);
    assert_true(json_real_value(json_object_get(report, "fisher_allowed")) > 4);
    json_decref(report);
    report = measured(GOLDEN "llama/config.json", "fisher");
    assert_true(json_is_null(json_object_get(report, "fisher_ratio")));
    json_decref(report);
}

/* Quantizing from calibration is timed over all the windows. */
static void calibrations_are_timed(void **state) {
    (void)state;
    json_t *report = measured(GOLDEN "llama/config.json", "eval,awq,refine,gptq");
    const json_t *phases = json_object_get(report, "phases");
    static const char *const names[] = {"eval", "gptq4g64", "awq4g64", "refine"};
    assert_int_equal(json_array_size(phases), 4);
    for (size_t i = 0; i < 4; i++)
        check_phase(json_array_get(phases, i), names[i]);
    json_decref(report);
}

/* The seconds of the walk, though it counts each token once a Linear. */
static void sweeps_are_timed(void **state) {
    (void)state;
    json_t *report = measured(GOLDEN "llama/config.json", "sweep");
    const json_t *phases = json_object_get(report, "phases"), *sweep = json_array_get(phases, 0);
    assert_int_equal(json_array_size(phases), 1);
    check_phase(sweep, "sweep");
    double other = json_number_value(json_object_get(sweep, "other_seconds"));
    assert_true(other >= 0 && other < json_number_value(json_object_get(sweep, "seconds")));
    json_decref(report);
}

/* What is timed is the whole of it: every Linear of every block. */
static void every_linear_is_quantized(void **state) {
    (void)state;
    struct bare_job b;
    bare_open(&b);
    struct candidate uniform = candidate_default(METHOD_GPTQ, 4, 64);
    struct spec_calibration calibration = {.samples = 2, .length = 32, .sampling = SAMPLING_SEQUENTIAL};
    union spec spec = {.eval = {.common.kind = "eval", .uniform = &uniform, .calibration = &calibration}};
    struct job job = b.job;
    json_t *result;
    job.spec = &spec;
    job.source = &b.source;
    bare_must(&b, bench_calibrate(&job, &result, &b.err));
    assert_int_equal(json_integer_value(json_object_get(result, "quantized")), b.source.model->linear_count - 1);
    json_decref(result);
    bare_close(&b);
}

static void refused(struct bench_options options, const char *names) {
    err = (struct err){0};
    assert_int_equal(run(&options, stdout), RC_INVALID);
    if (!strstr(err.message, names)) fail_msg("\"%s\" does not name %s", err.message, names);
}

static void options_that_make_no_sense_are_refused(void **state) {
    (void)state;
    const char *config = GOLDEN "llama/config.json";
    refused((struct bench_options){.config = config}, "--synthetic");
    refused((struct bench_options){.synthetic = true}, "--config");
    refused((struct bench_options){.config = config, .synthetic = true, .phases = "eval,lunch"}, "lunch");
    refused((struct bench_options){.config = config, .synthetic = true, .candidates = "hqq4g64,hqq7g64"}, "hqq7g64");
    refused((struct bench_options){.config = config, .synthetic = true, .blocks = 3}, "3 blocks");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(floors_are_counted_from_the_shapes),
        cmocka_unit_test(sliding_windows_see_less),
        cmocka_unit_test(what_was_not_measured_is_null),
        cmocka_unit_test(calibrations_are_timed),
        cmocka_unit_test(sweeps_are_timed),
        cmocka_unit_test(every_linear_is_quantized),
        cmocka_unit_test(scores_are_timed_against_a_forward_pass),
        cmocka_unit_test(options_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
