/* A job that is split over devices says what it says on one, once each, and ends cleanly whatever happens to a device.
 * Devices are states of the cpu backend. */
#include "tests/unit/run_job.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "worker/pipeline/walk.h"

#define CALIBRATION FIXTURE "calibration.txt"
#define HELDOUT FIXTURE "heldout.txt"
#define PROFILE_OF(candidates, samples, more)                                                                          \
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':" samples ",'length':64,"                    \
    "'sampling':'sequential'},'candidates':[" candidates "]" more "}"
#define PROFILE(samples, more)                                                                                         \
    PROFILE_OF("{'method':'hqq','bits':[3,4],'group':64},{'method':'rtn','bits':3,'group':64}", samples, more)
#define SCALED "{'method':'awq','bits':4,'group':64,'range':'minmax'}"
#define LAYERS ",'layers':'layers\\\\.[01]\\\\.'"
#define SPLIT ",'devices':'all'"
#define EVAL(more)                                                                                                     \
    "{'kind':'eval','model':'M','dataset':'D','length':128,'windows':7,'uniform':{'method':'rtn','bits':3,"            \
    "'group':64}" more "}"

/* --- comparing --- */

static const json_t *find_row(const struct run *r, const json_t *like) {
    size_t i;
    json_t *row;
    const json_t *found = NULL;
    json_array_foreach(r->rows, i, row) {
        if (!json_equal(json_object_get(row, "phase"), json_object_get(like, "phase")) ||
            !json_equal(json_object_get(row, "index"), json_object_get(like, "index")))
            continue;
        assert_null(found); /* each row once */
        found = json_object_get(row, "data");
    }
    assert_non_null(found);
    return found;
}

static void near_numbers(const json_t *want, const json_t *got, double tolerance) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)want, key, value) {
        const json_t *other = json_object_get(got, key);
        if (!json_is_number(value)) continue;
        double w = json_number_value(value), g = json_number_value(other);
        if (!json_is_number(other) || !(fabs(g - w) <= tolerance * fabs(w)))
            fail_msg("%s: %.12g, not %.12g", key, g, w);
    }
}

static void near_rows(const struct run *want, const struct run *got, double tolerance) {
    size_t i;
    json_t *row;
    assert_int_equal(json_array_size(want->rows), json_array_size(got->rows));
    json_array_foreach(want->rows, i, row) near_numbers(json_object_get(row, "data"), find_row(got, row), tolerance);
}

static void equal_rows(const struct run *want, const struct run *got) {
    size_t i;
    json_t *row;
    assert_int_equal(json_array_size(want->rows), json_array_size(got->rows));
    json_array_foreach(want->rows, i, row) assert_true(json_equal(json_object_get(row, "data"), find_row(got, row)));
}

static void run_on(struct run *r, const char *devices, const char *text, const char *spec) {
    run_init(r);
    r->devices = devices;
    must_run(r, text, spec, NULL);
    assert_false(r->went_back);
    assert_true(r->progress > 0 && r->done == r->total);
}

static double computed_rows(const struct run *r) {
    return json_number_value(json_object_get(json_object_get(r->result, "rows"), "computed"));
}

/* --- the same results --- */

static void check_profile(const char *devices, const char *alone, const char *split) {
    struct run one, many, again;
    run_on(&one, "cpu", CALIBRATION, alone);
    run_on(&many, devices, CALIBRATION, split);
    run_on(&again, devices, CALIBRATION, split);
    near_rows(&one, &many, 1e-6);
    assert_true(computed_rows(&one) == computed_rows(&many));
    equal_rows(&many, &again);
    assert_true(json_equal(json_object_get(many.result, "totals"), json_object_get(again.result, "totals")));
    run_release(&one);
    run_release(&many);
    run_release(&again);
}

static void split_profile_equals_the_whole(void **state) {
    (void)state;
    check_profile("cpu,cpu", PROFILE("5", LAYERS), PROFILE("5", LAYERS SPLIT));
    check_profile("cpu,cpu,cpu", PROFILE("5", LAYERS), PROFILE("5", LAYERS SPLIT));
}

/* AWQ asks for the mean of all devices' inputs, and for every Linear that reads them, whoever measures it. */
static void split_awq_equals_the_whole(void **state) {
    (void)state;
    check_profile("cpu,cpu,cpu", PROFILE_OF(SCALED, "5", LAYERS), PROFILE_OF(SCALED, "5", LAYERS SPLIT));
}

