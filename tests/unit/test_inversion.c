/* An inversion is found, recomputed and told apart: weights that are so, a quantizer's doing, or a wrong number. */
#include "tests/unit/run_job.h"
#include "tests/unit/tiny_copy.h"

#include <math.h>

#include "base/random.h"
#include "kernels/formats.h"
#include "worker/pipeline/inversion.h"
#include "worker/pipeline/quantize.h"
#include "worker/pipeline/upload.h"

#define CALIBRATION FIXTURE "calibration.txt"
#define LINEAR "model.layers.1.mlp.gate_proj"
static const char spec[] =
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':2,'length':64,'sampling':'sequential'},"
    "'candidates':[{'method':'rtn','bits':[2,3,4],'group':64}],'layers':'layers\\\\.1\\\\.mlp\\\\.gate'}";

/* Every group takes the values −3…4 times 2^−6: eight levels, exact at 3 bits; 4 bits cut the same range into fifteen
 * steps, which fall between them. */
static void onto_eight_levels(uint16_t *w, int64_t rows, int64_t cols) {
    uint64_t seed = 1;
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t level = i % 64 < 8 ? i % 64 : (int64_t)random_below(&seed, 8);
        w[i] = f32_to_bf16((float)(level - 3) / 64);
    }
}

static const char around[] =
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':2,'length':64,'sampling':'sequential'},"
    "'candidates':[{'method':'rtn','bits':[2,3,4],'group':64}],'layers':'layers\\\\.1\\\\.mlp\\\\.gate','around':'A'}";

static const json_t *only_inversion(const struct run *r) {
    const json_t *all = json_object_get(r->result, "inversions");
    assert_int_equal(json_array_size(all), 1);
    return json_array_get(all, 0);
}

static double number(const json_t *inversion, const char *member, size_t i) {
    return json_number_value(json_array_get(json_object_get(inversion, member), i));
}

static void run_on(struct run *r, const struct scratch *model, json_t *earlier) {
    if (run_job(r, model->path, CALIBRATION, spec, earlier, NULL) != RC_OK) fail_msg("%s", r->err.message);
}

static void weights_on_a_coarse_grid_invert_by_themselves(void **state) {
    (void)state;
    struct scratch model = tiny_copy();
    tiny_edit(&model, LINEAR ".weight", onto_eight_levels);
    struct run r;
    run_init(&r);
    run_on(&r, &model, NULL);
    const json_t *inversion = only_inversion(&r);
    assert_string_equal(json_string_value(json_object_get(inversion, "name")), LINEAR);
    assert_string_equal(json_string_value(json_object_get(inversion, "verdict")), "input: RTN inverts here too");
    assert_string_equal(json_string_value(json_array_get(json_object_get(inversion, "candidates"), 0)), "rtn3g64");
    assert_string_equal(json_string_value(json_array_get(json_object_get(inversion, "candidates"), 1)), "rtn4g64");
    assert_true(number(inversion, "drift", 0) == 0 && number(inversion, "drift_float64", 0) == 0);
    double drift = number(inversion, "drift", 1);
    assert_true(drift > 1e-4 && fabs(number(inversion, "drift_float64", 1) - drift) <= 1e-5 * drift);
    for (size_t i = 0; i < 2; i++) /* of RTN, RTN's drift is the drift */
        assert_true(number(inversion, "rtn_drift_float64", i) == number(inversion, "drift_float64", i));
    run_release(&r);
    scratch_close(&model);
}

static void recheck_is_cached_and_resumed(void **state) {
    (void)state;
    struct scratch model = tiny_copy();
    tiny_edit(&model, LINEAR ".weight", onto_eight_levels);
    struct run whole, cached, resumed, cut, rest;
    run_init(&whole);
    run_init(&cached);
    run_init(&resumed);
    run_init(&cut);
    run_init(&rest);
    run_on(&whole, &model, NULL);
    assert_int_equal(json_array_size(whole.rows), 4);
    json_object_update(cached.cache, whole.cache);
    run_on(&cached, &model, NULL);
    run_on(&resumed, &model, whole.rows);
    assert_true(cached.progress == 0 && resumed.progress == 0);
    assert_int_equal(json_array_size(resumed.rows), 0);
    cut.stop_after = 3; /* all drifts, no recheck */
    assert_int_equal(run_job(&cut, model.path, CALIBRATION, spec, NULL, NULL), RC_UNAVAILABLE);
    run_on(&rest, &model, cut.rows);
    assert_true(rest.progress > 0);
    const struct run *others[] = {&cached, &resumed, &rest};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_true(json_equal(only_inversion(&whole), only_inversion(others[i])));
    struct run *all[] = {&whole, &cached, &resumed, &cut, &rest};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        run_release(all[i]);
    scratch_close(&model);
}

