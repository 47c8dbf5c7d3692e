#include "tests/unit/cmocka_main.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/utf8.h"

static void stores_rc_pointer_and_message(void **state) {
    (void)state;
    struct err e = {0};
    assert_int_equal(err_at(&e, "/a/0", RC_INVALID, "bad %d", 7), RC_INVALID);
    assert_int_equal(e.rc, RC_INVALID);
    assert_string_equal(e.pointer, "/a/0");
    assert_string_equal(e.message, "bad 7");
    assert_int_equal(err_set(&e, RC_IO, "disk"), RC_IO);
    assert_string_equal(e.pointer, ""); /* the old place is gone */
}

static void accepts_no_place_to_store(void **state) {
    (void)state;
    errno = ENOENT;
    assert_int_equal(err_set(NULL, RC_CONFLICT, "x"), RC_CONFLICT);
    assert_int_equal(err_errno(NULL, "x"), RC_NOT_FOUND);
}

static void maps_errno(void **state) {
    (void)state;
    static const struct {
        int code;
        enum rc rc;
    } cases[] = {
        {ENOSPC, RC_NO_SPACE}, {EDQUOT, RC_NO_SPACE}, {ENOENT, RC_NOT_FOUND}, {ENOMEM, RC_NO_MEMORY}, {EACCES, RC_IO}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        errno = cases[i].code;
        assert_int_equal(err_errno(&e, "cannot open '%s'", "f"), cases[i].rc);
        assert_memory_equal(e.message, "cannot open 'f': ", 17);
        assert_non_null(strstr(e.message, strerror(cases[i].code)));
    }
}

static void context_goes_in_front(void **state) {
    (void)state;
    struct err e = {0};
    err_at(&e, "/x", RC_INVALID, "inner");
    assert_int_equal(err_context(&e, "file '%s'", "m"), RC_INVALID);
    assert_string_equal(e.message, "file 'm': inner");
    assert_string_equal(e.pointer, "/x");
}

static void long_context_is_cut_not_overrun(void **state) {
    (void)state;
    char text[600];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    struct err e = {0};
    err_set(&e, RC_IO, "%s", text);
    err_context(&e, "%s", text);
    assert_int_equal(strlen(e.message), sizeof e.message - 1);
}

static void message_is_always_utf8(void **state) {
    (void)state;
    struct err e = {0};
    err_set(&e, RC_IO, "'%.3s' \xff", "aa\xc3\xa9"); /* the precision cuts the é */
    assert_string_equal(e.message, "'aa?' ?");
}

static void finds_valid_utf8(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t length;
    } cases[] = {
        {"a", 1},
        {"\xc3\xa9", 2},
        {"\xe2\x82\xac", 3},
        {"\xf0\x9f\x98\x80", 4},
        {"\x80", 0},
        {"\xc0\xaf", 0},
        {"\xe0\x80\x80", 0},
        {"\xed\xa0\x80", 0},
        {"\xc3", 0},
        {"\xf4\x90\x80\x80", 0},
        {"\xf0\x80\x80\x80", 0},
        {"\xe2\x82x", 0},
        {"\xf5\x80\x80\x80", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(utf8_sequence(cases[i].text, strlen(cases[i].text)), cases[i].length);
    assert_int_equal(utf8_sequence("", 0), 0);
}

static void names_and_statuses_of_errors(void **state) {
    (void)state;
    for (int rc = RC_OK; rc <= RC_INTERNAL; rc++) {
        assert_int_equal(rc_from_name(rc_name((enum rc)rc)), rc);
        assert_true(strlen(rc_text((enum rc)rc)) > 0);
    }
    assert_int_equal(rc_from_name("no such error"), RC_INTERNAL);
    assert_int_equal(rc_http_status(RC_MALFORMED), 400);
    assert_int_equal(rc_http_status(RC_INVALID), 422);
    assert_int_equal(rc_http_status(RC_TOO_LARGE), 413);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stores_rc_pointer_and_message),
        cmocka_unit_test(accepts_no_place_to_store),
        cmocka_unit_test(maps_errno),
        cmocka_unit_test(context_goes_in_front),
        cmocka_unit_test(long_context_is_cut_not_overrun),
        cmocka_unit_test(message_is_always_utf8),
        cmocka_unit_test(finds_valid_utf8),
        cmocka_unit_test(names_and_statuses_of_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
