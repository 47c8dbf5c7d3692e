/* Makes an artifact without a job, for tests that read it with other software:
 *
 *     make_artifact MODEL OUT TARGET CODES CANDIDATE…
 *
 * Linear i of the model in folder MODEL gets candidate i mod their number, rounded to nearest; OUT is the artifact, for
 * TARGET. In folder CODES model.safetensors says what was put into it: for each quantized Linear its .codes U8 [N, K],
 * .scale and .zero F32 [N, G], and .value F32 [N, K], what they are worth. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/backend.h"
#include "worker/model/artifact.h"
#include "worker/model/folder.h"
#include "worker/model/shard.h"

struct maker {
    struct artifact_spec spec;
    struct artifact *artifact;
    struct backend_state *device;
    struct out_shard codes;
    void **kept; /* memory of `codes` */
    size_t kept_count, kept_capacity;
};

static const void *keep(struct maker *m, const void *bytes, size_t len) {
    void *copy = xcalloc(1, len);
    memcpy(copy, bytes, len);
    GROW(m->kept, m->kept_count, m->kept_capacity);
    m->kept[m->kept_count++] = copy;
    return copy;
}

static void note(struct maker *m, const char *linear, const char *suffix, struct out_tensor t) {
    char *name = xasprintf("%s.%s", linear, suffix);
    t.dims = 2;
    t.bytes = t.shape[0] * t.shape[1] * (strcmp(t.type, "U8") == 0 ? 1 : 4);
    t.data = keep(m, t.data, (size_t)t.bytes);
    shard_add(&m->codes, name, t);
    free(name);
}

static enum rc note_all(struct maker *m, const char *linear, const struct quantized *q, struct err *e) {
    float *values = xcalloc((size_t)(q->rows * q->cols), sizeof *values);
    struct dequantize_args a = {.q = q, .out = matf(values, q->rows, q->cols)};
    enum rc rc = backend_cpu.dequantize(m->device, &a, e);
    note(m, linear, "codes", (struct out_tensor){.type = "U8", .shape = {q->rows, q->cols}, .data = q->codes});
    note(m, linear, "scale", (struct out_tensor){.type = "F32", .shape = {q->rows, q->groups}, .data = q->scale});
    note(m, linear, "zero", (struct out_tensor){.type = "F32", .shape = {q->rows, q->groups}, .data = q->zero});
    note(m, linear, "value", (struct out_tensor){.type = "F32", .shape = {q->rows, q->cols}, .data = values});
    free(values);
    return rc;
}

static enum rc quantize(struct maker *m, int64_t linear, struct quantized *q, struct err *e) {
    const struct linear *l = &m->spec.model->linears[linear];
    const struct candidate *c = &m->spec.candidates[linear];
    struct quantize_report report;
    float *w = xcalloc((size_t)(l->rows * l->cols), sizeof *w);
    struct quantize_args a = {.w = matf(w, l->rows, l->cols), .candidate = *c, .out = q, .report = &report};
    enum rc rc = backend_cpu.upload(m->device, l->weight->data, l->weight->type, l->rows * l->cols, w, e);
    if (rc == RC_OK) rc = backend_cpu.quantize(m->device, &a, e);
    free(w);
    return rc;
}

static enum rc put(struct maker *m, int64_t linear, struct err *e) {
    const struct linear *l = &m->spec.model->linears[linear];
    const struct candidate *c = &m->spec.candidates[linear];
    struct quantized q;
    struct packed packed;
    if (c->method == METHOD_NONE) return RC_OK;
    TRY(quantized_alloc(&backend_cpu, m->device, l->rows, l->cols, c, &q, e));
    enum rc rc = quantize(m, linear, &q, e);
    if (rc == RC_OK) rc = note_all(m, l->name, &q, e);
    if (rc == RC_OK) rc = pack(&q, c, &packed, e);
    if (rc == RC_OK) rc = artifact_put(m->artifact, linear, &packed, e);
    quantized_release(&backend_cpu, m->device, &q);
    return rc;
}

static enum rc put_shard(struct maker *m, int shard, struct err *e) {
    const struct model *model = m->spec.model;
    for (int64_t i = 0; i < model->linear_count; i++)
        if (model->linears[i].block == (shard < model->arch.blocks ? shard : -1)) TRY(put(m, i, e));
    return artifact_write(m->artifact, shard, e);
}

static enum rc make(struct maker *m, const char *codes, struct err *e) {
    int codes_fd;
    TRY(artifact_open(&m->spec, &m->artifact, e));
    for (int shard = 0; shard < artifact_shards(m->spec.model); shard++)
        TRY(put_shard(m, shard, e));
    TRY(artifact_finish(m->artifact, e));
    TRY(folder_open(codes, &codes_fd, e));
    return shard_write(&m->codes, codes_fd, "model.safetensors", e);
}

static enum rc read_candidates(const struct model *model, char **ids, int count, struct candidate **out,
                               struct err *e) {
    *out = xcalloc((size_t)model->linear_count, sizeof **out);
    for (int64_t i = 0; i < model->linear_count; i++)
        TRY(candidate_from_id(ids[i % count], &(*out)[i], e));
    return RC_OK;
}

static enum target target_named(const char *name) {
    int target = name_index(target_names, name);
    return target < 0 ? TARGET_NONE : (enum target)target;
}

static enum rc run(int argc, char **argv, struct err *e) {
    static const struct backend_options options = {.threads = 1};
    struct model *model;
    struct candidate *candidates;
    if (argc < 6) return err_set(e, RC_INVALID, "usage: make_artifact MODEL OUT TARGET CODES CANDIDATE…");
    TRY(model_open("source", argv[1], &model, e));
    TRY(read_candidates(model, argv + 5, argc - 5, &candidates, e));
    struct maker m = {.spec = {model, argv[2], target_named(argv[3]), candidates, json_object(), json_object()}};
    TRY(backend_cpu.open(&options, &m.device, e));
    enum rc rc = make(&m, argv[4], e);
    artifact_close(m.artifact);
    backend_cpu.close(m.device);
    shard_release(&m.codes);
    while (m.kept_count > 0)
        free(m.kept[--m.kept_count]);
    free(m.kept);
    free(candidates);
    model_close(model);
    json_decref((json_t *)m.spec.allocation);
    json_decref((json_t *)m.spec.provenance);
    return rc;
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (run(argc, argv, &e) == RC_OK) return 0;
    fprintf(stderr, "make_artifact: %s: %s\n", rc_name(e.rc), e.message);
    return 1;
}
