/* sweep: what each Linear of the blocks does to the output when it alone is quantized.
 *
 * A walk in which streams fork: beside the reference goes a variant for each Linear of a block, which sees that one
 * replaced and is the reference again from the next block on, as far as weights go. So every block's weights are read
 * once for all of them. As many Linears go together as have room for their hidden states; such a pass over the text
 * gives each its whole row, and a killed job goes on with the Linears that have none. Rows are phase "sweep", index
 * into model.linears, and one of phase "_reference" before them. A row does not depend on what else is in its pass.
 *
 * What a candidate looks at is the reference's: with one Linear replaced, that is what flows to it. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/random.h"
#include "worker/model/fingerprint.h"
#include "worker/model/finite.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/calibration_text.h"
#include "worker/pipeline/choose.h"
#include "worker/pipeline/drift.h"
#include "worker/pipeline/packed_store.h"
#include "worker/pipeline/prints.h"
#include "worker/pipeline/profile.h"
#include "worker/pipeline/quantize.h"
#include "worker/pipeline/source.h"
#include "worker/pipeline/stats.h"
#include "worker/pipeline/sweep_result.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

static const char row_phase[] = "sweep", reference_phase[] = "_reference";

/* The Linears that go together. */
struct pass {
    size_t *rows; /* [count] of the table; stream 1 + i has rows[i] */
    int count;
    int *begins;       /* [1 + count] */
    double *kl, *nll;  /* [count, windows] sums over a window's scored tokens */
    double *reference; /* [windows] NLL */
};

struct sweep {
    const struct job *job;
    const struct spec_sweep *spec;
    struct source source;
    struct windows windows, calibration_windows;
    int64_t dropped_tokens;
    struct fingerprints *prints;
    int64_t *place; /* [table.count] */
    struct sweep_table table;
    struct packed_store *store; /* NULL: nothing is calibrated */
    double reference_nll;       /* mean; NaN: not known yet */
    struct mat head;            /* [V, D] */
    float *head_bias;           /* [V] or NULL */
    void *w_hat;                /* of the widest Linear */
    struct pass pass;
    int64_t passes, tokens_walked;
    double seconds; /* of the walks */
};

static int64_t scored(const struct sweep *s) {
    return s->windows.length - s->windows.first_label;
}

/* --- what is there --- */

static enum rc open_table(struct sweep *s, struct err *e) {
    const struct model *model = s->source.model;
    TRY(choose_linears(model, s->spec->layers, false, &s->place, &s->table.count, e));
    s->table = (struct sweep_table){.model = model,
                                    .place = s->place,
                                    .count = s->table.count,
                                    .candidate = s->spec->candidate,
                                    .noise = s->spec->noise,
                                    .rows = xcalloc(s->table.count, sizeof *s->table.rows)};
    return RC_OK;
}

static enum rc take_earlier_rows(struct sweep *s, struct err *e) {
    const json_t *reference = job_row(s->job, reference_phase, 0);
    bool any = false;
    s->reference_nll = NAN;
    if (reference) TRY(json_get_number(reference, "nll", &s->reference_nll, e));
    for (size_t i = 0; i < s->table.count; i++) {
        const json_t *row = job_row(s->job, row_phase, s->place[i]);
        if (row) TRY(swept_decode(row, &s->table.rows[i], e));
        any = any || row;
    }
    if (any && isnan(s->reference_nll))
        return err_set(e, RC_INVALID, "the stored rows of the sweep lack the reference's");
    return RC_OK;
}

static size_t known_rows(const struct sweep *s) {
    size_t count = 0;
    for (size_t i = 0; i < s->table.count; i++)
        count += s->table.rows[i].known;
    return count;
}

/* --- calibration --- */

/* The candidate as it is calibrated: on what the reference computes. */
static struct candidate static_candidate(const struct sweep *s) {
    struct candidate c = *s->spec->candidate;
    c.sequential = false;
    return c;
}

/* Of the Linears without a row. */
static struct candidate *calibration_recipe(const struct sweep *s) {
    int64_t count = s->source.model->linear_count;
    struct candidate *recipe = xcalloc((size_t)count, sizeof *recipe);
    for (int64_t i = 0; i < count; i++)
        recipe[i] = candidate_default(METHOD_NONE, 16, 0);
    for (size_t i = 0; i < s->table.count; i++)
        if (!s->table.rows[i].known) recipe[s->place[i]] = static_candidate(s);
    return recipe;
}

static int64_t packed_bytes_in_all(const struct sweep *s) {
    int64_t bytes = 0;
    for (size_t i = 0; i < s->table.count; i++) {
        const struct linear *l = &s->source.model->linears[s->place[i]];
        if (!s->table.rows[i].known) bytes += candidate_bytes(s->spec->candidate, l->rows, l->cols);
    }
    return bytes;
}