#define LOSS ",'scores':['fisher','kfac','diag'],'fisher_windows':3"
#define ROUNDED "{'method':'hqq','bits':3,'group':64},{'method':'gptq','bits':4,'group':64},{'method':'none'}"
#define GUIDED "{'method':'gptq','bits':4,'group':64,'guided':true}"
#define TWO_SIDED "{'bits':4,'group':64,'two_sided':true}"

/* What the loss says: gradients of all windows, and scored ones on every device. */
static void split_scores_equal_the_whole(void **state) {
    (void)state;
    check_profile("cpu,cpu,cpu", PROFILE_OF(ROUNDED, "5", LAYERS LOSS), PROFILE_OF(ROUNDED, "5", LAYERS LOSS SPLIT));
    check_profile("cpu,cpu,cpu", PROFILE_OF(ROUNDED, "2", LAYERS LOSS), PROFILE_OF(ROUNDED, "2", LAYERS LOSS SPLIT));
    check_profile("cpu,cpu", PROFILE_OF(SCALED, "3", LAYERS LOSS), PROFILE_OF(SCALED, "3", LAYERS LOSS SPLIT));
}

static void split_guided_equals_the_whole(void **state) {
    (void)state;
    check_profile("cpu,cpu,cpu", PROFILE_OF(GUIDED, "5", LAYERS), PROFILE_OF(GUIDED, "5", LAYERS SPLIT));
    check_profile("cpu,cpu", PROFILE_OF(GUIDED, "3", LAYERS LOSS), PROFILE_OF(GUIDED, "3", LAYERS LOSS SPLIT));
    check_profile("cpu,cpu", PROFILE_OF(TWO_SIDED, "5", LAYERS), PROFILE_OF(TWO_SIDED, "5", LAYERS SPLIT));
}

/* Devices without a window still measure Linears. */
static void devices_may_outnumber_windows(void **state) {
    (void)state;
    check_profile("cpu,cpu,cpu", PROFILE("2", LAYERS), PROFILE("2", LAYERS SPLIT));
    check_profile("cpu,cpu,cpu", PROFILE("1", ",'head':true"), PROFILE("1", ",'head':true" SPLIT));
}

static void split_head_equals_the_whole(void **state) {
    (void)state;
    check_profile("cpu,cpu", PROFILE("3", ",'layers':'lm_head','head':true"),
                  PROFILE("3", ",'layers':'lm_head','head':true" SPLIT));
}

/* The cpu as if it were a device that takes four windows at a time, holds hidden states and loads ahead. */
static struct backend device_like(void) {
    struct backend b = backend_cpu;
    b.chunk_tokens = 4 * 128;
    b.own_memory = b.loads_ahead = true;
    b.batch_tokens = 4 * 128;
    return b;
}

/* Chunks of several windows, the last scored one with others; inputs are kept and not computed again. */
static void split_scores_of_chunks_equal_the_whole(void **state) {
    (void)state;
    struct backend device = device_like();
    device.chunk_tokens = 2 * 64;
    for (int samples = 3; samples <= 9; samples += 2) {
        char alone[600], split[600];
        struct run one, many;
        snprintf(alone, sizeof alone, PROFILE_OF(ROUNDED, "%d", LAYERS LOSS), samples);
        snprintf(split, sizeof split, PROFILE_OF(ROUNDED, "%d", LAYERS LOSS SPLIT), samples);
        run_init(&one);
        run_init(&many);
        one.backend = many.backend = &device;
        many.devices = "cpu,cpu,cpu";
        must_run(&one, CALIBRATION, alone, NULL);
        must_run(&many, CALIBRATION, split, NULL);
        assert_true(many.done == many.total && !many.went_back);
        near_rows(&one, &many, 1e-5);
        run_release(&one);
        run_release(&many);
    }
}

