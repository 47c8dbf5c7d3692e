#include "tests/unit/cmocka_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"

static enum rc parse(const char *text, struct err *e) {
    json_t *value = NULL;
    *e = (struct err){0};
    enum rc rc = json_parse(text, strlen(text), &value, e);
    assert_int_equal(rc == RC_OK, value != NULL);
    json_decref(value);
    return rc;
}

static void accepts_any_one_value(void **state) {
    (void)state;
    static const char *const cases[] = {"{}",
                                        "[1, 2.5, \"x\", null, true]",
                                        "null",
                                        " 7 ",
                                        "\"\\u00e9\"",
                                        "-0.0",
                                        "9223372036854775807",
                                        "-9223372036854775808",
                                        "1.7976931348623157e308",
                                        "{\"\": {\"\": 1}}"};
    struct err e;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(parse(cases[i], &e), RC_OK);
}

static void refuses_what_is_not_json_with_its_place(void **state) {
    (void)state;
    static const char *const cases[] = {"",     "{",           "{} {}",   "[1,]",     "{\"a\":1,}",
                                        "NaN",  "[Infinity]",  "{'a':1}", "\"\xff\"", "\"\xc0\xaf\"",
                                        "[01]", "\"\\ud800\"", "// c\n1", "\"a\nb\"", "]",
                                        "tru",  "[1 2]",       "\"\\"};
    struct err e;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse(cases[i], &e), RC_MALFORMED);
        assert_string_equal(e.pointer, "");
    }
    parse("{\n  \"a\": oops}", &e);
    assert_non_null(strstr(e.message, "line 2, column 11"));
}

static void refuses_bad_content_with_its_pointer(void **state) {
    (void)state;
    static const struct {
        const char *text, *pointer;
    } cases[] = {
        {"{\"a\":1,\"a\":2}", "/a"},
        {"{\"x\":[0,{\"a\":[],\"b\":{\"c\":1,\"d\":2,\"c\":3}}]}", "/x/1/b/c"},
        {"{\"a~b/c\":{\"k\":1,\"k\":1}}", "/a~0b~1c/k"},
        {"{\"a\\u002fb\\\"]\":[1,[],18446744073709551616]}", "/a~1b\"]/2"},
        {"1e999", ""},
        {"[[-1e999]]", "/0/0"},
        {"{\"n\":99999999999999999999}", "/n"},
        {"{\"s\":[\"},{\", \"a\\u0000b\"]}", "/s/1"},
        {"{\"s\":{\"a\\u0000b\":1}}", "/s"},
        {"{\"a\":{\"b\":1},\"c\":[{\"b\":2},{\"b\":2,\"b\":3}]}", "/c/1/b"},
    };
    struct err e;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse(cases[i].text, &e), RC_INVALID);
        assert_string_equal(e.pointer, cases[i].pointer);
    }
}

static char *nested(int depth, char open, char close) {
    char *text = malloc(2 * (size_t)depth + 1);
    memset(text, open, (size_t)depth);
    memset(text + depth, close, (size_t)depth);
    text[2 * depth] = '\0';
    return text;
}

