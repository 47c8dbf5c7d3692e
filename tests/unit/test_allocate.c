/* The allocation job on a synthetic profile: rules, budgets, what it answers and what it refuses. */
#include "tests/unit/allocation_profile.h"

#include <stdlib.h>

static int bits_of(const json_t *result, int block, int p) {
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.%s", block, projections[p].path, projections[p].projection);
    const char *id = candidate_of(result, name);
    for (int w = 0; w < WIDTHS; w++)
        if (strcmp(ids[w], id) == 0) return widths[w];
    fail_msg("unknown candidate %s", id);
    return 0;
}

static void average_bits_counts_code_bits_by_parameters(void **state) {
    (void)state;
    for (int tenths = 20; tenths <= 160; tenths += 7) {
        double budget = tenths / 10.0;
        char members[64];
        snprintf(members, sizeof members, "\"budget\":{\"average_bits\":%.1f}", budget);
        json_t *result = succeed(members);
        double bits = 0, params = 0;
        for (int b = 0; b < BLOCKS; b++)
            for (int p = 0; p < PROJECTIONS; p++) {
                bits += projections[p].params * (double)bits_of(result, b, p);
                params += projections[p].params;
            }
        assert_true(fabs(member_number(result, "average_bits") - bits / params) < 1e-12);
        assert_true(bits / params <= budget + 1e-9);
        assert_true(bits / params > budget - 1.5); /* and the budget is used */
        assert_true(member_number(result, "gap") == 0);
        json_decref(result);
    }
}

static void uniform_budget_reached_to_the_bit(void **state) {
    (void)state;
    json_t *result = succeed("\"budget\":{\"average_bits\":2}");
    assert_true(member_number(result, "average_bits") == 2);
    assert_int_equal(member_int(json_object_get(result, "counts"), "2"), BLOCKS * PROJECTIONS);
    json_decref(result);
}

static void result_adds_up(void **state) {
    (void)state;
    json_t *result = succeed("\"budget\":{\"weights\":40000},\"method\":\"greedy\"");
    int64_t bytes = 0, counted = 0;
    double objective = 0;
    size_t i;
    const json_t *entry;
    const char *key;
    json_t *value;
    json_array_foreach(json_object_get(result, "assignment"), i, entry) {
        bytes += member_int(entry, "bytes");
        objective += member_number(entry, "drift");
    }
    assert_int_equal(i, BLOCKS * PROJECTIONS);
    assert_int_equal(member_int(result, "bytes"), bytes);
    assert_true(bytes <= 40000 && bytes > 36000);
    assert_true(fabs(member_number(result, "objective") - objective) < 1e-12);
    assert_true(member_number(result, "bits_per_weight") == 8.0 * (double)bytes / (BLOCKS * 20480));
    json_object_foreach(json_object_get(result, "counts"), key, value) counted += json_integer_value(value);
    assert_int_equal(counted, BLOCKS * PROJECTIONS);
    counted = 0;
    json_object_foreach(json_object_get(json_object_get(result, "projections"), "v_proj"), key, value) counted +=
        json_integer_value(value);
    assert_int_equal(counted, BLOCKS);
    assert_string_equal(json_string_value(json_object_get(result, "method")), "greedy");
    assert_string_equal(json_string_value(json_object_get(result, "score")), "drift");
    assert_string_equal(json_string_value(json_object_get(result, "model")), "tiny");
    assert_string_equal(json_string_value(json_object_get(result, "profile")), "P1");
    json_decref(result);
}

