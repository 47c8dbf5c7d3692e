/* AWQ's search for the scale of each input channel (Lin et al. 2023), judged by the exact output error
 * tr(D H Dᵀ) of every Linear that reads the input, with and without the weights' own share (duo scaling). */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/fold.h"
#include "worker/pipeline/upload.h"

enum { RATIOS = 20, SCALES = 2 * RATIOS };
static const double SCALE_MIN = 1e-4, SHARE_MIN = 1e-4;

/* What the search has in hand. Scale n has the ratio n / RATIOS; from RATIOS on, that of n − RATIOS, with duo. */
struct search {
    const struct input_group *g;
    const struct candidate *const *candidates; /* [g->count] */
    struct mat h;                              /* by which errors are judged */
    int64_t cols;
    double *activity, *share; /* [RATIOS + 1, K] host: mean |x| and the weights' share to the power of each ratio */
    double *scale;            /* [K] host: the one that is made */
    float *factors;           /* [SCALES, 2, K] host: each scale and its reciprocal */
    float *on_device;         /* the same */
    double *sums;             /* [SCALES] device */
    struct mat w[BLOCK_LINEARS_MAX];           /* [count] those that are rounded, */
    struct candidate plain[BLOCK_LINEARS_MAX]; /* and on what grid */
    int count;
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
    double *one = xcalloc((size_t)s->cols, sizeof *one), *share = s->share + s->cols, rows = 0;
    enum rc rc = RC_OK;
    for (int i = 0; rc == RC_OK && i < g->count; i++) {
        if (s->candidates[i]->method == METHOD_NONE) continue;
        struct column_share_args a = {.w = g->w[i], .group = s->candidates[i]->group, .share = one};
        rc = g->job->backend->column_share(g->job->device, &a, e);
        for (int64_t k = 0; rc == RC_OK && k < s->cols; k++)
            share[k] += one[k] * (double)g->w[i].rows;
        rows += (double)g->w[i].rows;
    }
    for (int64_t k = 0; k < s->cols && rows > 0; k++)
        share[k] /= rows;
    free(one);
    return rc;
}

/* Row n of `powers` becomes row 1 to the power n / RATIOS: by products, as there are many. */
static void fill_powers(double *powers, int64_t cols) {
    double *root = powers + cols;
    for (int64_t k = 0; k < cols; k++) {
        powers[k] = 1;
        root[k] = pow(root[k], 1.0 / RATIOS);
    }
    for (int n = 2; n <= RATIOS; n++)
        for (int64_t k = 0; k < cols; k++)
            powers[n * cols + k] = powers[(n - 1) * cols + k] * root[k];
}

/* scale = x^r, or x^r / (w^(1−r) + 1e-4); around 1 in the middle of its range. */
static void make_scale(struct search *s, int n) {
    const double *activity = s->activity + n % RATIOS * s->cols, *share = s->share + (RATIOS - n % RATIOS) * s->cols;
    float *factor = s->factors + 2 * n * s->cols;
    double low = INFINITY, high = 0;
    for (int64_t k = 0; k < s->cols; k++) {
        double value = n >= RATIOS ? activity[k] / (share[k] + SHARE_MIN) : activity[k];
        s->scale[k] = fmax(value, SCALE_MIN);
        low = fmin(low, s->scale[k]);
        high = fmax(high, s->scale[k]);
    }
    double middle = sqrt(low * high);
    for (int64_t k = 0; k < s->cols; k++) {
        factor[k] = (float)(s->scale[k] / middle);
        factor[s->cols + k] = 1 / factor[k];
    }
}

static enum rc make_scales(struct search *s, struct err *e) {
    const struct job *job = s->g->job;
    fill_powers(s->activity, s->cols);
    fill_powers(s->share, s->cols);
    for (int n = 0; n < SCALES; n++)
        make_scale(s, n);
    return job->backend->upload(job->device, s->factors, DTYPE_F32, SCALES * 2 * s->cols, s->on_device, e);
}

/* Σ ‖X (W − Q(W·diag t)·diag t⁻¹)ᵀ‖² over the Linears, rounded to nearest over the whole range, of every scale. */
static enum rc measure_scales(struct search *s, double sums[SCALES], struct err *e) {
    const struct job *job = s->g->job;
    struct scaled_error_args a = {.w = s->w, .candidate = s->plain, .count = s->count, .h = s->h};
    for (int n = 0; n < SCALES; n++) {
        if (job_cancelled(job)) return err_set(e, RC_CANCELLED, "cancelled");
        a.by_col = s->on_device + 2 * n * s->cols;
        a.inverse = a.by_col + s->cols;
        a.sum = s->sums + n;
        TRY(job->backend->scaled_error(job->device, &a, e));
        TRY(job->backend->keep_pace(job->device, e));
    }
    return job->backend->download(job->device, s->sums, SCALES * sizeof *sums, sums, e);
}

