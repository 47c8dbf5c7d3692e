/* A profile's numbers mean what they say, and survive interruption and caching bit for bit. */
#include "tests/unit/run_job.h"
#include "tests/unit/tiny_copy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/pipeline/gramwalk.h"
#include "worker/pipeline/quantize.h"
#include "worker/pipeline/source.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

#define CALIBRATION FIXTURE "calibration.txt"
#define SPEC(candidates, more)                                                                                         \
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':3,'length':64,'sampling':'sequential'},"     \
    "'candidates':[" candidates "]" more "}"
static const char both[] = SPEC("{'method':'hqq','bits':[3,4],'group':64},{'method':'rtn','bits':3,'group':64}",
                                ",'layers':'layers\\\\.[01]\\\\.'");
static const char one[] = SPEC("{'method':'hqq','bits':4,'group':64}", ",'layers':'layers\\\\.[01]\\\\.'");

static void same_numbers(const json_t *a, const json_t *b) {
    static const char *const members[] = {"drift",         "drift_num", "drift_den",      "relative_error",
                                          "max_abs_error", "bytes",     "bits_per_weight"};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        assert_true(json_equal(json_object_get(a, members[i]), json_object_get(b, members[i])));
}

static void same_rows(const struct run *a, const struct run *b) {
    size_t i;
    json_t *row;
    json_array_foreach(a->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        same_numbers(data, row_of(b, json_string_value(json_object_get(data, "name")),
                                  json_string_value(json_object_get(data, "candidate"))));
    }
}

static void row_does_not_depend_on_other_candidates(void **state) {
    (void)state;
    struct run many, single;
    run_init(&many);
    run_init(&single);
    must_run(&many, CALIBRATION, both, NULL);
    must_run(&single, CALIBRATION, one, NULL);
    assert_int_equal(json_array_size(many.rows), 2 * 7 * 3);
    assert_int_equal(json_array_size(single.rows), 2 * 7);
    same_rows(&single, &many);
    run_release(&many);
    run_release(&single);
}

static json_int_t row_count(const struct run *r, const char *source) {
    return json_integer_value(json_object_get(json_object_get(r->result, "rows"), source));
}

static bool is_cached(const json_t *data) {
    return json_is_true(json_object_get(data, "cached"));
}

static void cached_profile_repeats_every_number_without_a_walk(void **state) {
    (void)state;
    struct run first, again;
    run_init(&first);
    run_init(&again);
    must_run(&first, CALIBRATION, both, NULL);
    json_decref(again.cache);
    again.cache = json_incref(first.cache);
    must_run(&again, CALIBRATION, both, NULL);
    assert_int_equal(again.progress, 0);
    assert_int_equal(row_count(&again, "computed"), 0);
    assert_int_equal(row_count(&again, "cached"), 2 * 7 * 3);
    assert_true(json_equal(json_object_get(again.result, "totals"), json_object_get(first.result, "totals")));
    assert_int_equal(json_array_size(again.rows), json_array_size(first.rows));
    same_rows(&first, &again);
    assert_true(json_is_true(json_object_get(row_of(&again, "model.layers.0.mlp.up_proj", "rtn3g64"), "cached")));
    run_release(&first);
    run_release(&again);
}

static void one_more_candidate_computes_that_one_alone(void **state) {
    (void)state;
    struct run fewer, more;
    run_init(&fewer);
    run_init(&more);
    must_run(&fewer, CALIBRATION, one, NULL);
    json_object_update(more.cache, fewer.cache);
    must_run(&more, CALIBRATION, both, NULL);
    assert_int_equal(row_count(&fewer, "computed"), 2 * 7);
    assert_int_equal(row_count(&more, "computed"), 2 * 7 * 2);
    assert_int_equal(row_count(&more, "cached"), 2 * 7);
    size_t i;
    json_t *row;
    json_array_foreach(more.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        bool before = !strcmp(json_string_value(json_object_get(data, "candidate")), "hqq4g64");
        assert_true(is_cached(data) == before);
    }
    same_rows(&fewer, &more);
    run_release(&fewer);
    run_release(&more);
}

static void flip_a_bit(uint16_t *w, int64_t rows, int64_t cols) {
    w[rows * cols / 2] ^= 1;
}