static enum rc calibrate_linears(struct sweep *s, struct err *e) {
    if (!s->spec->calibration) return RC_OK;
    TRY(calibration_read(s->job, &s->source, s->spec->calibration, &s->calibration_windows, e));
    if (known_rows(s) == s->table.count) return RC_OK;
    struct candidate *recipe = calibration_recipe(s);
    s->store = packed_store_new(s->source.model);
    struct calibration_sink sink = packed_store_sink(s->store);
    struct calibrate_args a = {.job = s->job,
                               .model = s->source.model,
                               .windows = &s->calibration_windows,
                               .recipe = recipe,
                               .sink = &sink,
                               .seed = s->spec->calibration->seed,
                               .reserved = packed_bytes_in_all(s)};
    enum rc rc = calibrate(&a, e);
    free(recipe);
    return rc;
}

/* --- variants --- */

static int position_of(const struct model *model, int64_t index) {
    const int *linears = model->blocks[model->linears[index].block].linears;
    int position = 0;
    while (linears[position] != index)
        position++;
    return position;
}

/* One of a Linear's own. */
static uint64_t noise_key(const struct sweep *s, int64_t index) {
    uint64_t state = (uint64_t)s->spec->seed;
    state = splitmix64(&state) + (uint64_t)index;
    return splitmix64(&state);
}

static enum rc add_noise(const struct sweep *s, int64_t index, struct mat w, struct mat w_hat, struct err *e) {
    const struct job *job = s->job;
    struct error_report norm;
    TRY(job->backend->error(job->device, &(struct error_args){.w = w, .w_hat = w}, &norm, e));
    double deviation = s->spec->noise * norm.weight_frobenius / sqrt((double)(w.rows * w.cols));
    if (!isfinite(deviation)) return model_not_finite(s->source.model, "its weights are", e);
    struct perturb_args a = {.w = w, .key = noise_key(s, index), .deviation = (float)deviation, .out = w_hat};
    return job->backend->perturb(job->device, &a, e);
}

static enum rc make_w_hat(const struct sweep *s, int64_t index, struct mat w, struct mat w_hat, struct err *e) {
    const struct model *model = s->source.model;
    if (job_cancelled(s->job)) return err_set(e, RC_CANCELLED, "cancelled");
    if (s->spec->has_noise) return add_noise(s, index, w, w_hat, e);
    if (!s->store) return quantize_weights(s->job, w, s->spec->candidate, w_hat, NULL, e);
    return packed_store_linear(s->store, s->job, model->linears[index].block, position_of(model, index), w_hat, e);
}

static enum rc replace_linear(void *ctx, int stream, int block, struct block_weights *seen, struct err *e) {
    struct sweep *s = ctx;
    const struct job *job = s->job;
    if (stream == 0 || s->pass.begins[stream] != block) return RC_OK;
    size_t row = s->pass.rows[stream - 1];
    const struct linear *l = &s->source.model->linears[s->place[row]];
    struct mat *w = &seen->linear[position_of(s->source.model, s->place[row])];
    struct error_args error = {.w = *w, .w_hat = {s->w_hat, l->rows, l->cols, l->cols, job->backend->activation}};
    struct error_report report;
    if (make_w_hat(s, s->place[row], *w, error.w_hat, e) != RC_OK) return err_context(e, "%s", l->name);
    TRY(job->backend->error(job->device, &error, &report, e));
    *w = error.w_hat;
    s->table.rows[row].relative_error = error_ratio(report.frobenius, report.weight_frobenius);
    s->table.rows[row].bytes = s->spec->has_noise ? -1 : candidate_bytes(s->spec->candidate, l->rows, l->cols);
    return RC_OK;
}

/* --- scores --- */

static double sum_of(const double *values, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += values[i];
    return sum;
}

static void sum_window(struct sweep *s, int64_t window, const struct walk_forks *x, const struct score_args *a) {
    struct pass *p = &s->pass;
    p->reference[window] = sum_of(a->nll, scored(s));
    for (int i = 0; i < x->count; i++) {
        int64_t at = (x->stream - 1 + i) * s->windows.count + window;
        p->kl[at] = sum_of(a->kl + i * scored(s), scored(s));
        p->nll[at] = sum_of(a->nll_q + i * scored(s), scored(s));
    }
}

