/* Memory follows --ram-limit: a job that may not keep its hidden states spills them, says the same to the last bit, and
 * takes no more memory for more windows. */
#include "tests/unit/run_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALIBRATION FIXTURE "calibration.txt"
#define PROFILE_WITH(samples, more)                                                                                    \
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':" samples ",'length':256,'sampling':"        \
    "'sequential'},'candidates':[{'method':'rtn','bits':3,'group':64}],'layers':'layers\\\\.0\\\\.self_attn\\\\."      \
    "q'" more "}"
#define PROFILE(samples) PROFILE_WITH(samples, "")
#define KFAC ",'scores':['kfac']"
#define EVAL(windows, more) "{'kind':'eval','model':'M','dataset':'D','length':256,'windows':" windows more "}"
#define RTN3 ",'uniform':{'method':'rtn','bits':3,'group':64}"

/* Hidden states of one window of 256 tokens, and H of the 128 channels that q_proj reads. */
enum { SLOT = 256 * 128 * 4, GRAM = 128 * 128 * 8 };

static void without_speed(json_t *result) {
    json_object_del(result, "tokens_per_second");
    json_object_del(json_object_get(result, "rows"), "tokens_per_second");
}

static void same_under(const char *spec, int64_t ram_limit) {
    struct run free_run, limited;
    run_init(&free_run);
    run_init(&limited);
    must_run(&free_run, CALIBRATION, spec, NULL);
    limited.ram_limit = ram_limit;
    must_run(&limited, CALIBRATION, spec, NULL);
    without_speed(free_run.result);
    without_speed(limited.result);
    assert_true(json_equal(free_run.rows, limited.rows));
    assert_true(json_equal(free_run.result, limited.result));
    run_release(&free_run);
    run_release(&limited);
}

static void limit_changes_no_bit(void **state) {
    (void)state;
    for (int64_t slots = 0; slots < 3; slots += 2) {
        same_under(PROFILE("4"), GRAM + slots * SLOT);
        same_under(EVAL("4", RTN3), 1 + slots * SLOT);
    }
}

/* A scratch folder that does not exist is in nobody's way until something spills into it. */
static void only_what_exceeds_the_limit_spills(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int64_t enough;
    } cases[] = {{PROFILE("4"), GRAM + 4 * SLOT}, {EVAL("4", RTN3), 8 * SLOT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run r;
        run_init(&r);
        r.scratch = "/nowhere/at/all";
        r.ram_limit = cases[i].enough;
        must_run(&r, CALIBRATION, cases[i].spec, NULL);
        r.ram_limit--;
        json_object_clear(r.cache); /* or the second run has nothing to do */
        assert_int_equal(run_job(&r, FIXTURE "tiny", CALIBRATION, cases[i].spec, NULL, NULL), RC_NOT_FOUND);
        assert_non_null(strstr(r.err.message, r.scratch));
        run_release(&r);
    }
}

static void grams_that_exceed_the_limit_are_refused(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    r.ram_limit = GRAM - 1;
    assert_int_equal(run_job(&r, FIXTURE "tiny", CALIBRATION, PROFILE("4"), NULL, NULL), RC_NO_MEMORY);
    assert_non_null(strstr(r.err.message, "128.00 KiB"));
    assert_non_null(strstr(r.err.message, "layers"));
    run_release(&r);
}

/* q_proj has as many outputs as inputs: its G is as large as its H. */
static void grams_of_gradients_count_too(void **state) {
    (void)state;
    struct run r;
    same_under(PROFILE_WITH("4", KFAC), 2 * GRAM + 2 * SLOT);
    run_init(&r);
    r.ram_limit = 2 * GRAM - 1;
    assert_int_equal(run_job(&r, FIXTURE "tiny", CALIBRATION, PROFILE_WITH("4", KFAC), NULL, NULL), RC_NO_MEMORY);
    assert_non_null(strstr(r.err.message, "256.00 KiB"));
    run_release(&r);
}

/* Peak resident bytes of a process that runs the job. */
static int64_t peak(const char *spec, int64_t ram_limit) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct run r;
        run_init(&r);
        r.ram_limit = ram_limit;
        _exit(run_job(&r, FIXTURE "tiny", CALIBRATION, spec, NULL, NULL) == RC_OK ? 0 : 1);
    }
    int status;
    struct rusage usage;
    assert_int_equal(wait4(child, &status, 0, &usage), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return (int64_t)usage.ru_maxrss * 1024;
}

static void more_windows_take_no_more_memory(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* their own memory is many times the job's */
#endif
    int64_t limit = GRAM + 2 * SLOT, few = peak(PROFILE("4"), limit), many = peak(PROFILE("104"), limit);
    int64_t unlimited = peak(PROFILE("104"), 0), states = 100 * SLOT;
    print_message("profile: %.1f MB, %.1f MB for 100 windows more, %.1f MB without a limit\n", (double)few * 1e-6,
                  (double)many * 1e-6, (double)unlimited * 1e-6);
    assert_true(many < few + states / 10);
    assert_true(unlimited > few + states * 9 / 10); /* or this would measure nothing */
    few = peak(EVAL("4", ""), 2 * SLOT);
    many = peak(EVAL("36", ""), 2 * SLOT);
    print_message("eval: %.1f MB, %.1f MB for 32 windows more\n", (double)few * 1e-6, (double)many * 1e-6);
    assert_true(many < few + 32 * (int64_t)SLOT / 10);
}

/* The forks come first: a child inherits no thread of this process's computing. */
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(more_windows_take_no_more_memory),   cmocka_unit_test(limit_changes_no_bit),
        cmocka_unit_test(only_what_exceeds_the_limit_spills), cmocka_unit_test(grams_that_exceed_the_limit_are_refused),
        cmocka_unit_test(grams_of_gradients_count_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
