/* A profile with scores of the loss: the same drifts, and scores that survive interruption and caching bit for bit, as
 * long as nothing of the model has changed. */
#include "tests/unit/run_job.h"
#include "tests/unit/tiny_copy.h"

#include <math.h>

#define CALIBRATION FIXTURE "calibration.txt"
#define SPEC(candidates, more)                                                                                         \
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':4,'length':64,'sampling':'sequential'},"     \
    "'candidates':[" candidates "]" more ",'layers':'layers\\\\.[14]\\\\.'}"
#define MANY "{'method':'rtn','bits':[3,4],'group':64},{'method':['gptq','awq'],'bits':4,'group':64},{'method':'none'}"
#define FISHER ",'scores':['drift','fisher'],'fisher_windows':3"
static const char plain[] = SPEC(MANY, ""), scored[] = SPEC(MANY, FISHER);
static const char all_scores[] = SPEC(MANY, ",'scores':['drift','fisher','kfac','diag'],'fisher_windows':4");
static const char only_kfac[] = SPEC(MANY, ",'scores':['kfac']"), only_diag[] = SPEC(MANY, ",'scores':['diag']");
static const char alone[] = SPEC("{'method':'awq','bits':4,'group':64}", FISHER);
static const char alone_kfac[] =
    SPEC("{'method':'awq','bits':4,'group':64}", ",'scores':['drift','fisher','kfac'],'fisher_windows':3");
static const char alone_diag[] =
    SPEC("{'method':'awq','bits':4,'group':64}", ",'scores':['drift','fisher','diag'],'fisher_windows':3");
#define BLIND "{'method':'rtn','bits':[3,4],'group':64},{'method':'hqq','bits':3,'group':64}"
static const char full[] = SPEC(BLIND, FISHER), lean[] = SPEC(BLIND, ",'scores':['fisher'],'fisher_windows':3");
static const char fewer[] = SPEC(MANY, ",'scores':['drift','fisher'],'fisher_windows':1");
static const char guided[] = SPEC("{'method':['gptq','awq'],'bits':4,'group':64,'guided':true}", "");
static const char guided_scored[] =
    SPEC("{'method':['gptq','awq'],'bits':[4],'group':64,'guided':[false,true]}", FISHER);
enum { LINEARS = 2 * 7, CANDIDATES = 5 };

