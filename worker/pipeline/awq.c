/* AWQ's search for the scale of each input channel (Lin et al. 2023; algorithms §5), judged by the exact output error
 * tr(D H Dᵀ) of every Linear that reads the input, with and without the weights' own share (duo scaling). */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/input_group.h"
#include "worker/pipeline/upload.h"

enum { RATIOS = 20 };
static const double SCALE_MIN = 1e-4, SHARE_MIN = 1e-4;

/* What the search has in hand. */
struct search {
    const struct input_group *g;
    const struct candidate *const *candidates; /* [g->count] */
    struct mat h;                              /* by which errors are judged */
    int64_t cols;
    double *activity, *share, *scale;      /* [K] host: mean |x|, the weights' share, the scale under trial */
    float *upload;                         /* [2, K] host */
    struct mat scaled, w_hat;              /* [N, K] device, of the widest Linear */
    float *by_col, *inverse;               /* [K] device */
    double *denominators;                  /* [g->count] tr(W H Wᵀ); NAN: not known yet */
    struct quantized q[BLOCK_LINEARS_MAX]; /* by Linear, for every scale anew */
};

/* Tied channels have one value: the mean of all. */
static void tie(const struct channel_ties *t, int64_t cols, double *values) {
    if (t->repeats < 2) return;
    int64_t span = t->repeats * t->width;
    for (int64_t from = 0; from + span <= cols; from += span)
        for (int64_t j = 0; j < t->width; j++) {
            double sum = 0;
            for (int64_t r = 0; r < t->repeats; r++)
                sum += values[from + r * t->width + j];
            for (int64_t r = 0; r < t->repeats; r++)
                values[from + r * t->width + j] = sum / (double)t->repeats;
        }
}

/* The mean over all rows of all Linears. */
static enum rc measure_share(struct search *s, struct err *e) {
    const struct input_group *g = s->g;
    double *one = xcalloc((size_t)s->cols, sizeof *one), rows = 0;
    enum rc rc = RC_OK;
    for (int i = 0; rc == RC_OK && i < g->count; i++) {
        if (s->candidates[i]->method == METHOD_NONE) continue;
        struct column_share_args a = {.w = g->w[i], .group = s->candidates[i]->group, .share = one};
        rc = g->job->backend->column_share(g->job->device, &a, e);
        for (int64_t k = 0; rc == RC_OK && k < s->cols; k++)
            s->share[k] += one[k] * (double)g->w[i].rows;
        rows += (double)g->w[i].rows;
    }
    for (int64_t k = 0; k < s->cols && rows > 0; k++)
        s->share[k] /= rows;
    free(one);
    return rc;
}

/* scale = x^r, or x^r / (w^(1−r) + 1e-4); around 1 in the middle of its range. */
static void make_scale(struct search *s, double ratio, bool duo) {
    double low = INFINITY, high = 0;
    for (int64_t k = 0; k < s->cols; k++) {
        double value = pow(s->activity[k], ratio);
        if (duo) value /= pow(s->share[k], 1 - ratio) + SHARE_MIN;
        s->scale[k] = fmax(value, SCALE_MIN);
        low = fmin(low, s->scale[k]);
        high = fmax(high, s->scale[k]);
    }
    double middle = sqrt(low * high);
    for (int64_t k = 0; k < s->cols; k++)
        s->scale[k] /= middle;
}

static enum rc upload_scale(struct search *s, struct err *e) {
    const struct job *job = s->g->job;
    for (int64_t k = 0; k < s->cols; k++) {
        s->upload[k] = (float)s->scale[k];
        s->upload[s->cols + k] = 1 / s->upload[k];
    }
    TRY(job->backend->upload(job->device, s->upload, DTYPE_F32, s->cols, s->by_col, e));
    return job->backend->upload(job->device, s->upload + s->cols, DTYPE_F32, s->cols, s->inverse, e);
}

/* ‖X (W − Q(W·diag t)·diag t⁻¹)ᵀ‖² of one Linear, rounded to nearest over the whole range. */
static enum rc output_error(struct search *s, int i, double *sum, struct err *e) {
    const struct job *job = s->g->job;
    const struct backend *b = job->backend;
    struct mat w = s->g->w[i], scaled = matf(s->scaled.data, w.rows, w.cols),
               back = matf(s->w_hat.data, w.rows, w.cols);
    struct candidate plain = candidate_rtn(s->candidates[i]);
    struct quantize_report unread;
    struct error_report report;
    if (!s->q[i].codes) TRY(quantized_alloc(b, job->device, w.rows, w.cols, &plain, &s->q[i], e));
    TRY(b->scale(job->device, &(struct scale_args){.m = w, .by_col = s->by_col, .out = scaled}, e));
    struct quantize_args a = {.w = scaled, .candidate = plain, .out = &s->q[i], .report = &unread};
    TRY(b->quantize(job->device, &a, e));
    TRY(b->dequantize(job->device, &(struct dequantize_args){.q = &s->q[i], .by_col = s->inverse, .out = back}, e));
    const double *known = isnan(s->denominators[i]) ? NULL : &s->denominators[i];
    struct error_args error = {.w = w, .w_hat = back, .h = s->h, .drift_den = known};
    TRY(b->error(job->device, &error, &report, e));
    s->denominators[i] = report.drift_den;
    *sum += report.drift_num;
    return RC_OK;
}

