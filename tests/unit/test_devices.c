/* What --device comes to, by what a worker answers: each test asks a shell script in its place. */
#include "tests/unit/cmocka_main.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/jobs/devices.h"
#include "daemon/jobs/probe.h"
#include "tests/unit/scratch.h"

enum { PATIENCE_MS = 20000 };

static const char two_cards[] = "echo '{\"ok\": {\"devices\": ["
                                "{\"name\": \"cpu\", \"hardware\": \"a cpu\", \"memory\": 1}, "
                                "{\"name\": \"cuda:0\", \"hardware\": \"a card\", \"memory\": 2}, "
                                "{\"name\": \"cuda:2\", \"hardware\": \"another\", \"memory\": 3}], "
                                "\"unusable\": [{\"name\": \"cuda:1\", \"reason\": \"too old\"}]}}'";
static const char no_card[] = "echo '{\"ok\": {\"devices\": [{\"name\": \"cpu\", \"hardware\": \"a cpu\", \"memory\": "
                              "1}], \"unusable\": [{\"name\": \"cuda\", \"reason\": \"no driver\"}]}}'";

struct fixture {
    struct scratch scratch;
    uv_loop_t loop;
    struct probes *probes;
    char worker[128];
    struct devices devices;
    struct err err;
};

static enum rc find(struct fixture *f, const char *script, const char *wanted, uint64_t timeout_ms) {
    char text[1024];
    f->scratch = scratch_open();
    snprintf(f->worker, sizeof f->worker, "%s/worker", f->scratch.path);
    int len = snprintf(text, sizeof text, "#!/bin/sh\n%s\n", script);
    scratch_write(&f->scratch, "worker", text, (size_t)len);
    assert_int_equal(fchmodat(f->scratch.fd, "worker", 0700, 0), 0);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    f->probes = probes_new(&f->loop, f->worker);
    struct devices_search search = {&f->loop, f->probes, f->worker, wanted, timeout_ms};
    return devices_find(&f->devices, &search, &f->err);
}

static void end(struct fixture *f) {
    devices_release(&f->devices);
    probes_free(f->probes);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    scratch_close(&f->scratch);
}

static void expect_names(const char *script, const char *wanted, uint64_t timeout_ms, const char *names) {
    struct fixture f;
    if (find(&f, script, wanted, timeout_ms) != RC_OK) fail_msg("%s", f.err.message);
    assert_string_equal(f.devices.names, names);
    end(&f);
}

static void expect_refusal(const char *script, const char *wanted, uint64_t timeout_ms, const char *part) {
    struct fixture f;
    assert_int_not_equal(find(&f, script, wanted, timeout_ms), RC_OK);
    if (!strstr(f.err.message, part)) fail_msg("\"%s\" where \"%s\" was due", f.err.message, part);
    end(&f);
}

static void every_card_or_those_named(void **state) {
    (void)state;
    expect_names(two_cards, "auto", PATIENCE_MS, "cuda:0, cuda:2");
    expect_names(two_cards, "cuda", PATIENCE_MS, "cuda:0, cuda:2");
    expect_names(two_cards, "cuda:2", PATIENCE_MS, "cuda:2");
    expect_names(two_cards, "cuda:2,cuda:0", PATIENCE_MS, "cuda:2, cuda:0");
    expect_names(no_card, "auto", PATIENCE_MS, "cpu");
}

static void what_is_known_of_them_is_kept(void **state) {
    (void)state;
    struct fixture f;
    assert_int_equal(find(&f, two_cards, "auto", PATIENCE_MS), RC_OK);
    assert_int_equal(f.devices.count, 2);
    assert_string_equal(f.devices.items[1].hardware, "another");
    assert_int_equal(f.devices.items[1].memory, 3);
    assert_string_equal(f.devices.cpu.hardware, "a cpu");
    assert_string_equal(f.devices.json, "[\"cuda:0\",\"cuda:2\",\"all\"]");
    assert_string_equal(f.devices.list, "cuda:0,cuda:2");
    assert_true(devices_have(&f.devices, "cuda:2") && !devices_have(&f.devices, "cuda:1"));
    assert_false(devices_have(&f.devices, "cuda:") || devices_have(&f.devices, "cpu"));
    end(&f);
}

