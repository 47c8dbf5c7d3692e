/* Refined scales on their way into an artifact. They lie in a file of tensors that are named as those of the shards
 * whose place they take: a shard is written anew as it is, but for these, and so as often as it takes. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/model/artifact_parts.h"

const char artifact_scales_name[] = ".scales.safetensors";

static void add_scales(const struct artifact_spec *s, int64_t index, const void *scales, struct out_shard *out) {
    const struct linear *l = &s->model->linears[index];
    struct packed sizes = packed_sizes(&s->candidates[index], l->rows, l->cols);
    char *name = xasprintf("%s.weight_scale", l->name);
    struct out_tensor tensor = {.type = "F16", .dims = 2, .bytes = sizes.scales_bytes, .data = scales};
    tensor.shape[0] = l->rows;
    tensor.shape[1] = sizes.scales_bytes / (int64_t)sizeof(uint16_t) / l->rows;
    shard_add(out, name, tensor);
    free(name);
}

int64_t artifact_scales_bytes(const struct artifact_spec *s) {
    struct out_shard all = {0};
    for (int64_t i = 0; i < s->model->linear_count; i++)
        if (s->candidates[i].method != METHOD_NONE && s->candidates[i].method != METHOD_FP8)
            add_scales(s, i, NULL, &all);
    int64_t bytes = shard_file_bytes(&all);
    shard_release(&all);
    return bytes;
}

enum rc artifact_scales_write(const struct artifact_spec *s, int dir_fd, const void *const *scales, struct err *e) {
    struct out_shard all = {0};
    for (int64_t i = 0; i < s->model->linear_count; i++)
        if (scales[i] != NULL) add_scales(s, i, scales[i], &all);
    enum rc rc = shard_write(&all, dir_fd, artifact_scales_name, e);
    shard_release(&all);
    return rc;
}

/* Returns how many tensors are other ones. */
static int take_tensors(const struct safetensors *shard, const struct safetensors *scales, struct out_shard *out) {
    int64_t count;
    int replaced = 0;
    const struct st_tensor *tensors = safetensors_all(shard, &count);
    for (int64_t i = 0; i < count; i++) {
        const struct st_tensor *t = &tensors[i], *other = safetensors_find(scales, t->name);
        struct out_tensor tensor = {.type = t->stored_as, .dims = t->dims, .bytes = t->bytes, .data = t->data};
        for (int d = 0; d < t->dims; d++)
            tensor.shape[d] = t->shape[d];
        if (other != NULL && other->bytes == t->bytes) {
            tensor.data = other->data;
            replaced++;
        }
        shard_add(out, t->name, tensor);
    }
    return replaced;
}

static enum rc rescale_shard(int dir_fd, const char *name, const struct safetensors *scales, struct err *e) {
    struct safetensors *shard;
    struct out_shard out = {0};
    TRY(safetensors_open_files(dir_fd, &name, 1, &shard, e));
    enum rc rc = take_tensors(shard, scales, &out) > 0 ? shard_write(&out, dir_fd, name, e) : RC_OK;
    shard_release(&out);
    safetensors_close(shard);
    return rc;
}

enum rc artifact_scales_apply(const struct artifact_spec *s, int dir_fd, struct err *e) {
    struct safetensors *scales;
    const char *file = artifact_scales_name;
    TRY(safetensors_open_files(dir_fd, &file, 1, &scales, e));
    enum rc rc = RC_OK;
    for (int shard = 0; rc == RC_OK && shard < artifact_shards(s->model); shard++) {
        char name[SHARD_NAME_SIZE];
        artifact_shard_name(s->model, shard, name);
        rc = rescale_shard(dir_fd, name, scales, e);
    }
    safetensors_close(scales);
    return rc;
}
