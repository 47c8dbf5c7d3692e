/* The allocation job's scores, and what it tells beside the assignment: what is predicted, how scores correlate with a
 * sweep, what a percent of budget changes, who is next. */
#include "tests/unit/allocation_profile.h"

#include <stdlib.h>

#include "worker/pipeline/predict.h"

static const char budget[] = "\"budget\":{\"average_bits\":3.3}";

static json_t *rows_of(json_t *inputs, const char *job) {
    return json_object_get(json_object_get(inputs, job), "rows");
}

static json_t *data_at(json_t *inputs, const char *job, size_t row) {
    return json_object_get(json_array_get(rows_of(inputs, job), row), "data");
}

/* A member of every drift row, `times` its drift; null in row `without`. */
static void add_score(json_t *inputs, const char *member, double times, size_t without) {
    for (size_t r = 0; r < BLOCKS * PROJECTIONS * WIDTHS; r++) {
        json_t *data = data_at(inputs, "profile", r);
        double drift = json_number_value(json_object_get(data, "drift"));
        json_object_set_new(data, member, r == without ? json_null() : json_real(times * drift));
    }
}

enum { NONE_WITHOUT = 100000 };

/* Nats of a Linear in the sweep: no function of its drift. */
static double nats(int block, int p) {
    return 0.01 * (1 + (block * 7 + p * 3) % 11);
}

/* The synthetic profile and a sweep over all its Linears: of rtn3g64, or of noise. */
static json_t *swept_inputs(double noise) {
    json_t *inputs = make_inputs(), *rows = json_array();
    const char *candidate = noise > 0 ? NULL : "rtn3g64";
    for (int b = 0; b < BLOCKS; b++)
        for (int p = 0; p < PROJECTIONS; p++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%d.%s.%s", b, projections[p].path, projections[p].projection);
            json_array_append_new(rows, json_pack("{s:s, s:i, s:{s:s, s:s?, s:f}}", "phase", "sweep", "index",
                                                  b * PROJECTIONS + p, "data", "name", name, "candidate", candidate,
                                                  "delta_kl", nats(b, p)));
        }
    json_array_append_new(rows, json_pack("{s:s, s:i, s:{}}", "phase", "_kl", "index", 0, "data"));
    json_object_set_new(inputs, "sweep",
                        json_pack("{s:s, s:{s:{s:s}, s:s?, s:o}, s:o}", "job", "S1", "result", "model", "fingerprint",
                                  "f00d", "candidate", candidate, "noise", noise > 0 ? json_real(noise) : json_null(),
                                  "rows", rows));
    return inputs;
}

static json_t *must_run(json_t *inputs, const char *members) {
    json_t *result;
    struct err e;
    if (run_over(inputs, members, &result, &e) != RC_OK) fail_msg("%s: %s %s", members, e.pointer, e.message);
    return result;
}

static const char *text_member(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    assert_non_null(text);
    return text;
}

static void close_to(double value, double expected) {
    if (fabs(value - expected) > 1e-12 * (1 + fabs(expected))) fail_msg("%.17g is not %.17g", value, expected);
}

static void expect_default(json_t *inputs, const char *score, const char *reason) {
    json_t *result = must_run(inputs, budget);
    assert_string_equal(text_member(result, "score"), score);
    if (!strstr(text_member(result, "score_reason"), reason)) fail_msg("%s", text_member(result, "score_reason"));
    json_decref(result);
}

static void default_is_fisher_where_every_row_has_it(void **state) {
    (void)state;
    json_t *inputs = make_inputs();
    expect_default(inputs, "drift", "ask for fisher");
    add_score(inputs, "fisher", 3, 42);
    expect_default(inputs, "drift", "ask for fisher");
    add_score(inputs, "kfac", 3, NONE_WITHOUT);
    expect_default(inputs, "drift", "ask for fisher");
    add_score(inputs, "fisher", 3, NONE_WITHOUT);
    expect_default(inputs, "fisher", "every row");
    json_t *result = must_run(inputs, "\"budget\":{\"average_bits\":3.3},\"score\":\"drift\"");
    assert_string_equal(text_member(result, "score"), "drift");
    assert_non_null(strstr(text_member(result, "score_reason"), "asks for it"));
    json_decref(result);
    json_decref(inputs);
}

