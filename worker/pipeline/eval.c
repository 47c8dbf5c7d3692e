/* eval: the quantized model beside the reference, window by window, in one walk of two streams.
 *
 * Windows go in batches: a batch is one walk, and its rows are durable before the next begins, so that a killed job
 * resumes there, and hidden states do not grow with the text. Each batch quantizes anew, by the code that the profile
 * scored; but a recipe that looks at calibration data is calibrated first, on the first device, and kept packed. Of a
 * job that is split, each device takes its share of a batch's windows, with weights of its own: windows know nothing of
 * each other. An artifact in the recipe's place is quantized already: its blocks are read beside the reference's. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "worker/model/finite.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/calibration_text.h"
#include "worker/pipeline/eval_artifact.h"
#include "worker/pipeline/eval_noise.h"
#include "worker/pipeline/eval_result.h"
#include "worker/pipeline/predict.h"
#include "worker/pipeline/quantize.h"
#include "worker/pipeline/quantized_model.h"
#include "worker/pipeline/recipe.h"
#include "worker/pipeline/source.h"
#include "worker/pipeline/team.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

enum { REFERENCE = 0, QUANTIZED = 1 };

struct eval;

/* What a device has of its own. */
struct scorer {
    struct eval *v;
    const struct job *job;    /* on the device, while its thread runs */
    struct block block;       /* of the artifact, where there is one */
    struct replaced replaced; /* what the quantized stream sees of the block at hand */
    float *final_norm_q;      /* [D]; NULL: the reference's */
    struct mat head, head_q;  /* [V, D]; head_q.data NULL: the reference's */
    float *head_bias;         /* [V] or NULL */
    double *nll, *nll_q, *kl; /* [length] of one window */
    uint8_t *agree;           /* [length] */
};

struct eval {
    const struct job *job;
    const struct spec_eval *spec;
    struct source source;
    struct windows windows;
    struct eval_table table;  /* each window is filled by one device */
    struct candidate *recipe; /* [linear_count]; METHOD_NONE keeps a Linear */
    struct calibration_plan plan;
    bool refine, calibrated; /* scales are refined; for that or for the plan's sake there is a calibration */
    struct spec_calibration calibration; /* in force, where there is one */
    struct windows calibration_windows;
    json_t *notes;              /* an array: how each Linear's calibration went */
    json_t *refined;            /* how refining went; NULL: it did not */
    struct model *artifact;     /* NULL: the recipe is run */
    struct packed_store *store; /* the quantized model, where it was calibrated; else it is quantized on the way */
    int devices;
    struct scorer *scorers; /* [devices] */
    struct span batch;
    _Atomic int64_t batch_tokens_done;
    double seconds;
    int64_t tokens_walked;
};

static enum rc cut_windows(struct eval *v, struct err *e) {
    const struct spec_eval *s = v->spec;
    const struct tokens *tokens = &v->source.tokens;
    int64_t *dropped = &v->table.dropped_tokens;
    if (s->protocol != PROTOCOL_LLAMA_CPP) return windows_all(tokens, s->length, s->windows, &v->windows, dropped, e);
    return windows_llama_cpp(tokens, s->length, s->windows, tokenizer_bos(v->source.tokenizer), &v->windows, dropped,
                             e);
}

static enum rc open_windows(struct eval *v, struct err *e) {
    enum rc rc = cut_windows(v, e);
    if (rc != RC_OK) return rc == RC_INVALID ? err_locate(e, "/dataset") : rc;
    v->table.windows = calloc((size_t)v->windows.count, sizeof *v->table.windows);
    if (!v->table.windows) return err_set(e, RC_NO_MEMORY, "no memory for %lld windows", (long long)v->windows.count);
    v->table.count = v->windows.count;
    for (int64_t i = 0; i < v->windows.count; i++)
        v->table.windows[i].tokens = v->windows.length - v->windows.first_label;
    return RC_OK;
}

static enum rc open_recipe(struct eval *v, struct err *e) {
    v->table.quantized = v->spec->uniform || v->spec->allocation || v->spec->artifact;
    return recipe_read(v->job, v->source.model, v->spec->uniform, v->spec->allocation, &v->recipe, e);
}