/* Whose H differs from the reference's: its drifts are what is recomputed. And the cache keeps none of it. */
static void recheck_is_around_the_model_that_the_profile_is_around(void **state) {
    (void)state;
    struct scratch model = tiny_copy();
    tiny_edit(&model, LINEAR ".weight", onto_eight_levels);
    struct run plain, r;
    run_init(&plain);
    run_init(&r);
    run_on(&plain, &model, NULL);
    json_t *fingerprint = json_object_get(json_object_get(plain.result, "model"), "fingerprint");
    json_t *inputs = json_pack("{s{s{sO s[{ss ss}]}}}", "around", "result", "fingerprint", fingerprint, "assignment",
                               "name", "model.layers.0.mlp.up_proj", "candidate", "rtn2g64");
    json_object_update(r.cache, plain.cache);
    if (run_job(&r, model.path, CALIBRATION, around, NULL, inputs) != RC_OK) fail_msg("%s", r.err.message);
    const json_t *inversion = only_inversion(&r);
    double drift = number(inversion, "drift", 1);
    assert_true(fabs(drift - number(only_inversion(&plain), "drift", 1)) > 1e-3 * drift);
    assert_true(fabs(number(inversion, "drift_float64", 1) - drift) <= 1e-5 * drift);
    assert_int_equal(json_object_size(r.cache), json_object_size(plain.cache));
    json_decref(inputs);
    run_release(&plain);
    run_release(&r);
    scratch_close(&model);
}

/* From the walk that gives them gradients, at the input and at the output. */
static void two_sided_candidates_are_rechecked(void **state) {
    (void)state;
    static const char two_sided[] =
        "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':2,'length':64,'sampling':'sequential'},"
        "'candidates':[{'bits':[3,4],'group':64,'two_sided':true}],'layers':'layers\\\\.1\\\\.mlp\\\\.gate'}";
    struct scratch model = tiny_copy();
    tiny_edit(&model, LINEAR ".weight", onto_eight_levels);
    struct run r;
    run_init(&r);
    if (run_job(&r, model.path, CALIBRATION, two_sided, NULL, NULL) != RC_OK) fail_msg("%s", r.err.message);
    const json_t *inversion = only_inversion(&r);
    double drift = number(inversion, "drift", 1);
    assert_true(drift > 0 && fabs(number(inversion, "drift_float64", 1) - drift) <= 1e-5 * drift);
    run_release(&r);
    scratch_close(&model);
}

/* A table that says what is not so: as a defect of the drift's computation, or of storage, would. */
static void wrong_drift_is_the_metrics_fault(void **state) {
    (void)state;
    struct run honest, wrong;
    run_init(&honest);
    run_init(&wrong);
    must_run(&honest, CALIBRATION, spec, NULL);
    assert_int_equal(json_array_size(json_object_get(honest.result, "inversions")), 0);
    json_t *row = json_object_get(json_array_get(honest.rows, 1), "data");
    double truth = json_number_value(json_object_get(row, "drift"));
    json_object_set_new(row, "drift", json_real(1e-12));
    must_run(&wrong, CALIBRATION, spec, honest.rows);
    const json_t *inversion = only_inversion(&wrong);
    assert_string_equal(json_string_value(json_object_get(inversion, "verdict")), "metric: float64 shows no inversion");
    assert_true(number(inversion, "drift", 0) == 1e-12);
    assert_true(fabs(number(inversion, "drift_float64", 0) - truth) <= 1e-5 * truth);
    run_release(&honest);
    run_release(&wrong);
}

/* ---- the quantizer's fault ---- */

enum { COLS = 64, SEEN = 5 };

struct device {
    struct job job;
    float *w, *w_hat;
    double *h;
    struct mat weights; /* w, as a group has them */
};

static const struct linear some_linear = {.projection = "down_proj"};

static struct input_group group_of(struct device *d) {
    d->weights = matf(d->w, 1, COLS);
    return (struct input_group){.job = &d->job, .gram = {.h = matd(d->h, COLS, COLS)}, .w = &d->weights, .count = 1};
}

static struct device device_open(void) {
    static const struct backend_options options = {.threads = 1};
    static struct err err;
    struct device d = {.job = {.backend = &backend_cpu}};
    assert_int_equal(backend_cpu.open(&options, &d.job.device, &err), RC_OK);
    assert_int_equal(device_floats(&d.job, COLS, &d.w, &err), RC_OK);
    assert_int_equal(device_floats(&d.job, COLS, &d.w_hat, &err), RC_OK);
    assert_int_equal(device_floats(&d.job, 2 * COLS * COLS, (float **)&d.h, &err), RC_OK);
    memset(d.h, 0, COLS * COLS * sizeof *d.h);
    d.h[SEEN * COLS + SEEN] = 1; /* inputs of one channel alone: its error is all that an output sees */
    return d;
}

