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

/* A candidate of every kind there could be, whether it exists or not. */
static struct candidate recipe(int n) {
    static const int bits[] = {2, 3, 4, 5, 6, 8, 16}, groups[] = {0, 16, 17, 64, 1000, 1024}, damps[] = {0, 100, 1234};
    static const int clips[] = {0, 9000, 9999}, descends[] = {0, DESCEND_MAX, DESCEND_MAX + 1};
    struct candidate c = {0};
    int *const fields[] = {(int *)&c.method, (int *)&c.zero, (int *)&c.layout,    &c.bits, &c.group,  (int *)&c.range,
                           (int *)&c.order,  &c.damp,        (int *)&c.fp8_scale, &c.clip, &c.descend};
    const int counts[] = {METHODS, 2, 2, 7, 6, RANGE_RATIO + 1, ORDER_STATIC_GROUPS + 1, 3, 2, 3, 3};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        *fields[i] = n % counts[i];
        n /= counts[i];
    }
    c.bits = bits[c.bits];
    c.group = groups[c.group];
    c.damp = damps[c.damp];
    c.clip = clips[c.clip];
    c.descend = descends[c.descend];
    c.symmetric = n & 1;
    c.sequential = n >> 1 & 1;
    c.guided = n >> 2 & 1;
    c.two_sided = n >> 3 & 1;
    return c;
}

static bool equal(const struct candidate *a, const struct candidate *b) {
    return a->method == b->method && a->bits == b->bits && a->group == b->group && a->symmetric == b->symmetric &&
           a->zero == b->zero && a->layout == b->layout && a->range == b->range && a->clip == b->clip &&
           a->order == b->order && a->damp == b->damp && a->descend == b->descend && a->sequential == b->sequential &&
           a->guided == b->guided && a->two_sided == b->two_sided && a->fp8_scale == b->fp8_scale;
}

static void every_recipe_has_an_id_that_reads_back(void **state) {
    (void)state;
    enum { RECIPES = METHODS * 2 * 2 * 7 * 6 * 6 * 4 * 3 * 2 * 3 * 3 * 16 };
    int valid[METHODS] = {0};
    for (int n = 0; n < RECIPES; n += 1) {
        struct candidate c = recipe(n), back;
        struct err e;
        char id[CANDIDATE_ID_SIZE], again[CANDIDATE_ID_SIZE];
        if (candidate_check(&c, NULL) != RC_OK) continue;
        c = c.method == METHOD_NONE || c.method == METHOD_FP8 ? candidate_default(c.method, 0, 0) : c;
        candidate_id(&c, id);
        valid[c.method]++;
        if (candidate_from_id(id, &back, &e) != RC_OK) fail_msg("%s does not read back", id);
        assert_true(equal(&back, &c));
        assert_string_equal(candidate_id(&back, again), id);
    }
    /* bits × groups × ranges and clips × zero, symmetric, layout × what else it takes */
    assert_int_equal(valid[METHOD_RTN], 6 * 6 * (4 + 2 * 2) * (2 + 1 + 1));
    assert_int_equal(valid[METHOD_HQQ], 6 * 6 * 4 * (2 + 1));
    assert_int_equal(valid[METHOD_AWQ], 6 * 6 * (4 + 2 * 2) * (2 + 1) * 3);
    const int grids = 6 * 6 * (3 + 2 * 2) * (2 + 1) * 4 * 2; /* … × damps */
    assert_int_equal(valid[METHOD_AWQ_GPTQ], grids * 2 * 3);
    assert_int_equal(valid[METHOD_GPTQ], grids * (2 * 3 + 1));
}

