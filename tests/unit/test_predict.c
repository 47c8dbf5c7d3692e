/* From a sum of scores to a predicted KL. */
#include "tests/unit/cmocka_main.h"

#include <math.h>

#include "base/json.h"
#include "worker/pipeline/predict.h"

static double kl(enum score score, double sum) {
    struct prediction p;
    assert_true(predict_kl(score, false, sum, &p));
    assert_true(p.sum == sum && fabs(p.kl - p.correction * sum) <= 1e-15 * p.kl);
    assert_true(p.low == 0.75 * p.kl && p.high == 1.25 * p.kl);
    assert_non_null(p.calibrated_on);
    return p.kl;
}

static void near(double value, double expected) {
    if (fabs(value - expected) > 1e-12 * (1 + fabs(expected))) fail_msg("%.17g is not %.17g", value, expected);
}

/* What was measured: sums of 0.310 and 0.072 nats, joint KLs of 0.436 and 0.103. */
static void fisher_predicts_what_was_measured(void **state) {
    (void)state;
    assert_true(fabs(kl(SCORE_FISHER, 0.310) / 0.436 - 1) < 0.02);
    assert_true(fabs(kl(SCORE_FISHER, 0.072) / 0.103 - 1) < 0.02);
    near(kl(SCORE_FISHER, 2), 2.82);
    near(kl(SCORE_KFAC, 2), 2.82);
    near(kl(SCORE_DIAG, 2), 2.82);
    near(kl(SCORE_NOISE, 2), 2.82);
    near(kl(SCORE_FISHER, 0), 0);
}

/* Refined scales make up for more where more is lost. */
static void refined_scales_cost_less(void **state) {
    (void)state;
    struct prediction large = {0}, small = {0};
    assert_true(predict_kl(SCORE_FISHER, true, 0.1944, &large) && predict_kl(SCORE_FISHER, true, 0.0360, &small));
    assert_true(fabs(large.kl / 0.2146 - 1) < 0.05);
    assert_true(fabs(small.kl / 0.0467 - 1) < 0.05);
    assert_false(predict_kl(SCORE_NOISE, true, 0.1, &small));
    json_t *whole = prediction_json(SCORE_FISHER, 0.1944), *other = prediction_json(SCORE_NOISE, 0.1);
    assert_true(json_number_value(json_object_get(json_object_get(whole, "refined"), "kl")) == large.kl);
    assert_true(json_is_null(json_object_get(other, "refined")));
    json_decref(whole);
    json_decref(other);
}

/* Between its two measured sums by their logarithm, and never beyond them. */
static void delta_kl_is_corrected_by_its_size(void **state) {
    (void)state;
    near(kl(SCORE_DELTA_KL, 0), 0);
    near(kl(SCORE_DELTA_KL, 0.01), 0.012);
    near(kl(SCORE_DELTA_KL, 0.37), 0.37 * 1.2);
    near(kl(SCORE_DELTA_KL, sqrt(0.37 * 1.5)), sqrt(0.37 * 1.5) * 1.45);
    near(kl(SCORE_DELTA_KL, 1.5), 1.5 * 1.7);
    near(kl(SCORE_DELTA_KL, 20), 34);
    for (int step = 0; step < 92; step++) { /* up to 5 */
        double sum = 0.01 * pow(1.07, step);
        assert_true(kl(SCORE_DELTA_KL, sum * 1.07) > kl(SCORE_DELTA_KL, sum));
    }
}

static void what_is_not_in_nats_predicts_nothing(void **state) {
    (void)state;
    static const enum score none[] = {SCORE_DRIFT, SCORE_ERROR};
    struct prediction p = {.kl = 7};
    for (size_t i = 0; i < 2; i++) {
        json_t *whole = prediction_json(none[i], 1), *alone = predicted_kl_json(none[i], 1);
        assert_false(predict_kl(none[i], false, 1, &p));
        assert_true(p.kl == 0 && p.calibrated_on == NULL);
        assert_true(json_is_null(whole) && json_is_null(alone));
    }
}

static json_t *read_json(const char *text) {
    json_t *out = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(out);
    return out;
}

static void expect_beside_of(const char *prediction, bool refined, const char *measured, const char *expected) {
    json_t *p = read_json(prediction), *m = read_json(measured), *want = expected ? read_json(expected) : NULL;
    json_t *out = prediction_beside(p, refined, m);
    if (want ? !json_equal(out, want) : out != NULL) fail_msg("%s beside %s", prediction, measured);
    json_decref(p);
    json_decref(m);
    json_decref(want);
    json_decref(out);
}

static void expect_beside(const char *prediction, const char *measured, const char *expected) {
    expect_beside_of(prediction, false, measured, expected);
}

static void measurement_stands_beside_the_prediction(void **state) {
    (void)state;
    static const char whole[] = "{\"score\":\"fisher\",\"sum\":1.0,\"kl\":0.5,\"low\":0.375,\"high\":0.625}";
    expect_beside(whole, "0.75", "{\"kl\":0.5,\"low\":0.375,\"high\":0.625,\"measured\":0.75,\"ratio\":1.5}");
    expect_beside(whole, "null", "{\"kl\":0.5,\"low\":0.375,\"high\":0.625,\"measured\":null,\"ratio\":null}");
    expect_beside("{\"kl\":0.0,\"low\":0.0,\"high\":0.0}", "0.1",
                  "{\"kl\":0.0,\"low\":0.0,\"high\":0.0,\"measured\":0.1,\"ratio\":null}");
    static const char both[] = "{\"kl\":0.5,\"low\":0.375,\"high\":0.625,\"refined\":"
                               "{\"kl\":0.25,\"low\":0.125,\"high\":0.5}}";
    expect_beside_of(both, true, "0.5", "{\"kl\":0.25,\"low\":0.125,\"high\":0.5,\"measured\":0.5,\"ratio\":2.0}");
    expect_beside_of(whole, true, "0.5", NULL);
    expect_beside("null", "0.75", NULL);
    expect_beside("[]", "0.75", NULL);
    expect_beside("{\"kl\":\"much\",\"low\":0,\"high\":0}", "0.75", NULL);
    expect_beside("{\"kl\":1}", "0.75", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fisher_predicts_what_was_measured),
        cmocka_unit_test(refined_scales_cost_less),
        cmocka_unit_test(delta_kl_is_corrected_by_its_size),
        cmocka_unit_test(what_is_not_in_nats_predicts_nothing),
        cmocka_unit_test(measurement_stands_beside_the_prediction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