static void vram_budget_pays_for_everything_else_first(void **state) {
    (void)state;
    /* kv: (3·500 + 100) tokens · 2 · 2 heads · 16 · batch 3 · 1 byte; workspace: 2 · (3·64 + 3·192) · 3·500
     * activations, 2 · 12288 for the largest Linear, 2·4·1000·3 of logits */
    const int64_t kv = 1600 * 2 * 2 * 16 * 3, work = 2 * (192 + 576) * 1500 + 2 * 12288 + 24000, reserve = 4096;
    const int64_t others = 130000 + kv + work + reserve, limit = others + 30000;
    char members[160];
    snprintf(members, sizeof members,
             "\"budget\":{\"vram\":%lld,\"context\":500,\"batch\":3,\"kv_bits\":8,\"reserve\":\"4KiB\"}",
             (long long)limit);
    json_t *result = succeed(members);
    const json_t *vram = json_object_get(result, "vram");
    assert_int_equal(member_int(vram, "kv_cache"), kv);
    assert_int_equal(member_int(vram, "workspace"), work);
    assert_int_equal(member_int(vram, "reserve"), reserve);
    assert_int_equal(member_int(vram, "unquantized"), 130000);
    assert_int_equal(member_int(vram, "weights"), member_int(result, "bytes"));
    assert_int_equal(member_int(vram, "total"), others + member_int(result, "bytes"));
    assert_int_equal(member_int(vram, "limit"), limit);
    assert_in_range(member_int(result, "bytes"), 27000, 30000);
    json_decref(result);
}

static void infeasible_budgets_state_the_smallest_in_their_unit(void **state) {
    (void)state;
    json_t *result;
    struct err e;
    char members[128], *number;
    const int64_t least = BLOCKS * 20480 * 2 / 8 + BLOCKS * 20480 / 16;

    assert_int_equal(run("\"budget\":{\"weights\":1000}", &result, &e), RC_INFEASIBLE);
    assert_string_equal(e.pointer, "/budget/weights");
    snprintf(members, sizeof members, "smallest feasible weights is %lld", (long long)least);
    assert_non_null(strstr(e.message, members));

    assert_int_equal(run("\"budget\":{\"average_bits\":1.5}", &result, &e), RC_INFEASIBLE);
    assert_string_equal(e.pointer, "/budget/average_bits");
    assert_non_null(strstr(e.message, "smallest feasible average_bits is 2"));

    assert_int_equal(run("\"method\":\"upgrade\",\"budget\":{\"average_bits\":3.5}", &result, &e), RC_INFEASIBLE);
    assert_non_null(strstr(e.message, "smallest feasible average_bits is 4"));

    assert_int_equal(run("\"budget\":{\"vram\":1000,\"context\":10}", &result, &e), RC_INFEASIBLE);
    assert_string_equal(e.pointer, "/budget/vram");
    number = strstr(e.message, "smallest feasible vram is ");
    assert_non_null(number);
    long long vram = atoll(number + strlen("smallest feasible vram is "));
    snprintf(members, sizeof members, "\"budget\":{\"vram\":%lld,\"context\":10}", vram);
    result = succeed(members);
    assert_int_equal(member_int(result, "bytes"), least);
    json_decref(result);
    snprintf(members, sizeof members, "\"budget\":{\"vram\":%lld,\"context\":10}", vram - 1);
    assert_int_equal(run(members, &result, &e), RC_INFEASIBLE);
}

static void absurd_contexts_do_not_overflow(void **state) {
    (void)state;
    json_t *result, *inputs = make_inputs();
    struct err e;
    json_t *model = json_object_get(json_object_get(json_object_get(inputs, "profile"), "result"), "model");
    json_t *architecture = json_object_get(model, "architecture");
    json_object_set_new(architecture, "kv_heads", json_integer(1 << 24));
    json_object_set_new(architecture, "head_dim", json_integer(1 << 24));
    assert_int_equal(
        run_over(inputs, "\"budget\":{\"vram\":\"12GiB\",\"context\":1048576,\"batch\":65536}", &result, &e),
        RC_INFEASIBLE);
    json_decref(inputs);
}

