#include "tests/unit/cmocka_main.h"

#include <stdio.h>
#include <string.h>

#include "base/candidate.h"
#include "base/json.h"

struct fixture {
    struct arena arena;
    struct problems problems;
    struct list list;
    struct candidate *one;
};

static void decode(struct fixture *f, const char *text, bool many) {
    *f = (struct fixture){0};
    struct decode d = {.arena = &f->arena, .problems = &f->problems};
    json_t *value = NULL;
    struct err e;
    assert_int_equal(json_parse(text, strlen(text), &value, &e), RC_OK);
    if (many)
        candidates_decode(value, &f->list, &d);
    else
        candidate_decode(value, &f->one, &d);
    json_decref(value);
}

static void expect_ids(const char *text, const char *ids) {
    struct fixture f;
    decode(&f, text, true);
    assert_int_equal(f.problems.count, 0);
    char all[2048] = "", id[CANDIDATE_ID_SIZE];
    size_t used = 0;
    for (size_t i = 0; i < f.list.count; i++)
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", i ? " " : "",
                                 candidate_id((struct candidate *)f.list.items + i, id));
    assert_string_equal(all, ids);
    arena_release(&f.arena);
}

static void expect_problem(const char *text, const char *pointer) {
    struct fixture f;
    decode(&f, text, true);
    if (f.problems.count == 0) fail_msg("accepted: %s", text);
    assert_string_equal(f.problems.items[0].pointer, pointer);
    arena_release(&f.arena);
}

static void every_recipe_has_an_id_that_reads_back(void **state) {
    (void)state;
    static const int bits[] = {2, 3, 4, 5, 6, 8}, groups[] = {0, 16, 17, 64, 128, 1000, 1024};
    int valid = 0;
    for (int n = 0; n < 2 * 6 * 7 * 2 * 2 * 2; n++) {
        struct candidate c = {.method = n & 1 ? METHOD_HQQ : METHOD_RTN,
                              .symmetric = n >> 1 & 1,
                              .zero = n >> 2 & 1 ? ZERO_INTEGER : ZERO_FLOAT,
                              .layout = n >> 3 & 1 ? LAYOUT_HQQ : LAYOUT_DENSE,
                              .bits = bits[(n >> 4) % 6],
                              .group = groups[(n >> 4) / 6]};
        struct candidate back;
        struct err e;
        char id[CANDIDATE_ID_SIZE], again[CANDIDATE_ID_SIZE];
        candidate_id(&c, id);
        if (candidate_check(&c, NULL) != RC_OK) {
            assert_int_equal(candidate_from_id(id, &back, &e), RC_INVALID);
            continue;
        }
        valid++;
        assert_int_equal(candidate_from_id(id, &back, &e), RC_OK);
        assert_int_equal(back.method, c.method);
        assert_int_equal(back.bits, c.bits);
        assert_int_equal(back.group, c.group);
        assert_int_equal(back.symmetric, c.symmetric);
        assert_int_equal(back.zero, c.zero);
        assert_int_equal(back.layout, c.layout);
        assert_string_equal(candidate_id(&back, again), id);
    }
    assert_int_equal(valid,
                     42 * (4 + 3)); /* rtn: dense × {float, integer, symmetric} + hqq layout; hqq: no symmetric */
}

static void knows_the_canonical_spelling(void **state) {
    (void)state;
    static const char *const ids[] = {"none",   "hqq4g64",  "rtn3g128-sym", "rtn4g64-intzero", "hqq3g64-hqqpack",
                                      "rtn8g0", "hqq2g1024"};
    struct candidate c;
    struct err e;
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        assert_int_equal(candidate_from_id(ids[i], &c, &e), RC_OK);
    assert_int_equal(candidate_from_id("none", &c, &e), RC_OK);
    assert_int_equal(c.bits, 16);
}

static void refuses_other_spellings(void **state) {
    (void)state;
    static const char *const ids[] = {"",
                                      "hqq",
                                      "hqq4",
                                      "hqq4g",
                                      "hqq04g64",
                                      "hqq4g064",
                                      "hqq7g64",
                                      "hqq4g15",
                                      "hqq4g1025",
                                      "hqq4g64-sym",
                                      "rtn4g64-intzero-sym",
                                      "rtn4g64-",
                                      "rtn4g64 ",
                                      "RTN4g64",
                                      "gptq4g64",
                                      "none4g64",
                                      "none-sym",
                                      "rtn4g64-sym-intzero",
                                      "rtn4g-64",
                                      "rtn4g99999999999",
                                      "rtn4g64-sym-hqqpack"};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        struct candidate c;
        struct err e;
        if (candidate_from_id(ids[i], &c, &e) != RC_INVALID) fail_msg("accepted: %s", ids[i]);
    }
}