static void scores_of_rows_are_taken_as_they_stand(void **state) {
    (void)state;
    static const char *const scores[] = {"fisher", "kfac", "diag"};
    json_t *by_drift = succeed(budget);
    for (size_t s = 0; s < 3; s++) {
        json_t *inputs = make_inputs(), *result;
        struct err e;
        char members[96];
        snprintf(members, sizeof members, "%s,\"score\":\"%s\"", budget, scores[s]);
        add_score(inputs, scores[s], 3, NONE_WITHOUT);
        result = must_run(inputs, members);
        close_to(member_number(result, "objective"), 3 * member_number(by_drift, "objective"));
        json_decref(result);
        add_score(inputs, scores[s], 3, 7); /* block 0, k_proj */
        assert_int_equal(run_over(inputs, members, &result, &e), RC_INVALID);
        assert_string_equal(e.pointer, "/score");
        assert_non_null(strstr(e.message, "model.layers.0.self_attn.k_proj at rtn4g64; it has drift, error, and"));
        add_score(inputs, scores[s], -1, NONE_WITHOUT);
        assert_int_equal(run_over(inputs, members, &result, &e), RC_INVALID);
        json_decref(inputs);
    }
    json_decref(by_drift);
}

/* The objective that an assignment has by the sweep. */
static double swept_objective(json_t *inputs, const json_t *result, double noise) {
    const json_t *assignment = json_object_get(result, "assignment");
    double sum = 0;
    for (int i = 0; i < BLOCKS * PROJECTIONS; i++)
        for (int w = 0; w < WIDTHS; w++) {
            const json_t *data = data_at(inputs, "profile", (size_t)(i * WIDTHS + w));
            const json_t *base = data_at(inputs, "profile", (size_t)(i * WIDTHS + 1));
            if (strcmp(text_member(json_array_get(assignment, (size_t)i), "candidate"), ids[w]) != 0) continue;
            double error = member_number(data, "relative_error");
            double drifts = member_number(data, "drift") / member_number(base, "drift");
            sum += nats(i / PROJECTIONS, i % PROJECTIONS) * (noise > 0 ? error * error / (noise * noise) : drifts);
        }
    return sum;
}

static void a_sweep_is_scaled_to_the_candidates(void **state) {
    (void)state;
    json_t *swept = swept_inputs(0), *noisy = swept_inputs(0.125);
    json_t *by_kl = must_run(swept, "\"budget\":{\"average_bits\":3.3},\"sweep\":\"S1\",\"score\":\"delta_kl\"");
    json_t *by_noise = must_run(noisy, "\"budget\":{\"average_bits\":3.3},\"sweep\":\"S1\",\"score\":\"noise\"");
    close_to(member_number(by_kl, "objective"), swept_objective(swept, by_kl, 0));
    close_to(member_number(by_noise, "objective"), swept_objective(noisy, by_noise, 0.125));
    assert_string_equal(text_member(by_kl, "score"), "delta_kl");
    assert_string_equal(text_member(by_noise, "score"), "noise");
    assert_string_equal(text_member(by_kl, "sweep"), "S1");
    json_decref(by_kl);
    json_decref(by_noise);
    json_decref(swept);
    json_decref(noisy);
}

/* What of an input is set to what, and what is then answered. */
struct fault {
    const char *path, *value; /* path: members from the inputs, '/' between; value NULL: removed */
    const char *score, *pointer, *says;
    double noise; /* of the sweep */
};

static void damage(json_t *inputs, const char *path, const char *value) {
    char text[96], *save = NULL;
    json_t *at = inputs;
    snprintf(text, sizeof text, "%s", path);
    for (char *key = strtok_r(text, "/", &save), *next; key; key = next) {
        next = strtok_r(NULL, "/", &save);
        json_t *child = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
        if (!next && value)
            json_object_set_new(at, key, json_loads(value, JSON_DECODE_ANY, NULL));
        else if (!next)
            assert_int_equal(json_object_del(at, key), 0);
        at = child;
    }
}

