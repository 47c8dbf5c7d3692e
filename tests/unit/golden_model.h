/* A golden model of one family on the CPU, with made-up text: for tests that call parts of pipelines. */
#ifndef HSAQ_TESTS_GOLDEN_MODEL_H
#define HSAQ_TESTS_GOLDEN_MODEL_H

#include "tests/unit/cmocka_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/random.h"
#include "worker/model/windows.h"
#include "worker/pipeline/stored.h"
#include "worker/pipeline/walk.h"

enum { GOLDEN_WINDOWS = 12, GOLDEN_LENGTH = 24 };

struct golden {
    struct job job;
    struct job_link link;
    struct job_state state;
    struct model *model;
    struct windows windows;
    struct arena arena; /* of what a test makes for it */
    uint64_t random;
    struct err err;
};

static inline void golden_must(struct golden *g, enum rc rc) {
    if (rc != RC_OK) fail_msg("%s", g->err.message);
}

static enum rc golden_drop(void *ctx, const struct message *m, struct err *e) {
    (void)ctx, (void)m, (void)e;
    return RC_OK;
}

static inline double golden_uniform(struct golden *g) {
    return (double)(splitmix64(&g->random) >> 11) * 0x1p-53;
}

static inline void golden_open(struct golden *g, const char *name) {
    static const struct backend_options options = {.threads = 1};
    char path[96];
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    *g = (struct golden){.link = {.send = golden_drop}, .random = 7};
    g->job = (struct job){.id = "golden", .backend = &backend_cpu, .scratch = "/tmp", .link = &g->link};
    golden_must(g, backend_cpu.open(&options, &g->job.device, &g->err));
    golden_must(g, model_open(name, path, &g->model, &g->err));
    int64_t count = GOLDEN_WINDOWS * GOLDEN_LENGTH;
    g->windows = (struct windows){malloc((size_t)count * sizeof *g->windows.ids), GOLDEN_WINDOWS, GOLDEN_LENGTH, 1};
    for (int64_t i = 0; i < count; i++)
        g->windows.ids[i] = (int32_t)(golden_uniform(g) * g->model->arch.vocab);
}

static inline void golden_close(struct golden *g) {
    arena_release(&g->arena);
    windows_release(&g->windows);
    model_close(g->model);
    backend_cpu.close(g->job.device);
}

/* The tensor as fp32 that a test may change. */
static inline struct st_tensor *golden_widen(struct golden *g, const struct st_tensor *t) {
    struct stored from = {0};
    golden_must(g, stored_copy(&from, t, &g->err));
    struct st_tensor *wide = arena_alloc(&g->arena, sizeof *wide);
    float *values = arena_alloc(&g->arena, (size_t)t->count * sizeof *values);
    for (int64_t i = 0; i < t->count; i++)
        values[i] = stored_get(&from, i);
    stored_release(&from);
    *wide = *t;
    wide->type = DTYPE_F32;
    wide->data = values;
    wide->bytes = t->count * (int64_t)sizeof *values;
    return wide;
}

/* Everything that a scale can be folded into or taken out of. */
static inline void golden_widen_all(struct golden *g) {
    for (int64_t i = 0; i < g->model->linear_count; i++) {
        struct linear *l = &g->model->linears[i];
        l->weight = golden_widen(g, l->weight);
        if (l->bias) l->bias = golden_widen(g, l->bias);
    }
    for (int b = 0; b < g->model->arch.blocks; b++) {
        g->model->blocks[b].input_norm = golden_widen(g, g->model->blocks[b].input_norm);
        g->model->blocks[b].post_norm = golden_widen(g, g->model->blocks[b].post_norm);
    }
}

typedef enum rc (*golden_weights)(void *ctx, int stream, int block, struct block_weights *w, struct err *e);

struct golden_finals {
    void *ctx;
    golden_weights weights;
    float *values; /* [GOLDEN_WINDOWS · GOLDEN_LENGTH, D] */
};

static enum rc golden_show(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    struct golden_finals *f = ctx;
    return f->weights ? f->weights(f->ctx, stream, block, w, e) : RC_OK;
}

static enum rc golden_keep(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    (void)e;
    struct golden_finals *f = ctx;
    size_t count = (size_t)(x[0].rows * x[0].cols);
    memcpy(f->values + (size_t)window * count, x[0].data, count * sizeof(float));
    return RC_OK;
}

/* What the model computes after its final norm; `weights` may replace what it sees. */
static inline const float *golden_finals(struct golden *g, golden_weights weights, void *ctx) {
    struct golden_finals f = {.ctx = ctx, .weights = weights};
    f.values = arena_alloc(&g->arena, (size_t)(GOLDEN_WINDOWS * GOLDEN_LENGTH * g->model->arch.hidden) * sizeof(float));
    struct walk_hooks hooks = {.ctx = &f, .weights = golden_show, .final = golden_keep};
    struct walk walk = {.job = &g->job,
                        .model = g->model,
                        .windows = &g->windows,
                        .count = GOLDEN_WINDOWS,
                        .streams = 1,
                        .last_block = -1,
                        .hooks = &hooks,
                        .phase = "golden",
                        .tokens_total = GOLDEN_WINDOWS * GOLDEN_LENGTH};
    golden_must(g, walk_run(&walk, &g->err));
    return f.values;
}

/* ‖a − b‖ / ‖b‖ of two of them. */
static inline double golden_distance(const struct golden *g, const float *a, const float *b) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < (int64_t)GOLDEN_WINDOWS * GOLDEN_LENGTH * g->model->arch.hidden; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference / norm);
}

#endif
