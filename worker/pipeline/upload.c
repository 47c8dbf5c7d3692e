#include "worker/pipeline/upload.h"

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

enum rc upload_new(const struct job *job, const struct st_tensor *tensor, float **out, struct err *e) {
    *out = NULL;
    if (!tensor) return RC_OK;
    if (device_floats(job, tensor->count, out, e) != RC_OK) return failed(tensor, e);
    if (job->backend->upload(job->device, tensor->data, tensor->type, tensor->count, *out, e) == RC_OK) return RC_OK;
    return failed(tensor, e);
}

enum rc upload_weights(const struct job *job, const struct st_tensor *tensor, struct mat *out, struct err *e) {
    const struct backend *b = job->backend;
    enum dtype type = b->weights_as_stored ? tensor->type : DTYPE_F32;
    *out = (struct mat){NULL, tensor->shape[0], tensor->shape[1], tensor->shape[1], type};
    if (b->alloc(job->device, (size_t)tensor->count * dtype_size(type), &out->data, e) != RC_OK)
        return failed(tensor, e);
    struct load_item item = {tensor->data, tensor->type, tensor->count, out->data, type};
    if (b->load(job->device, &item, 1, e) != RC_OK || b->loaded(job->device, e) != RC_OK) return failed(tensor, e);
    return RC_OK;
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

void prefetch_tensor(const struct st_tensor *tensor) {
    if (!tensor) return;
    size_t before = (uintptr_t)tensor->data & ((uintptr_t)sysconf(_SC_PAGESIZE) - 1); /* its page begins earlier */
    /* Only advice: when the kernel declines, the pages are read when they are touched. */
    (void)madvise((char *)tensor->data - before, (size_t)tensor->bytes + before, MADV_WILLNEED);
}
