/* AWQ's search for channel scales: against a float64 restatement of the paper, and what a fold may not change. */
#include "tests/unit/cmocka_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "kernels/formats.h"
#include "worker/pipeline/input_group.h"
#include "worker/pipeline/upload.h"

static struct err err;
#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != RC_OK) fail_msg("%s", err.message);                                                              \
    } while (0)

/* Two Linears that read one input, on the CPU. */
struct scene {
    json_t *golden;
    struct job job;
    struct mat w[2];
    double *h, *mean_abs;
    int64_t channels, tokens;
    struct input_group group;
};

/* A list of rows → dense floats. */
static float *floats_of(const json_t *rows, int64_t *count, int64_t *width) {
    *count = (int64_t)json_array_size(rows);
    *width = (int64_t)json_array_size(json_array_get(rows, 0));
    float *values = xcalloc((size_t)(*count * *width), sizeof *values);
    for (int64_t i = 0; i < *count * *width; i++)
        values[i] =
            (float)json_number_value(json_array_get(json_array_get(rows, (size_t)(i / *width)), (size_t)(i % *width)));
    return values;
}

static void measure_inputs(struct scene *s) {
    float *x = floats_of(json_object_get(s->golden, "inputs"), &s->tokens, &s->channels);
    int64_t k = s->channels;
    s->h = xcalloc((size_t)(k * k), sizeof *s->h);
    s->mean_abs = xcalloc((size_t)k, sizeof *s->mean_abs);
    for (int64_t t = 0; t < s->tokens; t++)
        for (int64_t i = 0; i < k; i++) {
            s->mean_abs[i] += fabs((double)x[t * k + i]) / (double)s->tokens;
            for (int64_t j = 0; j < k; j++)
                s->h[i * k + j] += (double)x[t * k + i] * x[t * k + j];
        }
    free(x);
}

static struct scene scene_open(void) {
    static const struct backend_options options = {.threads = 1};
    struct scene s = {.job = {.backend = &backend_cpu}};
    MUST(backend_cpu.open(&options, &s.job.device, &err));
    json_error_t fault;
    s.golden = json_load_file("tests/golden/awq.json", 0, &fault);
    if (!s.golden) fail_msg("awq.json: %s", fault.text);
    measure_inputs(&s);
    for (size_t i = 0; i < 2; i++) {
        int64_t rows, cols;
        float *w = floats_of(json_array_get(json_object_get(s.golden, "linears"), i), &rows, &cols);
        s.w[i] = matf(w, rows, cols);
    }
    return s;
}

static struct input_group *group_of(struct scene *s) {
    s->group = (struct input_group){.job = &s->job,
                                    .gram = {.h = matd(s->h, s->channels, s->channels)},
                                    .mean_abs = s->mean_abs,
                                    .w = s->w,
                                    .count = 2,
                                    .foldable = true};
    return &s->group;
}

static void scene_close(struct scene *s) {
    free(s->w[0].data);
    free(s->w[1].data);
    free(s->h);
    free(s->mean_abs);
    json_decref(s->golden);
    backend_cpu.close(s->job.device);
}

static struct candidate candidate_of(int bits, int group) {
    struct candidate c = candidate_default(METHOD_AWQ, bits, group);
    c.range = RANGE_FULL;
    return c;
}

/* Whether the weight lies so close to the middle between two codes that its last bits decide. */
static bool is_tie(const struct quantized *q, int64_t i, double scaled) {
    int64_t g = i / q->cols * q->groups + i % q->cols / q->group;
    double place = scaled / (double)q->scale[g] + (double)q->zero[g];
    return fabs(fabs(place - floor(place)) - 0.5) < 1e-4;
}

