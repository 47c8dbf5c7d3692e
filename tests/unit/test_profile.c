/* A profile's numbers mean what they say, and survive interruption and caching bit for bit. */
#include "tests/unit/bare_job.h"
#include "tests/unit/tiny_copy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/formats.h"
#include "worker/pipeline/quantize.h"
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

/* Nor on which factor of H or which scale was made for one before it. */
static void calibrated_rows_do_not_depend_on_other_candidates(void **state) {
    (void)state;
    static const char *const singles[] = {
        "{'method':'gptq','bits':3,'group':32}",
        "{'method':'gptq','bits':3,'group':32,'order':'activation','damp':0.2}",
        "{'method':'awq+gptq','bits':3,'group':32}",
        "{'method':'gptq','bits':3,'group':16,'descend':1}",
        "{'method':'awq','bits':4,'group':64}",
    };
    enum { SINGLES = sizeof singles / sizeof *singles };
    char text[1024], list[512] = "";
    for (size_t i = 0; i < SINGLES; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? "," : "", singles[i]);
    struct run many, single;
    run_init(&many);
    snprintf(text, sizeof text, SPEC("%s", ",'layers':'layers\\\\.1\\\\.'"), list);
    must_run(&many, CALIBRATION, text, NULL);
    assert_int_equal(json_array_size(many.rows), 7 * SINGLES);
    for (size_t i = 0; i < SINGLES; i++) {
        run_init(&single);
        snprintf(text, sizeof text, SPEC("%s", ",'layers':'layers\\\\.1\\\\.'"), singles[i]);
        must_run(&single, CALIBRATION, text, NULL);
        assert_int_equal(json_array_size(single.rows), 7);
        same_rows(&single, &many);
        run_release(&single);
    }
    run_release(&many);
}

static double drift_of(const struct run *r, const char *linear, const char *candidate) {
    char name[64];
    snprintf(name, sizeof name, "model.layers.1.%s", linear);
    return json_real_value(json_object_get(row_of(r, name, candidate), "drift"));
}

