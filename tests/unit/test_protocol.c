#include "tests/unit/cmocka_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/protocol.h"
#include "base/schema.h"

/* One line of every message, with every member; decoding and encoding gives it back. */
static const char *const lines[] = {
    [MSG_START] =
        "{\"type\":\"start\",\"job\":\"J\",\"attempt\":2,\"spec\":{\"kind\":\"eval\"},\"model\":{\"name\":\"M\"},"
        "\"dataset\":{\"name\":\"D\"},\"calibration\":{\"name\":\"C\"},\"inputs\":{\"profile\":{}},\"rows\":[{"
        "\"phase\":\"p\"}]}\n",
    [MSG_CANCEL] = "{\"type\":\"cancel\",\"job\":\"J\"}\n",
    [MSG_CACHED] = "{\"type\":\"cached\",\"entries\":{\"k\":{\"drift\":0.1}}}\n",
    [MSG_SHUTDOWN] = "{\"type\":\"shutdown\"}\n",
    [MSG_HELLO] = "{\"type\":\"hello\",\"version\":1,\"pid\":42,\"build\":\"0.1.0\",\"device\":\"cpu\","
                  "\"arithmetic\":\"cpu/fp32\",\"hardware\":\"2 cores\",\"memory\":8589934592}\n",
    [MSG_HEARTBEAT] = "{\"type\":\"heartbeat\"}\n",
    [MSG_PROGRESS] =
        "{\"type\":\"progress\",\"job\":\"J\",\"phase\":\"walk\",\"unit\":\"blocks\",\"done\":3,\"total\":9,"
        "\"rate\":1.5,\"eta_seconds\":-1.0}\n",
    [MSG_ROW] = "{\"type\":\"row\",\"job\":\"J\",\"phase\":\"drift\",\"index\":7,\"data\":[1,2],\"cache_key\":\"k\"}\n",
    [MSG_LOOKUP] = "{\"type\":\"lookup\",\"cache\":\"fingerprint\",\"keys\":[\"a\",\"b\"]}\n",
    [MSG_STORE] = "{\"type\":\"store\",\"cache\":\"drift\",\"key\":\"k\",\"model\":\"M\",\"data\":{\"x\":1}}\n",
    [MSG_RESULT] = "{\"type\":\"result\",\"job\":\"J\",\"result\":{\"bytes\":1}}\n",
    [MSG_ERROR] =
        "{\"type\":\"error\",\"job\":\"J\",\"code\":\"infeasible\",\"pointer\":\"/budget\",\"message\":\"no\"}\n",
    [MSG_LOG] = "{\"type\":\"log\",\"level\":\"info\",\"text\":\"é\"}\n",
};
enum { MESSAGES = sizeof lines / sizeof *lines };

static enum rc decode(const char *line, struct message *m, struct err *e) {
    return message_decode(line, strlen(line), m, e);
}

static void every_message_survives_the_trip(void **state) {
    (void)state;
    for (int i = 0; i < MESSAGES; i++) {
        struct message m;
        struct err e = {0};
        if (decode(lines[i], &m, &e) != RC_OK) fail_msg("%s: %s", lines[i], e.message);
        assert_int_equal(m.type, i);
        char *line = message_encode(&m);
        assert_string_equal(line, lines[i]);
        free(line);
        message_release(&m);
    }
    assert_null(message_names[MESSAGES]);
}

static void members_land_in_their_struct(void **state) {
    (void)state;
    struct message m;
    struct err e;
    assert_int_equal(decode(lines[MSG_PROGRESS], &m, &e), RC_OK);
    assert_string_equal(m.progress.phase, "walk");
    assert_int_equal(m.progress.done, 3);
    assert_int_equal(m.progress.total, 9);
    assert_true(m.progress.rate == 1.5);
    message_release(&m);
    assert_int_equal(decode(lines[MSG_ERROR], &m, &e), RC_OK);
    assert_int_equal(m.error.err.rc, RC_INFEASIBLE);
    assert_string_equal(m.error.err.pointer, "/budget");
    assert_string_equal(m.error.err.message, "no");
    message_release(&m);
    assert_int_equal(decode(lines[MSG_LOOKUP], &m, &e), RC_OK);
    assert_int_equal(m.lookup.cache, CACHE_FINGERPRINT);
    message_release(&m);
}

static void optional_members_may_be_absent(void **state) {
    (void)state;
    struct message m;
    struct err e;
    assert_int_equal(decode("{\"type\":\"start\",\"job\":\"J\",\"attempt\":1,\"spec\":{},\"model\":null}", &m, &e),
                     RC_OK);
    assert_null(m.start.model);
    assert_null(m.start.rows);
    char *line = message_encode(&m);
    assert_string_equal(line, "{\"type\":\"start\",\"job\":\"J\",\"attempt\":1,\"spec\":{}}\n");
    free(line);
    message_release(&m);
    assert_int_equal(
        decode("{\"type\":\"progress\",\"job\":\"J\",\"phase\":\"p\",\"unit\":\"u\",\"done\":0,\"total\":0}", &m, &e),
        RC_OK);
    assert_true(m.progress.rate == 0 && m.progress.eta_seconds < 0); /* unknown */
    message_release(&m);
}

static void unknown_members_are_for_newer_peers(void **state) {
    (void)state;
    struct message m;
    struct err e;
    assert_int_equal(decode("{\"type\":\"heartbeat\",\"load\":0.5}", &m, &e), RC_OK);
    message_release(&m);
}

