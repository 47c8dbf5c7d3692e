/* profile: the drift of every Linear at every candidate, from one walk that accumulates H = XᵀX; and what it costs in
 * nats where scores of the loss are asked for, from the same walk on its way back.
 *
 * A row comes from an earlier attempt, from the cache, or from the walk, in this order; the walk covers only what is
 * left. Rows are phase "drift", index = Linear · candidates + candidate. Inversions are rechecked at the end.
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
#include "worker/pipeline/quantize.h"
#include "worker/pipeline/recheck.h"
#include "worker/pipeline/source.h"
#include "worker/pipeline/upload.h"

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
    double seconds; /* of the walk */
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

/* The Linears of one input in the hands of the walk. */
struct bench {
    struct profile *p;
    struct input_group *group;
    const struct gram_input *in;
    size_t place[BLOCK_LINEARS_MAX];     /* in the table; meaningless where the Linear is not ours to measure */
    double drift_den[BLOCK_LINEARS_MAX]; /* tr(W H Wᵀ); 0: not known yet */
    float *w_hat;                        /* [N, K] of the widest */
};

/* What a candidate does to a Linear, AWQ's scale taken out again of `w_hat`; `difference` as in struct error_args. */
static enum rc measure(struct bench *b, int n, struct mat w_hat, struct mat difference, struct error_report *report,
                       struct err *e) {
    const struct job *job = b->group->job;
    struct error_args error = {.w = b->in->w[n], .w_hat = w_hat, .difference = difference};
    if (spec_wants_drift(b->p->spec)) error.h = b->in->h;
    if (b->drift_den[n] > 0) error.drift_den = &b->drift_den[n];
    TRY(job->backend->error(job->device, &error, report, e));
    b->drift_den[n] = report->drift_den;
    return RC_OK;
}

/* Rounding may leave less of nothing; what is no number stays one. */
static double at_least_0(double trace) {
    return trace < 0 ? 0 : trace;
}

static bool wants_kfac(const struct profile *p) {
    return spec_wants(p->spec, "kfac") || spec_wants(p->spec, "diag");
}

/* The scores that take no activations. */
static enum rc measure_kfac(struct bench *b, int n, struct mat w_hat, struct drift_row *row, struct err *e) {
    const struct job *job = b->group->job;
    const struct profile *p = b->p;
    struct kfac_args a = {.w = b->in->w[n], .w_hat = w_hat, .h = b->in->h, .g = b->in->g[n]};
    struct kfac_report report;
    if (!wants_kfac(p)) return RC_OK;
    TRY(job->backend->kfac(job->device, &a, &report, e));
    if (spec_wants(p->spec, "kfac")) row->scores.kfac = kfac_score(&p->windows, at_least_0(report.kfac));
    if (spec_wants(p->spec, "diag")) row->scores.diag = kfac_score(&p->windows, at_least_0(report.diag));
    return RC_OK;
}

/* Whether RTN on the first one's grid is what the other is held against, or the other itself. */
static bool same_rtn(const struct candidate *c, const struct candidate *other) {
    char left[CANDIDATE_ID_SIZE], right[CANDIDATE_ID_SIZE];
    struct candidate own = candidate_rtn(c), its = other->method == METHOD_RTN ? *other : candidate_rtn(other);
    if (other->method != METHOD_RTN && !drift_is_guarded(other)) return false;
    its.layout = own.layout; /* does not change a weight */
    return !strcmp(candidate_id(&own, left), candidate_id(&its, right));
}

/* RTN's drift beside a candidate's: measured once for all with the same grid. */
static enum rc measure_rtn(struct bench *b, int n, const struct candidate *c, struct mat w_hat, double *drift,
                           struct err *e) {
    const struct drift_table *t = &b->p->table;
    struct candidate plain = candidate_rtn(c);
    struct group_quantize_args simple = {.group = b->group, .index = n, .candidate = &plain};
    struct error_report report;
    *drift = 0;
    if (!drift_is_guarded(c)) return RC_OK;
    for (size_t i = 0; i < t->candidate_count; i++) {
        const struct candidate *other = &t->candidates[i];
        const struct drift_row *row = drift_at(t, b->place[n], i);
        if (other == c || !row->known || row->cached || !same_rtn(c, other)) continue;
        *drift = other->method == METHOD_RTN ? row->drift : row->rtn_drift;
        return RC_OK;
    }
    TRY(group_quantize_effective(&simple, w_hat, e));
    TRY(measure(b, n, w_hat, (struct mat){0}, &report, e));
    *drift = error_ratio(report.drift_num, report.drift_den);
    return RC_OK;
}

static size_t place_of(const struct bench *b, const struct candidate *c) {
    return (size_t)(c - b->p->table.candidates);
}

/* Where the difference is wanted for the score that follows; NULL: none does. */
static struct gram_slot *slot_of(const struct bench *b, int n, const struct candidate *c) {
    return b->in->slots[n] ? &b->in->slots[n][place_of(b, c)] : NULL;
}