static enum rc try_scale(struct search *s, double *sum, struct err *e) {
    *sum = 0;
    if (job_cancelled(s->g->job)) return err_set(e, RC_CANCELLED, "cancelled");
    TRY(upload_scale(s, e));
    for (int i = 0; i < s->g->count; i++)
        if (s->candidates[i]->method != METHOD_NONE) TRY(output_error(s, i, sum, e));
    return RC_OK;
}

/* Ratio 0 without duo is no scale at all: it comes first, and what is no better than it does not replace it. */
static enum rc find_best(struct search *s, struct awq_scale *out, struct err *e) {
    double least = INFINITY, plain = 0, sum;
    for (int n = 0; n < 2 * RATIOS; n++) {
        bool duo = n >= RATIOS;
        double ratio = (double)(n % RATIOS) / RATIOS;
        make_scale(s, ratio, duo);
        TRY(try_scale(s, &sum, e));
        if (n == 0) plain = sum;
        if (!(sum < least)) continue;
        least = sum;
        out->ratio = ratio;
        out->duo = duo;
    }
    out->gain = plain > 0 ? least / plain : 1;
    make_scale(s, out->ratio, out->duo);
    return upload_scale(s, e);
}

static enum rc scale_gram(const struct search *s, struct mat h, struct mat *out, struct err *e) {
    const struct job *job = s->g->job;
    *out = (struct mat){NULL, h.rows, h.cols, h.cols, h.type};
    TRY(job->backend->alloc(job->device, (size_t)(h.rows * h.cols) * dtype_size(h.type), &out->data, e));
    struct scale_args a = {.m = h, .by_row = s->inverse, .by_col = s->inverse, .out = *out};
    return job->backend->scale(job->device, &a, e);
}

static bool is_guided(const struct search *s) {
    for (int i = 0; i < s->g->count; i++)
        if (s->candidates[i]->guided) return true;
    return false;
}

static enum rc search_open(struct search *s, struct err *e) {
    const struct input_group *g = s->g;
    size_t channels = (size_t)s->cols;
    int64_t most = 0;
    for (int i = 0; i < g->count; i++)
        if (g->w[i].rows > most) most = g->w[i].rows;
    s->activity = xcalloc(3 * channels, sizeof *s->activity);
    s->share = s->activity + channels;
    s->scale = s->share + channels;
    s->upload = xcalloc(2 * channels, sizeof *s->upload);
    s->denominators = xcalloc((size_t)g->count, sizeof *s->denominators);
    for (int i = 0; i < g->count; i++)
        s->denominators[i] = NAN;
    for (int64_t k = 0; k < s->cols; k++)
        s->activity[k] = g->mean_abs[k];
    float *scaled = NULL, *w_hat = NULL;
    enum rc rc = device_floats(g->job, most * s->cols, &scaled, e);
    if (rc == RC_OK) rc = device_floats(g->job, most * s->cols, &w_hat, e);
    if (rc == RC_OK) rc = device_floats(g->job, s->cols, &s->by_col, e);
    if (rc == RC_OK) rc = device_floats(g->job, s->cols, &s->inverse, e);
    s->scaled.data = scaled;
    s->w_hat.data = w_hat;
    return rc;
}

static void search_close(struct search *s) {
    const struct job *job = s->g->job;
    for (int i = 0; i < s->g->count; i++)
        quantized_release(job->backend, job->device, &s->q[i]);
    job->backend->free(job->device, s->scaled.data);
    job->backend->free(job->device, s->w_hat.data);
    job->backend->free(job->device, s->by_col);
    job->backend->free(job->device, s->inverse);
    free(s->activity);
    free(s->upload);
    free(s->denominators);
}

static enum rc run(struct search *s, struct awq_scale *out, struct err *e) {
    s->h = is_guided(s) ? s->g->guided.h : s->g->gram.h;
    TRY(search_open(s, e));
    TRY(measure_share(s, e));
    tie(&s->g->ties, s->cols, s->activity);
    tie(&s->g->ties, s->cols, s->share);
    TRY(find_best(s, out, e));
    TRY(scale_gram(s, s->g->gram.h, &out->gram.h, e));
    if (is_guided(s)) TRY(scale_gram(s, s->g->guided.h, &out->guided.h, e));
    out->by_channel = xcalloc((size_t)s->cols, sizeof *out->by_channel);
    for (int64_t k = 0; k < s->cols; k++)
        out->by_channel[k] = s->upload[k];
    out->by_col = s->by_col;
    out->inverse = s->inverse;
    s->by_col = s->inverse = NULL;
    return RC_OK;
}

enum rc awq_search(const struct input_group *g, const struct candidate *const *candidates, struct awq_scale *out,
                   struct err *e) {
    *out = (struct awq_scale){.gain = 1};
    if (!g->foldable) return RC_OK;
    struct search s = {.g = g, .candidates = candidates, .cols = g->gram.h.cols};
    enum rc rc = run(&s, out, e);
    search_close(&s);
    if (rc != RC_OK) awq_scale_release(g->job, out);
    return rc;
}

void awq_scale_release(const struct job *job, struct awq_scale *s) {
    free(s->by_channel);
    job->backend->free(job->device, s->by_col);
    job->backend->free(job->device, s->inverse);
    job->backend->free(job->device, s->gram.h.data);
    job->backend->free(job->device, s->guided.h.data);
    factor_release(job->backend, job->device, &s->gram.factor);
    factor_release(job->backend, job->device, &s->guided.factor);
    *s = (struct awq_scale){0};
}