static enum rc open_calibration(struct eval *v, struct err *e) {
    v->plan = calibration_plan(v->recipe, v->source.model->linear_count);
    v->refine = refine_wanted(v->spec->has_refine, v->spec->refine, v->recipe, v->source.model);
    v->calibrated = v->plan.needed || v->refine;
    if (!v->calibrated) return RC_OK;
    if (v->refine) TRY(refine_check(v->job, v->source.model, v->recipe, e));
    TRY(calibration_find(v->job, v->spec->calibration, &v->calibration, e));
    return calibration_read(v->job, &v->source, &v->calibration, &v->calibration_windows, e);
}

static enum rc take_earlier_rows(struct eval *v, struct err *e) {
    for (int64_t i = 0; i < v->table.count; i++) {
        const json_t *row = job_row(v->job, "window", i);
        if (row) TRY(eval_window_decode(&v->table, i, row, job_row(v->job, "_token_kl", i), e));
    }
    const json_t *noise = v->table.quantized ? job_row(v->job, "_noise", 0) : NULL;
    return noise ? eval_noise_decode(noise, &v->table.noise, e) : RC_OK;
}

static struct mat dense(struct mat m, int64_t rows, int64_t cols) {
    return (struct mat){m.data, rows, cols, cols, m.type};
}

/* Room for a Linear's ŵ, of the type that the backend multiplies with. */
static enum rc replacement(const struct scorer *s, int64_t count, struct mat *out, struct err *e) {
    const struct backend *b = s->job->backend;
    out->type = b->activation;
    return b->alloc(s->job->device, (size_t)count * dtype_size(out->type), &out->data, e);
}

static enum rc upload_final_norm(struct scorer *s, struct err *e) {
    const struct stored *norm = packed_store_final_norm(s->v->store);
    if (!norm->values) return RC_OK;
    TRY(device_floats(s->job, norm->count, &s->final_norm_q, e));
    return s->job->backend->upload(s->job->device, norm->values, norm->type, norm->count, s->final_norm_q, e);
}

/* All rows are there: nothing is quantized any more, which for a calibrated head cannot be done here. */
static bool head_not_needed(const struct eval *v) {
    return v->calibrated && !v->store;
}

static enum rc upload_artifact_head(struct scorer *s, struct err *e) {
    const struct model *artifact = s->v->artifact;
    TRY(upload_new(s->job, artifact->final_norm, &s->final_norm_q, e));
    return eval_artifact_head(s->job, s->v->source.model, artifact, &s->head_q, e);
}

static enum rc upload_head(struct scorer *s, struct err *e) {
    const struct model *model = s->v->source.model;
    const struct candidate *c = &s->v->recipe[model->linear_count - 1];
    TRY(upload_linear(s->job, &model->linears[model->linear_count - 1], &s->head, e));
    TRY(upload_new(s->job, model->head_bias, &s->head_bias, e));
    if (s->v->artifact) return upload_artifact_head(s, e);
    if (c->method == METHOD_NONE || head_not_needed(s->v)) return RC_OK;
    TRY(replacement(s, s->head.rows * s->head.cols, &s->head_q, e));
    s->head_q = dense(s->head_q, s->head.rows, s->head.cols);
    if (!s->v->store) return quantize_weights(s->job, s->head, c, s->head_q, NULL, e);
    TRY(packed_store_head(s->v->store, s->job, s->head_q, e));
    return upload_final_norm(s, e);
}

static enum rc open_scorer(void *ctx, int member, const struct job *job, struct err *e) {
    struct eval *v = ctx;
    struct scorer *s = &v->scorers[member];
    size_t length = (size_t)v->windows.length;
    *s = (struct scorer){.v = v, .job = job, .nll = xcalloc(3 * length, sizeof *s->nll), .agree = xcalloc(length, 1)};
    s->nll_q = s->nll + length;
    s->kl = s->nll_q + length;
    TRY(upload_head(s, e));
    if (!v->table.quantized) return RC_OK;
    if (v->artifact) return block_open(job, v->artifact, v->artifact->arch.blocks - 1, &s->block, e);
    TRY(replaced_open(job, v->source.model, &s->replaced, e));
    return v->store ? replaced_stage(job, v->source.model, &s->replaced, e) : RC_OK;
}

static enum rc open_scorers(struct eval *v, struct err *e) {
    v->devices = team_size(v->job);
    v->scorers = xcalloc((size_t)v->devices, sizeof *v->scorers);
    return team_run(v->job, open_scorer, v, e);
}