/* Also where AWQ scales H. */
static void codes_that_descend_drift_less(void **state) {
    (void)state;
    static const char spec[] = SPEC("{'method':['gptq','awq+gptq'],'bits':3,'group':32,'damp':0.01,'descend':[0,2]}",
                                    ",'layers':'layers\\\\.1\\\\.'");
    static const char *const ids[][2] = {{"gptq3g32-damp0.01", "gptq3g32-damp0.01-descend2"},
                                         {"awq+gptq3g32-damp0.01", "awq+gptq3g32-damp0.01-descend2"}};
    static const char *const linears[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                          "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                          "mlp.down_proj"};
    struct run r;
    run_init(&r);
    must_run(&r, CALIBRATION, spec, NULL);
    for (size_t i = 0; i < 2; i++)
        for (size_t l = 0; l < 7; l++) {
            double before = drift_of(&r, linears[l], ids[i][0]), after = drift_of(&r, linears[l], ids[i][1]);
            if (!(after < 0.95 * before)) fail_msg("%s, %s: %g after %g", linears[l], ids[i][1], after, before);
        }
    run_release(&r);
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

/* ‖XDᵀ‖² and ‖XWᵀ‖² straight from the inputs, in float64, for the first block's Linears. */
enum { TOKENS = 3 * 64, WIDEST = 384 };

struct direct {
    const struct job *job;
    const struct model *model;
    const struct run *profile;
    double *inputs[INPUT_COUNT]; /* [TOKENS, K] */
    int64_t tokens[INPUT_COUNT];
    int compared;
};

static enum rc keep_input(void *ctx, const struct site *site, enum linear_input input, struct mat x, struct err *e) {
    (void)e;
    struct direct *d = ctx;
    if (site->block != 0) return RC_OK;
    for (int64_t t = 0; t < x.rows; t++, d->tokens[input]++)
        for (int64_t k = 0; k < x.cols; k++)
            d->inputs[input][d->tokens[input] * x.cols + k] = f32_row(x, t)[k];
    return RC_OK;
}

static double output_energy(const double *x, const double *w, struct mat shape) {
    double sum = 0;
    for (int64_t n = 0; n < shape.rows; n++, w += shape.cols)
        for (int64_t t = 0; t < TOKENS; t++) {
            double y = 0;
            for (int64_t k = 0; k < shape.cols; k++)
                y += x[t * shape.cols + k] * w[k];
            sum += y * y;
        }
    return sum;
}

static void compare_drift(struct direct *d, const struct linear *linear, struct mat w, struct mat w_hat,
                          const char *candidate) {
    int64_t count = w.rows * w.cols;
    double *plain = calloc((size_t)count, sizeof *plain), *error = calloc((size_t)count, sizeof *error);
    for (int64_t i = 0; i < count; i++) {
        plain[i] = f32_row(w, 0)[i];
        error[i] = plain[i] - (double)f32_row(w_hat, 0)[i];
    }
    const double *x = d->inputs[linear->input];
    double want = output_energy(x, error, w) / output_energy(x, plain, w);
    double drift = json_real_value(json_object_get(row_of(d->profile, linear->name, candidate), "drift"));
    if (!(fabs(drift - want) <= 1e-5 * want)) fail_msg("%s %s: %.9g, not %.9g", linear->name, candidate, drift, want);
    d->compared++;
    free(plain);
    free(error);
}

static enum rc measure_directly(void *ctx, int block, const struct block_weights *weights, struct err *e) {
    static const char *const candidates[] = {"rtn3g64", "hqq3g64", "hqq4g64"};
    struct direct *d = ctx;
    for (int i = 0; block == 0 && i < 7; i++) {
        const struct linear *linear = &d->model->linears[d->model->blocks[0].linears[i]];
        float *memory = NULL;
        struct mat w = weights->linear[i];
        TRY(device_floats(d->job, w.rows * w.cols, &memory, e));
        struct mat w_hat = matf(memory, w.rows, w.cols);
        for (size_t c = 0; c < sizeof candidates / sizeof *candidates; c++) {
            struct candidate candidate;
            TRY(candidate_from_id(candidates[c], &candidate, e));
            TRY(quantize_weights(d->job, w, &candidate, w_hat, NULL, e));
            compare_drift(d, linear, w, w_hat, candidates[c]);
        }
        d->job->backend->free(d->job->device, memory);
    }
    return RC_OK;
}

static void drift_is_the_relative_output_error(void **state) {
    (void)state;
    struct run r;
    struct bare_job b;
    struct windows windows;
    run_init(&r);
    bare_open(&b);
    must_run(&r, CALIBRATION, both, NULL);
    bare_must(&b, windows_first(&b.source.tokens, 64, 3, &windows, &b.err));
    struct direct d = {.job = &b.job, .model = b.source.model, .profile = &r};
    for (int i = 0; i < INPUT_COUNT; i++)
        d.inputs[i] = calloc(TOKENS * WIDEST, sizeof *d.inputs[i]);
    struct walk_hooks hooks = {.ctx = &d, .input = keep_input, .block_end = measure_directly};
    struct walk walk = {.job = &b.job,
                        .model = b.source.model,
                        .windows = &windows,
                        .count = 3,
                        .streams = 1,
                        .hooks = &hooks,
                        .phase = "direct",
                        .tokens_total = TOKENS};
    bare_must(&b, walk_run(&walk, &b.err));
    assert_int_equal(d.compared, 7 * 3);
    for (int i = 0; i < INPUT_COUNT; i++)
        free(d.inputs[i]);
    windows_release(&windows);
    bare_close(&b);
    run_release(&r);
}

/* The Linear, really quantized and really packed. */
static int64_t buffers_of(struct bare_job *b, const struct linear *linear, const char *id) {
    struct candidate c;
    struct quantize_report report;
    struct quantized q;
    struct packed p;
    float *w;
    bare_must(b, candidate_from_id(id, &c, &b->err));
    if (c.method == METHOD_NONE) return linear->weight->bytes; /* bf16 as it is */
    bare_must(b, upload_new(&b->job, linear->weight, &w, &b->err));
    bare_must(b, quantized_alloc(b->job.backend, b->job.device, linear->rows, linear->cols, &c, &q, &b->err));
    struct quantize_args a = {.w = matf(w, linear->rows, linear->cols), .candidate = c, .out = &q, .report = &report};
    bare_must(b, b->job.backend->quantize(b->job.device, &a, 1, &b->err));
    bare_must(b, pack(&q, &c, &p, &b->err));
    int64_t bytes = p.codes_bytes + p.scales_bytes + p.zeros_bytes;
    packed_release(&p);
    quantized_release(b->job.backend, b->job.device, &q);
    b->job.backend->free(b->job.device, w);
    return bytes;
}

static const struct linear *linear_of(const struct model *model, const char *name) {
    for (int64_t i = 0; i < model->linear_count; i++)
        if (!strcmp(model->linears[i].name, name)) return &model->linears[i];
    fail_msg("no Linear %s", name);
    return NULL;
}

static void bytes_are_those_of_the_packed_buffers(void **state) {
    (void)state;
    static const char spec[] = SPEC("{'method':'rtn','bits':[3,5],'group':100},{'method':'rtn','bits':4,'group':64,"
                                    "'zero':'integer'},{'method':'rtn','bits':3,'group':0,'symmetric':true},"
                                    "{'method':'hqq','bits':[2,3,8],'group':64},{'method':'none'}",
                                    ",'layers':'layers\\\\.1\\\\.(self_attn\\\\.[qk]|mlp\\\\.down)'");
    struct run r;
    struct bare_job b;
    run_init(&r);
    bare_open(&b);
    must_run(&r, CALIBRATION, spec, NULL);
    assert_int_equal(json_array_size(r.rows), 3 * 8);
    size_t i;
    json_t *row;
    json_array_foreach(r.rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const char *name = json_string_value(json_object_get(data, "name"));
        const char *candidate = json_string_value(json_object_get(data, "candidate"));
        int64_t want = buffers_of(&b, linear_of(b.source.model, name), candidate);
        if (json_integer_value(json_object_get(data, "bytes")) != want)
            fail_msg("%s %s: the buffers take %lld bytes", name, candidate, (long long)want);
        double bits = 8 * (double)want / (double)json_integer_value(json_object_get(data, "params"));
        assert_true(json_number_value(json_object_get(data, "bits_per_weight")) == bits);
    }
    bare_close(&b);
    run_release(&r);
}

/* Where RTN is better, the row shows it and the result lists it. */
static void hqq_above_rtn_is_flagged(void **state) {
    (void)state;
    static const char spec[] = SPEC("{'method':['hqq','rtn'],'bits':[2,3,4,8],'group':64}", "");
    struct run r;
    run_init(&r);
    must_run(&r, CALIBRATION, spec, NULL);
    const json_t *flagged = json_object_get(r.result, "above_rtn");
    size_t i, above = 0;
    json_t *row;
    json_array_foreach(r.rows, i, row) {
        const json_t *data = json_object_get(row, "data"), *rtn_drift = json_object_get(data, "rtn_drift");
        const char *name = json_string_value(json_object_get(data, "name"));
        const char *candidate = json_string_value(json_object_get(data, "candidate"));
        if (strncmp(candidate, "hqq", 3) != 0) continue;
        char rtn[CANDIDATE_ID_SIZE];
        snprintf(rtn, sizeof rtn, "rtn%s", candidate + 3);
        rtn[strcspn(rtn, "-")] = '\0'; /* RTN's own layout is another; its codes are the same */
        const json_t *plain = json_object_get(row_of(&r, name, rtn), "drift");
        assert_true(json_equal(rtn_drift, plain));
        const json_t *drift = json_object_get(data, "drift");
        if (json_real_value(drift) <= json_real_value(plain)) continue;
        const json_t *entry = json_array_get(flagged, above++);
        assert_string_equal(json_string_value(json_object_get(entry, "name")), name);
        assert_string_equal(json_string_value(json_object_get(entry, "candidate")), candidate);
        assert_true(json_equal(json_object_get(entry, "drift"), drift));
        assert_true(json_equal(json_object_get(entry, "rtn_drift"), plain));
    }
    assert_true(above > 0);
    assert_int_equal(json_array_size(flagged), above);
    run_release(&r);
}

/* A sweep that found what hqq3g64's drift says, squared; of the profile's model. */
static json_t *sweep_like(const struct run *profile) {
    json_t *rows = json_array(), *row, *model = json_object_get(profile->result, "model");
    size_t i;
    json_array_foreach(profile->rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        double drift = json_number_value(json_object_get(data, "drift"));
        if (strcmp(json_string_value(json_object_get(data, "candidate")), "hqq3g64") != 0) continue;
        json_array_append_new(rows, json_pack("{ss si s{sO sf}}", "phase", "sweep", "index", (int)i, "data", "name",
                                              json_object_get(data, "name"), "delta_kl", drift * drift));
    }
    return json_pack("{s{ss s{sO ss sn} so}}", "sweep", "job", "S", "result", "model", model, "candidate", "hqq3g64",
                     "noise", "rows", rows);
}

/* Without a walk, where all is cached; and what cannot be compared is refused before anything is computed. */
static void scores_are_held_against_a_sweep(void **state) {
    (void)state;
    static const char against[] = SPEC("{'method':'hqq','bits':[3,4],'group':64},{'method':'rtn','bits':3,'group':64}",
                                       ",'layers':'layers\\\\.[01]\\\\.','sweep':'S'");
    struct run first, again, other;
    run_init(&first);
    run_init(&again);
    run_init(&other);
    must_run(&first, CALIBRATION, both, NULL);
    assert_null(json_object_get(first.result, "correlation"));
    json_t *inputs = sweep_like(&first);
    json_object_update(again.cache, first.cache);
    assert_int_equal(run_job(&again, FIXTURE "tiny", CALIBRATION, against, NULL, inputs), RC_OK);
    const json_t *list = json_object_get(again.result, "correlation"), *drift = json_array_get(list, 0);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(again.result, "rows"), "computed")), 0);
    assert_string_equal(json_string_value(json_object_get(again.result, "sweep")), "S");
    assert_int_equal(json_array_size(list), 2); /* drift and error, at the sweep's candidate */
    assert_string_equal(json_string_value(json_object_get(drift, "score")), "drift");
    assert_string_equal(json_string_value(json_object_get(drift, "candidate")), "hqq3g64");
    assert_true(json_number_value(json_object_get(drift, "spearman")) == 1);
    assert_true(json_number_value(json_object_get(drift, "spearman_within_projection")) == 1);
    assert_int_equal(json_integer_value(json_object_get(drift, "n")), 14);
    json_object_set_new(json_object_get(json_object_get(inputs, "sweep"), "result"), "model",
                        json_pack("{ss}", "fingerprint", "other"));
    assert_int_equal(run_job(&other, FIXTURE "tiny", CALIBRATION, against, NULL, inputs), RC_INVALID);
    assert_string_equal(other.err.pointer, "/sweep");
    assert_int_equal(json_array_size(other.rows), 0);
    json_decref(inputs);
    run_release(&first);
    run_release(&again);
    run_release(&other);
}