static void resumed_split_scores_are_the_same(void **state) {
    (void)state;
    static const char spec[] = PROFILE_OF(ROUNDED, "4", LAYERS LOSS SPLIT);
    struct run whole, cut, rest;
    run_on(&whole, "cpu,cpu", CALIBRATION, spec);
    run_init(&cut);
    run_init(&rest);
    cut.devices = rest.devices = "cpu,cpu";
    cut.stop_after = 20;
    assert_int_equal(run_job(&cut, FIXTURE "tiny", CALIBRATION, spec, NULL, NULL), RC_UNAVAILABLE);
    must_run(&rest, CALIBRATION, spec, cut.rows);
    assert_int_equal(json_array_size(cut.rows) + json_array_size(rest.rows), json_array_size(whole.rows));
    assert_true(json_equal(json_object_get(rest.result, "totals"), json_object_get(whole.result, "totals")));
    run_release(&whole);
    run_release(&cut);
    run_release(&rest);
}

/* A window's place in its chunk does not change, so nor does any bit. */
static void split_eval_equals_the_whole(void **state) {
    (void)state;
    struct backend device = device_like();
    static const char *const devices[] = {"cpu,cpu", "cpu,cpu,cpu"};
    for (int i = 0; i < 4; i++) {
        struct run one, many;
        run_init(&one);
        run_init(&many);
        one.backend = many.backend = i / 2 ? &device : NULL;
        many.devices = devices[i % 2];
        must_run(&one, HELDOUT, EVAL(""), NULL);
        must_run(&many, HELDOUT, EVAL(SPLIT), NULL);
        equal_rows(&one, &many);
        json_object_del(one.result, "tokens_per_second");
        json_object_del(many.result, "tokens_per_second");
        assert_true(json_equal(one.result, many.result));
        run_release(&one);
        run_release(&many);
    }
}

static void resumed_split_eval_gives_the_same_result(void **state) {
    (void)state;
    struct run whole, cut, rest;
    run_on(&whole, "cpu,cpu", HELDOUT, EVAL(SPLIT));
    run_init(&cut);
    run_init(&rest);
    cut.devices = rest.devices = "cpu,cpu";
    cut.stop_after = 5;
    assert_int_equal(run_job(&cut, FIXTURE "tiny", HELDOUT, EVAL(SPLIT), NULL, NULL), RC_UNAVAILABLE);
    must_run(&rest, HELDOUT, EVAL(SPLIT), cut.rows);
    json_object_del(whole.result, "tokens_per_second");
    json_object_del(rest.result, "tokens_per_second");
    assert_true(json_equal(whole.result, rest.result));
    run_release(&whole);
    run_release(&cut);
    run_release(&rest);
}

/* How long refining took, in the rows and in the result. */
static void forget_time(struct run *r) {
    size_t i;
    json_t *row;
    json_array_foreach(r->rows, i, row) if (strcmp(json_string_value(json_object_get(row, "phase")), "_refined") == 0)
        json_object_del(json_object_get(row, "data"), "seconds");
    json_object_del(json_object_get(r->result, "refined"), "seconds");
    json_object_del(r->result, "tokens_per_second");
}

static void check_calibrated(const char *candidate) {
    static const char spec[] = "{'kind':'eval','model':'M','dataset':'D','length':128,'windows':3,'uniform':{%s,"
                               "'bits':3,'group':64},'calibration':{'dataset':'C','samples':4,'length':64}%s}";
    char alone[512], split[512];
    snprintf(alone, sizeof alone, spec, candidate, "");
    snprintf(split, sizeof split, spec, candidate, SPLIT);
    struct run one, many;
    run_on(&one, "cpu", HELDOUT, alone);
    run_on(&many, "cpu,cpu", HELDOUT, split);
    forget_time(&one);
    forget_time(&many);
    equal_rows(&one, &many);
    assert_true(json_equal(one.result, many.result));
    run_release(&one);
    run_release(&many);
}

/* The first device calibrates, also from gradients, and refines; what it made is the same on all. */
static void split_eval_calibrates_once(void **state) {
    (void)state;
    check_calibrated("'method':'gptq','range':'minmax'");
    check_calibrated("'method':'gptq','guided':true,'range':'minmax'");
    check_calibrated("'two_sided':true");
}

/* Without "devices" a job stays on the first device. */
static void other_jobs_are_not_split(void **state) {
    (void)state;
    struct run one, beside;
    run_on(&one, "cpu", CALIBRATION, PROFILE("3", LAYERS));
    run_on(&beside, "cpu,cpu", CALIBRATION, PROFILE("3", LAYERS));
    equal_rows(&one, &beside);
    run_release(&one);
    run_release(&beside);
}