static void lists_multiply_in_order_without_duplicates(void **state) {
    (void)state;
    expect_ids("[{\"method\":\"hqq\",\"bits\":[2,3,4],\"group\":64}]", "hqq2g64 hqq3g64 hqq4g64");
    expect_ids("[{\"method\":\"hqq\",\"bits\":4}]", "hqq4g64");
    expect_ids("[{\"method\":[\"rtn\",\"hqq\"],\"bits\":[8,2],\"group\":[0,32]}]",
               "rtn8g0 rtn8g32 rtn2g0 rtn2g32 hqq8g0 hqq8g32 hqq2g0 hqq2g32");
    expect_ids("[{\"method\":\"rtn\",\"bits\":[4,4],\"symmetric\":[true,false]},{\"method\":\"rtn\",\"bits\":4},"
               "{\"method\":\"none\"},{\"method\":\"none\"}]",
               "rtn4g64-sym rtn4g64 none");
    expect_ids("[{\"method\":\"hqq\",\"bits\":3,\"layout\":[\"dense\",\"hqq\"]},"
               "{\"method\":\"rtn\",\"bits\":3,\"zero\":\"integer\"}]",
               "hqq3g64 hqq3g64-hqqpack rtn3g64-intzero");
}

static void faults_are_where_they_stand(void **state) {
    (void)state;
    expect_problem("{}", "");
    expect_problem("[]", "");
    expect_problem("[7]", "/0");
    expect_problem("[{}]", "/0/method");
    expect_problem("[{\"method\":\"rtn\"}]", "/0/bits");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4}]", "/0/method");
    expect_problem("[{\"method\":\"rtn\",\"bits\":[2,3,7]}]", "/0/bits/2");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4294967298}]", "/0/bits");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4.0}]", "/0/bits");
    expect_problem("[{\"method\":\"rtn\",\"bits\":[]}]", "/0/bits");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4},{\"method\":\"rtn\",\"bits\":4,\"group\":[64,8]}]", "/1/group/1");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"group\":-1}]", "/0/group");
    expect_problem("[{\"method\":\"hqq\",\"bits\":4,\"symmetric\":true}]", "/0/symmetric");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"symmetric\":true,\"zero\":\"float\"}]", "/0/zero");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"symmetric\":true,\"layout\":\"hqq\"}]", "/0/layout");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"zero\":\"integer\",\"layout\":\"hqq\"}]", "/0/layout");
    expect_problem("[{\"method\":\"none\",\"bits\":4}]", "/0/bits");
    expect_problem("[{\"method\":[\"none\",\"rtn\"],\"bits\":4}]", "/0/bits");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"actorder\":true}]", "/0/actorder");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"zero\":\"int\"}]", "/0/zero");
}

static void names_methods_that_come_later(void **state) {
    (void)state;
    struct fixture f;
    decode(&f, "[{\"method\":\"awq\",\"bits\":4}]", true);
    assert_non_null(strstr(f.problems.items[0].detail, "not available in this version"));
    assert_non_null(strstr(f.problems.items[0].detail, "none, rtn, hqq"));
    arena_release(&f.arena);
}

static void bounds_the_product(void **state) {
    (void)state;
    char text[1024] = "[{\"method\":[\"rtn\",\"hqq\"],\"bits\":[2,3,4,5,6,8],\"group\":[";
    for (int group = 16; group < 16 + 21; group++) /* 2 × 6 × 21 = 252 */
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", group > 16 ? "," : "", group);
    snprintf(text + strlen(text), sizeof text - strlen(text), "%s", "]},{\"method\":\"rtn\",\"bits\":[2,3,4,5]");
    struct fixture f;
    char exact[1100];
    snprintf(exact, sizeof exact, "%s}]", text);
    decode(&f, exact, true);
    assert_int_equal(f.problems.count, 0);
    assert_int_equal(f.list.count, CANDIDATES_MAX);
    arena_release(&f.arena);
    snprintf(exact, sizeof exact, "%s,\"symmetric\":[true,false]}]", text);
    expect_problem(exact, "/1");
}

static void one_candidate_takes_no_lists(void **state) {
    (void)state;
    struct fixture f;
    char id[CANDIDATE_ID_SIZE];
    decode(&f, "{\"method\":\"rtn\",\"bits\":4,\"group\":128}", false);
    assert_int_equal(f.problems.count, 0);
    assert_string_equal(candidate_id(f.one, id), "rtn4g128");
    arena_release(&f.arena);
    decode(&f, "{\"method\":\"rtn\",\"bits\":[4]}", false);
    assert_int_equal(f.problems.count, 1);
    assert_string_equal(f.problems.items[0].pointer, "/bits");
    assert_null(f.one);
    arena_release(&f.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_recipe_has_an_id_that_reads_back),
        cmocka_unit_test(knows_the_canonical_spelling),
        cmocka_unit_test(refuses_other_spellings),
        cmocka_unit_test(lists_multiply_in_order_without_duplicates),
        cmocka_unit_test(faults_are_where_they_stand),
        cmocka_unit_test(names_methods_that_come_later),
        cmocka_unit_test(bounds_the_product),
        cmocka_unit_test(one_candidate_takes_no_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