static void what_a_sweep_lacks_is_said(void **state) {
    (void)state;
    static const struct fault faults[] = {
        {"sweep", NULL, "delta_kl", "/sweep", "fingerprint", 0},
        {"sweep", NULL, "drift", "/sweep", "fingerprint", 0},
        {"sweep/result/model/fingerprint", "\"beef\"", "delta_kl", "/sweep", "other weights", 0},
        {"sweep/result/model/fingerprint", "\"beef\"", "drift", "/sweep", "other weights", 0},
        {"profile/result/model/fingerprint", NULL, "drift", "/sweep", "other weights", 0},
        {"sweep/result/candidate", "\"hqq3g64\"", "delta_kl", "/sweep", "hqq3g64, which was not profiled", 0},
        {"sweep/result/candidate", "null", "delta_kl", "/sweep", "either a candidate or noise", 0},
        {"sweep/result/noise", "0.1", "delta_kl", "/sweep", "either a candidate or noise", 0},
        {"sweep/result/noise", "-0.1", "noise", "/sweep", "either a candidate or noise", 0.1},
        {"sweep/rows/3/data/name", "\"other\"", "delta_kl", "/sweep", "no row for model.layers.0.mlp.down_proj", 0},
        {"sweep/rows/3/data/name", "\"other\"", "noise", "/sweep", "no row for model.layers.0.mlp.down_proj", 0.1},
        {"sweep/rows/3/data/name", "\"model.layers.0.self_attn.q_proj\"", "delta_kl", "/sweep", "two rows", 0},
        {"sweep/rows/3/data/delta_kl", NULL, "delta_kl", "/sweep", "without a name or a delta_kl", 0},
        {"sweep/rows/3/data/name", NULL, "delta_kl", "/sweep", "without a name or a delta_kl", 0},
        {"sweep/rows", "[]", "delta_kl", "/sweep", "no rows", 0},
        {"profile/rows/11/phase", "\"other\"", "delta_kl", "/sweep", "lacks for model.layers.0.self_attn.v_proj", 0},
        {"profile/rows/11/data/drift", "0", "delta_kl", "/sweep", "leaves model.layers.0.self_attn.v_proj as it is", 0},
        {"profile/rows/11/data/drift", "0.5", "noise", "/score", "ask for score delta_kl", 0},
        {"profile/rows/11/data/drift", "0.5", "delta_kl", "/score", "ask for score noise", 0.1},
    };
    for (size_t f = 0; f < sizeof faults / sizeof *faults; f++) {
        json_t *inputs = swept_inputs(faults[f].noise), *result;
        char members[96];
        struct err e;
        damage(inputs, faults[f].path, faults[f].value);
        snprintf(members, sizeof members, "%s,\"sweep\":\"S1\",\"score\":\"%s\"", budget, faults[f].score);
        enum rc rc = run_over(inputs, members, &result, &e);
        if (rc != RC_INVALID || strcmp(e.pointer, faults[f].pointer) != 0 || !strstr(e.message, faults[f].says))
            fail_msg("%s, %s: rc %d at %s: %s", faults[f].path, faults[f].score, rc, e.pointer, e.message);
        json_decref(inputs);
    }
}

/* Behind an input that is always zero nothing costs anything, whatever a sweep's rounding found; and a KL that rounds
 * below zero is none. */
static void dead_linears_cost_nothing(void **state) {
    (void)state;
    json_t *inputs = swept_inputs(0);
    for (size_t r = 0; r < WIDTHS; r++)
        json_object_set_new(data_at(inputs, "profile", r), "drift", json_real(0));
    json_object_set_new(data_at(inputs, "sweep", 1), "delta_kl", json_real(-1e-12));
    json_t *result = must_run(inputs, "\"budget\":{\"average_bits\":3.3},\"sweep\":\"S1\",\"score\":\"delta_kl\"");
    assert_string_equal(candidate_of(result, "model.layers.0.self_attn.q_proj"), "rtn2g64");
    assert_string_equal(candidate_of(result, "model.layers.0.self_attn.k_proj"), "rtn2g64");
    json_decref(result);
    json_decref(inputs);
}