static void rules_bound_pin_and_tie(void **state) {
    (void)state;
    json_t *result = succeed("\"budget\":{\"average_bits\":5},\"rules\":["
                             "{\"match\":\"down_proj$\",\"max_bits\":3},"
                             "{\"match\":\"layers\\\\.2\\\\..*v_proj\",\"pin\":{\"method\":\"none\"}},"
                             "{\"first\":1,\"last\":1,\"min_bits\":3},"
                             "{\"tie\":[\"q_proj\",\"k_proj\"]}]");
    for (int b = 0; b < BLOCKS; b++) {
        assert_true(bits_of(result, b, 3) <= 3);
        assert_int_equal(bits_of(result, b, 0), bits_of(result, b, 1));
        for (int p = 0; p < PROJECTIONS; p++)
            assert_true((b > 0 && b < BLOCKS - 1) || bits_of(result, b, p) >= 3);
    }
    assert_int_equal(bits_of(result, 2, 2), 16);
    json_decref(result);

    result = succeed("\"budget\":{\"average_bits\":2.7},\"rules\":[{\"last\":2,\"min_bits\":3}]");
    assert_int_equal(bits_of(result, 0, 0), 2);
    for (int p = 0; p < PROJECTIONS; p++)
        assert_true(bits_of(result, 2, p) >= 3 && bits_of(result, 3, p) >= 3);
    json_decref(result);
}

/* The listed Linears by one method and all others by another, whichever scores better. */
static void rules_choose_the_method(void **state) {
    (void)state;
    json_t *result, *inputs = make_inputs(), *rows = json_object_get(json_object_get(inputs, "profile"), "rows");
    struct err e;
    size_t count = json_array_size(rows);
    for (size_t i = 0; i < count; i++) { /* AWQ everywhere too, at half the drift */
        json_t *row = json_deep_copy(json_array_get(rows, i)), *data = json_object_get(row, "data");
        const char *id = json_string_value(json_object_get(data, "candidate"));
        char awq[32];
        bool other = !id || strcmp(id, "none") == 0;
        snprintf(awq, sizeof awq, "awq%sg64", other ? "" : (char[]){id[3], '\0'});
        if (!other) {
            json_object_set_new(data, "candidate", json_string(awq));
            json_object_set_new(data, "drift", json_real(json_real_value(json_object_get(data, "drift")) / 2));
            json_array_append(rows, row);
        }
        json_decref(row);
    }
    assert_int_equal(run_over(inputs,
                              "\"budget\":{\"average_bits\":4},\"rules\":["
                              "{\"match\":\"(1.*down_proj|v_proj)$\",\"method\":\"awq\"},"
                              "{\"except\":\"(1.*down_proj|v_proj)$\",\"method\":\"rtn\"}]",
                              &result, &e),
                     RC_OK);
    size_t i;
    const json_t *entry;
    json_array_foreach(json_object_get(result, "assignment"), i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        const char *candidate = json_string_value(json_object_get(entry, "candidate"));
        bool listed = strstr(name, "v_proj") || strstr(name, ".1.mlp.down_proj");
        if (strncmp(candidate, listed ? "awq" : "rtn", 3) != 0) fail_msg("%s has %s", name, candidate);
    }
    json_decref(result);
    json_decref(inputs);
}

/* Overlapping ties become one, and a rule for one member holds for all. */
static void ties_join_and_share_their_rules(void **state) {
    (void)state;
    json_t *result = succeed("\"budget\":{\"average_bits\":8},\"rules\":[{\"tie\":[\"q_proj\",\"k_proj\"]},"
                             "{\"tie\":[\"k_proj\",\"v_proj\"]},{\"match\":\"layers.1.*v_proj\",\"max_bits\":2}]");
    for (int b = 0; b < BLOCKS; b++)
        for (int p = 1; p < 3; p++)
            assert_int_equal(bits_of(result, b, p), bits_of(result, b, 0));
    assert_int_equal(bits_of(result, 1, 0), 2);
    assert_true(bits_of(result, 0, 0) > 2);
    json_decref(result);
}