static void device_close(struct device *d) {
    backend_cpu.free(d->job.device, d->w);
    backend_cpu.free(d->job.device, d->w_hat);
    backend_cpu.free(d->job.device, d->h);
    backend_cpu.close(d->job.device);
}

static double seen_error(const struct device *d, const char *id) {
    struct candidate c;
    struct err err = {0};
    assert_int_equal(candidate_from_id(id, &c, &err), RC_OK);
    assert_int_equal(quantize_weights(&d->job, matf(d->w, 1, COLS), &c, matf(d->w_hat, 1, COLS), NULL, &err), RC_OK);
    return pow(((double)d->w[SEEN] - d->w_hat[SEEN]) / d->w[SEEN], 2);
}

/* HQQ moves the zero for the sake of all weights: among random rows there are some whose one seen weight it hits
 * better at 3 bits than at 4, where RTN does not. */
static void quantizer_alone_inverts(void **state) {
    (void)state;
    struct device d = device_open();
    uint64_t seed = 7;
    double hqq3, hqq4, rtn3, rtn4;
    do {
        for (int k = 0; k < COLS; k++)
            d.w[k] = bf16_to_f32(f32_to_bf16(((float)random_below(&seed, 2000) - 999.5f) * 1e-4f));
        hqq3 = seen_error(&d, "hqq3g64");
        hqq4 = seen_error(&d, "hqq4g64");
        rtn3 = seen_error(&d, "rtn3g64");
        rtn4 = seen_error(&d, "rtn4g64");
    } while (!(hqq4 > hqq3 && rtn4 <= rtn3));
    struct candidate low, high;
    struct err err = {0};
    candidate_from_id("hqq3g64", &low, &err);
    candidate_from_id("hqq4g64", &high, &err);
    struct input_group group = group_of(&d);
    struct inversion_args a = {.group = &group, .linear = &some_linear, .pair = {&low, &high}};
    struct inversion v;
    assert_int_equal(inversion_recompute(&a, &v, &err), RC_OK);
    assert_true(fabs(v.drift[0] - hqq3) <= 1e-12 && fabs(v.drift[1] - hqq4) <= 1e-12);
    assert_true(fabs(v.rtn_drift[0] - rtn3) <= 1e-12 && fabs(v.rtn_drift[1] - rtn4) <= 1e-12);
    assert_string_equal(inversion_verdict(&v), "quantizer: float64 confirms it, RTN does not invert");
    atomic_bool cancelled = true;
    d.job.cancelled = &cancelled;
    assert_int_equal(inversion_recompute(&a, &v, &err), RC_CANCELLED);
    device_close(&d);
}

/* tr(D H Dᵀ) of a full H, several rows, against ‖XDᵀ‖² from the inputs. */
static void recomputation_is_the_output_error(void **state) {
    (void)state;
    enum { T = 9 };
    struct device d = device_open();
    uint64_t seed = 3;
    double x[T][COLS], num = 0, den = 0;
    memset(d.h, 0, COLS * COLS * sizeof *d.h);
    for (int t = 0; t < T; t++)
        for (int k = 0; k < COLS; k++)
            x[t][k] = (double)random_below(&seed, 1000) / 1000 - 0.3;
    for (int i = 0; i < COLS * COLS; i++)
        for (int t = 0; t < T; t++)
            d.h[i] += x[t][i / COLS] * x[t][i % COLS];
    for (int k = 0; k < COLS; k++)
        d.w[k] = (float)random_below(&seed, 1000) * 1e-3f;
    seen_error(&d, "rtn3g64");
    for (int t = 0; t < T; t++) {
        double error = 0, output = 0;
        for (int k = 0; k < COLS; k++) {
            error += x[t][k] * ((double)d.w[k] - d.w_hat[k]);
            output += x[t][k] * d.w[k];
        }
        num += error * error;
        den += output * output;
    }
    struct candidate three = {.method = METHOD_RTN, .bits = 3, .group = 64};
    struct input_group group = group_of(&d);
    struct inversion_args a = {.group = &group, .linear = &some_linear, .pair = {&three, &three}};
    struct inversion v;
    struct err err = {0};
    assert_int_equal(inversion_recompute(&a, &v, &err), RC_OK);
    assert_true(fabs(v.drift[0] - num / den) <= 1e-10 * num / den);
    device_close(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_on_a_coarse_grid_invert_by_themselves),
        cmocka_unit_test(recheck_is_cached_and_resumed),
        cmocka_unit_test(recheck_is_around_the_model_that_the_profile_is_around),
        cmocka_unit_test(two_sided_candidates_are_rechecked),
        cmocka_unit_test(wrong_drift_is_the_metrics_fault),
        cmocka_unit_test(quantizer_alone_inverts),
        cmocka_unit_test(recomputation_is_the_output_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