static void the_kl_is_predicted_from_nats(void **state) {
    (void)state;
    json_t *inputs = make_inputs(), *by_drift = succeed(budget);
    add_score(inputs, "fisher", 3, NONE_WITHOUT);
    json_t *result = must_run(inputs, budget), *prediction = json_object_get(result, "prediction");
    double sum = member_number(result, "objective");
    assert_string_equal(text_member(prediction, "score"), "fisher");
    close_to(member_number(prediction, "sum"), sum);
    close_to(member_number(prediction, "kl"), sum * member_number(prediction, "correction"));
    assert_true(member_number(prediction, "correction") > 1.2);
    assert_true(member_number(prediction, "low") < member_number(prediction, "kl"));
    assert_true(member_number(prediction, "high") > member_number(prediction, "kl"));
    assert_non_null(text_member(prediction, "calibrated_on"));
    assert_true(json_is_null(json_object_get(by_drift, "prediction")));
    json_decref(by_drift);
    json_decref(result);
    json_decref(inputs);
}

/* What corrections were measured for is scores of the reference. */
static void of_scores_around_a_quantized_model_nothing_is_predicted(void **state) {
    (void)state;
    json_t *inputs = make_inputs();
    add_score(inputs, "fisher", 3, NONE_WITHOUT);
    json_t *first = must_run(inputs, budget);
    json_object_set_new(json_object_get(json_object_get(inputs, "profile"), "result"), "around",
                        json_pack("{ss}", "allocation", "A0"));
    json_t *second = must_run(inputs, budget), *sensitivity = json_object_get(second, "sensitivity");
    assert_null(json_object_get(first, "around"));
    assert_string_equal(text_member(second, "around"), "A0");
    assert_string_equal(text_member(second, "score"), "fisher");
    assert_true(json_is_null(json_object_get(second, "prediction")));
    assert_true(json_is_null(json_object_get(json_array_get(json_object_get(second, "frontier"), 0), "kl")));
    assert_true(json_is_null(json_object_get(json_object_get(sensitivity, "more"), "kl")));
    assert_true(json_equal(json_object_get(first, "assignment"), json_object_get(second, "assignment")));
    json_decref(first);
    json_decref(second);
    json_decref(inputs);
}

/* Bytes, bits and objective of every point, and the KL where there is one. */
static void frontier_is_what_a_user_plots(void **state) {
    (void)state;
    json_t *inputs = make_inputs();
    add_score(inputs, "fisher", 3, NONE_WITHOUT);
    static const char *const budgets[] = {"\"budget\":{\"average_bits\":3.3}", "\"budget\":{\"weights\":40000}"};
    for (int by = 0; by < 2; by++) {
        json_t *result = must_run(inputs, budgets[by]), *frontier = json_object_get(result, "frontier");
        size_t count = json_array_size(frontier);
        assert_in_range(count, 10, 64);
        for (size_t k = 0; k < count; k++) {
            const json_t *point = json_array_get(frontier, k), *before = json_array_get(frontier, k - 1);
            close_to(member_number(point, "kl"), 1.41 * member_number(point, "objective"));
            if (k) assert_true(member_int(point, "bytes") > member_int(before, "bytes"));
            if (k) assert_true(member_number(point, "kl") < member_number(before, "kl"));
            if (k) assert_true(member_number(point, "average_bits") > member_number(before, "average_bits"));
        }
        close_to(member_number(json_array_get(frontier, 0), "average_bits"), 2);
        close_to(member_number(json_array_get(frontier, count - 1), "average_bits"), 16);
        json_decref(result);
    }
    json_t *plain = succeed(budget);
    assert_true(json_is_null(json_object_get(json_array_get(json_object_get(plain, "frontier"), 0), "kl")));
    json_decref(plain);
    json_decref(inputs);
}

