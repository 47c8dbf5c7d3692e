#include "worker/pipeline/upload.h"

#include <sys/mman.h>
#include <unistd.h>

enum rc device_floats(const struct job *job, int64_t count, float **out, struct err *e) {
    void *memory = NULL;
    size_t bytes;
    if (__builtin_mul_overflow((size_t)count, sizeof(float), &bytes))
        return err_set(e, RC_TOO_LARGE, "%lld floats exceed the address space", (long long)count);
    TRY(job->backend->alloc(job->device, bytes, &memory, e));
    *out = memory;
    return RC_OK;
}

enum rc upload_into(const struct job *job, const struct st_tensor *tensor, float *out, struct err *e) {
    if (job->backend->upload(job->device, tensor->data, tensor->type, tensor->count, out, e) == RC_OK) return RC_OK;
    return err_context(e, "loading %s from %s", tensor->name, tensor->file);
}

enum rc upload_new(const struct job *job, const struct st_tensor *tensor, float **out, struct err *e) {
    *out = NULL;
    if (!tensor) return RC_OK;
    if (device_floats(job, tensor->count, out, e) != RC_OK)
        return err_context(e, "loading %s from %s", tensor->name, tensor->file);
    return upload_into(job, tensor, *out, e);
}

void prefetch_tensor(const struct st_tensor *tensor) {
    if (!tensor) return;
    size_t before = (uintptr_t)tensor->data & ((uintptr_t)sysconf(_SC_PAGESIZE) - 1); /* its page begins earlier */
    /* Only advice: when the kernel declines, the pages are read when they are touched. */
    (void)madvise((char *)tensor->data - before, (size_t)tensor->bytes + before, MADV_WILLNEED);
}