static const char all_blocks[] = SPEC("{'method':'rtn','bits':3,'group':64}", "");
enum { LINEARS = 6 * 7, FLIPPED = 2 * 7 }; /* of the tiny model; where block 2 begins */

/* After a change of one weight: a cached profile computes the changed Linear and what lies downstream, takes the rest
 * from the cache, and says what a profile without a cache says. */
static void check_flip(const struct run *before, const char *tensor, int own, int first) {
    struct scratch model = tiny_copy();
    tiny_edit(&model, tensor, flip_a_bit);
    struct run cached, fresh;
    run_init(&cached);
    run_init(&fresh);
    json_object_update(cached.cache, before->cache);
    assert_int_equal(run_job(&cached, model.path, CALIBRATION, all_blocks, NULL, NULL), RC_OK);
    assert_int_equal(run_job(&fresh, model.path, CALIBRATION, all_blocks, NULL, NULL), RC_OK);
    int64_t computed = 0;
    size_t i;
    json_t *row;
    json_array_foreach(cached.rows, i, row) {
        int linear = (int)json_integer_value(json_object_get(row, "index")); /* one candidate */
        const json_t *data = json_object_get(row, "data");
        bool changed = linear == own || linear >= first;
        if (is_cached(data) == changed)
            fail_msg("%s: %s is %s", tensor, json_string_value(json_object_get(data, "name")),
                     changed ? "stale" : "computed again");
        computed += changed;
    }
    assert_int_equal(row_count(&cached, "computed"), computed);
    assert_int_equal(row_count(&cached, "cached"), LINEARS - computed);
    same_rows(&cached, &fresh);
    run_release(&cached);
    run_release(&fresh);
    scratch_close(&model);
}