static void every_required_member_is_required(void **state) {
    (void)state;
    for (int i = 0; i < MESSAGES; i++) {
        json_t *whole = json_loads(lines[i], 0, NULL);
        const char *name;
        json_t *ignored;
        int required = 0;
        json_object_foreach(whole, name, ignored) {
            json_t *part = json_copy(whole);
            json_object_del(part, name);
            char *line = json_line(part);
            struct message m;
            struct err e = {0};
            enum rc rc = decode(line, &m, &e);
            assert_true(rc == RC_OK || rc == RC_INVALID);
            required += rc == RC_INVALID;
            message_release(&m);
            free(line);
            json_decref(part);
        }
        static const int expected[MESSAGES] = {
            [MSG_START] = 4, [MSG_CANCEL] = 2,   [MSG_CACHED] = 2,    [MSG_SHUTDOWN] = 1, [MSG_HELLO] = 8,
            [MSG_ROW] = 5,   [MSG_PROGRESS] = 6, [MSG_HEARTBEAT] = 1, [MSG_LOOKUP] = 3,   [MSG_STORE] = 4,
            [MSG_LOG] = 3,   [MSG_RESULT] = 3,   [MSG_ERROR] = 3};
        assert_int_equal(required, expected[i]);
        json_decref(whole);
    }
}

static void refuses_hostile_lines(void **state) {
    (void)state;
    static const struct {
        const char *line;
        enum rc rc;
    } cases[] = {
        {"", RC_MALFORMED},
        {"{\"type\":\"heartbeat\"", RC_MALFORMED},
        {"{\"type\":\"heartbeat\"}{}", RC_MALFORMED},
        {"[]", RC_INVALID},
        {"7", RC_INVALID},
        {"{}", RC_INVALID},
        {"{\"type\":7}", RC_INVALID},
        {"{\"type\":\"exec\"}", RC_INVALID},
        {"{\"type\":\"heartbeat\",\"type\":\"heartbeat\"}", RC_INVALID},
        {"{\"type\":\"cancel\",\"job\":7}", RC_INVALID},
        {"{\"type\":\"cancel\",\"job\":null}", RC_INVALID},
        {"{\"type\":\"row\",\"job\":\"J\",\"phase\":\"p\",\"index\":-1,\"data\":1}", RC_INVALID},
        {"{\"type\":\"row\",\"job\":\"J\",\"phase\":\"p\",\"index\":1.0,\"data\":1}", RC_INVALID},
        {"{\"type\":\"lookup\",\"cache\":\"job\",\"keys\":[]}", RC_INVALID},
        {"{\"type\":\"lookup\",\"cache\":0,\"keys\":[]}", RC_INVALID},
        {"{\"type\":\"lookup\",\"cache\":\"drift\",\"keys\":{}}", RC_INVALID},
        {"{\"type\":\"cached\",\"entries\":[]}", RC_INVALID},
        {"{\"type\":\"progress\",\"job\":\"J\",\"phase\":\"p\",\"unit\":\"u\",\"done\":0,\"total\":0,\"rate\":\"x\"}",
         RC_INVALID},
        {"{\"type\":\"error\",\"job\":\"J\",\"code\":\"ok\"}", RC_INVALID},
        {"{\"type\":\"error\",\"job\":\"J\",\"code\":1}", RC_INVALID},
        {"{\"type\":\"error\",\"job\":\"J\",\"code\":\"io\",\"message\":[]}", RC_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct message m;
        struct err e = {0};
        if (decode(cases[i].line, &m, &e) != cases[i].rc) fail_msg("%s: %s", cases[i].line, e.message);
        assert_true(strlen(e.message) > 0);
        assert_null(m.root);
    }
}

static void long_error_texts_are_cut_at_a_character(void **state) {
    (void)state;
    char line[4096] = "{\"type\":\"error\",\"job\":\"J\",\"code\":\"io\",\"message\":\"x";
    for (int i = 0; i < 1000; i++)
        memcpy(line + strlen(line), "é", sizeof "é");
    memcpy(line + strlen(line), "\"}", 3);
    struct message m;
    struct err e;
    assert_int_equal(decode(line, &m, &e), RC_OK);
    assert_int_equal(strlen(m.error.err.message), sizeof m.error.err.message - 1);
    char *again = message_encode(&m);
    assert_non_null(strstr(again, "\"message\":\"xé"));
    free(again);
    message_release(&m);
}

static void encodes_what_json_cannot_hold(void **state) {
    (void)state;
    const struct message progress = {.type = MSG_PROGRESS,
                                     .progress = {"J", "p", "u", 1, 2, .rate = NAN, .eta_seconds = INFINITY}};
    char *line = message_encode(&progress);
    assert_string_equal(
        line, "{\"type\":\"progress\",\"job\":\"J\",\"phase\":\"p\",\"unit\":\"u\",\"done\":1,\"total\":2}\n");
    free(line);
    const struct message log = {.type = MSG_LOG, .log = {"info", "bad \xff\nline"}};
    line = message_encode(&log);
    assert_string_equal(line, "{\"type\":\"log\",\"level\":\"info\",\"text\":\"bad ?\\nline\"}\n");
    free(line);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_survives_the_trip),
        cmocka_unit_test(members_land_in_their_struct),
        cmocka_unit_test(optional_members_may_be_absent),
        cmocka_unit_test(unknown_members_are_for_newer_peers),
        cmocka_unit_test(every_required_member_is_required),
        cmocka_unit_test(refuses_hostile_lines),
        cmocka_unit_test(long_error_texts_are_cut_at_a_character),
        cmocka_unit_test(encodes_what_json_cannot_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
