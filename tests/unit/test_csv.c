/* Rows as csv: every key of every row has its column, and what needs quotes has them. */
#include "tests/unit/cmocka_main.h"

#include "daemon/api/csv.h"

static void must_print(const char *const *rows, const char *expected) {
    struct csv csv = {0};
    struct strbuf out = STRBUF_INIT;

    for (; *rows; rows++) {
        json_t *row = json_loads(*rows, 0, NULL);
        csv_add(&csv, row);
        json_decref(row);
    }
    strbuf_puts(&out, "");
    csv_print(&csv, &out);
    assert_string_equal(out.data, expected);
    strbuf_release(&out);
    csv_release(&csv);
}
#define PRINTS(expected, ...) must_print((const char *const[]){__VA_ARGS__, NULL}, expected)

static void test_no_rows_are_no_text(void **unused) {
    (void)unused;
    must_print((const char *const[]){NULL}, "");
}

static void test_columns_are_the_keys_of_all_rows(void **unused) {
    (void)unused;
    PRINTS("a,b,c,d\r\n"
           "1,2,,\r\n"
           ",3,,\r\n"
           "5,,4,\r\n"
           ",,,6\r\n",
           "{\"a\":1,\"b\":2}", "{\"b\":3}", "{\"c\":4,\"a\":5}", "{\"d\":6}");
}

static void test_a_row_without_keys_keeps_its_line(void **unused) {
    (void)unused;
    PRINTS("\r\n\r\n", "{}");
    PRINTS("a,b\r\n,\r\n1,2\r\n", "{}", "{\"a\":1,\"b\":2}");
}

static void test_cells_are_quoted_where_they_must_be(void **unused) {
    (void)unused;
    PRINTS("\"a,b\",c\r\n"
           "\"say \"\"no\"\"\",\r\n"
           "\"two\r\nlines\",\"[1,2]\"\r\n"
           "0.1,true\r\n",
           "{\"a,b\":\"say \\\"no\\\"\",\"c\":null}", "{\"a,b\":\"two\\r\\nlines\",\"c\":[1,2]}",
           "{\"a,b\":0.1,\"c\":true}");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_rows_are_no_text),
        cmocka_unit_test(test_columns_are_the_keys_of_all_rows),
        cmocka_unit_test(test_a_row_without_keys_keeps_its_line),
        cmocka_unit_test(test_cells_are_quoted_where_they_must_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