/* Within a block q, k, v read one input, o what they made, gate and up the next norm, down what those made. */
static void one_changed_weight_invalidates_it_and_what_is_downstream(void **state) {
    (void)state;
    static const struct {
        const char *tensor;
        int own, first; /* the changed Linear, −1: none; Linears from `first` on see other inputs */
    } cases[] = {
        {"model.layers.2.self_attn.q_proj.weight", FLIPPED, FLIPPED + 3},
        {"model.layers.2.self_attn.v_proj.weight", FLIPPED + 2, FLIPPED + 3},
        {"model.layers.2.self_attn.o_proj.weight", FLIPPED + 3, FLIPPED + 4},
        {"model.layers.2.mlp.up_proj.weight", FLIPPED + 5, FLIPPED + 6},
        {"model.layers.2.mlp.down_proj.weight", FLIPPED + 6, FLIPPED + 7},
        {"model.layers.2.post_attention_layernorm.weight", -1, FLIPPED + 4},
        {"model.layers.5.mlp.down_proj.weight", LINEARS - 1, LINEARS},
        {"model.norm.weight", -1, LINEARS},
    };
    struct run before;
    run_init(&before);
    must_run(&before, CALIBRATION, all_blocks, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_flip(&before, cases[i].tensor, cases[i].own, cases[i].first);
    run_release(&before);
}

static void interrupted_profile_continues_where_it_stopped(void **state) {
    (void)state;
    struct run whole, cut, rest;
    run_init(&whole);
    run_init(&cut);
    run_init(&rest);
    must_run(&whole, CALIBRATION, both, NULL);
    cut.stop_after = 25;
    assert_int_equal(run_job(&cut, FIXTURE "tiny", CALIBRATION, both, NULL, NULL), RC_UNAVAILABLE);
    must_run(&rest, CALIBRATION, both, cut.rows);
    assert_int_equal(json_array_size(rest.rows), json_array_size(whole.rows) - 25);
    same_rows(&rest, &whole);
    assert_true(json_equal(json_object_get(rest.result, "totals"), json_object_get(whole.result, "totals")));
    run_release(&whole);
    run_release(&cut);
    run_release(&rest);
}

static void cancelled_profile_stops(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    atomic_store(&r.cancelled, true);
    assert_int_equal(run_job(&r, FIXTURE "tiny", CALIBRATION, both, NULL, NULL), RC_CANCELLED);
    assert_int_equal(json_array_size(r.rows), 0);
    run_release(&r);
}

/* ‖XDᵀ‖² and ‖XWᵀ‖² straight from the inputs, in float64, for the first block's down_proj. */
struct direct {
    const struct job *job;
    const struct model *model;
    int position;
    double *inputs; /* [tokens, K] */
    int64_t tokens, cols;
    double num, den;
};

static enum rc keep_input(void *ctx, int stream, int block, int64_t window, enum linear_input input, struct matf x,
                          struct err *e) {
    (void)stream, (void)window, (void)e;
    struct direct *d = ctx;
    if (block != 0 || input != INPUT_DOWN) return RC_OK;
    for (int64_t t = 0; t < x.rows; t++, d->tokens++)
        for (int64_t k = 0; k < x.cols; k++)
            d->inputs[d->tokens * x.cols + k] = x.data[t * x.stride + k];
    return RC_OK;
}

static void add_output(struct direct *d, const float *w, const float *w_hat, int64_t t) {
    double error = 0, output = 0;
    for (int64_t k = 0; k < d->cols; k++) {
        error += d->inputs[t * d->cols + k] * ((double)w[k] - (double)w_hat[k]);
        output += d->inputs[t * d->cols + k] * (double)w[k];
    }
    d->num += error * error;
    d->den += output * output;
}

static enum rc measure_directly(void *ctx, int block, const struct block_weights *weights, struct err *e) {
    (void)block;
    struct direct *d = ctx;
    struct matf w = weights->linear[d->position], w_hat = w;
    struct candidate c;
    TRY(candidate_from_id("rtn3g64", &c, e));
    TRY(device_floats(d->job, w.rows * w.cols, &w_hat.data, e));
    TRY(quantize_weights(d->job, w, &c, w_hat, NULL, e));
    for (int64_t n = 0; n < w.rows; n++)
        for (int64_t t = 0; t < d->tokens; t++)
            add_output(d, w.data + n * w.stride, w_hat.data + n * w.cols, t);
    d->job->backend->free(d->job->device, w_hat.data);
    return RC_OK;
}

static void drift_is_the_relative_output_error(void **state) {
    (void)state;
    struct run r;
    struct err err = {0};
    run_init(&r);
    must_run(&r, CALIBRATION, both, NULL);
    struct job_link link = {run_send, run_lookup, &r};
    json_t *model = json_pack("{ss ss}", "name", "M", "path", FIXTURE "tiny");
    json_t *dataset = json_pack("{ss ss}", "name", "D", "path", CALIBRATION);
    struct job job = {
        .id = "test", .model = model, .dataset = dataset, .backend = &backend_cpu, .scratch = "/tmp", .link = &link};
    struct backend_options options = {.threads = 1};
    struct source source;
    struct windows windows;
    assert_int_equal(backend_cpu.open(&options, &job.device, &err), RC_OK);
    assert_int_equal(source_open(&job, &source, &err), RC_OK);
    assert_int_equal(windows_first(&source.tokens, 64, 3, &windows, &err), RC_OK);
    struct direct d = {.job = &job, .model = source.model, .position = 6, .cols = source.model->arch.intermediate};
    d.inputs = calloc((size_t)(3 * 64 * d.cols), sizeof *d.inputs);
    struct walk_hooks hooks = {.ctx = &d, .input = keep_input, .block_end = measure_directly};
    struct walk walk = {.job = &job,
                        .model = source.model,
                        .windows = &windows,
                        .count = 3,
                        .streams = 1,
                        .hooks = &hooks,
                        .phase = "direct",
                        .tokens_total = 192};
    if (walk_run(&walk, &err) != RC_OK) fail_msg("%s", err.message);
    double drift = json_real_value(json_object_get(row_of(&r, "model.layers.0.mlp.down_proj", "rtn3g64"), "drift"));
    assert_true(fabs(drift - d.num / d.den) <= 1e-5 * drift);
    free(d.inputs);
    windows_release(&windows);
    source_release(&source);
    backend_cpu.close(job.device);
    json_decref(model);
    json_decref(dataset);
    run_release(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_does_not_depend_on_other_candidates),
        cmocka_unit_test(cached_profile_repeats_every_number_without_a_walk),
        cmocka_unit_test(one_more_candidate_computes_that_one_alone),
        cmocka_unit_test(one_changed_weight_invalidates_it_and_what_is_downstream),
        cmocka_unit_test(interrupted_profile_continues_where_it_stopped),
        cmocka_unit_test(cancelled_profile_stops),
        cmocka_unit_test(drift_is_the_relative_output_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
