/* Writing files that are whole or absent: each under a temporary name, fsynced, then renamed; and safetensors among
 * them. Equal contents give equal bytes. RC_NO_SPACE on a full disk. One thread a folder. */
#ifndef HSAQ_WORKER_MODEL_SHARD_H
#define HSAQ_WORKER_MODEL_SHARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* A tensor to be written. */
struct out_tensor {
    char *name;
    const char *type; /* as safetensors spells it: "BF16" */
    int dims;
    int64_t shape[2];
    int64_t bytes;
    const void *data; /* NULL while only sizes are asked for */
};

/* Becomes the owner of names. */
struct out_shard {
    struct out_tensor *tensors;
    size_t count, capacity;
};

/* `tensor`'s name is copied. */
void shard_add(struct out_shard *s, const char *name, struct out_tensor tensor);
void shard_release(struct out_shard *s);

int64_t shard_data_bytes(const struct out_shard *s);
/* Of the file. Sorts the tensors, widest elements first, so that each lies at a multiple of its element's size. */
int64_t shard_file_bytes(struct out_shard *s);
enum rc shard_write(struct out_shard *s, int dir_fd, const char *file, struct err *e);

bool file_is_temporary(const char *name); /* the name of one that was not finished */
enum rc file_write(int dir_fd, const char *file, const void *bytes, size_t len, struct err *e);

#endif