static void knows_the_canonical_spelling(void **state) {
    (void)state;
    static const char *const ids[] = {"none",
                                      "hqq4g64",
                                      "rtn3g128-sym",
                                      "rtn4g64-intzero",
                                      "hqq3g64-hqqpack",
                                      "rtn8g0",
                                      "hqq2g1024",
                                      "gptq4g64",
                                      "awq3g64",
                                      "awq+gptq3g128",
                                      "fp8",
                                      "fp8-tensor",
                                      "gptq3g64-sym-mse-actorder-damp0.01-static",
                                      "gptq4g0-floatzero-minmax-natural",
                                      "awq4g64-minmax-sequential",
                                      "awq+gptq2g64-staticgroups",
                                      "rtn4g64-pct0.999",
                                      "rtn4g64-sym-ratio0.9",
                                      "rtn4g64-intzero-weighted",
                                      "hqq3g64-mse",
                                      "gptq4g64-pct0.9999",
                                      "gptq3g64-guided",
                                      "awq3g64-minmax-guided",
                                      "awq+gptq3g64-damp0.01-descend2-guided",
                                      "gptq4g64-descend8-static",
                                      "gptq3g64-actorder-guided-twosided"};
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
                                      "gptq4g64-weighted",
                                      "gptq4g64-intzero",
                                      "gptq4g64-damp0.05",
                                      "gptq4g64-damp0.010",
                                      "gptq4g64-descend0",
                                      "gptq4g64-descend9",
                                      "gptq4g64-descend02",
                                      "gptq4g64-descend2-damp0.01",
                                      "rtn4g64-descend2",
                                      "gptq4g64-output",
                                      "gptq4g64-sequential",
                                      "gptq4g64-static-guided",
                                      "awq4g64-sequential-guided",
                                      "gptq4g64-guided-static",
                                      "hqq4g64-guided",
                                      "gptq4g64-twosided",
                                      "gptq4g64-twosided-guided",
                                      "gptq4g64-descend2-guided-twosided",
                                      "awq+gptq4g64-guided-twosided",
                                      "gptq4g64-hqqpack",
                                      "rtn4g64-pct",
                                      "rtn4g64-pct0",
                                      "rtn4g64-pct1.5",
                                      "rtn4g64-actorder",
                                      "rtn4g64-static",
                                      "hqq4g64-ratio0.9",
                                      "fp8-row",
                                      "fp84g64",
                                      "awq+gptq",
                                      "awq+",
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
    expect_problem("[{}]", "/0/bits");
    expect_problem("[{\"bits\":4,\"sequential\":true}]", "/0/sequential");
    expect_problem("[{\"method\":\"rtn\"}]", "/0/bits");
    expect_problem("[{\"method\":\"gguf\",\"bits\":4}]", "/0/method");
    expect_problem("[{\"method\":\"gptq\"}]", "/0/bits");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"layout\":\"hqq\"}]", "/0/layout");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"range\":\"output\"}]", "/0/range");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"damp\":0}]", "/0/damp");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"damp\":[0.01,0.00001]}]", "/0/damp/1");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"damp\":0.01}]", "/0/damp");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"descend\":[0,8,9]}]", "/0/descend/2");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"descend\":-1}]", "/0/descend");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"descend\":4294967296}]", "/0/descend");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"descend\":true}]", "/0/descend");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"descend\":2.0}]", "/0/descend");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"descend\":2}]", "/0/descend");
    expect_problem("[{\"method\":\"awq\",\"bits\":4,\"descend\":0}]", "/0/descend");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"guided\":true}]", "/0/guided");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"guided\":1}]", "/0/guided");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"guided\":[false,true],\"sequential\":true}]", "/0/sequential");
    expect_problem("[{\"method\":\"gptq\",\"bits\":4,\"two_sided\":true}]", "/0/two_sided");
    expect_problem("[{\"bits\":4,\"guided\":false,\"two_sided\":true}]", "/0/two_sided");
    expect_problem("[{\"bits\":4,\"two_sided\":\"yes\"}]", "/0/two_sided");
    expect_problem("[{\"bits\":4,\"descend\":[0,2],\"two_sided\":true}]", "/0/descend");
    expect_problem("[{\"method\":\"awq+gptq\",\"bits\":4,\"guided\":true,\"two_sided\":true}]", "/0/two_sided");
    expect_problem("[{\"method\":[\"gptq\",\"rtn\"],\"bits\":4,\"order\":\"natural\"}]", "/0/order");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"range\":\"percentile\"}]", "/0/clip");
    expect_problem("[{\"method\":\"rtn\",\"bits\":4,\"clip\":0.9}]", "/0/clip");
    expect_problem("[{\"method\":\"hqq\",\"bits\":4,\"range\":\"ratio\"}]", "/0/range");
    expect_problem("[{\"method\":\"awq\",\"bits\":4,\"order\":\"natural\"}]", "/0/order");
    expect_problem("[{\"method\":\"fp8\",\"bits\":8}]", "/0/bits");
    expect_problem("[{\"method\":\"fp8\",\"per\":\"group\"}]", "/0/per");
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

