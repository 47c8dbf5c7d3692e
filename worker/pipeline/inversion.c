#include "worker/pipeline/inversion.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "worker/pipeline/drift.h"
#include "worker/pipeline/upload.h"

/* Host copies: doubles are trusted there, and the device's memory may not be ours to read. */
struct copies {
    float *w, *w_hat; /* [N, K] */
    double *h, *row;  /* [K, K], [K] */
    float *device;    /* [N, K] ŵ where the backend writes it */
    double energy;    /* tr(W H Wᵀ) */
};

/* In place, from the end, so that nothing is overwritten before it is read. */
static void widen_to_doubles(double *values, int64_t count) {
    for (int64_t i = count - 1; i >= 0; i--) {
        float narrow;
        memcpy(&narrow, (const char *)values + (size_t)i * sizeof narrow, sizeof narrow);
        values[i] = narrow;
    }
}

static enum rc copies_open(const struct inversion_args *a, struct copies *c, struct err *e) {
    struct mat w = a->group->w[a->index], h = a->group->gram.h;
    int64_t count = w.rows * w.cols, squares = h.rows * h.cols;
    c->w = malloc((size_t)count * sizeof *c->w);
    c->w_hat = malloc((size_t)count * sizeof *c->w_hat);
    c->h = malloc((size_t)squares * sizeof *c->h);
    c->row = malloc((size_t)w.cols * sizeof *c->row);
    if (!c->w || !c->w_hat || !c->h || !c->row) return err_set(e, RC_NO_MEMORY, "no memory to recompute an inversion");
    const struct job *job = a->group->job;
    TRY(device_floats(job, count, &c->device, e));
    TRY(download_floats(job, w, c->w, e));
    TRY(job->backend->download(job->device, h.data, (size_t)squares * dtype_size(h.type), c->h, e));
    if (h.type == DTYPE_F32) widen_to_doubles(c->h, squares);
    return RC_OK;
}

static void copies_release(const struct job *job, struct copies *c) {
    if (c->device) job->backend->free(job->device, c->device);
    free(c->w);
    free(c->w_hat);
    free(c->h);
    free(c->row);
}

/* d H dᵀ of one row [K]. */
static double row_energy(const double *d, const double *h, int64_t cols) {
    double sum = 0;
    for (int64_t i = 0; i < cols; i++) {
        double hd = 0;
        for (int64_t j = 0; j < cols; j++)
            hd += h[i * cols + j] * d[j];
        sum += d[i] * hd;
    }
    return sum;
}

/* tr(D H Dᵀ), D = W − Ŵ; of W itself when w_hat is NULL. */
static enum rc energy(const struct inversion_args *a, struct copies *c, const float *w_hat, double *out,
                      struct err *e) {
    int64_t rows = a->group->w[a->index].rows, cols = a->group->w[a->index].cols;
    *out = 0;
    for (int64_t n = 0; n < rows; n++) {
        if (job_cancelled(a->group->job)) return err_set(e, RC_CANCELLED, "cancelled");
        for (int64_t k = 0; k < cols; k++)
            c->row[k] = (double)c->w[n * cols + k] - (w_hat ? (double)w_hat[n * cols + k] : 0);
        *out += row_energy(c->row, c->h, cols);
    }
    return RC_OK;
}

static enum rc drift(const struct inversion_args *a, struct copies *c, const struct candidate *candidate, double *out,
                     struct err *e) {
    double error;
    const struct job *job = a->group->job;
    struct mat w = a->group->w[a->index], w_hat = matf(c->device, w.rows, w.cols);
    struct candidate own = candidate_for(candidate, a->linear);
    TRY(group_effective_weights(a->group, a->index, &own, w_hat, e));
    size_t bytes = (size_t)(w_hat.rows * w_hat.cols) * sizeof *c->w_hat;
    TRY(job->backend->download(job->device, c->device, bytes, c->w_hat, e));
    TRY(energy(a, c, c->w_hat, &error, e));
    *out = error_ratio(error, c->energy);
    return RC_OK;
}

static enum rc recompute(const struct inversion_args *a, struct copies *c, struct inversion *out, struct err *e) {
    TRY(copies_open(a, c, e));
    TRY(energy(a, c, NULL, &c->energy, e));
    for (int i = 0; i < 2; i++) {
        struct candidate rtn = candidate_rtn(a->pair[i]);
        TRY(drift(a, c, a->pair[i], &out->drift[i], e));
        TRY(drift(a, c, &rtn, &out->rtn_drift[i], e));
    }
    return RC_OK;
}

enum rc inversion_recompute(const struct inversion_args *a, struct inversion *out, struct err *e) {
    struct copies c = {0};
    enum rc rc = recompute(a, &c, out, e);
    copies_release(a->group->job, &c);
    return rc;
}

const char *inversion_verdict(const struct inversion *v) {
    if (v->drift[1] <= v->drift[0]) return "metric: float64 shows no inversion";
    if (v->rtn_drift[1] > v->rtn_drift[0]) return "input: RTN inverts here too";
    return "quantizer: float64 confirms it, RTN does not invert";
}

json_t *inversion_encode(const struct inversion *v) {
    return json_pack("{s[ff] s[ff]}", "drift_float64", v->drift[0], v->drift[1], "rtn_drift_float64", v->rtn_drift[0],
                     v->rtn_drift[1]);
}

static enum rc get_pair(const json_t *data, const char *key, double pair[2], struct err *e) {
    const json_t *list = json_object_get(data, key);
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = json_array_get(list, i);
        if (!json_is_number(value)) return err_set(e, RC_INVALID, "a stored inversion lacks \"%s\"", key);
        pair[i] = json_number_value(value);
    }
    return RC_OK;
}

enum rc inversion_decode(const json_t *data, struct inversion *v, struct err *e) {
    TRY(get_pair(data, "drift_float64", v->drift, e));
    return get_pair(data, "rtn_drift_float64", v->rtn_drift, e);
}