static void split_job_on_one_device_is_an_ordinary_one(void **state) {
    (void)state;
    struct run one, split;
    run_on(&one, "cpu", CALIBRATION, PROFILE("3", LAYERS));
    run_on(&split, "cpu", CALIBRATION, PROFILE("3", LAYERS SPLIT));
    equal_rows(&one, &split);
    run_release(&one);
    run_release(&split);
}

/* Every window in one share, and in the place of its chunk that it has on one device. */
static void shares_are_whole_chunks(void **state) {
    (void)state;
    struct backend device = device_like();
    struct job job = {.backend = &device};
    struct windows windows = {.length = 128, .count = 100};
    for (int64_t count = 0; count < 40; count++)
        for (int parts = 1; parts < 6; parts++) {
            struct span all = {8, count};
            int64_t next = all.first, most = 0, least = count;
            for (int part = 0; part < parts; part++) {
                struct span share = walk_share(&job, &windows, all, part, parts);
                assert_true(share.count >= 0 && (share.count == 0 || share.first == next));
                assert_int_equal(share.first % 4, 0);
                next += share.count;
                most = share.count > most ? share.count : most;
                least = share.count < least ? share.count : least;
            }
            assert_int_equal(next, all.first + count);
            assert_true(most - least <= 4 + 3); /* a chunk, and what the last one lacks */
        }
}

/* --- trouble --- */

static struct backend_state *_Atomic first_seen; /* of a run: the device that computed first */
static atomic_int products;                      /* on the others */

/* One of the devices fails after a while: not the one that came first. */
static enum rc failing_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    struct backend_state *none = NULL;
    if (!atomic_compare_exchange_strong(&first_seen, &none, state) && none != state &&
        atomic_fetch_add(&products, 1) == 5)
        return err_set(e, RC_INTERNAL, "it broke");
    return backend_cpu.gemm(state, a, e);
}

static enum rc failing_combine(const struct combine_args *a, struct err *e) {
    (void)a;
    return err_set(e, RC_INTERNAL, "it broke");
}

static void expect_failure(const struct backend *backend, const char *devices, const char *text, const char *spec) {
    struct run r;
    atomic_store(&first_seen, NULL);
    atomic_store(&products, 0);
    run_init(&r);
    r.backend = backend;
    r.devices = devices;
    assert_int_equal(run_job(&r, FIXTURE "tiny", text, spec, NULL, NULL), RC_INTERNAL);
    assert_non_null(strstr(r.err.message, "it broke"));
    assert_null(r.result);
    run_release(&r);
}

static void a_failing_device_ends_the_job(void **state) {
    (void)state;
    struct backend failing = backend_cpu;
    failing.gemm = failing_gemm;
    expect_failure(&failing, "cpu,cpu", CALIBRATION, PROFILE("4", LAYERS SPLIT));
    expect_failure(&failing, "cpu,cpu,cpu", CALIBRATION, PROFILE("6", LAYERS SPLIT));
    expect_failure(&failing, "cpu,cpu", HELDOUT, EVAL(SPLIT));
    expect_failure(&failing, "cpu,cpu,cpu", CALIBRATION, PROFILE("6", LAYERS LOSS SPLIT));
}

/* One that fails on its way back, while others score or wait for it. */
static enum rc failing_fisher(struct backend_state *state, const struct fisher_args *a, struct err *e) {
    struct backend_state *none = NULL;
    if (!atomic_compare_exchange_strong(&first_seen, &none, state) && none != state)
        return err_set(e, RC_INTERNAL, "it broke");
    return backend_cpu.fisher(state, a, e);
}

static void a_device_that_cannot_score_ends_the_job(void **state) {
    (void)state;
    struct backend failing = backend_cpu, keeping = device_like();
    failing.fisher = keeping.fisher = failing_fisher;
    expect_failure(&failing, "cpu,cpu,cpu", CALIBRATION, PROFILE("6", LAYERS LOSS SPLIT));
    keeping.chunk_tokens = 64;
    expect_failure(&keeping, "cpu,cpu,cpu", CALIBRATION, PROFILE("6", LAYERS LOSS SPLIT));
}