static enum rc score_window(void *ctx, int64_t window, const struct walk_forks *x, struct err *e) {
    struct sweep *s = ctx;
    int64_t first = s->windows.first_label - 1;
    size_t tokens = (size_t)scored(s), each = tokens * (size_t)x->count;
    double *memory = xcalloc(tokens + 2 * each + 1, sizeof *memory);
    uint8_t *agree = xcalloc(each + 1, 1);
    struct score_args a = {.x = mat_rows(x->first, first, scored(s)),
                           .more = x->count - 1,
                           .apart = x->apart,
                           .head = s->head,
                           .bias = s->head_bias,
                           .logit_scale = (float)(1 / s->source.model->arch.logits_scaling),
                           .labels = s->windows.ids + window * s->windows.length + s->windows.first_label,
                           .nll = memory,
                           .nll_q = memory + tokens,
                           .kl = memory + tokens + each,
                           .top1_agree = agree};
    if (x->count > 0) a.x_q = mat_rows(x->x, first, scored(s));
    enum rc rc = s->job->backend->score(s->job->device, &a, e);
    if (rc == RC_OK) sum_window(s, window, x, &a);
    free(memory);
    free(agree);
    return rc;
}

/* --- passes --- */

static struct walk base_walk(const struct sweep *s, const struct walk_hooks *hooks) {
    int64_t tokens = s->windows.count * s->windows.length;
    return (struct walk){.job = s->job,
                         .model = s->source.model,
                         .windows = &s->windows,
                         .count = s->windows.count,
                         .streams = 1 + s->pass.count,
                         .begins = s->pass.begins,
                         .last_block = -1,
                         .hooks = hooks,
                         .head = &s->head,
                         .reserved = s->store ? packed_store_bytes(s->store) : 0,
                         .phase = "sweep",
                         .tokens_before = (int64_t)known_rows(s) * tokens,
                         .tokens_total = (int64_t)s->table.count * tokens};
}

/* Those without a row that come next, as many as have room. */
static void choose_pass(struct sweep *s) {
    struct walk_hooks none = {0};
    struct pass *p = &s->pass;
    const struct walk walk = base_walk(s, &none);
    int64_t room = walk_streams_fitting(&walk) - 1;
    p->count = 0;
    for (size_t row = 0; row < s->table.count && (p->count < room || p->count == 0); row++) {
        if (s->table.rows[row].known) continue;
        p->begins[1 + p->count] = s->source.model->linears[s->place[row]].block;
        p->rows[p->count++] = row;
    }
}

static enum rc send_reference(struct sweep *s, struct err *e) {
    if (!isnan(s->reference_nll)) return RC_OK;
    double tokens = (double)(s->windows.count * scored(s));
    s->reference_nll = sum_of(s->pass.reference, s->windows.count) / tokens;
    json_t *data = json_pack("{sf}", "nll", s->reference_nll);
    if (!data) return model_not_finite(s->source.model, "the model's logits are", e);
    enum rc rc = emit_row(s->job, reference_phase, 0, data, NULL, e);
    json_decref(data);
    return rc;
}

/* Over windows, paired. */
static void take_means(const struct sweep *s, int stream, struct swept *row) {
    size_t count = (size_t)s->windows.count;
    const double *kl = s->pass.kl + stream * s->windows.count, *nll = s->pass.nll + stream * s->windows.count;
    struct window_pair *pairs = xcalloc(count, sizeof *pairs);
    int64_t *tokens = xcalloc(count, sizeof *tokens);
    for (size_t w = 0; w < count; w++) {
        tokens[w] = scored(s);
        pairs[w] = (struct window_pair){scored(s), s->pass.reference[w], nll[w]};
    }
    struct mean_se divergence = stats_mean_se(kl, tokens, count);
    struct paired_delta delta = stats_paired(pairs, count);
    row->delta_kl = divergence.mean;
    row->delta_kl_se = divergence.se;
    row->delta_nll = delta.nll;
    row->delta_nll_se = delta.nll_se;
    free(pairs);
    free(tokens);
}

static enum rc send_row(struct sweep *s, size_t row, struct err *e) {
    json_t *data = swept_encode(&s->table, row);
    if (!data) return model_not_finite(s->source.model, "the model's logits are", e);
    enum rc rc = emit_row(s->job, row_phase, s->place[row], data, NULL, e);
    json_decref(data);
    s->table.rows[row].known = true;
    return rc;
}

static enum rc run_pass(struct sweep *s, struct err *e) {
    struct walk_hooks hooks = {.ctx = s, .weights = replace_linear, .forks = score_window};
    struct pass *p = &s->pass;
    size_t sums = (size_t)p->count * (size_t)s->windows.count;
    free(p->kl);
    p->kl = xcalloc(2 * sums, sizeof *p->kl);
    p->nll = p->kl + sums;
    const struct walk walk = base_walk(s, &hooks);
    TRY(walk_run(&walk, e));
    TRY(send_reference(s, e));
    for (int i = 0; i < p->count; i++) {
        take_means(s, i, &s->table.rows[p->rows[i]]);
        TRY(send_row(s, p->rows[i], e));
    }
    s->passes++;
    s->tokens_walked += p->count * s->windows.count * s->windows.length;
    return RC_OK;
}