/* Candidates of one Linear that are quantized in one call. */
struct batch {
    int n; /* of the input's Linears */
    int count;
    const struct candidate *listed[GROUP_TOGETHER_MAX]; /* in the table */
    struct candidate own[GROUP_TOGETHER_MAX];           /* as this Linear has them */
    struct quantized q[GROUP_TOGETHER_MAX];
    struct group_quantize_args args[GROUP_TOGETHER_MAX];
};

static enum rc fill_row(struct bench *b, const struct batch *batch, int i, struct err *e) {
    struct profile *p = b->p;
    int n = batch->n;
    const struct candidate *c = batch->listed[i];
    const struct group_quantize_args *a = &batch->args[i];
    struct mat w_hat = matf(b->w_hat, batch->q[i].rows, batch->q[i].cols), none = {0};
    struct drift_row *row = drift_at(&p->table, b->place[n], place_of(b, c));
    struct gram_slot *slot = slot_of(b, n, c);
    struct error_report report;
    TRY(group_dequantize(a, w_hat, e));
    TRY(measure(b, n, w_hat, slot ? slot->d : none, &report, e));
    if (slot) slot->filled = true;
    *row = drift_row_measured(&report, spec_wants_drift(p->spec), candidate_bytes(c, w_hat.rows, w_hat.cols));
    TRY(measure_kfac(b, n, w_hat, row, e));
    if (spec_wants_drift(p->spec)) TRY(measure_rtn(b, n, c, w_hat, &row->rtn_drift, e));
    if (candidate_uses_gptq(c)) row->damp = group_gram(b->group, a->scale, c)->factor.damp;
    if (candidate_uses_awq(c)) row->awq_gain = a->scale->by_col ? a->scale->gain : -1;
    p->computed++;
    return RC_OK;
}

static enum rc quantize_batch(struct bench *b, struct batch *batch, struct awq_scale *scale, struct err *e) {
    const struct job *job = b->group->job;
    struct mat w = b->in->w[batch->n];
    for (int i = 0; i < batch->count; i++) {
        batch->own[i] = candidate_for(batch->listed[i], b->p->table.linears[b->place[batch->n]]);
        batch->args[i] = (struct group_quantize_args){b->group, batch->n, &batch->own[i], scale, &batch->q[i]};
        TRY(quantized_alloc(job->backend, job->device, w.rows, w.cols, &batch->own[i], &batch->q[i], e));
    }
    return group_quantize(batch->args, batch->count, e);
}

static enum rc fill_batch(struct bench *b, struct batch *batch, struct awq_scale *scale, struct err *e) {
    const struct job *job = b->group->job;
    enum rc rc = quantize_batch(b, batch, scale, e);
    for (int i = 0; i < batch->count && rc == RC_OK; i++)
        rc = fill_row(b, batch, i, e);
    for (int i = 0; i < batch->count; i++)
        quantized_release(job->backend, job->device, &batch->q[i]);
    return rc;
}

/* But for rows that wait for a score. */
static enum rc send_batch(const struct bench *b, const struct batch *batch, struct err *e) {
    for (int i = 0; i < batch->count && !b->in->slots[batch->n]; i++)
        TRY(send_row(b->p, b->group->job, b->place[batch->n], place_of(b, batch->listed[i]), e));
    return RC_OK;
}

/* Candidates that are handed over together: one, or some that are two-sided and share a factor. */
struct together {
    const struct candidate *items[CANDIDATES_MAX];
    int count;
};

static bool is_unknown(const struct bench *b, int n, const struct candidate *c) {
    return b->in->mine[n] && !drift_at(&b->p->table, b->place[n], place_of(b, c))->known;
}

static enum rc fill_linear(struct bench *b, int n, const struct together *t, struct awq_scale *scale, struct err *e) {
    struct mat w = b->in->w[n];
    int most = t->count > 1 ? input_group_together(b->group->job, b->p->source.model, w.rows * w.cols) : 1;
    for (int i = 0; i < t->count;) {
        struct batch batch = {.n = n};
        for (; i < t->count && batch.count < most; i++)
            if (is_unknown(b, n, t->items[i])) batch.listed[batch.count++] = t->items[i];
        if (batch.count == 0) break;
        if (fill_batch(b, &batch, scale, e) != RC_OK)
            return err_context(e, "%s", b->p->table.linears[b->place[n]]->name);
        TRY(send_batch(b, &batch, e));
    }
    return RC_OK;
}

/* AWQ's scale is for all the Linears of the input, as if all had this candidate. */
static enum rc find_scale(const struct bench *b, const struct candidate *c, struct awq_scale *scale, struct err *e) {
    const struct candidate *all[BLOCK_LINEARS_MAX];
    for (int n = 0; n < b->in->count; n++)
        all[n] = c;
    return awq_search(b->group, all, scale, e);
}

static bool any_unknown_of(const struct bench *b, const struct together *t) {
    for (int n = 0; n < b->in->count; n++)
        for (int i = 0; i < t->count; i++)
            if (is_unknown(b, n, t->items[i])) return true;
    return false;
}