static int quantized_linears;

static enum rc counting_quantize(struct backend_state *state, const struct quantize_args *a, int count, struct err *e) {
    quantized_linears += count;
    return backend_cpu.quantize(state, a, count, e);
}

/* Where a candidate before has had RTN's error on the same grid measured, it is taken from there. */
static void rtn_is_measured_once_for_a_grid(void **state) {
    (void)state;
    static const char twice[] = SPEC("{'method':['hqq','rtn'],'bits':2,'group':64}", ",'layers':'layers\\\\.0\\\\.'");
    static const char once[] = SPEC("{'method':['rtn','hqq'],'bits':2,'group':64}", ",'layers':'layers\\\\.0\\\\.'");
    static const char others[] = SPEC("{'method':'hqq','bits':[2,3],'group':64},{'method':'rtn','bits':2,'group':32}",
                                      ",'layers':'layers\\\\.0\\\\.'");
    static const struct {
        const char *spec;
        int each;
    } cases[] = {{twice, 3}, {once, 2}, {others, 5}};
    struct backend counting = backend_cpu;
    struct run r[3];
    counting.quantize = counting_quantize;
    for (int i = 0; i < 3; i++) {
        run_init(&r[i]);
        r[i].backend = &counting;
        quantized_linears = 0;
        must_run(&r[i], CALIBRATION, cases[i].spec, NULL);
        assert_int_equal(quantized_linears, 7 * cases[i].each);
    }
    json_t *row;
    size_t i;
    json_array_foreach(r[0].rows, i, row) {
        const json_t *data = json_object_get(row, "data");
        const json_t *other = row_of(&r[1], json_string_value(json_object_get(data, "name")),
                                     json_string_value(json_object_get(data, "candidate")));
        assert_true(json_equal(json_object_get(data, "rtn_drift"), json_object_get(other, "rtn_drift")));
    }
    for (int k = 0; k < 3; k++)
        run_release(&r[k]);
}