static enum rc open_device(struct sweep *s, struct err *e) {
    const struct model *model = s->source.model;
    const struct backend *b = s->job->backend;
    int64_t most = 0;
    for (size_t i = 0; i < s->table.count; i++) {
        const struct linear *l = &model->linears[s->place[i]];
        if (l->rows * l->cols > most) most = l->rows * l->cols;
    }
    TRY(b->alloc(s->job->device, (size_t)most * dtype_size(b->activation), &s->w_hat, e));
    TRY(upload_linear(s->job, &model->linears[model->linear_count - 1], &s->head, e));
    return upload_new(s->job, model->head_bias, &s->head_bias, e);
}

static enum rc run_passes(struct sweep *s, struct err *e) {
    struct pass *p = &s->pass;
    if (known_rows(s) == s->table.count) return RC_OK;
    p->rows = xcalloc(s->table.count, sizeof *p->rows);
    p->begins = xcalloc(1 + s->table.count, sizeof *p->begins);
    p->reference = xcalloc((size_t)s->windows.count, sizeof *p->reference);
    TRY(open_device(s, e));
    double start = monotonic_seconds();
    for (choose_pass(s); p->count > 0; choose_pass(s))
        TRY(run_pass(s, e));
    s->seconds = monotonic_seconds() - start;
    return RC_OK;
}

static enum rc run(struct sweep *s, struct err *e) {
    TRY(source_open(s->job, &s->source, e));
    enum rc rc = windows_all(&s->source.tokens, s->spec->length, s->spec->windows, &s->windows, &s->dropped_tokens, e);
    if (rc != RC_OK) return rc == RC_INVALID ? err_locate(e, "/dataset") : rc;
    TRY(open_table(s, e));
    TRY(take_earlier_rows(s, e));
    TRY(prints_open(s->job, s->source.model, &s->prints, e));
    TRY(calibrate_linears(s, e));
    return run_passes(s, e);
}

/* --- result --- */

static json_t *result_json(const struct sweep *s) {
    const struct profiled_model swept = {s->source.model, s->prints, s->place, s->table.count};
    const struct candidate *c = s->spec->candidate;
    char id[CANDIDATE_ID_SIZE], hash_of[HASH_TEXT_SIZE];
    struct hash128 hash = windows_hash(&s->windows);
    double ppl = exp(s->reference_nll);
    json_t *result =
        json_pack("{so ss? so so s{so sf} s{sI sI} sI ss}", "model", profiled_model_json(&swept), "candidate",
                  c ? candidate_id(c, id) : NULL, "noise", c ? json_null() : json_real(s->spec->noise), "seed",
                  c ? json_null() : json_integer(s->spec->seed), "reference", "ppl",
                  isfinite(ppl) ? json_real(ppl) : json_null(), "nll", s->reference_nll, "windows", "n",
                  (json_int_t)s->windows.count, "dropped_tokens", (json_int_t)s->dropped_tokens, "tokens",
                  (json_int_t)(s->windows.count * scored(s)), "windows_hash", hash_text(&hash, hash_of));
    if (!result) return NULL;
    sweep_result_add(&s->table, result);
    if (s->spec->calibration)
        json_object_set_new(result, "calibration",
                            calibration_json(s->spec->calibration, &s->calibration_windows, s->job->calibration));
    json_object_set_new(result, "passes", json_integer(s->passes));
    json_object_set_new(result, "tokens_per_second",
                        json_real(s->seconds > 0 ? (double)s->tokens_walked / s->seconds : 0));
    return result;
}

static void release(struct sweep *s) {
    device_free(s->job, s->head.data);
    device_free(s->job, s->head_bias);
    device_free(s->job, s->w_hat);
    free(s->pass.rows);
    free(s->pass.begins);
    free(s->pass.kl);
    free(s->pass.reference);
    packed_store_free(s->store);
    free(s->table.rows);
    free(s->place);
    if (s->prints) fingerprints_free(s->prints);
    windows_release(&s->calibration_windows);
    windows_release(&s->windows);
    source_release(&s->source);
}

enum rc pipeline_sweep(const struct job *job, json_t **result, struct err *e) {
    struct sweep s = {.job = job, .spec = &job->spec->sweep};
    enum rc rc = run(&s, e);
    if (rc == RC_OK) {
        *result = result_json(&s);
        if (!*result) rc = err_set(e, RC_INTERNAL, "the sweep's result cannot be encoded");
    }
    release(&s);
    return rc;
}