static void check_codes(struct scene *s, int n, const struct candidate *c, struct awq_scale *scale,
                        const json_t *want) {
    struct mat w = s->w[n];
    struct quantized q;
    MUST(quantized_alloc(&backend_cpu, s->job.device, w.rows, w.cols, c, &q, &err));
    struct group_quantize_args a = {.group = &s->group, .index = n, .candidate = c, .scale = scale, .out = &q};
    MUST(group_quantize(&a, 1, &err));
    for (int64_t i = 0; i < w.rows * w.cols; i++) {
        const json_t *row = json_array_get(want, (size_t)(i / w.cols));
        int code = (int)json_integer_value(json_array_get(row, (size_t)(i % w.cols)));
        double scaled = (double)f32_row(w, 0)[i] * scale->by_channel[i % w.cols];
        if (q.codes[i] != code && !is_tie(&q, i, scaled))
            fail_msg("Linear %d, weight %lld: code %d, not %d", n, (long long)i, q.codes[i], code);
    }
    quantized_release(&backend_cpu, s->job.device, &q);
}

static void search_is_the_papers(void **state) {
    (void)state;
    struct scene s = scene_open();
    const json_t *one, *cases = json_object_get(s.golden, "cases");
    int group = (int)json_integer_value(json_object_get(s.golden, "group"));
    size_t i;
    json_array_foreach(cases, i, one) {
        struct candidate c = candidate_of((int)json_integer_value(json_object_get(one, "bits")), group);
        struct awq_scale scale;
        MUST(awq_search(group_of(&s), (const struct candidate *[]){&c, &c}, &scale, &err));
        const json_t *best = json_object_get(one, "best");
        assert_true(scale.ratio == json_number_value(json_object_get(best, "ratio")));
        assert_int_equal(scale.duo, json_is_true(json_object_get(best, "duo")));
        assert_true(fabs(scale.gain / json_number_value(json_object_get(one, "gain")) - 1) < 1e-4);
        for (int64_t k = 0; k < s.channels; k++) {
            double want = json_number_value(json_array_get(json_object_get(one, "scale"), (size_t)k));
            assert_true(fabs(scale.by_channel[k] / want - 1) < 1e-5);
        }
        for (int n = 0; n < 2; n++)
            check_codes(&s, n, &c, &scale, json_array_get(json_object_get(one, "codes"), (size_t)n));
        awq_scale_release(&s.job, &scale);
        input_group_release(&s.group);
    }
    scene_close(&s);
}

/* ‖X Dᵀ‖² from H. */
static double output_error(const struct scene *s, int n, const float *w_hat) {
    int64_t k = s->channels;
    double sum = 0;
    for (int64_t row = 0; row < s->w[n].rows; row++)
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < k; j++) {
                const float *w = f32_row(s->w[n], row), *q = w_hat + row * k;
                sum += ((double)w[i] - q[i]) * s->h[i * k + j] * ((double)w[j] - q[j]);
            }
    return sum;
}

/* What the model computes with the scaled weights is what the effective ones say: the gain is really there. */
static void effective_weights_have_the_error_that_the_search_saw(void **state) {
    (void)state;
    struct scene s = scene_open();
    struct candidate c = candidate_of(3, 16), rtn = candidate_rtn(&c);
    double scaled = 0, plain = 0;
    for (int n = 0; n < 2; n++) {
        float *w_hat = xcalloc((size_t)(s.w[n].rows * s.channels), sizeof *w_hat);
        struct mat out = matf(w_hat, s.w[n].rows, s.channels);
        MUST(group_effective_weights(group_of(&s), n, &c, out, &err));
        scaled += output_error(&s, n, w_hat);
        MUST(group_effective_weights(group_of(&s), n, &rtn, out, &err));
        plain += output_error(&s, n, w_hat);
        free(w_hat);
    }
    const json_t *want = json_object_get(json_array_get(json_object_get(s.golden, "cases"), 0), "gain");
    assert_true(fabs(scaled / plain / json_number_value(want) - 1) < 1e-4);
    scene_close(&s);
}

/* Where v's rows carry the scale, the query heads that share a kv head get one; with and without the weights' share. */
static void tied_channels_share_a_scale(void **state) {
    (void)state;
    struct scene s = scene_open();
    bool with[2] = {false, false};
    for (int bits = 2; bits <= 4; bits++) {
        struct candidate c = candidate_of(bits, 16);
        struct awq_scale scale;
        struct input_group *g = group_of(&s);
        g->ties = (struct channel_ties){.width = 8, .repeats = 3}; /* 48 channels: 6 heads over 2 */
        MUST(awq_search(g, (const struct candidate *[]){&c, &c}, &scale, &err));
        bool differ = false;
        for (int k = 0; k < 48; k++) {
            int first = k / 24 * 24 + k % 8;
            assert_true(scale.by_channel[k] == scale.by_channel[first]);
            differ = differ || scale.by_channel[k] != scale.by_channel[0];
        }
        assert_true(differ && scale.gain < 1);
        with[scale.duo] = true;
        awq_scale_release(&s.job, &scale);
    }
    assert_true(with[0] && with[1]);
    scene_close(&s);
}

