/* profile: the drift of every Linear at every candidate, from one walk that accumulates H = XᵀX; and what it costs in
 * nats where scores of the loss are asked for, from the same walk on its way back.
 *
 * A row comes from an earlier attempt, from the cache, or from the walk, in this order; the walk covers only what is
 * left. Rows are phase "drift", index = Linear · candidates + candidate. Inversions are rechecked at the end.
 *
 * Fisher scores take what every candidate changes of a block's Linears side by side on the device. Where it has no room
 * for all of that, a block's candidates are measured in rounds (rounds.h).
 *
 * Around an allocation (profile_around.h) the walk is of the quantized model, and always the one with a way back: H and
 * gradients are of what that model computes, while what is quantized and compared stays the reference's. The cache has
 * nothing to do with such rows: they depend on the whole recipe and its calibration, which hardly come again. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "worker/model/fingerprint.h"
#include "worker/model/finite.h"
#include "worker/pipeline/calibration_text.h"
#include "worker/pipeline/choose.h"
#include "worker/pipeline/correlation.h"
#include "worker/pipeline/drift.h"
#include "worker/pipeline/gradwalk.h"
#include "worker/pipeline/prints.h"
#include "worker/pipeline/profile.h"
#include "worker/pipeline/profile_around.h"
#include "worker/pipeline/profile_input.h"
#include "worker/pipeline/recheck.h"
#include "worker/pipeline/source.h"

static const char row_phase[] = "drift";

struct profile {
    const struct job *job;
    const struct spec_profile *spec;
    struct source source;
    struct windows windows;
    struct fingerprints *prints;
    struct drift_table table;
    int64_t *place;           /* [table.linear_count] index into model.linears */
    _Atomic int64_t computed; /* by several devices at once */
    int64_t cached, resumed;
    struct profile_work work;
    size_t order[CANDIDATES_MAX], count; /* that the walk is for */
    int64_t walks, rounds;               /* begun; of a block at most, in the last one */
    double seconds;                      /* of them */
    json_t *inversions;
    struct profile_around around;
};

static int64_t row_index(const struct profile *p, size_t l, size_t c) {
    return (int64_t)(l * p->table.candidate_count + c);
}

static enum rc open_table(struct profile *p, struct err *e) {
    const struct model *model = p->source.model;
    TRY(choose_linears(model, p->spec->layers, p->spec->head, &p->place, &p->table.linear_count, e));
    p->table.linears = xcalloc(p->table.linear_count, sizeof *p->table.linears);
    for (size_t l = 0; l < p->table.linear_count; l++)
        p->table.linears[l] = &model->linears[p->place[l]];
    p->table.candidates = p->spec->candidates.items;
    p->table.candidate_count = p->spec->candidates.count;
    p->table.rows = calloc(p->table.linear_count * p->table.candidate_count, sizeof *p->table.rows);
    return p->table.rows ? RC_OK : err_set(e, RC_NO_MEMORY, "no memory for the drift table");
}

static struct profiled_model profiled_model(const struct profile *p) {
    return (struct profiled_model){p->source.model, p->prints, p->place, p->table.linear_count};
}

/* AWQ's scale depends on all the Linears that read the input, and on whether it can be folded. */
static void add_siblings(const struct profile *p, const struct linear *linear, struct strbuf *text) {
    char hash[HASH_TEXT_SIZE];
    struct profiled_model profiled = profiled_model(p);
    profiled_fold_key(&profiled, linear, text);
    for (int position = 0; position < BLOCK_LINEARS_MAX && linear->block >= 0; position++) {
        int index = p->source.model->blocks[linear->block].linears[position];
        if (index < 0 || p->source.model->linears[index].input != linear->input) continue;
        strbuf_printf(text, " %s", hash_text(fingerprints_weight(p->prints, index), hash));
    }
}