/* Linears whose candidates differ. */
static int differing(const json_t *a, const json_t *b) {
    const json_t *ours = json_object_get(a, "assignment"), *theirs = json_object_get(b, "assignment");
    int count = 0;
    for (size_t i = 0; i < json_array_size(ours); i++)
        count += strcmp(text_member(json_array_get(ours, i), "candidate"),
                        text_member(json_array_get(theirs, i), "candidate")) != 0;
    return count;
}

/* What sensitivity says of a budget is what an allocation with that budget gives. */
static void expect_beside(json_t *inputs, const json_t *result, const char *side, int64_t weights) {
    char members[64];
    snprintf(members, sizeof members, "\"budget\":{\"weights\":%lld}", (long long)weights);
    const json_t *beside = json_object_get(json_object_get(result, "sensitivity"), side), *change;
    json_t *other = must_run(inputs, members);
    size_t i;
    assert_int_equal(member_int(beside, "bytes"), member_int(other, "bytes"));
    close_to(member_number(beside, "average_bits"), member_number(other, "average_bits"));
    close_to(member_number(beside, "objective"), member_number(other, "objective"));
    close_to(member_number(beside, "kl"), member_number(json_object_get(other, "prediction"), "kl"));
    int changed = (int)member_int(beside, "changed");
    assert_int_equal(changed, differing(result, other));
    assert_int_equal(json_array_size(json_object_get(beside, "changes")), changed < 32 ? changed : 32);
    json_array_foreach(json_object_get(beside, "changes"), i, change) {
        assert_string_equal(text_member(change, "from"), candidate_of(result, text_member(change, "name")));
        assert_string_equal(text_member(change, "to"), candidate_of(other, text_member(change, "name")));
        assert_string_not_equal(text_member(change, "from"), text_member(change, "to"));
    }
    json_decref(other);
}

static void sensitivity_is_a_percent_more_and_less(void **state) {
    (void)state;
    json_t *inputs = make_inputs();
    add_score(inputs, "fisher", 3, NONE_WITHOUT);
    int64_t changed[2] = {0};
    for (int64_t weights = 32000; weights < 60000; weights += 3100) {
        char members[64];
        snprintf(members, sizeof members, "\"budget\":{\"weights\":%lld}", (long long)weights);
        json_t *result = must_run(inputs, members);
        expect_beside(inputs, result, "more", weights + weights / 100);
        expect_beside(inputs, result, "less", weights - weights / 100);
        const json_t *sensitivity = json_object_get(result, "sensitivity");
        changed[0] += member_int(json_object_get(sensitivity, "more"), "changed");
        changed[1] += member_int(json_object_get(sensitivity, "less"), "changed");
        json_decref(result);
    }
    assert_true(changed[0] > 5 && changed[1] > 5);
    json_t *result = must_run(inputs, "\"budget\":{\"average_bits\":2}"); /* nothing less is feasible */
    const json_t *sensitivity = json_object_get(result, "sensitivity");
    assert_true(json_is_null(json_object_get(sensitivity, "less")));
    assert_true(member_number(json_object_get(sensitivity, "more"), "average_bits") <= 2.02);
    assert_int_equal(json_array_size(json_object_get(json_object_get(result, "edge"), "down")), 0);
    json_decref(result);
    json_decref(inputs);
}

static void long_lists_of_changes_are_cut(void **state) {
    (void)state;
    json_t *inputs = make_inputs(), *rows = rows_of(inputs, "profile");
    json_array_remove(rows, json_array_size(rows) - 1);
    for (int b = BLOCKS; b < 500; b++)
        for (int p = 0; p < PROJECTIONS; p++)
            for (int w = 0; w < WIDTHS; w++)
                add_row(rows, b, p, w);
    json_t *result = must_run(inputs, budget);
    const json_t *more = json_object_get(json_object_get(result, "sensitivity"), "more");
    assert_true(member_int(more, "changed") > 32);
    assert_int_equal(json_array_size(json_object_get(more, "changes")), 32);
    json_decref(result);
    json_decref(inputs);
}

static double drift_of(int block, int p, int w) {
    return widths[w] == 16 ? 0 : projections[p].sensitivity * pow(4, -widths[w]) * (1 + 0.1 * block);
}

