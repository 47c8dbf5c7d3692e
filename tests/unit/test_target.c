/* A target gets what it can load, and is refused the rest by the member at fault. */
#include "tests/unit/cmocka_main.h"

#include <stdio.h>
#include <string.h>

#include "base/target.h"

static const struct {
    const char *id;
    const char *ct, *vllm; /* NULL: it can; else the member at fault */
} cases[] = {
    {"none", NULL, NULL},
    {"rtn2g64-sym", NULL, NULL},
    {"rtn3g64-sym", NULL, NULL},
    {"rtn4g64-sym", NULL, NULL},
    {"rtn5g64-sym", NULL, NULL},
    {"rtn6g64-sym", NULL, NULL},
    {"rtn8g64-sym", NULL, NULL},
    {"rtn4g0-sym", NULL, NULL},
    {"rtn4g1024-sym", NULL, NULL}, /* as wide as the row or wider: one group */
    {"rtn2g64-intzero", NULL, "/symmetric"},
    {"rtn3g0-intzero", NULL, "/symmetric"},
    {"hqq4g64-intzero", NULL, NULL},
    {"rtn5g64-intzero", NULL, "/symmetric"},
    {"rtn6g64-intzero", NULL, "/symmetric"},
    {"rtn8g64-intzero", NULL, NULL},
    {"rtn4g64", "/zero", "/zero"},
    {"hqq8g0", "/zero", "/zero"},
    {"hqq4g64-hqqpack", "/layout", "/layout"},
    {"rtn4g48-sym", "/group", "/group"},
    {"gptq4g64", NULL, NULL},
    {"gptq3g64-sym-staticgroups", NULL, NULL},
    {"gptq4g64-actorder", "/order", "/order"},
    {"awq4g64-sym", NULL, NULL},
    {"fp8", NULL, NULL},
    {"fp8-tensor", NULL, NULL},
    {"rtn4g80-intzero", "/group", "/group"},
};
enum { COLS = 512, CASES = sizeof cases / sizeof *cases };

static void check(enum target target, const char *id, const char *fault) {
    struct candidate c;
    struct err e = {0};
    assert_int_equal(candidate_from_id(id, &c, &e), RC_OK);
    enum rc rc = target_check(target, &c, COLS, &e);
    if (rc != (fault ? RC_UNSUPPORTED : RC_OK)) fail_msg("%s for %s: %s", id, target_names[target], rc_name(rc));
    if (!fault) return;
    assert_string_equal(e.pointer, fault);
    assert_non_null(strstr(e.message, target_names[target]));
}

static void each_target_carries_what_it_loads(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++) {
        check(TARGET_NONE, cases[i].id, NULL);
        check(TARGET_COMPRESSED_TENSORS, cases[i].id, cases[i].ct);
        check(TARGET_VLLM, cases[i].id, cases[i].vllm);
    }
}

static bool alike(const char *a, const char *b, int64_t cols) {
    struct candidate x, y;
    assert_int_equal(candidate_from_id(a, &x, NULL), RC_OK);
    assert_int_equal(candidate_from_id(b, &y, NULL), RC_OK);
    x = target_scheme(&x, cols);
    y = target_scheme(&y, cols);
    return target_same_scheme(&x, &y);
}

static void schemes_are_what_a_file_says(void **state) {
    (void)state;
    assert_true(alike("rtn4g64-intzero", "hqq4g64-intzero", COLS));
    assert_true(alike("rtn4g0-sym", "rtn4g1024-sym", COLS));
    assert_false(alike("rtn4g0-sym", "rtn4g256-sym", COLS));
    assert_true(alike("rtn4g0-sym", "rtn4g256-sym", 256));
    assert_true(alike("none", "none", COLS));
    assert_false(alike("none", "rtn8g64-sym", COLS));
    assert_false(alike("rtn4g64-sym", "rtn4g64-intzero", COLS));
    assert_false(alike("rtn4g64", "rtn4g64-intzero", COLS));
    assert_false(alike("hqq4g64", "hqq4g64-hqqpack", COLS));
    assert_false(alike("rtn4g64-sym", "rtn3g64-sym", COLS));
    assert_true(alike("rtn4g64-intzero", "gptq4g64", COLS));
    assert_true(alike("fp8", "fp8", COLS));
    assert_false(alike("fp8", "fp8-tensor", COLS));
    assert_false(alike("fp8", "rtn8g0-sym", COLS));
}

static void only_vllm_ties_projections(void **state) {
    (void)state;
    int qkv = target_tie(TARGET_VLLM, "q_proj"), gate_up = target_tie(TARGET_VLLM, "up_proj");
    assert_true(qkv >= 0 && gate_up >= 0 && qkv != gate_up);
    assert_true(target_tie(TARGET_VLLM, "k_proj") == qkv && target_tie(TARGET_VLLM, "v_proj") == qkv);
    assert_int_equal(target_tie(TARGET_VLLM, "gate_proj"), gate_up);
    assert_int_equal(target_tie(TARGET_VLLM, "o_proj"), -1);
    assert_int_equal(target_tie(TARGET_VLLM, "lm_head"), -1);
    assert_int_equal(target_tie(TARGET_COMPRESSED_TENSORS, "q_proj"), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_target_carries_what_it_loads),
        cmocka_unit_test(schemes_are_what_a_file_says),
        cmocka_unit_test(only_vllm_ties_projections),
    };
    return cmocka_run_group_tests_name("target", tests, NULL, NULL);
}