static void close_scorer(struct eval *v, int member) {
    struct scorer *s = &v->scorers[member];
    struct job job = team_job(v->job, member);
    s->block.job = s->block.job ? &job : NULL; /* the thread's own is gone */
    block_close(&s->block);
    device_free(&job, s->head.data);
    device_free(&job, s->head_q.data);
    device_free(&job, s->head_bias);
    device_free(&job, s->final_norm_q);
    replaced_release(&job, &s->replaced);
    free(s->nll);
    free(s->agree);
}

/* The first device last: the thread stays attached to it. */
static void close_scorers(struct eval *v) {
    for (int member = v->devices - 1; member >= 0; member--)
        close_scorer(v, member);
    free(v->scorers);
}

static enum rc quantize_block(struct scorer *s, int block, struct block_weights *w, struct err *e) {
    const struct eval *v = s->v;
    const int *linears = v->source.model->blocks[block].linears;
    for (int position = 0; position < BLOCK_LINEARS_MAX && linears[position] >= 0; position++) {
        const struct candidate *c = &v->recipe[linears[position]];
        if (c->method == METHOD_NONE) continue;
        struct mat from = w->linear[position], out = replaced_linear(&s->replaced, s->job, position, from);
        if (quantize_weights(s->job, from, c, out, NULL, e) != RC_OK)
            return err_context(e, "%s", v->source.model->linears[linears[position]].name);
        w->linear[position] = out;
    }
    return RC_OK;
}

static enum rc load_artifact(struct scorer *s, int block, struct block_weights *w, struct err *e) {
    s->block.job = s->job;
    TRY(block_load(&s->block, block, e));
    TRY(s->job->backend->loaded(s->job->device, e));
    *w = s->block.weights;
    return RC_OK;
}

static enum rc replace_weights(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    struct scorer *s = ctx;
    if (stream != QUANTIZED) return RC_OK;
    if (s->v->artifact) return load_artifact(s, block, w, e);
    if (!s->v->store) return quantize_block(s, block, w, e);
    return packed_store_show(s->v->store, s->job, block, &s->replaced, w, e);
}

static void sum_window(const struct scorer *s, struct eval_window *w) {
    for (int64_t i = 0; i < w->tokens; i++)
        w->nll += s->nll[i];
    if (!s->v->table.quantized) return;
    w->token_kl = xcalloc((size_t)w->tokens, sizeof *w->token_kl);
    for (int64_t i = 0; i < w->tokens; i++) {
        w->nll_q += s->nll_q[i];
        w->kl += s->kl[i];
        w->top1_agree += s->agree[i];
        w->token_kl[i] = (float)s->kl[i];
        double dp = exp(-s->nll_q[i]) - exp(-s->nll[i]);
        w->dp2 += dp * dp;
    }
}

/* Of a recipe's model the weights are the reference's. */
static enum rc not_finite(const struct eval *v, const struct eval_window *w, struct err *e) {
    if (!isfinite(w->nll)) return model_not_finite(v->source.model, "the model's logits are", e);
    return model_not_finite(v->artifact ? v->artifact : v->source.model, "the quantized model's logits are", e);
}

static enum rc send_window(const struct scorer *s, int64_t window, struct err *e) {
    const struct eval *v = s->v;
    if (v->table.quantized && !job_row(s->job, "_token_kl", window)) {
        json_t *token_kl = eval_token_kl_encode(&v->table, window);
        enum rc rc = emit_row(s->job, "_token_kl", window, token_kl, NULL, e);
        json_decref(token_kl);
        TRY(rc);
    }
    json_t *data = eval_window_encode(&v->table, window);
    if (!data) return not_finite(v, &v->table.windows[window], e);
    enum rc rc = emit_row(s->job, "window", window, data, NULL, e);
    json_decref(data);
    return rc;
}

/* Rows of x whose next token is scored. */
static struct mat scored(const struct eval *v, struct mat x) {
    int64_t first = v->windows.first_label - 1;
    return mat_rows(x, first, v->windows.length - v->windows.first_label);
}

static enum rc score_window(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    struct scorer *s = ctx;
    struct eval *v = s->v;
    struct eval_window *w = &v->table.windows[window];
    if (w->known) return RC_OK;
    const int32_t *ids = v->windows.ids + window * v->windows.length;
    struct score_args a = {.x = scored(v, x[REFERENCE]),
                           .head = s->head,
                           .bias = s->head_bias,
                           .logit_scale = (float)(1 / v->source.model->arch.logits_scaling),
                           .labels = ids + v->windows.first_label,
                           .nll = s->nll};
    if (v->table.quantized) {
        a.x_q = scored(v, x[QUANTIZED]);
        a.head_q = s->head_q;
        a.nll_q = s->nll_q;
        a.kl = s->kl;
        a.top1_agree = s->agree;
    }
    TRY(s->job->backend->score(s->job->device, &a, e));
    sum_window(s, w);
    w->known = true;
    return send_window(s, window, e);
}