static double number_of(const json_t *data, const char *member) {
    const json_t *value = json_object_get(data, member);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

/* Of `members`, all numbers of all rows of a are those of b. */
static void same_members(const struct run *a, const struct run *b, const char *const *members) {
    size_t i;
    json_t *row;
    assert_true(json_array_size(a->rows) > 0);
    json_array_foreach(a->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *candidate = json_string_value(json_object_get(data, "candidate"));
        const json_t *other = row_of(b, json_string_value(json_object_get(data, "name")), candidate);
        for (size_t m = 0; members[m]; m++)
            assert_true(json_equal(json_object_get(data, members[m]), json_object_get(other, members[m])));
    }
}

static void same_rows(const struct run *a, const struct run *b) {
    static const char *const members[] = {"drift",  "drift_den", "relative_error", "damp",      "awq_gain", "bytes",
                                          "fisher", "kfac",      "diag",           "rtn_drift", NULL};
    same_members(a, b, members);
}

static json_int_t row_count(const struct run *r, const char *source) {
    return json_integer_value(json_object_get(json_object_get(r->result, "rows"), source));
}

static void scores_come_beside_the_same_drifts(void **state) {
    (void)state;
    static const char *const members[] = {"drift",     "drift_num", "drift_den", "relative_error",
                                          "rtn_drift", "damp",      "awq_gain",  NULL};
    struct run with, without;
    run_init(&with);
    run_init(&without);
    must_run(&with, CALIBRATION, scored, NULL);
    must_run(&without, CALIBRATION, plain, NULL);
    assert_int_equal(json_array_size(with.rows), LINEARS * CANDIDATES);
    assert_false(with.went_back);
    assert_int_equal(with.done, with.total);
    same_members(&with, &without, members);
    json_t *row;
    size_t i;
    json_array_foreach(without.rows, i, row)
        assert_true(json_is_null(json_object_get(json_object_get(row, "data"), "fisher")));
    json_array_foreach(with.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        bool none = !strcmp(json_string_value(json_object_get(data, "candidate")), "none");
        assert_true(none ? number_of(data, "fisher") == 0 : number_of(data, "fisher") > 0);
    }
    run_release(&with);
    run_release(&without);
}

static double sum_of(const struct run *r, const char *candidate, const char *score) {
    double sum = 0;
    json_t *row;
    size_t i;
    json_array_foreach(r->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        if (!strcmp(json_string_value(json_object_get(data, "candidate")), candidate)) sum += number_of(data, score);
    }
    return sum;
}

/* Estimates of one loss, over the same windows; of weights that stay, none. */
static void kfac_and_diag_tell_about_what_fisher_tells(void **state) {
    (void)state;
    static const char *const candidates[] = {"rtn3g64", "rtn4g64", "gptq4g64", "awq4g64"};
    struct run r;
    run_init(&r);
    must_run(&r, CALIBRATION, all_scores, NULL);
    const json_t *totals = json_object_get(r.result, "totals");
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        double fisher = sum_of(&r, candidates[i], "fisher"), kfac = sum_of(&r, candidates[i], "kfac");
        double diag = sum_of(&r, candidates[i], "diag");
        print_message("%-10s fisher %.3e, kfac %.3e, diag %.3e nats\n", candidates[i], fisher, kfac, diag);
        assert_true(kfac > fisher / 4 && kfac < fisher * 4 && diag > fisher / 4 && diag < fisher * 4);
        assert_true(kfac != diag);
        assert_true(fabs(number_of(json_array_get(totals, i), "kfac_sum") - kfac) < 1e-12);
        assert_true(fabs(number_of(json_array_get(totals, i), "diag_sum") - diag) < 1e-12);
    }
    assert_true(sum_of(&r, "none", "kfac") == 0 && sum_of(&r, "none", "diag") == 0);
    run_release(&r);
}

static void all_null(const struct run *r, const char *score) {
    json_t *row;
    size_t i;
    json_array_foreach(r->rows, i, row) assert_true(json_is_null(json_object_get(json_object_get(row, "data"), score)));
}

/* And what is not there is not found in the cache. */
static void only_what_is_asked_for_is_told(void **state) {
    (void)state;
    static const char *const kfac[] = {"kfac", NULL}, *const diag[] = {"diag", NULL};
    struct run all, k, d, again;
    run_init(&all);
    run_init(&k);
    run_init(&d);
    run_init(&again);
    must_run(&all, CALIBRATION, all_scores, NULL);
    must_run(&k, CALIBRATION, only_kfac, NULL);
    json_object_update(d.cache, k.cache);
    must_run(&d, CALIBRATION, only_diag, NULL);
    assert_int_equal(row_count(&d, "cached"), 0);
    same_members(&k, &all, kfac);
    same_members(&d, &all, diag);
    all_null(&k, "fisher");
    all_null(&k, "drift_num");
    all_null(&k, "diag");
    all_null(&d, "kfac");
    json_object_update(again.cache, k.cache);
    must_run(&again, CALIBRATION, only_kfac, NULL);
    assert_int_equal(row_count(&again, "cached"), LINEARS * CANDIDATES);
    same_rows(&again, &k);
    run_release(&all);
    run_release(&k);
    run_release(&d);
    run_release(&again);
}

static int grams_added;

static enum rc counting_gram(struct backend_state *state, const struct gram_args *a, struct err *e) {
    grams_added++;
    return backend_cpu.gram(state, a, e);
}