static void what_is_not_there_is_refused_with_the_reason(void **state) {
    (void)state;
    expect_refusal(two_cards, "cuda:0,cuda:1", PATIENCE_MS, "--device cuda:0,cuda:1: cuda:1 cannot be used: too old");
    expect_refusal(two_cards, "cuda:3", PATIENCE_MS, "there is no device cuda:3; there is cpu, cuda:0, cuda:2");
    expect_refusal(no_card, "cuda", PATIENCE_MS, "cuda cannot be used: no driver");
    expect_refusal(no_card, "cuda:0", PATIENCE_MS, "cuda:0 cannot be used: no driver");
}

/* The cpu needs no question; for auto it stands in for an answer that does not come. */
static void a_worker_that_cannot_say(void **state) {
    (void)state;
    static const char *const scripts[] = {
        "exit 2",
        "kill -9 $$",
        "echo no JSON",
        "echo '{}'",
        "echo '{\"ok\": {\"devices\": [{}]}}'",
        "echo '{\"error\": {\"rc\": \"internal\", \"message\": \"m\", \"pointer\": \"\"}}'"};
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        expect_names(scripts[i], "cpu", PATIENCE_MS, "cpu");
        expect_names(scripts[i], "auto", PATIENCE_MS, "cpu");
        expect_refusal(scripts[i], "cuda:0", PATIENCE_MS, "/worker devices\" to see why");
    }
    expect_refusal("exit 2", "cuda", PATIENCE_MS, "hsaq-worker devices ended with status 2");
}

static void a_worker_that_hangs_is_not_waited_for(void **state) {
    (void)state;
    uint64_t before = uv_hrtime();
    expect_names("exec sleep 100", "auto", 300, "cpu");
    expect_refusal("exec sleep 100", "cuda", 300, "did not answer");
    assert_true(uv_hrtime() - before < (uint64_t)10e9);
}

static void jobs_ask_for_what_there_is(void **state) {
    (void)state;
    struct fixture f;
    assert_int_equal(find(&f, two_cards, "auto", PATIENCE_MS), RC_OK);
    const struct devices *d = &f.devices;
    assert_int_equal(devices_check(d, LANE_DEVICE, NULL, &f.err), RC_OK);
    assert_int_equal(devices_check(d, LANE_DEVICE, "auto", &f.err), RC_OK);
    assert_int_equal(devices_check(d, LANE_DEVICE, "cuda:2", &f.err), RC_OK);
    assert_int_equal(devices_check(d, LANE_CPU, "cpu", &f.err), RC_OK);
    assert_int_equal(devices_check(d, LANE_CPU, "cuda:0", &f.err), RC_INVALID);
    assert_int_equal(devices_check(d, LANE_DEVICE, DEVICES_ALL, &f.err), RC_INVALID); /* a spec's "devices" says it */
    assert_int_equal(devices_check(d, LANE_DEVICE, "cpu", &f.err), RC_INVALID);
    assert_non_null(strstr(f.err.message, "there is cuda:0, cuda:2"));
    assert_string_equal(f.err.pointer, "/device");
    assert_null(devices_pin(NULL));
    assert_null(devices_pin("auto"));
    assert_string_equal(devices_pin("cuda:0"), "cuda:0");
    end(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_card_or_those_named),
        cmocka_unit_test(what_is_known_of_them_is_kept),
        cmocka_unit_test(what_is_not_there_is_refused_with_the_reason),
        cmocka_unit_test(a_worker_that_cannot_say),
        cmocka_unit_test(a_worker_that_hangs_is_not_waited_for),
        cmocka_unit_test(jobs_ask_for_what_there_is),
    };
    signal(SIGPIPE, SIG_IGN); /* a script that does not read its question */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