/* What a sequential candidate is scored on is not what it will be run on: its row is kept under another name. */
static const char *cache_key(const struct profile *p, size_t l, size_t c, char key[HASH_TEXT_SIZE]) {
    const struct candidate *candidate = &p->table.candidates[c];
    char id[CANDIDATE_ID_SIZE];
    struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "%s%s", candidate_id(candidate, id), candidate->sequential ? " static" : "");
    if (candidate_uses_awq(candidate)) add_siblings(p, p->table.linears[l], &text);
    if (!spec_wants_drift(p->spec)) strbuf_printf(&text, " no drift");
    if (spec_wants(p->spec, "fisher")) strbuf_printf(&text, " fisher %lld", (long long)p->spec->fisher_windows);
    if (spec_wants(p->spec, "kfac")) strbuf_printf(&text, " kfac");
    if (spec_wants(p->spec, "diag")) strbuf_printf(&text, " diag");
    if (spec_wants_loss(p->spec) || candidate->guided)
        gradients_key(p->source.model, p->prints, p->spec->calibration->seed, &text);
    fingerprints_drift_key(p->prints, p->place[l], text.data, p->job->backend->arithmetic, key);
    strbuf_release(&text);
    return key;
}

/* By whoever has it: `job` is the profile's, or a device's copy of it. */
static enum rc send_row(const struct profile *p, const struct job *job, size_t l, size_t c, struct err *e) {
    char key[HASH_TEXT_SIZE];
    bool keep = !drift_at(&p->table, l, c)->cached && !p->spec->around;
    if (keep) cache_key(p, l, c, key);
    json_t *data = drift_row_encode(&p->table, l, c);
    if (!data) return model_not_finite(p->source.model, "the inputs of its Linears are", e);
    enum rc rc = emit_row(job, row_phase, row_index(p, l, c), data, keep ? key : NULL, e);
    json_decref(data);
    return rc;
}

static enum rc take_earlier_rows(struct profile *p, struct err *e) {
    for (size_t l = 0; l < p->table.linear_count; l++)
        for (size_t c = 0; c < p->table.candidate_count; c++) {
            const json_t *data = job_row(p->job, row_phase, row_index(p, l, c));
            if (!data) continue;
            TRY(drift_row_decode(data, drift_at(&p->table, l, c), e));
            p->resumed++;
        }
    return RC_OK;
}

static enum rc take_cached_rows(struct profile *p, const json_t *found, struct err *e) {
    char key[HASH_TEXT_SIZE];
    for (size_t l = 0; l < p->table.linear_count; l++)
        for (size_t c = 0; c < p->table.candidate_count; c++) {
            struct drift_row *row = drift_at(&p->table, l, c);
            const json_t *data = row->known ? NULL : json_object_get(found, cache_key(p, l, c, key));
            if (!data) continue;
            TRY(drift_row_decode(data, row, e));
            row->cached = true;
            p->cached++;
            TRY(send_row(p, p->job, l, c, e));
        }
    return RC_OK;
}

/* 0 where asked for. */
static struct loss_scores scores_asked(const struct profile *p) {
    return (struct loss_scores){spec_wants(p->spec, "fisher") - 1, spec_wants(p->spec, "kfac") - 1,
                                spec_wants(p->spec, "diag") - 1};
}

/* Kept in 16 bits: exact, so nothing has to be walked for it. */
static enum rc fill_exact_rows(struct profile *p, struct err *e) {
    for (size_t l = 0; l < p->table.linear_count; l++)
        for (size_t c = 0; c < p->table.candidate_count; c++) {
            struct drift_row *row = drift_at(&p->table, l, c);
            if (row->known || p->table.candidates[c].method != METHOD_NONE) continue;
            *row = drift_row_none(p->table.linears[l], spec_wants_drift(p->spec), scores_asked(p));
            p->computed++;
            TRY(send_row(p, p->job, l, c, e));
        }
    return RC_OK;
}

