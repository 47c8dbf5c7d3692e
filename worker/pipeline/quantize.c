#include "worker/pipeline/quantize.h"

#include <stdlib.h>

enum rc quantize_weights(const struct job *job, struct mat w, const struct candidate *candidate, struct mat out,
                         struct quantize_report *report, struct err *e) {
    const struct backend *b = job->backend;
    struct quantize_report unread;
    struct quantized q;
    if (job_cancelled(job)) return err_set(e, RC_CANCELLED, "cancelled");
    TRY(quantized_alloc(b, job->device, w.rows, w.cols, candidate, &q, e));
    struct quantize_args a = {.w = w, .candidate = *candidate, .out = &q, .report = report ? report : &unread};
    struct dequantize_args back = {.q = &q, .out = out};
    enum rc rc = b->quantize(job->device, &a, 1, e);
    if (rc == RC_OK) rc = b->dequantize(job->device, &back, e);
    quantized_release(b, job->device, &q);
    return rc;
}

static void free_host(struct quantized *q) {
    free(q->codes);
    free(q->scale);
    free(q->zero);
    free(q->group_of);
}

/* The same shape with buffers in host memory. */
static enum rc alloc_host(const struct quantized *like, struct quantized *q, struct err *e) {
    size_t weights = (size_t)(like->rows * like->cols), parameters = (size_t)(like->rows * like->groups);
    *q = *like;
    q->codes = malloc(weights);
    q->scale = malloc(parameters * sizeof *q->scale);
    q->zero = malloc(parameters * sizeof *q->zero);
    q->group_of = like->group_of ? malloc((size_t)like->cols * sizeof *q->group_of) : NULL;
    if (q->codes && q->scale && q->zero && (q->group_of || !like->group_of)) return RC_OK;
    free_host(q);
    return err_set(e, RC_NO_MEMORY, "no memory for a Linear of [%lld, %lld]", (long long)like->rows,
                   (long long)like->cols);
}

static enum rc download(const struct job *job, const struct quantized *from, struct quantized *to, struct err *e) {
    const struct backend *b = job->backend;
    size_t parameters = (size_t)(from->rows * from->groups) * sizeof *from->scale;
    TRY(b->download(job->device, from->codes, (size_t)(from->rows * from->cols), to->codes, e));
    TRY(b->download(job->device, from->scale, parameters, to->scale, e));
    TRY(b->download(job->device, from->zero, parameters, to->zero, e));
    if (!from->group_of) return RC_OK;
    return b->download(job->device, from->group_of, (size_t)from->cols * sizeof *from->group_of, to->group_of, e);
}

enum rc quantized_pack(const struct job *job, const struct quantized *q, const struct candidate *c, struct packed *out,
                       struct err *e) {
    struct quantized host;
    if (!job->backend->own_memory) return pack(q, c, out, e);
    TRY(alloc_host(q, &host, e));
    enum rc rc = download(job, q, &host, e);
    if (rc == RC_OK) rc = pack(&host, c, out, e);
    free_host(&host);
    return rc;
}

int64_t candidate_bytes(const struct candidate *candidate, int64_t rows, int64_t cols) {
    struct packed sizes = packed_sizes(candidate, rows, cols);
    return packed_bytes(&sizes);
}