static enum rc fill_together(struct bench *b, const struct together *t, struct err *e) {
    struct awq_scale scale = {0};
    if (t->count == 0 || !any_unknown_of(b, t)) return RC_OK;
    enum rc rc = candidate_uses_awq(t->items[0]) ? find_scale(b, t->items[0], &scale, e) : RC_OK;
    for (int n = 0; n < b->in->count && rc == RC_OK; n++)
        rc = fill_linear(b, n, t, &scale, e);
    awq_scale_release(b->group->job, &scale);
    return rc;
}

/* Those that share a factor of H one after the other, the two-sided of them together; else as they are listed. */
static enum rc fill_candidates(struct bench *b, struct err *e) {
    const struct drift_table *t = &b->p->table;
    bool done[CANDIDATES_MAX] = {0};
    for (size_t c = 0; c < t->candidate_count; c++) {
        struct together two_sided = {.count = 0};
        for (size_t other = c; other < t->candidate_count; other++) {
            const struct candidate *candidate = &t->candidates[other];
            bool now = other == c || candidates_share_factor(&t->candidates[c], candidate);
            if (done[other] || !now) continue;
            done[other] = true;
            if (candidate->two_sided)
                two_sided.items[two_sided.count++] = candidate;
            else
                TRY(fill_together(b, &(struct together){{candidate}, 1}, e));
        }
        TRY(fill_together(b, &two_sided, e));
    }
    return RC_OK;
}

static size_t table_place(const struct profile *p, int64_t index) {
    size_t l = 0;
    while (p->place[l] != index)
        l++;
    return l;
}

static enum rc profile_input(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    struct profile *p = ctx;
    struct input_group group = gram_input_group(job, p->source.model, in);
    struct profiled_model profiled = profiled_model(p);
    struct bench b = {.p = p, .group = &group, .in = in};
    group.foldable = group.foldable && profiled_can_fold(&profiled, in->block, in->input);
    int64_t most = 0;
    for (int n = 0; n < in->count; n++) {
        if (!in->mine[n]) continue;
        b.place[n] = table_place(p, in->index[n]);
        if (in->w[n].rows > most) most = in->w[n].rows;
    }
    enum rc rc = device_floats(job, most * in->w[0].cols, &b.w_hat, e);
    if (rc == RC_OK) rc = fill_candidates(&b, e);
    if (b.w_hat) job->backend->free(job->device, b.w_hat);
    input_group_release(&group);
    return rc;
}

/* Completes a row. */
static enum rc profile_score(void *ctx, const struct job *job, int64_t linear, size_t candidate, double fisher,
                             struct err *e) {
    struct profile *p = ctx;
    size_t l = table_place(p, linear);
    drift_at(&p->table, l, candidate)->scores.fisher = fisher;
    return send_row(p, job, l, candidate, e);
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
    int two_sided = 0;
    for (size_t c = 0; c < p->table.candidate_count; c++)
        two_sided += candidate_is_two_sided(&p->table.candidates[c]);
    return any_candidate(p, candidate_needs_gram) ? input_group_bytes(p->source.model, two_sided) : 0;
}

static enum rc walk_back(struct profile *p, const struct gram_walk *walk, struct err *e) {
    bool fisher = spec_wants(p->spec, "fisher"), kfac = wants_kfac(p);
    struct grad_walk g = {.gram = *walk,
                          .unweighed =
                              kfac || spec_wants_drift(p->spec) || any_candidate(p, candidate_needs_unweighed_gram),
                          .guided = spec_wants_guided(p->spec),
                          .outer = kfac || any_candidate(p, candidate_is_two_sided),
                          .candidates = fisher ? p->table.candidate_count : 0,
                          .scored = fisher ? p->spec->fisher_windows : 0,
                          .seed = (uint64_t)p->spec->calibration->seed,
                          .around = p->around.store,
                          .score = profile_score};
    return grad_walk_run(&g, e);
}

static enum rc walk_unknown(struct profile *p, struct err *e) {
    bool *wanted = xcalloc((size_t)p->source.model->linear_count, sizeof *wanted);
    for (size_t l = 0; l < p->table.linear_count; l++)
        wanted[p->place[l]] = any_unknown(p, l);
    struct gram_walk g = {.job = p->job,
                          .model = p->source.model,
                          .windows = &p->windows,
                          .phase = p->spec->around ? "measure" : "calibrate",
                          .wanted = wanted,
                          .stats = any_candidate(p, candidate_uses_awq),
                          .device_reserved = quantizing_bytes(p),
                          .input = profile_input,
                          .ctx = p};
    bool back = spec_wants_loss(p->spec) || spec_wants_guided(p->spec);
    enum rc rc = back ? walk_back(p, &g, e) : gram_walk_run(&g, e);
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
                     json_pack("{sI sI sI sf}", "computed", (json_int_t)p->computed, "cached", (json_int_t)p->cached,
                               "resumed", (json_int_t)p->resumed, "tokens_per_second",
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