/* lm_head lies in no block: neither first nor last means it, and it ties with nothing. */
static void the_head_is_in_no_block(void **state) {
    (void)state;
    json_t *result, *inputs = make_inputs(), *rows = json_object_get(json_object_get(inputs, "profile"), "rows");
    struct err e;
    for (int w = 0; w < WIDTHS; w++) {
        json_t *data = json_pack("{s:s, s:n, s:s, s:i, s:s, s:f, s:f, s:i}", "name", "lm_head", "block", "projection",
                                 "lm_head", "params", 64000, "candidate", ids[w], "drift", 1e-9 * (WIDTHS - w),
                                 "relative_error", 0.1, "bytes", 8500 * widths[w]);
        json_array_append_new(rows, json_pack("{s:s, s:i, s:o}", "phase", "drift", "index", 1000 + w, "data", data));
    }
    assert_int_equal(run_over(inputs,
                              "\"budget\":{\"weights\":100000},\"rules\":[{\"first\":4,\"last\":4,\"min_bits\":8}]",
                              &result, &e),
                     RC_INFEASIBLE); /* 4 · 20480 · 8.5/8 + 17000 */
    assert_non_null(strstr(e.message, "104040"));
    assert_int_equal(run_over(inputs,
                              "\"budget\":{\"weights\":104040},\"rules\":[{\"first\":4,\"last\":4,\"min_bits\":8}]",
                              &result, &e),
                     RC_OK);
    assert_string_equal(candidate_of(result, "lm_head"), "rtn2g64");
    json_decref(result);
    assert_int_equal(
        run_over(inputs, "\"budget\":{\"average_bits\":4},\"rules\":[{\"tie\":[\"q_proj\",\"lm_head\"]}]", &result, &e),
        RC_INVALID);
    json_decref(inputs);
}

static void wide_attention_sets_the_workspace(void **state) {
    (void)state;
    json_t *result, *inputs = make_inputs();
    struct err e;
    json_t *model = json_object_get(json_object_get(json_object_get(inputs, "profile"), "result"), "model");
    json_object_set_new(json_object_get(model, "architecture"), "intermediate", json_integer(10));
    assert_int_equal(run_over(inputs, "\"budget\":{\"average_bits\":4,\"context\":4096}", &result, &e), RC_OK);
    /* hidden 3·64 and queries, outputs, keys, values 2·(4 + 2)·16 for a chunk of 2048 tokens */
    assert_int_equal(member_int(json_object_get(result, "vram"), "workspace"),
                     2 * (192 + 192) * 2048 + 2 * 12288 + 8000);
    json_decref(result);
    json_decref(inputs);
}

