#include "worker/pipeline/quantize.h"

#include "kernels/formats.h"

enum rc quantize_weights(const struct job *job, struct mat w, const struct candidate *candidate, struct mat out,
                         struct quantize_report *report, struct err *e) {
    const struct backend *b = job->backend;
    struct quantize_report unread;
    struct quantized q;
    if (job_cancelled(job)) return err_set(e, RC_CANCELLED, "cancelled");
    TRY(quantized_alloc(b, job->device, w.rows, w.cols, candidate, &q, e));
    struct quantize_args a = {.w = w, .candidate = *candidate, .out = &q, .report = report ? report : &unread};
    struct dequantize_args back = {.q = &q, .out = out};
    enum rc rc = b->quantize(job->device, &a, e);
    if (rc == RC_OK) rc = b->dequantize(job->device, &back, e);
    quantized_release(b, job->device, &q);
    return rc;
}

int64_t candidate_bytes(const struct candidate *candidate, int64_t rows, int64_t cols) {
    struct packed sizes = packed_sizes(candidate, rows, cols);
    return packed_bytes(&sizes);
}
