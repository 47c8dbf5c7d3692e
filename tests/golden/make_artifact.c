/* Makes an artifact without a job, for tests that read it with other software:
 *
 *     make_artifact MODEL OUT TARGET CODES CANDIDATE…
 *
 * Linear i of the model in folder MODEL gets candidate i mod their number, rounded to nearest; OUT is the artifact, for
 * TARGET. In folder CODES model.safetensors says what was put into it: for each quantized Linear its .codes U8 [N, K],
 * .scale and .zero F32 [N, G], and .value F32 [N, K], what they are worth. */
#include <stdio.h>
#include <string.h>

#include "tests/unit/artifact_maker.h"
#include "worker/model/folder.h"
#include "worker/model/shard.h"

/* Memory of the tensors in `codes`. */
struct notes {
    struct out_shard codes;
    void **kept;
    size_t count, capacity;
};

static void note(struct notes *n, const char *linear, const char *suffix, struct out_tensor t) {
    char *name = xasprintf("%s.%s", linear, suffix);
    t.dims = 2;
    t.bytes = t.shape[0] * t.shape[1] * (strcmp(t.type, "U8") == 0 ? 1 : 4);
    void *copy = xcalloc(1, (size_t)t.bytes);
    memcpy(copy, t.data, (size_t)t.bytes);
    t.data = copy;
    GROW(n->kept, n->count, n->capacity);
    n->kept[n->count++] = copy;
    shard_add(&n->codes, name, t);
    free(name);
}

static enum rc note_linear(struct artifact_maker *m, const struct linear *l, const struct quantized *q, struct err *e) {
    float *values = xcalloc((size_t)(q->rows * q->cols), sizeof *values);
    struct dequantize_args a = {.q = q, .out = matf(values, q->rows, q->cols)};
    enum rc rc = backend_cpu.dequantize(m->device, &a, e);
    note(m->ctx, l->name, "codes", (struct out_tensor){.type = "U8", .shape = {q->rows, q->cols}, .data = q->codes});
    note(m->ctx, l->name, "scale", (struct out_tensor){.type = "F32", .shape = {q->rows, q->groups}, .data = q->scale});
    note(m->ctx, l->name, "zero", (struct out_tensor){.type = "F32", .shape = {q->rows, q->groups}, .data = q->zero});
    note(m->ctx, l->name, "value", (struct out_tensor){.type = "F32", .shape = {q->rows, q->cols}, .data = values});
    free(values);
    return rc;
}

static enum rc make(struct artifact_maker *m, const char *codes, struct err *e) {
    int codes_fd;
    struct notes *notes = m->ctx;
    TRY(artifact_open(&m->spec, &m->artifact, e));
    for (int shard = 0; shard < artifact_shards(m->spec.model); shard++)
        TRY(maker_shard(m, shard, e));
    TRY(artifact_finish(m->artifact, e));
    TRY(folder_open(codes, &codes_fd, e));
    return shard_write(&notes->codes, codes_fd, "model.safetensors", e);
}

static enum rc run(int argc, char **argv, struct err *e) {
    static const struct backend_options options = {.threads = 1};
    struct model *model;
    struct notes notes = {0};
    if (argc < 6) return err_set(e, RC_INVALID, "usage: make_artifact MODEL OUT TARGET CODES CANDIDATE…");
    int target = name_index(target_names, argv[3]);
    if (target < 0) return err_set(e, RC_INVALID, "no target \"%s\"", argv[3]);
    TRY(model_open("source", argv[1], &model, e));
    struct candidate *candidates = maker_candidates(model, (const char *const *)argv + 5, argc - 5, NULL, e);
    if (!candidates) return e->rc;
    json_t *nothing = json_object();
    struct artifact_maker m = {.note = note_linear, .ctx = &notes};
    m.spec = (struct artifact_spec){model, argv[2], (enum target)target, candidates, nothing, nothing, false};
    TRY(backend_cpu.open(&options, &m.device, e));
    enum rc rc = make(&m, argv[4], e);
    artifact_close(m.artifact);
    backend_cpu.close(m.device);
    shard_release(&notes.codes);
    while (notes.count > 0)
        free(notes.kept[--notes.count]);
    free(notes.kept);
    free(candidates);
    json_decref(nothing);
    model_close(model);
    return rc;
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (run(argc, argv, &e) == RC_OK) return 0;
    fprintf(stderr, "make_artifact: %s: %s\n", rc_name(e.rc), e.message);
    return 1;
}