/* Nor does the job take the time that drift takes: no H is summed that no candidate looks at. */
static void fisher_alone_is_the_same_without_drift(void **state) {
    (void)state;
    static const char *const same[] = {"fisher", "relative_error", "max_abs_error", "bytes", NULL};
    static const char *const null[] = {"drift", "drift_num", "drift_den", "rtn_drift"};
    struct backend counting = backend_cpu;
    struct run with, without;
    run_init(&with);
    run_init(&without);
    counting.gram = counting_gram;
    without.backend = &counting;
    grams_added = 0;
    must_run(&with, CALIBRATION, full, NULL);
    json_object_update(without.cache, with.cache);
    must_run(&without, CALIBRATION, lean, NULL);
    assert_int_equal(row_count(&without, "cached"), 0);
    assert_int_equal(grams_added, 0);
    same_members(&without, &with, same);
    for (size_t i = 0; i < sizeof null / sizeof *null; i++)
        all_null(&without, null[i]);
    const json_t *total = json_array_get(json_object_get(without.result, "totals"), 0);
    assert_true(json_is_null(json_object_get(total, "drift_sum")) && number_of(total, "fisher_sum") > 0);
    assert_int_equal(json_array_size(json_object_get(without.result, "above_rtn")), 0);
    run_release(&with);
    run_release(&without);
}

/* A row that lacks one of the scores is another row. */
static void each_score_asked_for_is_part_of_the_key(void **state) {
    (void)state;
    static const char *const more[] = {alone_kfac, alone_diag};
    struct run fisher;
    run_init(&fisher);
    must_run(&fisher, CALIBRATION, alone, NULL);
    for (size_t i = 0; i < 2; i++) {
        struct run r;
        run_init(&r);
        json_object_update(r.cache, fisher.cache);
        must_run(&r, CALIBRATION, more[i], NULL);
        assert_int_equal(row_count(&r, "cached"), 0);
        same_members(&r, &fisher, (const char *const[]){"drift", "fisher", NULL});
        run_release(&r);
    }
    run_release(&fisher);
}

/* Of a method, more bits lose less; and what the totals say is their sum. */
static void scores_fall_with_bits(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    must_run(&r, CALIBRATION, scored, NULL);
    double three = 0, four = 0;
    json_t *row;
    size_t i;
    json_array_foreach(r.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *candidate = json_string_value(json_object_get(data, "candidate"));
        if (!strcmp(candidate, "rtn3g64")) three += number_of(data, "fisher");
        if (!strcmp(candidate, "rtn4g64")) four += number_of(data, "fisher");
    }
    assert_true(three > 2 * four && four > 0);
    const json_t *totals = json_object_get(r.result, "totals");
    assert_true(fabs(number_of(json_array_get(totals, 0), "fisher_sum") - three) < 1e-12);
    assert_true(fabs(number_of(json_array_get(totals, 1), "fisher_sum") - four) < 1e-12);
    run_release(&r);
}

static void score_does_not_depend_on_other_candidates(void **state) {
    (void)state;
    struct run many, single, other;
    run_init(&many);
    run_init(&single);
    run_init(&other);
    must_run(&many, CALIBRATION, scored, NULL);
    must_run(&single, CALIBRATION, alone, NULL);
    assert_int_equal(json_array_size(single.rows), LINEARS);
    same_rows(&single, &many);
    json_object_update(other.cache, many.cache); /* of other windows: not the same score */
    must_run(&other, CALIBRATION, fewer, NULL);
    assert_int_equal(row_count(&other, "cached"), 0);
    const char *name = "model.layers.1.self_attn.v_proj";
    assert_true(number_of(row_of(&other, name, "rtn3g64"), "fisher") !=
                number_of(row_of(&many, name, "rtn3g64"), "fisher"));
    run_release(&many);
    run_release(&single);
    run_release(&other);
}

