/* An artifact that is half there, as a model: what was written of it, and the source for the rest. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "worker/model/artifact_parts.h"

static enum rc find_plain(const struct safetensors *st, const struct st_tensor **tensor, struct err *e) {
    if (*tensor == NULL) return RC_OK;
    const struct st_tensor *written = safetensors_find(st, (*tensor)->name);
    if (written == NULL || !written->readable || written->count != (*tensor)->count)
        return err_set(e, RC_INTERNAL, "the artifact, as far as it is written, has no %s", (*tensor)->name);
    *tensor = written;
    return RC_OK;
}

static enum rc find_linear(const struct artifact_spec *s, const struct safetensors *st, int64_t index, struct linear *l,
                           struct err *e) {
    struct candidate scheme = target_scheme(&s->candidates[index], l->cols);
    TRY(find_plain(st, &l->bias, e));
    if (scheme.method == METHOD_NONE) return find_plain(st, &l->weight, e);
    l->weight = NULL;
    return packed_linear_find(st, l->name, &scheme, l->rows, l->cols, &l->packed, e);
}

static enum rc find_block(const struct artifact_spec *s, struct model *m, int block, struct err *e) {
    struct block_tensors *b = &m->blocks[block];
    TRY(find_plain(m->tensors, &b->input_norm, e));
    TRY(find_plain(m->tensors, &b->post_norm, e));
    TRY(find_plain(m->tensors, &b->q_norm, e));
    TRY(find_plain(m->tensors, &b->k_norm, e));
    for (int i = 0; i < BLOCK_LINEARS_MAX && b->linears[i] >= 0; i++)
        TRY(find_linear(s, m->tensors, b->linears[i], &m->linears[b->linears[i]], e));
    return RC_OK;
}

/* What is not the source's of the last shard. */
static enum rc find_rest(const struct artifact_spec *s, struct model *m, struct err *e) {
    int64_t head = m->linear_count - 1;
    TRY(find_plain(m->tensors, &m->final_norm, e));
    return s->candidates[head].method == METHOD_NONE ? RC_OK : find_linear(s, m->tensors, head, &m->linears[head], e);
}

/* Everything borrowed but Linears, blocks and tensors. */
static struct model *copy_model(const struct model *source) {
    struct model *m = xcalloc(1, sizeof *m);
    *m = *source;
    m->tensors = NULL;
    m->linears = xcalloc((size_t)m->linear_count, sizeof *m->linears);
    m->blocks = xcalloc((size_t)m->arch.blocks, sizeof *m->blocks);
    memcpy(m->linears, source->linears, (size_t)m->linear_count * sizeof *m->linears);
    memcpy(m->blocks, source->blocks, (size_t)m->arch.blocks * sizeof *m->blocks);
    return m;
}

static enum rc open_written(int dir_fd, int blocks, struct model *m, struct err *e) {
    char(*names)[SHARD_NAME_SIZE] = xcalloc((size_t)blocks, sizeof *names);
    const char **files = xcalloc((size_t)blocks, sizeof *files);
    for (int i = 0; i < blocks; i++) {
        artifact_shard_name(m, i, names[i]);
        files[i] = names[i];
    }
    enum rc rc = safetensors_open_files(dir_fd, files, blocks, &m->tensors, e);
    free(files);
    free(names);
    return rc;
}

enum rc artifact_written_model(const struct artifact_spec *spec, int dir_fd, int blocks, struct model **model,
                               struct err *e) {
    struct model *m = copy_model(spec->model);
    enum rc rc = open_written(dir_fd, blocks, m, e);
    for (int block = 0; rc == RC_OK && block < blocks && block < m->arch.blocks; block++)
        rc = find_block(spec, m, block, e);
    if (rc == RC_OK && blocks > m->arch.blocks) rc = find_rest(spec, m, e);
    if (rc != RC_OK) {
        artifact_model_close(m);
        m = NULL;
    }
    *model = m;
    return rc;
}

void artifact_model_close(struct model *m) {
    if (m == NULL) return;
    for (int64_t i = 0; i < m->linear_count; i++)
        free(m->linears[i].packed);
    free(m->linears);
    free(m->blocks);
    safetensors_close(m->tensors);
    free(m);
}
