#include "worker/bench/rates.h"

#include "base/clock.h"
#include "worker/pipeline/block.h"

static void release(const struct job *job, struct mat *m) {
    if (m->data) job->backend->free(job->device, m->data);
    m->data = NULL;
}

/* A download waits for all that was asked for before it. */
static enum rc wait_for(const struct job *job, struct mat result, struct err *e) {
    float first;
    return job->backend->download(job->device, result.data, sizeof first, &first, e);
}

/* A matrix of the tensor's values, over and over: a card's clock depends on what it multiplies, zeros are too easy. */
static enum rc upload_values(const struct job *job, const struct st_tensor *tensor, int64_t rows, int64_t cols,
                             struct mat *out, struct err *e) {
    const struct backend *b = job->backend;
    int64_t count = rows * cols;
    *out = (struct mat){NULL, rows, cols, cols, b->weights_as_stored ? tensor->type : DTYPE_F32};
    size_t size = dtype_size(out->type);
    TRY(b->alloc(job->device, (size_t)count * size, &out->data, e));
    for (int64_t at = 0; at < count; at += tensor->count) {
        int64_t piece = count - at < tensor->count ? count - at : tensor->count;
        char *to = (char *)out->data + (size_t)at * size;
        struct load_item item = {tensor->data, tensor->type, piece, to, out->type};
        TRY(b->load(job->device, &item, 1, e));
        TRY(b->loaded(job->device, e));
    }
    return RC_OK;
}

static double block_params(const struct model *model) {
    double sum = 0;
    for (int i = 0; block_linear(model, 0, i); i++)
        sum += (double)block_linear(model, 0, i)->rows * (double)block_linear(model, 0, i)->cols;
    return sum;
}

/* --- timing --- */

/* An operation that can be asked for again and again, and a matrix that it writes. */
struct call {
    enum rc (*run)(const struct call *c, struct err *e);
    const struct job *job;
    const void *args;
    struct mat result;
};

static enum rc repeat(const struct call *c, int times, double *seconds, struct err *e) {
    double begin = monotonic_seconds();
    for (int i = 0; i < times; i++)
        TRY(c->run(c, e));
    TRY(wait_for(c->job, c->result, e));
    *seconds = monotonic_seconds() - begin;
    return RC_OK;
}

/* Seconds of one call, once it has been warmed up. Batches double until one takes as long as is asked for, so that
 * launches and the clock's own steps do not matter. */
static enum rc time_call(const struct call *c, double enough, double *seconds, struct err *e) {
    enum { TIMES_MAX = 1 << 20 };
    for (int times = 1; times <= TIMES_MAX; times *= 2) {
        double elapsed;
        TRY(repeat(c, times, &elapsed, e));
        *seconds = elapsed / times;
        if (elapsed >= enough / 2) break;
    }
    return RC_OK;
}

/* --- gemm --- */

static enum rc multiply(const struct call *c, struct err *e) {
    return c->job->backend->gemm(c->job->device, c->args, e);
}

static enum rc time_gemm(const struct job *job, const struct gemm_args *a, double enough, double *seconds,
                         struct err *e) {
    enum { WARM_UP = 2 }; /* algorithms are chosen */
    struct call call = {multiply, job, a, a->out};
    TRY(repeat(&call, WARM_UP, seconds, e));
    return time_call(&call, enough, seconds, e);
}

static enum rc gemm_linear(const struct job *job, const struct linear *l, int64_t tokens, double enough,
                           double *seconds, struct err *e) {
    const struct backend *b = job->backend;
    struct gemm_args a = {.alpha = 1, .out = {NULL, tokens, l->rows, l->rows, b->activation}};
    enum rc rc = upload_values(job, l->weight, l->rows, l->cols, &a.w, e);
    if (rc == RC_OK) rc = upload_values(job, l->weight, tokens, l->cols, &a.x, e);
    if (rc == RC_OK) rc = b->alloc(job->device, (size_t)(tokens * l->rows) * dtype_size(b->activation), &a.out.data, e);
    if (rc == RC_OK) rc = time_gemm(job, &a, enough, seconds, e);
    release(job, &a.w);
    release(job, &a.x);
    release(job, &a.out);
    return rc;
}

enum rc rate_gemm(const struct job *job, const struct model *model, int64_t tokens, double seconds, struct rate *rate,
                  struct err *e) {
    const struct linear *l;
    *rate = (struct rate){0};
    for (int i = 0; (l = block_linear(model, 0, i)); i++) {
        double params = (double)l->rows * (double)l->cols, once;
        TRY(gemm_linear(job, l, tokens, seconds * params / block_params(model), &once, e));
        rate->work += 2 * params * (double)tokens;
        rate->seconds += once;
    }
    return RC_OK;
}

/* --- quantize --- */

static enum rc quantize(const struct call *c, struct err *e) {
    return c->job->backend->quantize(c->job->device, c->args, 1, e);
}

/* `enough` 0: once. */
static enum rc time_quantize(const struct job *job, struct mat w, const struct candidate *candidate, double enough,
                             double *seconds, struct err *e) {
    struct quantized q;
    struct quantize_report report;
    struct quantize_args a = {.w = w, .candidate = *candidate, .out = &q, .report = &report};
    TRY(quantized_alloc(job->backend, job->device, w.rows, w.cols, candidate, &q, e));
    struct call call = {quantize, job, &a, matf(q.scale, q.rows, q.groups)};
    enum rc rc = time_call(&call, enough, seconds, e);
    quantized_release(job->backend, job->device, &q);
    return rc;
}

static enum rc quantize_linear(const struct job *job, const struct linear *l, const struct candidate *candidate,
                               double enough, double *seconds, struct err *e) {
    enum { WARM_UP_ROWS = 64 };
    struct mat w;
    enum rc rc = upload_values(job, l->weight, l->rows, l->cols, &w, e);
    struct mat few = mat_rows(w, 0, l->rows < WARM_UP_ROWS ? l->rows : WARM_UP_ROWS);
    if (rc == RC_OK) rc = time_quantize(job, few, candidate, 0, seconds, e);
    if (rc == RC_OK) rc = time_quantize(job, w, candidate, enough, seconds, e);
    release(job, &w);
    return rc;
}

enum rc rate_quantize(const struct job *job, const struct model *model, const struct candidate *candidate,
                      double seconds, struct rate *rate, struct err *e) {
    const struct linear *l;
    *rate = (struct rate){0};
    for (int i = 0; (l = block_linear(model, 0, i)); i++) {
        double params = (double)l->rows * (double)l->cols, once;
        TRY(quantize_linear(job, l, candidate, seconds * params / block_params(model), &once, e));
        rate->work += params;
        rate->seconds += once;
    }
    return RC_OK;
}