static enum rc ask_cache(struct profile *p, struct err *e) {
    json_t *keys = json_array(), *found = NULL;
    char key[HASH_TEXT_SIZE];
    for (size_t l = 0; l < p->table.linear_count; l++)
        for (size_t c = 0; c < p->table.candidate_count; c++)
            if (!drift_at(&p->table, l, c)->known) json_array_append_new(keys, json_string(cache_key(p, l, c, key)));
    enum rc rc = RC_OK;
    if (json_array_size(keys)) rc = p->job->link->lookup(p->job->link->ctx, CACHE_DRIFT, keys, &found, e);
    if (rc == RC_OK && found) rc = take_cached_rows(p, found, e);
    json_decref(keys);
    json_decref(found);
    return rc;
}

/* --- the walks --- */

static enum rc profile_input(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    return profile_measure(&((struct profile *)ctx)->work, job, in, e);
}

/* Completes a row. */
static enum rc profile_score(void *ctx, const struct job *job, int64_t linear, size_t candidate, double fisher,
                             struct err *e) {
    struct profile *p = ctx;
    size_t l = profile_place(&p->work.profiled, linear), c = p->order[candidate];
    drift_at(&p->table, l, c)->scores.fisher = fisher;
    return send_row(p, job, l, c, e);
}

static enum rc send_measured(void *ctx, const struct job *job, size_t l, size_t c, struct err *e) {
    return send_row(ctx, job, l, c, e);
}

static bool any_unknown(const struct profile *p, size_t l) {
    for (size_t c = 0; c < p->table.candidate_count; c++)
        if (!drift_at(&p->table, l, c)->known) return true;
    return false;
}

static bool any_candidate(const struct profile *p, bool (*is)(const struct candidate *)) {
    return candidates_any(p->table.candidates, p->table.candidate_count, is);
}

static int64_t quantizing_bytes(const struct profile *p) {
    size_t two_sided = 0;
    for (size_t c = 0; c < p->table.candidate_count; c++)
        two_sided += candidate_is_two_sided(&p->table.candidates[c]);
    if (!any_candidate(p, candidate_needs_gram)) return 0;
    return input_group_bytes(p->source.model, (int)two_sided);
}

/* What a profile's walk is, whichever way it goes. */
static struct gram_walk gram_walk(struct profile *p, bool *wanted) {
    for (size_t l = 0; l < p->table.linear_count; l++)
        wanted[p->place[l]] = any_unknown(p, l);
    return (struct gram_walk){.job = p->job,
                              .model = p->source.model,
                              .windows = &p->windows,
                              .phase = p->spec->around ? "measure" : "calibrate",
                              .wanted = wanted,
                              .stats = any_candidate(p, candidate_uses_awq),
                              .candidates = p->count,
                              .device_reserved = quantizing_bytes(p),
                              .input = profile_input,
                              .ctx = p};
}

static struct grad_walk grad_walk(struct profile *p, bool *wanted) {
    bool kfac = profile_wants_kfac(p->spec);
    return (struct grad_walk){.gram = gram_walk(p, wanted),
                              .unweighed =
                                  kfac || spec_wants_drift(p->spec) || any_candidate(p, candidate_needs_unweighed_gram),
                              .guided = spec_wants_guided(p->spec),
                              .outer = kfac || any_candidate(p, candidate_is_two_sided),
                              .scored = spec_wants(p->spec, "fisher") ? p->spec->fisher_windows : 0,
                              .seed = (uint64_t)p->spec->calibration->seed,
                              .around = p->around.store,
                              .score = profile_score};
}

static bool walks_back(const struct profile *p) {
    return spec_wants_loss(p->spec) || spec_wants_guided(p->spec);
}

/* Beside what the device says itself. */
static enum rc what_to_do(const struct profile *p, struct err *e) {
    struct err said = *e;
    const char *part = spec_wants(p->spec, "fisher") ? "one candidate of one Linear at a time: " : "";
    bool two_sided = any_candidate(p, candidate_is_two_sided);
    return err_set(e, RC_NO_MEMORY, "%s%s; profile fewer projections at a time with \"layers\"%s", part, said.message,
                   two_sided ? ", or name candidates with \"two_sided\": false" : "");
}