/* What is not said is the method's default, and what is said is kept. */
static void methods_have_their_defaults(void **state) {
    (void)state;
    struct candidate c = candidate_default(METHOD_GPTQ, 4, 64);
    assert_true(c.zero == ZERO_INTEGER && c.range == RANGE_WEIGHTED && c.order == ORDER_GROUP_AWARE && c.sequential);
    assert_int_equal(c.damp, PARTS / 20);
    expect_ids("[{\"method\":[\"gptq\",\"awq\",\"awq+gptq\"],\"bits\":[3,4]},{\"method\":\"fp8\"}]",
               "gptq3g64 gptq4g64 awq3g64 awq4g64 awq+gptq3g64 awq+gptq4g64 fp8");
    expect_ids("[{\"method\":\"gptq\",\"bits\":4,\"symmetric\":[true,false]}]", "gptq4g64-sym gptq4g64");
    expect_ids("[{\"method\":\"gptq\",\"bits\":4,\"damp\":[0.01,0.05,1],\"sequential\":false}]",
               "gptq4g64-damp0.01-static gptq4g64-static gptq4g64-damp1-static");
    expect_ids("[{\"method\":[\"gptq\",\"awq+gptq\"],\"bits\":4,\"descend\":[0,2]}]",
               "gptq4g64 gptq4g64-descend2 awq+gptq4g64 awq+gptq4g64-descend2");
    expect_ids("[{\"bits\":[3,4],\"group\":32}]", "gptq3g32-guided-twosided gptq4g32-guided-twosided");
    expect_ids("[{\"bits\":4,\"guided\":false}]", "gptq4g64-descend2");
    expect_ids("[{\"bits\":4,\"descend\":2}]", "gptq4g64-descend2-guided");
    expect_ids("[{\"bits\":4,\"descend\":[0,1]}]", "gptq4g64-guided-twosided gptq4g64-descend1-guided");
    expect_ids("[{\"bits\":4,\"two_sided\":false,\"descend\":0}]", "gptq4g64-guided");
    expect_ids("[{\"bits\":4,\"guided\":false,\"descend\":0}]", "gptq4g64");
    expect_ids("[{\"bits\":4,\"two_sided\":[false,true]}]", "gptq4g64-descend2-guided gptq4g64-guided-twosided");
    expect_ids("[{\"method\":\"gptq\",\"bits\":4,\"guided\":true,\"two_sided\":true}]", "gptq4g64-guided-twosided");
    expect_ids("[{\"method\":[\"gptq\",\"awq\"],\"bits\":4,\"guided\":[false,true]}]",
               "gptq4g64 gptq4g64-guided awq4g64 awq4g64-guided");
    expect_ids("[{\"method\":\"gptq\",\"bits\":4,\"guided\":[false,true],\"sequential\":false}]",
               "gptq4g64-static gptq4g64-guided");
    expect_ids("[{\"method\":\"rtn\",\"bits\":4,\"range\":[\"percentile\",\"ratio\"],\"clip\":0.9999}]",
               "rtn4g64-pct0.9999 rtn4g64-ratio0.9999");
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
        cmocka_unit_test(methods_have_their_defaults),
        cmocka_unit_test(bounds_the_product),
        cmocka_unit_test(one_candidate_takes_no_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
