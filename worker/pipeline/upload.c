#include "worker/pipeline/upload.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/formats.h"

enum rc device_floats(const struct job *job, int64_t count, float **out, struct err *e) {
    void *memory = NULL;
    size_t bytes;
    if (__builtin_mul_overflow((size_t)count, sizeof(float), &bytes))
        return err_set(e, RC_TOO_LARGE, "%lld floats exceed the address space", (long long)count);
    TRY(job->backend->alloc(job->device, bytes, &memory, e));
    *out = memory;
    return RC_OK;
}

static enum rc failed(const struct st_tensor *tensor, struct err *e) {
    return err_context(e, "loading %s from %s", tensor->name, tensor->file);
}

void device_free(const struct job *job, void *memory) {
    if (memory) job->backend->free(job->device, memory);
}

enum rc upload_new(const struct job *job, const struct st_tensor *tensor, float **out, struct err *e) {
    *out = NULL;
    if (!tensor) return RC_OK;
    if (device_floats(job, tensor->count, out, e) != RC_OK) return failed(tensor, e);
    if (job->backend->upload(job->device, tensor->data, tensor->type, tensor->count, *out, e) == RC_OK) return RC_OK;
    return failed(tensor, e);
}

enum dtype linear_type(const struct job *job, const struct linear *linear) {
    const struct backend *b = job->backend;
    if (!b->weights_as_stored) return DTYPE_F32;
    return linear->packed ? b->activation : linear->weight->type;
}

static enum rc load_now(const struct job *job, const void *host, enum dtype type, struct mat out, struct err *e) {
    struct load_item item = {host, type, out.rows * out.cols, out.data, out.type};
    TRY(job->backend->load(job->device, &item, 1, e));
    return job->backend->loaded(job->device, e);
}

static enum rc load_packed(const struct job *job, const struct packed_linear *packed, struct mat out, struct err *e) {
    struct packed_view view = packed_linear_view(packed);
    struct mat host = out;
    if (!job->backend->own_memory) return packed_expand(&view, out, e);
    host.data = malloc((size_t)(out.rows * out.cols) * dtype_size(out.type));
    if (!host.data)
        return err_set(e, RC_NO_MEMORY, "no memory for a Linear of [%lld, %lld]", (long long)out.rows,
                       (long long)out.cols);
    enum rc rc = packed_expand(&view, host, e);
    if (rc == RC_OK) rc = load_now(job, host.data, host.type, out, e);
    free(host.data);
    return rc;
}

enum rc upload_linear(const struct job *job, const struct linear *linear, struct mat *out, struct err *e) {
    enum dtype type = linear_type(job, linear);
    const struct st_tensor *stored = linear->packed ? linear->packed->codes : linear->weight;
    *out = (struct mat){NULL, linear->rows, linear->cols, linear->cols, type};
    enum rc rc =
        job->backend->alloc(job->device, (size_t)(linear->rows * linear->cols) * dtype_size(type), &out->data, e);
    if (rc == RC_OK)
        rc = linear->packed ? load_packed(job, linear->packed, *out, e)
                            : load_now(job, stored->data, stored->type, *out, e);
    return rc == RC_OK ? RC_OK : failed(stored, e);
}

/* In place, from the end, so that nothing is overwritten before it is read. */
static void widen(enum dtype type, int64_t count, float *values) {
    for (int64_t i = count - 1; type != DTYPE_F32 && i >= 0; i--) {
        uint16_t half;
        memcpy(&half, (const char *)values + (size_t)i * sizeof half, sizeof half);
        values[i] = type == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
}

enum rc download_floats(const struct job *job, struct mat m, float *out, struct err *e) {
    int64_t count = m.rows * m.cols;
    if (m.stride != m.cols) return err_set(e, RC_INTERNAL, "only dense matrices are downloaded");
    TRY(job->backend->download(job->device, m.data, (size_t)count * dtype_size(m.type), out, e));
    widen(m.type, count, out);
    return RC_OK;
}

static void prefetch_tensor(const struct st_tensor *tensor) {
    if (!tensor) return;
    size_t before = (uintptr_t)tensor->data & ((uintptr_t)sysconf(_SC_PAGESIZE) - 1); /* its page begins earlier */
    /* Only advice: when the kernel declines, the pages are read when they are touched. */
    (void)madvise((char *)tensor->data - before, (size_t)tensor->bytes + before, MADV_WILLNEED);
}

void prefetch_linear(const struct linear *linear) {
    const struct packed_linear *p = linear->packed;
    prefetch_tensor(linear->weight);
    if (!p) return;
    prefetch_tensor(p->codes);
    prefetch_tensor(p->scales);
    prefetch_tensor(p->zeros);
}