static enum rc measure_noise(struct eval *v, struct err *e) {
    if (!v->table.quantized || v->table.noise.known) return RC_OK;
    struct noise_args a = {.job = v->job,
                           .model = v->source.model,
                           .windows = &v->windows,
                           .head = v->scorers[0].head,
                           .head_bias = v->scorers[0].head_bias};
    TRY(eval_noise_measure(&a, &v->table.noise, e));
    json_t *data = eval_noise_encode(&v->table.noise);
    if (!data) return model_not_finite(v->source.model, "the model's logits are", e);
    enum rc rc = emit_row(v->job, "_noise", 0, data, NULL, e);
    json_decref(data);
    return rc;
}

static int64_t first_unknown(const struct eval_table *t, int64_t from) {
    while (from < t->count && t->windows[from].known)
        from++;
    return from;
}

/* A device's windows of the batch. */
static enum rc walk_share_of_batch(void *ctx, int member, const struct job *job, struct err *e) {
    struct eval *v = ctx;
    struct scorer *s = &v->scorers[member];
    struct span share = walk_share(job, &v->windows, v->batch, member, v->devices);
    struct walk_hooks hooks = {.ctx = s, .weights = replace_weights, .final = score_window};
    struct walk walk = {.job = job,
                        .model = v->source.model,
                        .windows = &v->windows,
                        .first = share.first,
                        .count = share.count,
                        .streams = v->table.quantized ? 2 : 1,
                        .last_block = -1,
                        .hooks = &hooks,
                        .final_norms = (const float *const[]){NULL, s->final_norm_q},
                        .head = &s->head,
                        .reserved = v->store ? packed_store_bytes(v->store) / v->devices : 0,
                        .phase = "windows",
                        .tokens_before = v->batch.first * v->windows.length,
                        .tokens_total = v->windows.count * v->windows.length,
                        .tally = &v->batch_tokens_done};
    s->job = job;
    return share.count > 0 ? walk_run(&walk, e) : RC_OK;
}

/* As many windows as a batch has on one device, for each of them. */
static int64_t batch_windows(const struct eval *v) {
    int64_t chunk = walk_chunk(v->job, &v->windows);
    int64_t chunks = v->job->backend->batch_tokens / (v->windows.length * chunk);
    return (chunks > 0 ? chunks : 1) * chunk * v->devices;
}

static enum rc walk_batches(struct eval *v, struct err *e) {
    int64_t most = batch_windows(v), unknown = first_unknown(&v->table, 0);
    int64_t skipped = walk_aligned(v->job, &v->windows, unknown);
    for (; unknown < v->table.count; unknown = first_unknown(&v->table, unknown)) {
        int64_t first = walk_aligned(v->job, &v->windows, unknown), left = v->table.count - first;
        v->batch = (struct span){first, left < most ? left : most};
        v->batch_tokens_done = 0;
        TRY(team_run(v->job, walk_share_of_batch, v, e));
    }
    v->tokens_walked = (v->table.count - skipped) * v->windows.length;
    return RC_OK;
}

/* Anew after an interruption: the same bits. Not when all windows are there. */
static enum rc calibrate_model(struct eval *v, struct err *e) {
    v->notes = json_array();
    if (!v->calibrated) return RC_OK;
    if (first_unknown(&v->table, 0) == v->table.count) {
        calibration_earlier_notes(v->job, v->source.model, v->notes);
        v->refined = refined_earlier(v->job);
        return RC_OK;
    }
    struct refined refined;
    struct quantized_model_args a = {.job = v->job,
                                     .model = v->source.model,
                                     .windows = &v->calibration_windows,
                                     .recipe = v->recipe,
                                     .notes = v->notes,
                                     .seed = v->calibration.seed,
                                     .refine = v->refine};
    TRY(quantized_model_make(&a, &v->store, &refined, e));
    if (!v->refine) return RC_OK;
    v->refined = refined_json(&refined, v->spec->has_refine);
    return refined_send(v->job, v->refined, e);
}