static int width_of(const char *id) {
    for (int w = 0; w < WIDTHS; w++)
        if (strcmp(ids[w], id) == 0) return w;
    fail_msg("unknown candidate %s", id);
    return 0;
}

/* Its numbers are those of the step that it names, and lists are in order. */
static void check_edges(const json_t *result, const char *direction) {
    const json_t *list = json_object_get(json_object_get(result, "edge"), direction), *edge;
    bool up = strcmp(direction, "up") == 0;
    double before = up ? INFINITY : 0;
    size_t i;
    assert_int_equal(json_array_size(list), 10);
    json_array_foreach(list, i, edge) {
        const char *name = text_member(edge, "name"), *dot = strrchr(name, '.') + 1;
        int block = atoi(name + strlen("model.layers.")), p = 0;
        while (strcmp(projections[p].projection, dot) != 0)
            p++;
        int from = width_of(text_member(edge, "from")), to = width_of(text_member(edge, "to"));
        assert_string_equal(text_member(edge, "from"), candidate_of(result, name));
        assert_int_equal(member_int(edge, "linears"), 1);
        close_to(member_number(edge, "objective"), drift_of(block, p, to) - drift_of(block, p, from));
        assert_true(up ? member_int(edge, "bytes") > 0 : member_int(edge, "bytes") < 0);
        double rate = member_number(edge, "rate");
        close_to(rate * 1e6, -1e6 * member_number(edge, "objective") / (double)member_int(edge, "bytes"));
        assert_true(up ? rate <= before : rate >= before);
        before = rate;
    }
}

static void the_edge_is_who_changes_next(void **state) {
    (void)state;
    json_t *result = succeed("\"budget\":{\"weights\":40000}");
    check_edges(result, "up");
    check_edges(result, "down");
    json_decref(result);
    result = succeed("\"budget\":{\"weights\":40000},\"rules\":[{\"tie\":[\"q_proj\",\"k_proj\",\"v_proj\"]}]");
    const json_t *edge;
    size_t i, tied = 0;
    json_array_foreach(json_object_get(json_object_get(result, "edge"), "up"), i, edge) {
        bool is_tie = strstr(text_member(edge, "name"), "q_proj");
        assert_int_equal(member_int(edge, "linears"), is_tie ? 3 : 1);
        tied += is_tie;
    }
    assert_true(tied > 0);
    json_decref(result);
}

/* --- correlation --- */

static const json_t *find_correlation(const json_t *result, const char *score, const char *candidate) {
    size_t i;
    const json_t *entry;
    json_array_foreach(json_object_get(result, "correlation"), i, entry) {
        if (!strcmp(text_member(entry, "score"), score) && !strcmp(text_member(entry, "candidate"), candidate))
            return entry;
    }
    return NULL;
}

/* Drift is the reverse of the sweep inside projections but not over all; kfac is its order. */
static void scores_are_held_against_the_sweep(void **state) {
    (void)state;
    json_t *inputs = swept_inputs(0);
    for (int i = 0; i < BLOCKS * PROJECTIONS; i++) {
        int block = i / PROJECTIONS;
        double kl = projections[i % PROJECTIONS].sensitivity / (1 + block); /* drift rises with the block */
        json_object_set_new(data_at(inputs, "sweep", (size_t)i), "delta_kl", json_real(kl));
        for (int w = 0; w < WIDTHS; w++)
            json_object_set_new(data_at(inputs, "profile", (size_t)(i * WIDTHS + w)), "kfac",
                                json_real(widths[w] == 3 ? exp(kl) : 0.5));
    }
    json_object_del(data_at(inputs, "profile", 1), "kfac");
    json_t *result = must_run(inputs, "\"budget\":{\"average_bits\":3.3},\"sweep\":\"S1\"");
    const json_t *drift = find_correlation(result, "drift", "rtn3g64"), *kfac;
    assert_int_equal(json_array_size(json_object_get(result, "correlation")), 3); /* drift, error, kfac */
    close_to(member_number(drift, "spearman_within_projection"), -1);
    assert_true(member_number(drift, "spearman") > 0.3);
    assert_int_equal(member_int(drift, "n"), BLOCKS * PROJECTIONS);
    kfac = find_correlation(result, "kfac", "rtn3g64");
    close_to(member_number(kfac, "spearman"), 1);
    close_to(member_number(kfac, "spearman_within_projection"), 1);
    assert_int_equal(member_int(kfac, "n"), BLOCKS * PROJECTIONS - 1);
    close_to(member_number(find_correlation(result, "error", "rtn3g64"), "spearman_within_projection"), -1);
    json_decref(result);
    json_decref(inputs);
}