static void rules_that_cannot_hold_are_refused_where_they_stand(void **state) {
    (void)state;
    static const struct {
        const char *rules, *pointer, *says;
    } cases[] = {
        {"{\"match\":\"q_proj\",\"pin\":{\"method\":\"rtn\",\"bits\":5,\"group\":64}}", "/rules/0/pin", "rtn5g64"},
        {"{\"match\":\"q_proj\",\"max_bits\":4},{\"match\":\"layers.1\",\"min_bits\":8}", "/rules/1/min_bits",
         "model.layers.1.self_attn.q_proj"},
        {"{\"match\":\"q_proj\",\"min_bits\":5,\"max_bits\":7}", "/rules/0/min_bits",
         "model.layers.0.self_attn.q_proj"},
        {"{\"match\":\"k_proj\",\"min_bits\":8},{\"match\":\"k_proj\",\"pin\":{\"method\":\"rtn\",\"bits\":2,\"group\":"
         "64}}",
         "/rules/1/pin", "model.layers.0.self_attn.k_proj"},
        {"{\"match\":\"q_proj\",\"method\":\"gptq\"}", "/rules/0/method", "of method gptq"},
        {"{\"match\":\"gate\",\"min_bits\":4}", "/rules/0/match", "their names are like model.layers.0"},
        {"{\"tie\":[\"q_proj\",\"lm_head\"]}", "/rules/0/tie", "no block has two"},
        {"{\"match\":\"q_proj\",\"max_bits\":3},{\"match\":\"k_proj\",\"min_bits\":4},{\"tie\":[\"q_proj\",\"k_proj\"]"
         "}",
         "/rules/2/tie", "model.layers.0.self_attn.k_proj"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char members[512];
        json_t *result;
        struct err e;
        snprintf(members, sizeof members, "\"budget\":{\"average_bits\":4},\"rules\":[%s]", cases[c].rules);
        assert_int_equal(run(members, &result, &e), RC_INVALID);
        assert_string_equal(e.pointer, cases[c].pointer);
        if (!strstr(e.message, cases[c].says)) fail_msg("%s: %s", cases[c].pointer, e.message);
    }
}

static void uniform_recipes_stand_beside_the_assignment(void **state) {
    (void)state;
    json_t *result = succeed("\"budget\":{\"weights\":40000}");
    const json_t *uniform = json_object_get(result, "uniform");
    assert_int_equal(json_array_size(uniform), WIDTHS);
    for (size_t w = 0; w < WIDTHS; w++) {
        const json_t *recipe = json_array_get(uniform, w);
        assert_string_equal(json_string_value(json_object_get(recipe, "candidate")), ids[w]);
        bool feasible = member_int(recipe, "bytes") <= 40000;
        assert_int_equal(json_is_true(json_object_get(recipe, "feasible")), feasible);
        if (feasible) assert_true(member_number(recipe, "objective") >= member_number(result, "objective"));
    }
    json_decref(result);
}

static void frontier_is_in_bytes_whatever_the_budget(void **state) {
    (void)state;
    json_t *result = succeed("\"budget\":{\"average_bits\":3.3}");
    const json_t *frontier = json_object_get(result, "frontier");
    size_t count = json_array_size(frontier);
    assert_in_range(count, 2, 64);
    assert_int_equal(member_int(json_array_get(frontier, 0), "bytes"), BLOCKS * 20480 * 5 / 16);
    assert_int_equal(member_int(json_array_get(frontier, count - 1), "bytes"), BLOCKS * 20480 * 2);
    assert_true(member_number(json_array_get(frontier, count - 1), "objective") == 0);
    json_decref(result);
}

static void error_score_is_the_squared_relative_weight_error(void **state) {
    (void)state;
    json_t *by_drift = succeed("\"budget\":{\"average_bits\":3.3}");
    json_t *by_error = succeed("\"budget\":{\"average_bits\":3.3},\"score\":\"error\"");
    assert_true(fabs(member_number(by_error, "objective") - member_number(by_drift, "objective") / 4) < 1e-12);
    json_decref(by_drift);
    json_decref(by_error);
}

/* Inputs whose rows have this score of the loss; but for row `without`. */
static json_t *loss_inputs(const char *score, size_t without) {
    json_t *inputs = make_inputs(), *rows = json_object_get(json_object_get(inputs, "profile"), "rows"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        json_t *data = json_object_get(row, "data");
        double drift = json_number_value(json_object_get(data, "drift"));
        json_object_set_new(data, score, i == without ? json_null() : json_real(3 * drift));
    }
    return inputs;
}

static void check_loss_score(const char *score) {
    char spec[96];
    snprintf(spec, sizeof spec, "\"budget\":{\"average_bits\":3.3},\"score\":\"%s\"", score);
    struct err e;
    json_t *by_drift = succeed("\"budget\":{\"average_bits\":3.3}"), *by_score, *none;
    json_t *inputs = loss_inputs(score, 1000);
    assert_int_equal(run_over(inputs, spec, &by_score, &e), RC_OK);
    assert_true(fabs(member_number(by_score, "objective") - 3 * member_number(by_drift, "objective")) < 1e-12);
    json_decref(inputs);
    inputs = loss_inputs(score, 7);
    assert_int_equal(run_over(inputs, spec, &none, &e), RC_INVALID);
    assert_string_equal(e.pointer, "/score");
    json_decref(inputs);
    json_decref(by_drift);
    json_decref(by_score);
}

static void scores_of_the_loss_are_the_profiles(void **state) {
    (void)state;
    check_loss_score("fisher");
    check_loss_score("kfac");
    check_loss_score("diag");
}

static void upgrade_promotes_to_sixteen_else_eight(void **state) {
    (void)state;
    json_t *result = succeed("\"method\":\"upgrade\",\"budget\":{\"average_bits\":5}");
    assert_int_equal(bits_of(result, 3, 2), 16); /* v_proj of the last block drifts most */
    for (int b = 0; b < BLOCKS; b++)
        for (int p = 0; p < PROJECTIONS; p++)
            assert_true(bits_of(result, b, p) >= 4);
    json_decref(result);
}

static void damaged_profiles_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *member, *value;
    } cases[] = {
        {"name", "7"},
        {"candidate", "\"rtn9g64\""},
        {"params", "0"},
        {"params", "4097"},
        {"bytes", "-1"},
        {"drift", "-0.5"},
        {"drift", "\"much\""},
        {"drift", "null"},
        {"relative_error", "-1"},
        {"block", "7000"},
        {"bytes", "null"},
        {"projection", "null"},
        {"shape", "[64, 7]"},
        {"candidate", "\"rtn3g64\""},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        json_t *result, *inputs = make_inputs();
        struct err e;
        json_t *row = json_array_get(json_object_get(json_object_get(inputs, "profile"), "rows"), 2);
        json_object_set_new(json_object_get(row, "data"), cases[c].member,
                            json_loads(cases[c].value, JSON_DECODE_ANY, NULL));
        enum rc rc = run_over(inputs, "\"budget\":{\"average_bits\":4}", &result, &e);
        if (rc != RC_INVALID) fail_msg("%s %s: rc %d", cases[c].member, cases[c].value, rc);
        json_decref(inputs);
    }
    json_t *result, *inputs = make_inputs();
    struct err e;
    json_array_clear(json_object_get(json_object_get(inputs, "profile"), "rows"));
    assert_int_equal(run_over(inputs, "\"budget\":{\"average_bits\":4}", &result, &e), RC_INVALID);
    json_decref(inputs);
    assert_int_equal(run_over(NULL, "\"budget\":{\"average_bits\":4}", &result, &e), RC_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(average_bits_counts_code_bits_by_parameters),
        cmocka_unit_test(uniform_budget_reached_to_the_bit),
        cmocka_unit_test(result_adds_up),
        cmocka_unit_test(vram_budget_pays_for_everything_else_first),
        cmocka_unit_test(infeasible_budgets_state_the_smallest_in_their_unit),
        cmocka_unit_test(absurd_contexts_do_not_overflow),
        cmocka_unit_test(rules_bound_pin_and_tie),
        cmocka_unit_test(rules_choose_the_method),
        cmocka_unit_test(ties_join_and_share_their_rules),
        cmocka_unit_test(the_head_is_in_no_block),
        cmocka_unit_test(wide_attention_sets_the_workspace),
        cmocka_unit_test(rules_that_cannot_hold_are_refused_where_they_stand),
        cmocka_unit_test(uniform_recipes_stand_beside_the_assignment),
        cmocka_unit_test(frontier_is_in_bytes_whatever_the_budget),
        cmocka_unit_test(error_score_is_the_squared_relative_weight_error),
        cmocka_unit_test(scores_of_the_loss_are_the_profiles),
        cmocka_unit_test(upgrade_promotes_to_sixteen_else_eight),
        cmocka_unit_test(damaged_profiles_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
