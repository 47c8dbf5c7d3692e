/* Read-only access to safetensors files: single, or sharded by model.safetensors.index.json.
 *
 * Format: u64 LE header length (at most 100 MB), JSON header {name: {dtype, shape, data_offsets}}, then the data.
 * Files are mapped, so tensor data costs page cache, not memory. Every bound is checked at open: offsets in range,
 * covering the buffer without holes or overlaps, sizes equal to dtype × shape. Opened beneath the model's folder only
 * (openat2 RESOLVE_BENEATH). A file truncated while mapped raises SIGBUS: the worker ends and the daemon says why.
 * Threads: open once, then read from any thread. */
#ifndef HSAQ_WORKER_MODEL_SAFETENSORS_H
#define HSAQ_WORKER_MODEL_SAFETENSORS_H

#include <stdint.h>

#include "base/err.h"
#include "kernels/tensor.h"

enum { TENSOR_MAX_DIMS = 8 };

struct st_tensor {
    const char *name;
    const char *file; /* the shard's name, for messages */
    enum dtype type;
    int dims;
    int64_t shape[TENSOR_MAX_DIMS];
    int64_t count; /* product of shape */
    const void *data;
    int64_t bytes;
};

struct safetensors;

/* `dir_fd`: the model's folder. */
enum rc safetensors_open(int dir_fd, struct safetensors **st, struct err *e);
void safetensors_close(struct safetensors *st);
const struct st_tensor *safetensors_find(const struct safetensors *st, const char *name); /* NULL when absent */
/* All tensors, sorted by name. */
const struct st_tensor *safetensors_all(const struct safetensors *st, int64_t *count);

/* One file's bytes, as an attacker would give them: what open does after mapping. The fuzz target. */
enum rc safetensors_parse(const void *bytes, size_t len, const char *file, struct st_tensor **tensors, int64_t *count,
                          struct err *e);

#endif