static int factors_made;

static enum rc counting_factor(struct backend_state *state, const struct factor_args *a, struct err *e) {
    factors_made++;
    return backend_cpu.factor(state, a, e);
}

/* Of H at each distinct input of a block: q, k and v, o, gate and up, down. */
static void a_factor_is_made_once_for_all_that_can_share_it(void **state) {
    (void)state;
    static const char spec[] = SPEC("{'method':'gptq','bits':[3,4],'group':[32,64]},"
                                    "{'method':'gptq','bits':[3,4],'group':64,'order':'natural'},"
                                    "{'method':'gptq','bits':3,'group':32,'order':'natural'},"
                                    "{'method':'gptq','bits':[3,4],'group':32,'damp':[0.01,0.02]}",
                                    ",'layers':'layers\\\\.0\\\\.'");
    struct backend counting = backend_cpu;
    struct run r;
    run_init(&r);
    counting.factor = counting_factor;
    r.backend = &counting;
    factors_made = 0;
    must_run(&r, CALIBRATION, spec, NULL);
    assert_int_equal(factors_made, 4 * 5);
    run_release(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_does_not_depend_on_other_candidates),
        cmocka_unit_test(cached_profile_repeats_every_number_without_a_walk),
        cmocka_unit_test(one_more_candidate_computes_that_one_alone),
        cmocka_unit_test(calibrated_rows_do_not_depend_on_other_candidates),
        cmocka_unit_test(codes_that_descend_drift_less),
        cmocka_unit_test(one_changed_weight_invalidates_it_and_what_is_downstream),
        cmocka_unit_test(interrupted_profile_continues_where_it_stopped),
        cmocka_unit_test(cancelled_profile_stops),
        cmocka_unit_test(drift_is_the_relative_output_error),
        cmocka_unit_test(bytes_are_those_of_the_packed_buffers),
        cmocka_unit_test(hqq_above_rtn_is_flagged),
        cmocka_unit_test(scores_are_held_against_a_sweep),
        cmocka_unit_test(rtn_is_measured_once_for_a_grid),
        cmocka_unit_test(a_factor_is_made_once_for_all_that_can_share_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