/* Scale 0 is none at all: it comes first, and what is no better than it does not replace it. */
static enum rc find_best(struct search *s, int *best, double *gain, struct err *e) {
    double sums[SCALES], least = INFINITY;
    *best = 0;
    TRY(make_scales(s, e));
    TRY(measure_scales(s, sums, e));
    for (int n = 0; n < SCALES; n++) {
        if (!(sums[n] < least)) continue;
        least = sums[n];
        *best = n;
    }
    *gain = sums[0] > 0 ? least / sums[0] : 1;
    return RC_OK;
}

static enum rc scale_gram(const struct search *s, const struct awq_scale *by, struct mat h, struct mat *out,
                          struct err *e) {
    const struct job *job = s->g->job;
    *out = (struct mat){NULL, h.rows, h.cols, h.cols, h.type};
    TRY(job->backend->alloc(job->device, (size_t)(h.rows * h.cols) * dtype_size(h.type), &out->data, e));
    struct scale_args a = {.m = h, .by_row = by->inverse, .by_col = by->inverse, .out = *out};
    return job->backend->scale(job->device, &a, e);
}

static bool is_guided(const struct search *s) {
    for (int i = 0; i < s->g->count; i++)
        if (s->candidates[i]->guided) return true;
    return false;
}

static void choose_linears(struct search *s) {
    for (int i = 0; i < s->g->count; i++) {
        if (s->candidates[i]->method == METHOD_NONE) continue;
        s->w[s->count] = s->g->w[i];
        s->plain[s->count++] = candidate_rtn(s->candidates[i]);
    }
}

static enum rc search_open(struct search *s, struct err *e) {
    const struct job *job = s->g->job;
    size_t channels = (size_t)s->cols;
    void *sums = NULL;
    choose_linears(s);
    s->h = is_guided(s) ? s->g->guided.h : s->g->gram.h;
    s->activity = xcalloc((2 * (RATIOS + 1) + 1) * channels, sizeof *s->activity);
    s->share = s->activity + (RATIOS + 1) * channels;
    s->scale = s->share + (RATIOS + 1) * channels;
    s->factors = xcalloc(SCALES * 2 * channels, sizeof *s->factors);
    for (int64_t k = 0; k < s->cols; k++)
        s->activity[s->cols + k] = s->g->mean_abs[k];
    TRY(device_floats(job, SCALES * 2 * s->cols, &s->on_device, e));
    TRY(job->backend->alloc(job->device, SCALES * sizeof *s->sums, &sums, e));
    s->sums = sums;
    return RC_OK;
}

static void search_close(struct search *s) {
    const struct job *job = s->g->job;
    job->backend->free(job->device, s->on_device);
    job->backend->free(job->device, s->sums);
    free(s->activity);
    free(s->factors);
}

/* by_channel on the device. */
static enum rc upload_channels(const struct search *s, struct awq_scale *out, struct err *e) {
    const struct job *job = s->g->job;
    float *factor = s->factors, *inverse = factor + s->cols; /* the search's are no longer needed */
    for (int64_t k = 0; k < s->cols; k++) {
        factor[k] = (float)out->by_channel[k];
        inverse[k] = 1 / factor[k];
    }
    TRY(device_floats(job, s->cols, &out->by_col, e));
    TRY(device_floats(job, s->cols, &out->inverse, e));
    TRY(job->backend->upload(job->device, factor, DTYPE_F32, s->cols, out->by_col, e));
    return job->backend->upload(job->device, inverse, DTYPE_F32, s->cols, out->inverse, e);
}

/* Scale n as it can be folded, and H as it is with it. */
static enum rc take_scale(const struct search *s, int n, struct awq_scale *out, struct err *e) {
    out->ratio = (double)(n % RATIOS) / RATIOS;
    out->duo = n >= RATIOS;
    out->by_channel = xcalloc((size_t)s->cols, sizeof *out->by_channel);
    for (int64_t k = 0; k < s->cols; k++)
        out->by_channel[k] = s->factors[2 * n * s->cols + k];
    if (s->g->norm) TRY(fold_round_scale(s->g->norm, out->by_channel, e));
    TRY(upload_channels(s, out, e));
    TRY(scale_gram(s, out, s->g->gram.h, &out->gram.h, e));
    return is_guided(s) ? scale_gram(s, out, s->g->guided.h, &out->guided.h, e) : RC_OK;
}

static enum rc run(struct search *s, struct awq_scale *out, struct err *e) {
    int best;
    TRY(search_open(s, e));
    TRY(measure_share(s, e));
    tie(&s->g->ties, s->cols, s->activity + s->cols);
    tie(&s->g->ties, s->cols, s->share + s->cols);
    TRY(find_best(s, &best, &out->gain, e));
    return take_scale(s, best, out, e);
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
