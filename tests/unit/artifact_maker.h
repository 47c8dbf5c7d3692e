/* Fills an artifact with a model's Linears, rounded to nearest on one thread, as a job would. */
#ifndef HSAQ_TESTS_ARTIFACT_MAKER_H
#define HSAQ_TESTS_ARTIFACT_MAKER_H

#include <stdlib.h>

#include "base/mem.h"
#include "kernels/backend.h"
#include "worker/model/artifact.h"

struct artifact_maker {
    struct artifact_spec spec;
    struct artifact *artifact;
    struct backend_state *device;
    /* Sees what is put; may be NULL. */
    enum rc (*note)(struct artifact_maker *m, const struct linear *l, const struct quantized *q, struct err *e);
    void *ctx;
};

/* A GPTQ candidate's codes are rounded to nearest as well, its columns' groups scattered: what is stored is tested
 * here, not what it is worth. */
static inline enum rc maker_round(struct artifact_maker *m, struct quantize_args a, struct err *e) {
    int32_t *group_of = a.out->group_of;
    if (candidate_uses_gptq(&a.candidate)) a.candidate = candidate_rtn(&a.candidate);
    a.out->group_of = NULL;
    enum rc rc = backend_cpu.quantize(m->device, &a, 1, e);
    a.out->group_of = group_of;
    for (int64_t k = 0; group_of && k < a.out->cols; k++)
        group_of[k] = (int32_t)(k % a.out->groups);
    return rc;
}

static inline enum rc maker_quantize(struct artifact_maker *m, int64_t linear, struct quantized *q, struct err *e) {
    const struct linear *l = &m->spec.model->linears[linear];
    struct quantize_report report;
    float *w = xcalloc((size_t)(l->rows * l->cols), sizeof *w);
    struct quantize_args a = {
        .w = matf(w, l->rows, l->cols), .candidate = m->spec.candidates[linear], .out = q, .report = &report};
    enum rc rc = backend_cpu.upload(m->device, l->weight->data, l->weight->type, l->rows * l->cols, w, e);
    if (rc == RC_OK) rc = maker_round(m, a, e);
    free(w);
    return rc;
}

static inline enum rc maker_put(struct artifact_maker *m, int64_t linear, struct err *e) {
    const struct linear *l = &m->spec.model->linears[linear];
    const struct candidate *c = &m->spec.candidates[linear];
    struct quantized q;
    struct packed packed = {0};
    if (c->method == METHOD_NONE) return RC_OK;
    TRY(quantized_alloc(&backend_cpu, m->device, l->rows, l->cols, c, &q, e));
    enum rc rc = maker_quantize(m, linear, &q, e);
    if (rc == RC_OK && m->note) rc = m->note(m, l, &q, e);
    if (rc == RC_OK) rc = pack(&q, c, &packed, e);
    if (rc == RC_OK) rc = artifact_put(m->artifact, linear, &packed, e);
    quantized_release(&backend_cpu, m->device, &q);
    return rc;
}

static inline enum rc maker_shard(struct artifact_maker *m, int shard, struct err *e) {
    const struct model *model = m->spec.model;
    for (int64_t i = 0; i < model->linear_count; i++)
        if (model->linears[i].block == (shard < model->arch.blocks ? shard : -1)) TRY(maker_put(m, i, e));
    return artifact_write(m->artifact, shard, e);
}

/* Of the Linears' candidates, one after the other from the start again; the head's is `head`, NULL: as its turn is. */
static inline struct candidate *maker_candidates(const struct model *model, const char *const *ids, int count,
                                                 const char *head, struct err *e) {
    struct candidate *c = xcalloc((size_t)model->linear_count, sizeof *c);
    for (int64_t i = 0; i < model->linear_count; i++) {
        const char *id = head && i == model->linear_count - 1 ? head : ids[i % count];
        if (candidate_from_id(id, &c[i], e) == RC_OK) continue;
        free(c);
        return NULL;
    }
    return c;
}

#endif
