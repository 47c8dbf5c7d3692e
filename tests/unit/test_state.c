/* The table of transitions: what design allows is possible, and nothing else. */
#include "tests/unit/cmocka_main.h"

#include "daemon/jobs/state.h"

/* allowed[action][from]: the state reached, or -1. Written out, so that a slip in the table cannot repeat itself here.
 */
static const int allowed[JOB_ACTIONS][JOB_STATES] = {
    /*                    queued         running        paused         succeeded failed      cancelled */
    [ACTION_START] = {JOB_RUNNING, -1, -1, -1, -1, -1},
    [ACTION_SUCCEED] = {-1, JOB_SUCCEEDED, -1, -1, -1, -1},
    [ACTION_FAIL] = {JOB_FAILED, JOB_FAILED, JOB_FAILED, -1, -1, -1},
    [ACTION_CANCEL] = {JOB_CANCELLED, JOB_CANCELLED, JOB_CANCELLED, -1, -1, -1},
    [ACTION_PAUSE] = {JOB_PAUSED, JOB_PAUSED, -1, -1, -1, -1},
    [ACTION_RESUME] = {-1, -1, JOB_QUEUED, -1, -1, -1},
    [ACTION_RETRY] = {-1, -1, -1, -1, JOB_QUEUED, JOB_QUEUED},
    [ACTION_LOSE] = {-1, JOB_QUEUED, -1, -1, -1, -1},
    [ACTION_REQUEUE] = {-1, JOB_QUEUED, -1, -1, -1, -1},
};

static void test_every_action_in_every_state(void **unused) {
    (void)unused;
    for (int action = 0; action < JOB_ACTIONS; action++)
        for (int from = 0; from < JOB_STATES; from++) {
            enum job_state to = JOB_QUEUED;
            struct err e = {0};
            enum rc rc = job_state_after((enum job_action)action, (enum job_state)from, &to, &e);
            assert_int_equal(rc, allowed[action][from] < 0 ? RC_CONFLICT : RC_OK);
            if (rc == RC_OK) assert_int_equal(to, allowed[action][from]);
        }
}

static void test_a_refusal_names_action_and_state(void **unused) {
    enum job_state to;
    struct err e;
    (void)unused;
    assert_int_equal(job_state_after(ACTION_CANCEL, JOB_SUCCEEDED, &to, &e), RC_CONFLICT);
    assert_string_equal(e.message, "cannot cancel a job that is succeeded");
}

static void test_names_and_ends(void **unused) {
    enum job_state state;
    (void)unused;
    for (int i = 0; i < JOB_STATES; i++) {
        assert_true(job_state_from_name(job_state_names[i], &state));
        assert_int_equal(state, i);
        assert_int_equal(job_ended(state), i >= JOB_SUCCEEDED);
    }
    assert_false(job_state_from_name("done", &state));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_action_in_every_state),
        cmocka_unit_test(test_a_refusal_names_action_and_state),
        cmocka_unit_test(test_names_and_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
