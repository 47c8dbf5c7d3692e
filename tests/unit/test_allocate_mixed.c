/* Methods, group sizes, zeros, ties and rules in one solve: what comes out is what trying everything finds. */
#include "tests/unit/allocation_profile.h"

static const char *const mixed_ids[] = {"rtn2g128",     "gptq3g32",        "hqq4g64",
                                        "awq4g128-sym", "rtn3g64-intzero", "gptq4g64-floatzero"};
enum { MIXED = 6, MIXED_LINEARS = 6 };
static const struct {
    const char *name, *projection;
    int block;
} mixed_linears[MIXED_LINEARS] = {
    {"l.0.q", "q_proj", 0}, {"l.0.k", "k_proj", 0}, {"l.0.down", "down_proj", 0},
    {"l.1.q", "q_proj", 1}, {"l.1.k", "k_proj", 1}, {"l.1.down", "down_proj", 1},
};

/* Bytes and score of no pattern: what brute force is for. */
static int64_t mixed_bytes(int l, int c) {
    return 2000 + 1000 * (c % 4) + (l * 577 + c * 1291 + l * c * 37) % 2000;
}
static double mixed_score(int l, int c) {
    return ((l + 1) * 7919 + (c + 3) * 104729 + l * c * 613) % 1009 / 1009.0 + (MIXED - c) * 0.2;
}

static json_t *mixed_inputs(void) {
    json_t *inputs = make_inputs(), *rows = json_object_get(json_object_get(inputs, "profile"), "rows");
    json_array_clear(rows);
    for (int l = 0; l < MIXED_LINEARS; l++)
        for (int c = 0; c < MIXED; c++) {
            json_t *data =
                json_pack("{s:s, s:i, s:s, s:[i,i], s:i, s:s, s:f, s:f, s:f, s:I}", "name", mixed_linears[l].name,
                          "block", mixed_linears[l].block, "projection", mixed_linears[l].projection, "shape", 64, 128,
                          "params", 8192, "candidate", mixed_ids[c], "drift", 0.5, "relative_error", 0.5, "fisher",
                          mixed_score(l, c), "bytes", (json_int_t)mixed_bytes(l, c));
            json_array_append_new(rows,
                                  json_pack("{s:s, s:i, s:o}", "phase", "drift", "index", l * MIXED + c, "data", data));
        }
    return inputs;
}

/* The rule of the test's spec: down_proj is of 3 bits or more; and q and k are tied. */
static bool mixed_allowed(const int *choice) {
    for (int l = 0; l < MIXED_LINEARS; l++)
        if (strcmp(mixed_linears[l].projection, "down_proj") == 0 && choice[l] == 0) return false;
    return choice[0] == choice[1] && choice[3] == choice[4];
}

static double brute_force(int64_t limit, int64_t *least) {
    double best = INFINITY;
    *least = INT64_MAX;
    for (int n = 0; n < 46656; n++) { /* MIXED to the power of MIXED_LINEARS */
        int choice[MIXED_LINEARS], rest = n;
        int64_t bytes = 0;
        double score = 0;
        for (int l = 0; l < MIXED_LINEARS; l++, rest /= MIXED) {
            choice[l] = rest % MIXED;
            bytes += mixed_bytes(l, choice[l]);
            score += mixed_score(l, choice[l]);
        }
        if (!mixed_allowed(choice)) continue;
        if (bytes < *least) *least = bytes;
        if (bytes <= limit && score < best) best = score;
    }
    return best;
}

static void methods_groups_and_zeros_are_solved_as_one(void **state) {
    (void)state;
    json_t *inputs = mixed_inputs();
    int64_t least;
    int mixtures = 0;
    brute_force(0, &least);
    for (int64_t limit = least - 400; limit < least + 16000; limit += 391) {
        char members[256];
        json_t *result;
        struct err e;
        snprintf(members, sizeof members,
                 "\"budget\":{\"weights\":%lld},\"rules\":[{\"match\":\"down\",\"min_bits\":3},"
                 "{\"tie\":[\"q_proj\",\"k_proj\"]}]",
                 (long long)limit);
        double best = brute_force(limit, &least);
        enum rc rc = run_over(inputs, members, &result, &e);
        assert_int_equal(rc, isfinite(best) ? RC_OK : RC_INFEASIBLE);
        if (rc != RC_OK) continue;
        assert_true(fabs(member_number(result, "objective") - best) < 1e-12 * (1 + best));
        assert_true(member_number(result, "gap") == 0 && member_int(result, "bytes") <= limit);
        assert_string_equal(candidate_of(result, "l.0.q"), candidate_of(result, "l.0.k"));
        mixtures += strncmp(candidate_of(result, "l.0.q"), candidate_of(result, "l.1.down"), 3) != 0;
        json_decref(result);
    }
    assert_true(mixtures > 5);
    json_decref(inputs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(methods_groups_and_zeros_are_solved_as_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