static void interrupted_and_cached_scores_are_the_same(void **state) {
    (void)state;
    enum { CUT = 40 };
    struct run whole, cut, rest, again;
    run_init(&whole);
    run_init(&cut);
    run_init(&rest);
    run_init(&again);
    must_run(&whole, CALIBRATION, all_scores, NULL);
    cut.stop_after = CUT;
    assert_int_equal(run_job(&cut, FIXTURE "tiny", CALIBRATION, all_scores, NULL, NULL), RC_UNAVAILABLE);
    must_run(&rest, CALIBRATION, all_scores, cut.rows);
    assert_int_equal(json_array_size(rest.rows), LINEARS * CANDIDATES - CUT);
    same_rows(&rest, &whole);
    same_rows(&cut, &whole);
    assert_true(json_equal(json_object_get(rest.result, "totals"), json_object_get(whole.result, "totals")));
    json_object_update(again.cache, whole.cache);
    must_run(&again, CALIBRATION, all_scores, NULL);
    assert_int_equal(again.progress, 0);
    assert_int_equal(row_count(&again, "cached"), LINEARS * CANDIDATES);
    same_rows(&again, &whole);
    run_release(&whole);
    run_release(&cut);
    run_release(&rest);
    run_release(&again);
}

static void flip_a_bit(uint16_t *w, int64_t rows, int64_t cols) {
    w[rows * cols / 2] ^= 1;
}

/* Gradients come from everywhere downstream too, the final norm included. */
static void any_changed_weight_invalidates_every_score(void **state) {
    (void)state;
    static const char *const tensors[] = {"model.layers.5.mlp.down_proj.weight", "model.norm.weight"};
    struct run before;
    run_init(&before);
    must_run(&before, CALIBRATION, alone, NULL);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        struct run after;
        struct scratch model = tiny_copy();
        tiny_edit(&model, tensors[i], flip_a_bit);
        run_init(&after);
        json_object_update(after.cache, before.cache);
        assert_int_equal(run_job(&after, model.path, CALIBRATION, alone, NULL, NULL), RC_OK);
        assert_int_equal(row_count(&after, "cached"), 0);
        assert_int_equal(row_count(&after, "computed"), LINEARS);
        run_release(&after);
        scratch_close(&model);
    }
    run_release(&before);
}

/* Also without the score, and from the cache only while the whole model is as it was. */
static void guided_candidates_take_gradients(void **state) {
    (void)state;
    static const char *const members[] = {"drift", "damp", "awq_gain", NULL};
    struct run single, both, again, after;
    struct scratch model = tiny_copy();
    run_init(&single);
    run_init(&both);
    run_init(&again);
    run_init(&after);
    must_run(&single, CALIBRATION, guided, NULL);
    must_run(&both, CALIBRATION, guided_scored, NULL);
    same_members(&single, &both, members);
    int less = 0;
    json_t *row;
    size_t i;
    json_array_foreach(single.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        if (strcmp(json_string_value(json_object_get(data, "candidate")), "gptq4g64-guided") != 0) continue;
        const json_t *plain_row = row_of(&both, json_string_value(json_object_get(data, "name")), "gptq4g64");
        less += number_of(data, "drift") > number_of(plain_row, "drift"); /* which is by H alone */
    }
    assert_true(less > LINEARS / 2);
    json_object_update(again.cache, single.cache);
    must_run(&again, CALIBRATION, guided, NULL);
    assert_int_equal(row_count(&again, "cached"), LINEARS * 2);
    tiny_edit(&model, "model.norm.weight", flip_a_bit);
    json_object_update(after.cache, single.cache);
    assert_int_equal(run_job(&after, model.path, CALIBRATION, guided, NULL, NULL), RC_OK);
    assert_int_equal(row_count(&after, "cached"), 0);
    run_release(&single);
    run_release(&both);
    run_release(&again);
    run_release(&after);
    scratch_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_come_beside_the_same_drifts),
        cmocka_unit_test(scores_fall_with_bits),
        cmocka_unit_test(kfac_and_diag_tell_about_what_fisher_tells),
        cmocka_unit_test(fisher_alone_is_the_same_without_drift),
        cmocka_unit_test(only_what_is_asked_for_is_told),
        cmocka_unit_test(each_score_asked_for_is_part_of_the_key),
        cmocka_unit_test(score_does_not_depend_on_other_candidates),
        cmocka_unit_test(interrupted_and_cached_scores_are_the_same),
        cmocka_unit_test(guided_candidates_take_gradients),
        cmocka_unit_test(any_changed_weight_invalidates_every_score),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