static void an_input_that_cannot_be_folded_stays_as_it_is(void **state) {
    (void)state;
    struct scene s = scene_open();
    struct candidate c = candidate_of(3, 16);
    struct awq_scale scale;
    struct input_group *g = group_of(&s);
    g->foldable = false;
    MUST(awq_search(g, (const struct candidate *[]){&c, &c}, &scale, &err));
    assert_true(scale.by_col == NULL && scale.gain == 1);
    scene_close(&s);
}

/* A norm in bf16 cannot be divided by just anything; a weight that is 0 by nothing. */
static void a_scale_is_what_the_norm_can_be_divided_by(void **state) {
    (void)state;
    struct scene s = scene_open();
    uint16_t weights[64];
    struct st_tensor norm = {.name = "norm", .type = DTYPE_BF16, .data = weights, .count = s.channels};
    norm.bytes = norm.count * (int64_t)sizeof *weights;
    for (int k = 0; k < s.channels; k++)
        weights[k] = k == 9 ? 0 : f32_to_bf16(0.3f + 0.07f * (float)k);
    struct candidate c = candidate_of(3, 16);
    struct awq_scale exact, rounded;
    MUST(awq_search(group_of(&s), (const struct candidate *[]){&c, &c}, &exact, &err));
    group_of(&s)->norm = &norm;
    MUST(awq_search(&s.group, (const struct candidate *[]){&c, &c}, &rounded, &err));
    assert_true(exact.ratio > 0 && rounded.ratio == exact.ratio && rounded.gain == exact.gain);
    for (int k = 0; k < s.channels; k++) {
        double t = rounded.by_channel[k], weight = bf16_to_f32(weights[k]);
        float divided = bf16_to_f32(f32_to_bf16((float)(weight / exact.by_channel[k])));
        assert_true(k == 9 ? t == 1 : fabs(t * divided / weight - 1) < 1e-15);
        assert_true(rounded.by_col[k] == (float)t && rounded.inverse[k] == 1 / (float)t);
        double h = f64_row(rounded.gram.h, k)[k], inverse = rounded.inverse[k];
        assert_true(h == s.h[k * s.channels + k] * inverse * inverse);
    }
    awq_scale_release(&s.job, &exact);
    awq_scale_release(&s.job, &rounded);
    scene_close(&s);
}

/* Channels that never carry anything, and weights that are all zero. */
static void dead_channels_do_no_harm(void **state) {
    (void)state;
    struct scene s = scene_open();
    struct candidate c = candidate_of(4, 16);
    struct awq_scale scale;
    for (int64_t k = 0; k < s.channels; k++)
        s.h[5 * s.channels + k] = s.h[k * s.channels + 5] = 0;
    s.mean_abs[5] = 0;
    for (int n = 0; n < 2; n++)
        for (int64_t row = 0; row < s.w[n].rows; row++)
            f32_row(s.w[n], row)[7] = 0;
    MUST(awq_search(group_of(&s), (const struct candidate *[]){&c, &c}, &scale, &err));
    for (int64_t k = 0; k < s.channels; k++)
        assert_true(isfinite(scale.by_channel[k]) && scale.by_channel[k] > 0);
    assert_true(scale.gain <= 1);
    awq_scale_release(&s.job, &scale);
    scene_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(search_is_the_papers),
        cmocka_unit_test(effective_weights_have_the_error_that_the_search_saw),
        cmocka_unit_test(tied_channels_share_a_scale),
        cmocka_unit_test(an_input_that_cannot_be_folded_stays_as_it_is),
        cmocka_unit_test(a_scale_is_what_the_norm_can_be_divided_by),
        cmocka_unit_test(dead_channels_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