/* What is unknown. Progress does not go back where it is another walk than the first. */
static enum rc walk(struct profile *p, struct grad_walk *g, struct err *e) {
    int64_t tokens = p->windows.count * p->windows.length;
    g->tokens_before = p->walks++ * tokens;
    g->tokens_total = p->walks * tokens;
    p->rounds = spec_wants(p->spec, "fisher") ? grad_walk_rounds(g, g->differences) : 1;
    return walks_back(p) ? grad_walk_run(g, e) : gram_walk_run(&g->gram, e);
}

/* What was measured and waits for its score, which the walk did not get to. */
static void forget_unscored(struct profile *p) {
    if (!spec_wants(p->spec, "fisher")) return;
    for (size_t i = 0; i < p->table.linear_count * p->table.candidate_count; i++) {
        struct drift_row *row = &p->table.rows[i];
        if (!row->known || row->scores.fisher >= 0) continue;
        row->known = false;
        p->computed--;
    }
}

static size_t count_unknown(const struct profile *p) {
    size_t count = 0;
    for (size_t i = 0; i < p->table.linear_count * p->table.candidate_count; i++)
        count += !p->table.rows[i].known;
    return count;
}

/* A device can turn out to have less room than it seemed. What is left then goes in another walk, which holds less:
 * what is left needs fewer Gram matrices, candidates of a Linear come one at a time, and rounds are half as much. As
 * long as a walk gets somewhere, or can hold less. */
static enum rc walk_rounds(struct profile *p, bool *wanted, struct err *e) {
    int64_t last = INT64_MAX;
    size_t before = 0;
    for (int walks = 0;; walks++) {
        size_t left = count_unknown(p);
        p->count = profile_order(&p->table, p->order);
        if (p->count == 0) return RC_OK;
        struct grad_walk g = grad_walk(p, wanted);
        g.differences = grad_walk_differences(&g, walks == 0 ? INT64_MAX : last / 2);
        bool went_together = walks == 1 && p->count > 1;
        if (left == before && g.differences == last && !went_together) return what_to_do(p, e);
        before = left;
        last = g.differences;
        p->work.together = walks == 0;
        enum rc rc = walk(p, &g, e);
        if (rc != RC_NO_MEMORY || !p->job->backend->own_memory) return rc;
        forget_unscored(p);
    }
}

static enum rc walk_unknown(struct profile *p, struct err *e) {
    bool *wanted = xcalloc((size_t)p->source.model->linear_count, sizeof *wanted);
    p->work = (struct profile_work){.spec = p->spec,
                                    .windows = &p->windows,
                                    .profiled = profiled_model(p),
                                    .table = &p->table,
                                    .computed = &p->computed,
                                    .order = p->order,
                                    .send = send_measured,
                                    .ctx = p};
    enum rc rc = walk_rounds(p, wanted, e);
    free(wanted);
    return rc;
}

/* Before anything is computed for it. */
static enum rc check_sweep(const struct profile *p, struct err *e) {
    struct sweep_input swept;
    if (!p->spec->sweep) return RC_OK;
    TRY(sweep_input_init(&swept, json_object_get(p->job->inputs, "sweep"), e));
    json_t *fingerprint = prints_json(p->prints);
    enum rc rc = sweep_input_check_model(&swept, json_string_value(fingerprint), e);
    json_decref(fingerprint);
    sweep_input_release(&swept);
    return rc;
}

/* Also where all rows are there: inversions may be left. */
static enum rc make_around(struct profile *p, struct err *e) {
    if (!p->spec->around) return RC_OK;
    return profile_around_make(p->job, p->source.model, &p->windows, &p->around, e);
}