/* Before anything is computed for it. */
static enum rc check_compare(const struct eval *v, struct err *e) {
    if (!v->spec->compare) return RC_OK;
    const json_t *other = json_object_get(v->job->inputs, "compare");
    const char *windows = json_string_value(json_object_get(json_object_get(other, "result"), "windows_hash"));
    struct hash128 hash = windows_hash(&v->windows);
    char text[HASH_TEXT_SIZE];
    if (windows && !strcmp(windows, hash_text(&hash, text)))
        return eval_compare_check(&v->table, json_object_get(other, "rows"), e);
    return err_at(e, "/compare", RC_INVALID,
                  "job %s evaluated other windows: use the same dataset, tokenizer, length and number of windows",
                  v->spec->compare);
}

static enum rc run(struct eval *v, struct err *e) {
    TRY(source_open(v->job, &v->source, e));
    TRY(open_windows(v, e));
    TRY(check_compare(v, e));
    TRY(open_recipe(v, e));
    if (v->spec->artifact) TRY(eval_artifact_open(v->job, v->source.model, &v->artifact, e));
    TRY(open_calibration(v, e));
    TRY(take_earlier_rows(v, e));
    TRY(calibrate_model(v, e));
    TRY(open_scorers(v, e));
    TRY(measure_noise(v, e));
    double start = monotonic_seconds();
    TRY(walk_batches(v, e));
    v->seconds = monotonic_seconds() - start;
    return RC_OK;
}

static enum rc add_compare(const struct eval *v, json_t *result, struct err *e) {
    if (!v->spec->compare) return RC_OK;
    const json_t *other = json_object_get(v->job->inputs, "compare");
    json_t *compare = NULL;
    TRY(eval_compare_json(&v->table, json_object_get(other, "rows"), &compare, e));
    json_object_set_new(compare, "job", json_string(v->spec->compare));
    json_object_set_new(result, "compare", compare);
    return RC_OK;
}

/* What the allocation was predicted to cost, beside what it does. */
static void add_prediction(const struct eval *v, json_t *result) {
    const json_t *allocation = json_object_get(json_object_get(v->job->inputs, "allocation"), "result");
    json_t *beside = prediction_beside(json_object_get(allocation, "prediction"), v->refine,
                                       json_object_get(json_object_get(result, "kl"), "mean"));
    if (v->spec->allocation && beside)
        json_object_set_new(result, "prediction", beside);
    else
        json_decref(beside);
}

/* What the quantized model was made with, and for how many Linears that is not the H that they ask for. */
static json_t *calibration_result(const struct eval *v) {
    json_t *out = calibration_json(&v->calibration, &v->calibration_windows, v->job->calibration);
    json_object_set_new(out, "sequential", json_boolean(v->plan.sequential));
    json_object_set_new(out, "guided", json_boolean(v->plan.guided));
    json_object_set_new(out, "moved", json_integer(v->plan.moved));
    json_object_set(out, "linears", v->notes);
    return out;
}

static enum rc make_result(const struct eval *v, json_t **result, struct err *e) {
    char text[HASH_TEXT_SIZE];
    struct hash128 hash = windows_hash(&v->windows);
    hash_text(&hash, text);
    *result = eval_result_json(&v->table);
    json_object_set_new(*result, "windows_hash", json_string(text));
    json_object_set_new(*result, "tokens_per_second",
                        json_real(v->seconds > 0 ? (double)v->tokens_walked / v->seconds : 0));
    if (v->table.quantized && !v->artifact)
        json_object_set_new(*result, "bytes", json_integer(recipe_bytes(v->source.model, v->recipe)));
    if (v->calibrated) json_object_set_new(*result, "calibration", calibration_result(v));
    if (v->refined) json_object_set(*result, "refined", v->refined);
    add_prediction(v, *result);
    enum rc rc = add_compare(v, *result, e);
    if (rc == RC_OK) return RC_OK;
    json_decref(*result);
    *result = NULL;
    return rc;
}

static void release(struct eval *v) {
    close_scorers(v);
    if (v->artifact) model_close(v->artifact);
    packed_store_free(v->store);
    json_decref(v->notes);
    json_decref(v->refined);
    windows_release(&v->calibration_windows);
    free(v->recipe);
    eval_table_release(&v->table);
    windows_release(&v->windows);
    source_release(&v->source);
}

enum rc pipeline_eval(const struct job *job, json_t **result, struct err *e) {
    struct eval v = {.job = job, .spec = &job->spec->eval};
    enum rc rc = run(&v, e);
    if (rc == RC_OK) rc = make_result(&v, result, e);
    release(&v);
    return rc;
}
