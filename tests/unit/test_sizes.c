#include "tests/unit/cmocka_main.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/sizes.h"
#include "base/strbuf.h"

static void parses_sizes_as_people_write_them(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t bytes;
    } cases[] = {
        {"0", 0},
        {"4096", 4096},
        {"12GiB", 12884901888},
        {"12GB", 12000000000},
        {"512MiB", 536870912},
        {"3.5GiB", 3758096384},
        {"12 gib", 12884901888},
        {"1kB", 1000},
        {"1KiB", 1024},
        {"2TiB", 2199023255552},
        {"2TB", 2000000000000},
        {"2.0", 2},
        {"7B", 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t bytes = -1;
        struct err e = {0};
        assert_int_equal(size_parse(cases[i].text, &bytes, &e), RC_OK);
        assert_int_equal(bytes, cases[i].bytes);
    }
}

static void refuses_what_is_no_size(void **state) {
    (void)state;
    static const char *const cases[] = {"",    "GiB",  "-1",    "+1",    " 1",    "0x10", "1e3",      "inf",
                                        "nan", "1 GX", "1GiB ", "1.2.3", "1GiBs", ".",    "9300000TB"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t bytes = -1;
        struct err e = {0};
        assert_int_equal(size_parse(cases[i], &bytes, &e), RC_INVALID);
        assert_int_equal(bytes, -1);
        assert_true(strlen(e.message) > 0);
    }
}

/* 1.5 of what? Read as one byte, it is a budget that nothing fits. */
static void refuses_a_fraction_of_a_byte(void **state) {
    (void)state;
    static const char *const cases[] = {"1.5", "1.9", "0.5", "1.5B", "1.5 b", "0.0001kB"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t bytes = -1;
        struct err e = {0};
        assert_int_equal(size_parse(cases[i], &bytes, &e), RC_INVALID);
        assert_int_equal(bytes, -1);
        assert_non_null(strstr(e.message, "byte"));
    }
    struct err e = {0};
    int64_t bytes;
    size_parse("1.5", &bytes, &e);
    assert_non_null(strstr(e.message, "\"1.5GiB\""));
}

static void formats_for_people(void **state) {
    (void)state;
    char text[24];
    assert_string_equal(size_format(0, text, sizeof text), "0 B");
    assert_string_equal(size_format(1023, text, sizeof text), "1023 B");
    assert_string_equal(size_format(1536, text, sizeof text), "1.50 KiB");
    assert_string_equal(size_format(12884901888, text, sizeof text), "12.00 GiB");
    assert_string_equal(size_format(-2048, text, sizeof text), "-2.00 KiB");
    assert_true(strlen(size_format(INT64_MAX, text, sizeof text)) < sizeof text);
}

static void strbuf_grows_and_consumes(void **state) {
    (void)state;
    struct strbuf b = STRBUF_INIT;
    for (int i = 0; i < 1000; i++)
        strbuf_printf(&b, "%d,", i % 10);
    assert_int_equal(b.len, 2000);
    strbuf_consume(&b, 1998);
    assert_string_equal(b.data, "9,");
    strbuf_append(&b, "\0x", 2);
    assert_int_equal(b.len, 4);
    assert_memory_equal(b.data, "9,\0x", 5);
    strbuf_consume(&b, 100);
    assert_int_equal(b.len, 0);
    strbuf_puts(&b, "end");
    char *text = strbuf_detach(&b);
    assert_string_equal(text, "end");
    assert_null(b.data);
    free(text);
    text = strbuf_detach(&b);
    assert_string_equal(text, "");
    free(text);
    strbuf_release(&b);
}

static void arena_is_zeroed_aligned_and_apart(void **state) {
    (void)state;
    struct arena a = {0};
    unsigned char *previous = NULL;
    for (size_t size = 1; size < 9000; size = size * 3 + 1) {
        unsigned char *memory = arena_alloc(&a, size);
        assert_int_equal((uintptr_t)memory % 16, 0);
        for (size_t i = 0; i < size; i++)
            assert_int_equal(memory[i], 0);
        memset(memory, 0xff, size);
        assert_ptr_not_equal(memory, previous);
        previous = memory;
    }
    char *text = arena_strdup(&a, "kept");
    arena_alloc(&a, 100000);
    assert_string_equal(text, "kept");
    arena_release(&a);
    assert_null(a.blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parses_sizes_as_people_write_them), cmocka_unit_test(refuses_what_is_no_size),
        cmocka_unit_test(refuses_a_fraction_of_a_byte),      cmocka_unit_test(formats_for_people),
        cmocka_unit_test(strbuf_grows_and_consumes),         cmocka_unit_test(arena_is_zeroed_aligned_and_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