static enum rc run(struct profile *p, struct err *e) {
    TRY(source_open(p->job, &p->source, e));
    TRY(calibration_windows(&p->source.tokens, p->spec->calibration, &p->windows, e));
    TRY(open_table(p, e));
    TRY(take_earlier_rows(p, e));
    TRY(prints_open(p->job, p->source.model, &p->prints, e));
    TRY(check_sweep(p, e));
    if (p->spec->around) TRY(profile_around_open(p->job, p->source.model, p->prints, &p->around, e));
    fingerprints_chain(p->prints, &p->windows);
    if (!p->spec->around) TRY(ask_cache(p, e));
    TRY(fill_exact_rows(p, e));
    TRY(make_around(p, e));
    double start = monotonic_seconds();
    TRY(walk_unknown(p, e));
    p->seconds = monotonic_seconds() - start;
    struct profiled_model profiled = profiled_model(p);
    struct recheck_args recheck = {.job = p->job,
                                   .profiled = &profiled,
                                   .windows = &p->windows,
                                   .table = &p->table,
                                   .seed = p->spec->calibration->seed,
                                   .around = p->around.store};
    return recheck_inversions(&recheck, &p->inversions, e);
}

static json_t *result_json(const struct profile *p) {
    struct profiled_model profiled = profiled_model(p);
    double tokens = (double)(p->windows.count * p->windows.length);
    return json_pack("{so so sO so so so}", "model", profiled_model_json(&profiled), "calibration",
                     calibration_json(p->spec->calibration, &p->windows, p->job->dataset), "inversions", p->inversions,
                     "totals", drift_totals(&p->table), "above_rtn", drift_guard(&p->table), "rows",
                     json_pack("{sI sI sI sI sf}", "computed", (json_int_t)p->computed, "cached", (json_int_t)p->cached,
                               "resumed", (json_int_t)p->resumed, "rounds", (json_int_t)p->rounds, "tokens_per_second",
                               p->computed && p->seconds > 0 ? tokens / p->seconds : 0.0));
}

/* Of the profile as an allocation would read it. */
static enum rc add_correlation(const struct profile *p, json_t *result, struct err *e) {
    if (!p->spec->sweep) return RC_OK;
    json_t *rows = json_array(), *correlation = NULL;
    for (size_t l = 0; l < p->table.linear_count; l++)
        for (size_t c = 0; c < p->table.candidate_count; c++)
            json_array_append_new(rows,
                                  json_pack("{ss so}", "phase", row_phase, "data", drift_row_encode(&p->table, l, c)));
    json_t *profile = json_pack("{sO so}", "result", result, "rows", rows);
    enum rc rc = correlation_of(profile, json_object_get(p->job->inputs, "sweep"), &correlation, e);
    json_decref(profile);
    TRY(rc);
    json_object_set_new(result, "sweep", json_string(p->spec->sweep));
    json_object_set_new(result, "correlation", correlation);
    return RC_OK;
}

static enum rc make_result(const struct profile *p, json_t **result, struct err *e) {
    *result = result_json(p);
    if (!*result) return err_set(e, RC_INTERNAL, "the profile's result cannot be encoded");
    if (p->spec->around)
        json_object_set_new(*result, "around", profile_around_json(p->job, p->source.model, &p->around));
    enum rc rc = add_correlation(p, *result, e);
    if (rc == RC_OK) return RC_OK;
    json_decref(*result);
    *result = NULL;
    return rc;
}

static void release(struct profile *p) {
    json_decref(p->inversions);
    profile_around_release(&p->around);
    free(p->table.rows);
    free(p->table.linears);
    free(p->place);
    if (p->prints) fingerprints_free(p->prints);
    windows_release(&p->windows);
    source_release(&p->source);
}

enum rc pipeline_profile(const struct job *job, json_t **result, struct err *e) {
    struct profile p = {.job = job, .spec = &job->spec->profile};
    enum rc rc = run(&p, e);
    if (rc == RC_OK) rc = make_result(&p, result, e);
    release(&p);
    return rc;
}
