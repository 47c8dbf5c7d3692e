/* Read-only access to safetensors files: single, or sharded by model.safetensors.index.json.
 *
 * Format: u64 LE header length (at most 100 MB), JSON header {name: {dtype, shape, data_offsets}}, then the data.
 * Files are mapped, so tensor data costs page cache, not memory. Every bound is checked at open: offsets in range,
 * covering the buffer without holes or overlaps, sizes equal to dtype × shape; a fault names the file and the tensor.
 * Opened by folder.h, so nothing outside the model's folder can be reached. A file truncated while mapped raises
 * SIGBUS: the worker ends and the daemon says why.
 *
 * ALIGNMENT: nothing in the format aligns a tensor, so `data` may lie at any address. Read elements with memcpy (or an
 * unaligned vector load), never through a typed pointer; backend.h's upload and embed take such bytes.
 * Threads: open once, then read from any thread. */
#ifndef HSAQ_WORKER_MODEL_SAFETENSORS_H
#define HSAQ_WORKER_MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/tensor.h"

enum { TENSOR_MAX_DIMS = 8, TENSOR_NAME_MAX = 512, SHARDS_MAX = 4096 };

struct st_tensor {
    const char *name;
    const char *file;      /* the shard's name, for messages */
    const char *stored_as; /* the dtype as the file spells it: "BF16", "I64" */
    bool readable;         /* stored_as is an enum dtype; else `type` means nothing */
    enum dtype type;
    int dims;
    int64_t shape[TENSOR_MAX_DIMS];
    int64_t count;    /* product of shape */
    const void *data; /* may be unaligned */
    int64_t bytes;
};

struct safetensors;

/* `dir_fd`: the model's folder. RC_NOT_FOUND when it holds no safetensors file or lacks a shard. */
enum rc safetensors_open(int dir_fd, struct safetensors **st, struct err *e);
/* These files of the folder alone. */
enum rc safetensors_open_files(int dir_fd, const char *const *files, int count, struct safetensors **st, struct err *e);
void safetensors_close(struct safetensors *st);
const struct st_tensor *safetensors_find(const struct safetensors *st, const char *name); /* NULL when absent */
/* All tensors, sorted by name. */
const struct st_tensor *safetensors_all(const struct safetensors *st, int64_t *count);

/* Name, size, modification time and inode of every file, a line each: stays the same as long as nobody changed or
 * replaced one. The caller frees. */
char *safetensors_identity(const struct safetensors *st);

/* "[64, 32]" into a buffer; returns it. For messages. */
const char *shape_text(const int64_t *shape, int dims, char *buffer, size_t capacity);

/* One file's bytes, as an attacker would give them: what open does after mapping. The fuzz target. `*tensors` is one
 * block, sorted by name, names included: free() releases it. `bytes` and `file` must outlive it. */
enum rc safetensors_parse(const void *bytes, size_t len, const char *file, struct st_tensor **tensors, int64_t *count,
                          struct err *e);

#endif