static void a_sum_that_fails_ends_the_job(void **state) {
    (void)state;
    struct backend failing = backend_cpu;
    failing.combine = failing_combine;
    expect_failure(&failing, "cpu,cpu,cpu", CALIBRATION, PROFILE("4", LAYERS SPLIT));
    expect_failure(&failing, "cpu,cpu,cpu", CALIBRATION, PROFILE("4", LAYERS LOSS SPLIT));
}

static atomic_bool *to_cancel;
static struct timespec cancelled_at;

static enum rc cancelling_gram(struct backend_state *state, const struct gram_args *a, struct err *e) {
    if (atomic_fetch_add(&products, 1) == 10) {
        clock_gettime(CLOCK_MONOTONIC, &cancelled_at);
        atomic_store(to_cancel, true);
    }
    return backend_cpu.gram(state, a, e);
}

static void a_cancelled_job_ends_within_a_second(void **state) {
    (void)state;
    struct backend cancelling = backend_cpu;
    struct run r;
    struct timespec now;
    cancelling.gram = cancelling_gram;
    atomic_store(&products, 0);
    run_init(&r);
    r.backend = &cancelling;
    r.devices = "cpu,cpu,cpu";
    to_cancel = &r.cancelled;
    assert_int_equal(run_job(&r, FIXTURE "tiny", CALIBRATION, PROFILE("9", SPLIT), NULL, NULL), RC_CANCELLED);
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = (double)(now.tv_sec - cancelled_at.tv_sec) + (double)(now.tv_nsec - cancelled_at.tv_nsec) * 1e-9;
    assert_true(seconds < 1);
    run_release(&r);
}

static void a_lost_daemon_ends_the_job(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    r.devices = "cpu,cpu";
    r.stop_after = 9;
    assert_int_equal(run_job(&r, FIXTURE "tiny", CALIBRATION, PROFILE("4", SPLIT), NULL, NULL), RC_UNAVAILABLE);
    run_release(&r);
}

/* --- opening --- */

static void devices_of_a_worker_are_of_one_kind(void **state) {
    (void)state;
    static const char *const lists[] = {"cpu,auto", "cpu,tpu", "cpu,", ",cpu"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        struct worker worker;
        struct err e;
        struct worker_options options = {.devices = lists[i], .threads = 1};
        assert_int_equal(worker_open(&options, &worker, &e), RC_UNSUPPORTED);
        worker_release(&worker);
    }
}

static void several_devices_have_their_names(void **state) {
    (void)state;
    struct worker worker;
    struct err e;
    struct worker_options options = {.devices = "cpu,cpu", .threads = 4};
    assert_int_equal(worker_open(&options, &worker, &e), RC_OK);
    assert_string_equal(worker.name, "cpu,cpu");
    assert_int_equal(worker.device_count, 2);
    assert_ptr_equal(worker.device, worker.devices[0]);
    assert_ptr_not_equal(worker.devices[0], worker.devices[1]);
    worker_release(&worker);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_profile_equals_the_whole),
        cmocka_unit_test(split_awq_equals_the_whole),
        cmocka_unit_test(split_scores_equal_the_whole),
        cmocka_unit_test(split_guided_equals_the_whole),
        cmocka_unit_test(split_scores_of_chunks_equal_the_whole),
        cmocka_unit_test(resumed_split_scores_are_the_same),
        cmocka_unit_test(a_device_that_cannot_score_ends_the_job),
        cmocka_unit_test(devices_may_outnumber_windows),
        cmocka_unit_test(split_head_equals_the_whole),
        cmocka_unit_test(split_eval_equals_the_whole),
        cmocka_unit_test(split_eval_calibrates_once),
        cmocka_unit_test(resumed_split_eval_gives_the_same_result),
        cmocka_unit_test(other_jobs_are_not_split),
        cmocka_unit_test(split_job_on_one_device_is_an_ordinary_one),
        cmocka_unit_test(shares_are_whole_chunks),
        cmocka_unit_test(a_failing_device_ends_the_job),
        cmocka_unit_test(a_sum_that_fails_ends_the_job),
        cmocka_unit_test(a_cancelled_job_ends_within_a_second),
        cmocka_unit_test(a_lost_daemon_ends_the_job),
        cmocka_unit_test(devices_of_a_worker_are_of_one_kind),
        cmocka_unit_test(several_devices_have_their_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