/* At every candidate but none, where the sweep's was not profiled or there is none; over the Linears of both. */
static void correlation_of_other_candidates(void **state) {
    (void)state;
    for (int noisy = 0; noisy < 2; noisy++) {
        json_t *inputs = swept_inputs(noisy ? 0.1 : 0);
        if (!noisy) damage(inputs, "sweep/result/candidate", "\"hqq3g64\"");
        damage(inputs, "sweep/rows/0/data/name", "\"other\"");
        json_t *result = must_run(inputs, "\"budget\":{\"average_bits\":3.3},\"sweep\":\"S1\"");
        assert_int_equal(json_array_size(json_object_get(result, "correlation")), 2 * (WIDTHS - 1));
        for (int w = 0; w < WIDTHS; w++) {
            const json_t *entry = find_correlation(result, "drift", ids[w]);
            assert_true((entry != NULL) == (widths[w] != 16));
            if (entry) assert_int_equal(member_int(entry, "n"), BLOCKS * PROJECTIONS - 1);
        }
        json_decref(result);
        json_decref(inputs);
    }
    json_t *plain = succeed(budget);
    assert_null(json_object_get(plain, "correlation"));
    assert_null(json_object_get(plain, "sweep"));
    json_decref(plain);
}

/* A profile that was asked for scores of the loss alone. */
static void drift_may_be_missing_where_nothing_needs_it(void **state) {
    (void)state;
    json_t *inputs = swept_inputs(0), *other;
    struct err e;
    const json_t *rows = json_object_get(json_object_get(inputs, "profile"), "rows");
    add_score(inputs, "fisher", 3, NONE_WITHOUT);
    for (size_t r = 0; r < json_array_size(rows); r++)
        json_object_set_new(data_at(inputs, "profile", r), "drift", json_null());
    json_t *result = must_run(inputs, budget);
    assert_string_equal(text_member(result, "score"), "fisher");
    assert_true(json_is_null(json_object_get(json_array_get(json_object_get(result, "assignment"), 0), "drift")));
    static const char *const scores[] = {"\"score\":\"drift\"", "\"sweep\":\"S1\",\"score\":\"delta_kl\""};
    for (int i = 0; i < 2; i++) {
        char members[96];
        snprintf(members, sizeof members, "%s,%s", budget, scores[i]);
        assert_int_equal(run_over(inputs, members, &other, &e), RC_INVALID);
        assert_string_equal(e.pointer, "/score");
    }
    json_decref(result);
    json_decref(inputs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_is_fisher_where_every_row_has_it),
        cmocka_unit_test(scores_of_rows_are_taken_as_they_stand),
        cmocka_unit_test(a_sweep_is_scaled_to_the_candidates),
        cmocka_unit_test(what_a_sweep_lacks_is_said),
        cmocka_unit_test(dead_linears_cost_nothing),
        cmocka_unit_test(the_kl_is_predicted_from_nats),
        cmocka_unit_test(of_scores_around_a_quantized_model_nothing_is_predicted),
        cmocka_unit_test(frontier_is_what_a_user_plots),
        cmocka_unit_test(sensitivity_is_a_percent_more_and_less),
        cmocka_unit_test(long_lists_of_changes_are_cut),
        cmocka_unit_test(the_edge_is_who_changes_next),
        cmocka_unit_test(scores_are_held_against_the_sweep),
        cmocka_unit_test(correlation_of_other_candidates),
        cmocka_unit_test(drift_may_be_missing_where_nothing_needs_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
