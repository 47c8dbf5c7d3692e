#include "worker/pipeline/profile_input.h"

#include <string.h>

#include "worker/pipeline/gradwalk.h"
#include "worker/pipeline/quantize.h"
#include "worker/pipeline/upload.h"

/* The Linears of one input in the hands of the walk. */
struct bench {
    const struct profile_work *p;
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

bool profile_wants_kfac(const struct spec_profile *spec) {
    return spec_wants(spec, "kfac") || spec_wants(spec, "diag");
}

/* The scores that take no activations. */
static enum rc measure_kfac(struct bench *b, int n, struct mat w_hat, struct drift_row *row, struct err *e) {
    const struct job *job = b->group->job;
    const struct profile_work *p = b->p;
    struct kfac_args a = {.w = b->in->w[n], .w_hat = w_hat, .h = b->in->h, .g = b->in->g[n]};
    struct kfac_report report;
    if (!profile_wants_kfac(p->spec)) return RC_OK;
    TRY(job->backend->kfac(job->device, &a, &report, e));
    if (spec_wants(p->spec, "kfac")) row->scores.kfac = kfac_score(p->windows, at_least_0(report.kfac));
    if (spec_wants(p->spec, "diag")) row->scores.diag = kfac_score(p->windows, at_least_0(report.diag));
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
    const struct drift_table *t = b->p->table;
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

/* `at`: which of the walk. */
static const struct candidate *candidate_at(const struct bench *b, size_t at) {
    return &b->p->table->candidates[b->p->order[at]];
}

static struct drift_row *row_at(const struct bench *b, int n, size_t at) {
    return drift_at(b->p->table, b->place[n], b->p->order[at]);
}

/* Where the difference is wanted for the score that follows; NULL: none does. */
static struct gram_slot *slot_at(const struct bench *b, int n, size_t at) {
    return b->in->slots[n] ? &b->in->slots[n][at] : NULL;
}

/* Candidates of one Linear that are quantized in one call. */
struct batch {
    int n; /* of the input's Linears */
    int count;
    size_t at[GROUP_TOGETHER_MAX];            /* of the walk */
    struct candidate own[GROUP_TOGETHER_MAX]; /* as this Linear has them */
    struct quantized q[GROUP_TOGETHER_MAX];
    struct group_quantize_args args[GROUP_TOGETHER_MAX];
};

static enum rc measure_row(struct bench *b, const struct batch *batch, int i, struct drift_row *row, struct err *e) {
    const struct profile_work *p = b->p;
    int n = batch->n;
    const struct candidate *c = candidate_at(b, batch->at[i]);
    const struct group_quantize_args *a = &batch->args[i];
    struct mat w_hat = matf(b->w_hat, batch->q[i].rows, batch->q[i].cols), none = {0};
    struct gram_slot *slot = slot_at(b, n, batch->at[i]);
    struct error_report report;
    TRY(group_dequantize(a, w_hat, e));
    TRY(measure(b, n, w_hat, slot ? slot->d : none, &report, e));
    if (slot) slot->filled = true;
    *row = drift_row_measured(&report, spec_wants_drift(p->spec), candidate_bytes(c, w_hat.rows, w_hat.cols));
    TRY(measure_kfac(b, n, w_hat, row, e));
    if (spec_wants_drift(p->spec)) TRY(measure_rtn(b, n, c, w_hat, &row->rtn_drift, e));
    if (candidate_uses_gptq(c)) row->damp = group_gram(b->group, a->scale, c)->factor.damp;
    if (candidate_uses_awq(c)) row->awq_gain = a->scale->by_col ? a->scale->gain : -1;
    return RC_OK;
}

/* And sends it, unless it waits for a score. */
static enum rc fill_row(struct bench *b, const struct batch *batch, int i, struct err *e) {
    const struct profile_work *p = b->p;
    struct drift_row row = {0};
    TRY(measure_row(b, batch, i, &row, e));
    *row_at(b, batch->n, batch->at[i]) = row;
    (*p->computed)++;
    if (b->in->slots[batch->n]) return RC_OK;
    return p->send(p->ctx, b->group->job, b->place[batch->n], p->order[batch->at[i]], e);
}

static enum rc quantize_batch(struct bench *b, struct batch *batch, struct awq_scale *scale, struct err *e) {
    const struct job *job = b->group->job;
    struct mat w = b->in->w[batch->n];
    for (int i = 0; i < batch->count; i++) {
        batch->own[i] = candidate_for(candidate_at(b, batch->at[i]), b->p->table->linears[b->place[batch->n]]);
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

static bool is_unknown(const struct bench *b, int n, size_t at) {
    return b->in->mine[n] && !row_at(b, n, at)->known;
}

static enum rc fill_batches(struct bench *b, int n, const struct gram_share *t, struct awq_scale *scale,
                            struct err *e) {
    int most = 1;
    if (b->p->together && t->end > t->first + 1)
        TRY(input_group_together(b->group, n, candidate_at(b, t->first), &most, e));
    for (size_t at = t->first; at < t->end;) {
        struct batch batch = {.n = n};
        for (; at < t->end && batch.count < most; at++)
            if (is_unknown(b, n, at)) batch.at[batch.count++] = at;
        if (batch.count == 0) break;
        TRY(fill_batch(b, &batch, scale, e));
    }
    return RC_OK;
}

static bool any_unknown_at(const struct bench *b, int n, const struct gram_share *t) {
    for (size_t at = t->first; at < t->end; at++)
        if (is_unknown(b, n, at)) return true;
    return false;
}

static enum rc fill_linear(struct bench *b, int n, const struct gram_share *t, struct awq_scale *scale, struct err *e) {
    if (!any_unknown_at(b, n, t)) return RC_OK;
    enum rc rc = fill_batches(b, n, t, scale, e);
    return rc == RC_OK ? RC_OK : err_context(e, "%s", b->p->table->linears[b->place[n]]->name);
}

/* AWQ's scale is for all the Linears of the input, as if all had this candidate. */
static enum rc find_scale(const struct bench *b, const struct candidate *c, struct awq_scale *scale, struct err *e) {
    const struct candidate *all[BLOCK_LINEARS_MAX];
    for (int n = 0; n < b->in->count; n++)
        all[n] = c;
    return awq_search(b->group, all, scale, e);
}

static bool any_unknown_of(const struct bench *b, const struct gram_share *t) {
    for (int n = 0; n < b->in->count; n++)
        if (any_unknown_at(b, n, t)) return true;
    return false;
}

/* One candidate, or some that are two-sided and share a factor. */
static enum rc fill_together(struct bench *b, const struct gram_share *t, struct err *e) {
    const struct candidate *first = candidate_at(b, t->first);
    struct awq_scale scale = {0};
    if (!any_unknown_of(b, t)) return RC_OK;
    enum rc rc = candidate_uses_awq(first) ? find_scale(b, first, &scale, e) : RC_OK;
    for (int n = 0; n < b->in->count && rc == RC_OK; n++)
        rc = fill_linear(b, n, t, &scale, e);
    awq_scale_release(b->group->job, &scale);
    return rc;
}

static bool goes_together(const struct candidate *a, const struct candidate *b) {
    return a->two_sided && b->two_sided && candidates_share_factor(a, b);
}

static enum rc fill_all(struct bench *b, struct err *e) {
    size_t end = b->in->candidates.end;
    for (struct gram_share t = b->in->candidates; t.first < end; t.first = t.end) {
        const struct candidate *first = candidate_at(b, t.first);
        t.end = t.first + 1;
        while (t.end < end && goes_together(first, candidate_at(b, t.end)))
            t.end++;
        TRY(fill_together(b, &t, e));
    }
    return RC_OK;
}

enum rc profile_measure(const struct profile_work *work, const struct job *job, const struct gram_input *in,
                        struct err *e) {
    struct input_group group = gram_input_group(job, work->profiled.model, in);
    struct bench b = {.p = work, .group = &group, .in = in};
    group.foldable = group.foldable && profiled_can_fold(&work->profiled, in->block, in->input);
    int64_t most = 0;
    for (int n = 0; n < in->count; n++) {
        if (!in->mine[n]) continue;
        b.place[n] = profile_place(&work->profiled, in->index[n]);
        if (in->w[n].rows > most) most = in->w[n].rows;
    }
    enum rc rc = device_floats(job, most * in->w[0].cols, &b.w_hat, e);
    if (rc == RC_OK) rc = fill_all(&b, e);
    if (b.w_hat) job->backend->free(job->device, b.w_hat);
    input_group_release(&group);
    return rc;
}

size_t profile_place(const struct profiled_model *profiled, int64_t index) {
    size_t l = 0;
    while (profiled->place[l] != index)
        l++;
    return l;
}

/* --- the order --- */

static bool any_unknown_row(const struct drift_table *t, size_t c) {
    for (size_t l = 0; l < t->linear_count; l++)
        if (!drift_at(t, l, c)->known) return true;
    return false;
}

struct ordering {
    size_t *order, count;
    bool done[CANDIDATES_MAX];
};

/* The candidate, and those after it that share its factor, as far as they have so many sides. */
static void add_sharing(const struct drift_table *t, size_t c, bool two_sided, struct ordering *o) {
    for (size_t other = c; other < t->candidate_count; other++) {
        const struct candidate *candidate = &t->candidates[other];
        bool shares = other == c || candidates_share_factor(&t->candidates[c], candidate);
        if (o->done[other] || !shares || candidate->two_sided != two_sided) continue;
        o->done[other] = true;
        o->order[o->count++] = other;
    }
}

size_t profile_order(const struct drift_table *t, size_t order[CANDIDATES_MAX]) {
    struct ordering o = {.order = order};
    for (size_t c = 0; c < t->candidate_count; c++)
        o.done[c] = !any_unknown_row(t, c);
    for (size_t c = 0; c < t->candidate_count; c++) {
        if (o.done[c]) continue;
        add_sharing(t, c, false, &o);
        add_sharing(t, c, true, &o);
    }
    return o.count;
}
