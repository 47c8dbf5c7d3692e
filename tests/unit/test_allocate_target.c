/* An allocation for a target has only what that can carry, and is refused where nothing is left. */
#include "tests/unit/allocation_profile.h"

#include <stdlib.h>

/* The profile with other candidates at 2, 3, 4, 8 and 16 bits; those that are NULL were not measured. */
static json_t *inputs_with(const char *const others[WIDTHS]) {
    json_t *inputs = make_inputs(), *rows = json_object_get(json_object_get(inputs, "profile"), "rows");
    for (size_t i = json_array_size(rows); i-- > 0;) {
        json_t *data = json_object_get(json_array_get(rows, i), "data");
        const char *id = json_string_value(json_object_get(data, "candidate"));
        for (int w = 0; id && w < WIDTHS; w++) {
            if (strcmp(id, ids[w]) != 0) continue;
            if (others[w])
                json_object_set_new(data, "candidate", json_string(others[w]));
            else
                json_array_remove(rows, i);
            break;
        }
    }
    return inputs;
}

static bool has_candidate(const json_t *result, const char *part) {
    char *text = json_dumps(json_object_get(result, "assignment"), 0);
    bool found = strstr(text, part) != NULL;
    free(text);
    return found;
}

/* At three bits on average: without a target three of them everywhere, with one what it has. */
static void a_target_crosses_out_what_it_cannot_carry(void **state) {
    (void)state;
    static const char *const mixed[] = {"rtn2g64-sym", "rtn3g64-intzero", "rtn4g64-intzero", "rtn8g64", "none"};
    json_t *result, *inputs = inputs_with(mixed);
    struct err e;
    const char budget[] = "\"budget\":{\"average_bits\":6}";
    char members[128];
    static const struct {
        const char *target;
        bool three, eight;
    } cases[] = {{"none", true, true}, {"compressed-tensors", true, false}, {"vllm", false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(members, sizeof members, "%s,\"target\":\"%s\",\"rules\":[{\"match\":\"down\",\"max_bits\":3}]",
                 budget, cases[i].target);
        assert_int_equal(run_over(inputs, members, &result, &e), RC_OK);
        assert_string_equal(json_string_value(json_object_get(result, "target")), cases[i].target);
        assert_true(has_candidate(result, "rtn3") == cases[i].three);
        assert_true(has_candidate(result, "rtn8") == cases[i].eight);
        json_decref(result);
    }
    assert_int_equal(run_over(inputs, "\"budget\":{\"average_bits\":1.5},\"target\":\"vllm\"", &result, &e),
                     RC_INFEASIBLE);
    assert_non_null(strstr(e.message, "by target vllm"));
    assert_int_equal(
        run_over(inputs, "\"budget\":{\"average_bits\":1.5},\"target\":\"compressed-tensors\",\"method\":\"upgrade\"",
                 &result, &e),
        RC_INFEASIBLE);
    assert_non_null(strstr(e.message, "starts at 4 bits), with the candidates that can be carried by target compressed-"
                                      "tensors"));
    json_decref(inputs);
}

/* vllm computes q, k and v as one. */
static void a_target_ties_what_it_computes_as_one(void **state) {
    (void)state;
    static const char *const symmetric[] = {"rtn2g64-sym", "rtn3g64-sym", "rtn4g64-sym", "rtn8g64-sym", NULL};
    json_t *result, *inputs = inputs_with(symmetric);
    struct err e;
    bool differ = false;
    for (int vllm = 0; vllm < 2; vllm++) {
        assert_int_equal(run_over(inputs,
                                  vllm ? "\"budget\":{\"average_bits\":3.3},\"target\":\"vllm\""
                                       : "\"budget\":{\"average_bits\":3.3},\"target\":\"compressed-tensors\"",
                                  &result, &e),
                         RC_OK);
        for (int b = 0; b < BLOCKS; b++) {
            char q[64], v[64];
            snprintf(q, sizeof q, "model.layers.%d.self_attn.q_proj", b);
            snprintf(v, sizeof v, "model.layers.%d.self_attn.v_proj", b);
            bool same = !strcmp(candidate_of(result, q), candidate_of(result, v));
            differ = differ || !same;
            assert_true(same || !vllm);
        }
        json_decref(result);
    }
    assert_true(differ);
    json_decref(inputs);
}

static void a_target_that_leaves_nothing_says_what_to_profile(void **state) {
    (void)state;
    static const char *const floats[] = {"rtn2g64", "rtn3g64", "rtn4g64-hqqpack", "rtn8g64", NULL};
    json_t *result, *inputs = inputs_with(floats);
    struct err e;
    assert_int_equal(run_over(inputs, "\"budget\":{\"average_bits\":4},\"target\":\"vllm\"", &result, &e),
                     RC_INFEASIBLE);
    assert_string_equal(e.pointer, "/target");
    assert_non_null(strstr(e.message, "q_proj (blocks 0-3), k_proj (blocks 0-3), v_proj (blocks 0-3), down_proj (bl"));
    assert_non_null(strstr(e.message, "rtn2g64: vllm has no float zeros; use \"zero\": \"integer\""));
    assert_non_null(strstr(e.message, "rtn4g64-hqqpack: vllm reads dense codes only"));
    assert_null(strstr(e.message, "rtn8g64")); /* for the reason that was given */
    json_decref(inputs);
    static const char *const symmetric[] = {"rtn2g64-sym", "rtn3g64-sym", "rtn4g64-sym", NULL, NULL};
    inputs = inputs_with(symmetric);
    assert_int_equal(run_over(inputs,
                              "\"budget\":{\"average_bits\":4},\"target\":\"vllm\",\"rules\":["
                              "{\"match\":\"q_proj\",\"max_bits\":2},{\"match\":\"v_proj\",\"min_bits\":4}]",
                              &result, &e),
                     RC_INFEASIBLE);
    assert_string_equal(e.pointer, "/target");
    json_decref(inputs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_target_crosses_out_what_it_cannot_carry),
        cmocka_unit_test(a_target_ties_what_it_computes_as_one),
        cmocka_unit_test(a_target_that_leaves_nothing_says_what_to_profile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