static void bounds_the_depth(void **state) {
    (void)state;
    struct err e;
    char *text = nested(JSON_MAX_DEPTH, '[', ']');
    assert_int_equal(parse(text, &e), RC_OK);
    free(text);
    text = nested(JSON_MAX_DEPTH + 1, '[', ']');
    assert_int_equal(parse(text, &e), RC_MALFORMED);
    assert_non_null(strstr(e.message, "line 1, column 65"));
    free(text);
    text = nested(200000, '{', '}');
    assert_int_equal(parse(text, &e), RC_MALFORMED);
    free(text);
    /* Brackets in strings are no depth. */
    assert_int_equal(parse("\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"", &e), RC_OK);
}

static void stops_at_the_length_given(void **state) {
    (void)state;
    struct err e;
    json_t *value = NULL;
    assert_int_equal(json_parse("12345", 2, &value, &e), RC_OK);
    assert_int_equal(json_integer_value(value), 12);
    json_decref(value);
    assert_int_equal(json_parse("1\0 {", 4, &value, &e), RC_MALFORMED); /* jansson alone takes this */
}

static void doubles_survive_the_trip(void **state) {
    (void)state;
    static const double cases[] = {0.1,    1.0 / 3, 5e-324, 1.7976931348623157e308, -0.0,  123456789.123456789, 1e22,
                                   1.1e22, 3e-5,    1e15,   123456789012345680.0,   -1e100};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *value = json_real(cases[i]), *again = NULL;
        char *line = json_line(value);
        struct err e;
        assert_int_equal(json_parse(line, strlen(line), &again, &e), RC_OK);
        double read = json_real_value(again);
        assert_memory_equal(&read, &cases[i], sizeof read);
        free(line);
        json_decref(value);
        json_decref(again);
    }
}

static void doubles_are_written_as_short_as_they_can(void **state) {
    (void)state;
    json_t *value = json_pack("[f, f, f, f, f, f, f, {s:s, s:f}]", 3.3, 0.1 + 0.2, 3.0, -0.0, 1e22, 1.1e300, 2.5e-7,
                              "3.2999999999999998\"", "-3.2999999999999998\\", "k", -0.7);
    char *line = json_line(value);
    assert_string_equal(line, "[3.3,0.30000000000000004,3.0,-0.0,1e22,1.1e+300,2.5e-07,"
                              "{\"3.2999999999999998\\\"\":\"-3.2999999999999998\\\\\",\"k\":-0.7}]");
    free(line);
    json_decref(value);
}

static void random_doubles_survive_the_trip(void **state) {
    (void)state;
    uint64_t bits = 0x9e3779b97f4a7c15;
    for (int i = 0; i < 20000; i++) {
        double number, read;
        bits = bits * 6364136223846793005 + 1442695040888963407;
        memcpy(&number, &bits, sizeof number);
        json_t *value = json_real(number);
        if (value == NULL) continue; /* not finite */
        char *line = json_line(value);
        read = strtod(line, NULL);
        assert_memory_equal(&read, &number, sizeof read);
        free(line);
        json_decref(value);
    }
}

static void a_line_is_one_line_in_order(void **state) {
    (void)state;
    json_t *value = json_pack("{s:s, s:[i], s:n}", "z", "a\nb", "a", 1, "m");
    char *line = json_line(value);
    assert_string_equal(line, "{\"z\":\"a\\nb\",\"a\":[1],\"m\":null}");
    free(line);
    json_decref(value);
}

static void pointers_that_do_not_fit_name_an_ancestor(void **state) {
    (void)state;
    char pointer[16] = "";
    json_pointer_push_key(pointer, sizeof pointer, "a/b~c");
    assert_string_equal(pointer, "/a~1b~0c");
    json_pointer_push_key(pointer, sizeof pointer, "too long for this");
    assert_string_equal(pointer, "/a~1b~0c/…");
    json_pointer_push_index(pointer, sizeof pointer, 3);
    assert_string_equal(pointer, "/a~1b~0c/…");
}

static void getters_leave_absent_and_refuse_wrong(void **state) {
    (void)state;
    struct err e;
    int64_t number = 5;
    double real = 5;
    bool flag = true;
    const char *text = "kept";
    json_t *object = json_pack("{s:i, s:f, s:b, s:s, s:n}", "int", 7, "real", 2.5, "bool", 0, "text", "t", "null");
    assert_int_equal(json_get_int(object, "absent", 0, 9, &number, &e), RC_OK);
    assert_int_equal(json_get_int(object, "null", 0, 9, &number, &e), RC_OK);
    assert_int_equal(number, 5);
    assert_int_equal(json_get_int(object, "int", 7, 7, &number, &e), RC_OK);
    assert_int_equal(number, 7);
    assert_int_equal(json_get_int(object, "int", 0, 6, &number, &e), RC_INVALID);
    assert_int_equal(json_get_int(object, "int", 8, 9, &number, &e), RC_INVALID);
    assert_string_equal(e.pointer, "/int");
    assert_int_equal(json_get_int(object, "real", 0, 9, &number, &e), RC_INVALID);
    assert_int_equal(json_get_number(object, "int", &real, &e), RC_OK);
    assert_true(real == 7);
    assert_int_equal(json_get_number(object, "text", &real, &e), RC_INVALID);
    assert_int_equal(json_get_bool(object, "bool", &flag, &e), RC_OK);
    assert_false(flag);
    assert_int_equal(json_get_bool(object, "int", &flag, &e), RC_INVALID);
    assert_int_equal(json_get_string(object, "text", &text, &e), RC_OK);
    assert_string_equal(text, "t");
    assert_int_equal(json_get_string(object, "bool", &text, &e), RC_INVALID);
    assert_string_equal(e.pointer, "/bool");
    json_decref(object);
}

static void reads_files_within_bounds(void **state) {
    (void)state;
    char path[] = "/tmp/hsaq-test-json-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\":1,\"a\":2}", 13), 13);
    json_t *value = NULL;
    struct err e;
    assert_int_equal(json_parse_file(path, 12, &value, &e), RC_TOO_LARGE);
    assert_int_equal(json_parse_file(path, 13, &value, &e), RC_INVALID);
    assert_string_equal(e.pointer, "/a");
    assert_non_null(strstr(e.message, path));
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(pwrite(fd, "[1]", 3, 0), 3);
    assert_int_equal(json_parse_file(path, 13, &value, &e), RC_OK);
    assert_int_equal(json_array_size(value), 1);
    json_decref(value);
    close(fd);
    unlink(path);
    assert_int_equal(json_parse_file(path, 13, &value, &e), RC_NOT_FOUND);
    assert_int_equal(json_parse_file("/tmp", 13, &value, &e), RC_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_any_one_value),
        cmocka_unit_test(refuses_what_is_not_json_with_its_place),
        cmocka_unit_test(refuses_bad_content_with_its_pointer),
        cmocka_unit_test(bounds_the_depth),
        cmocka_unit_test(stops_at_the_length_given),
        cmocka_unit_test(doubles_survive_the_trip),
        cmocka_unit_test(doubles_are_written_as_short_as_they_can),
        cmocka_unit_test(random_doubles_survive_the_trip),
        cmocka_unit_test(a_line_is_one_line_in_order),
        cmocka_unit_test(pointers_that_do_not_fit_name_an_ancestor),
        cmocka_unit_test(getters_leave_absent_and_refuse_wrong),
        cmocka_unit_test(reads_files_within_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
