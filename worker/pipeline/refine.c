#include "worker/pipeline/refine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/random.h"
#include "base/sizes.h"
#include "worker/model/finite.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/hidden.h"
#include "worker/pipeline/reverse.h"
#include "worker/pipeline/tuned.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

enum { BATCH = 4, WARM_UP = 4 }; /* windows of a step; steps */

/* Device memory that codes leave to operations' workspaces; less than what the walk back leaves them. */
static const int64_t device_reserve = (int64_t)1024 << 20;

struct refiner {
    const struct refine_args *a;
    const struct job *job;
    const struct model *model;
    int64_t length, chunk; /* tokens of a window, windows of a chunk */
    struct tuned *tuned;
    struct hidden *finals;   /* slot = window: [length, D] of the reference after its final norm, activation type */
    struct mat head, head_q; /* [V, D]; head_q.data NULL: the reference's */
    float *head_bias;        /* [V] or NULL */
    float *final_norm;       /* [D]; NULL: the reference's */
    struct mat x_ref;        /* [T, D] of a chunk */
    struct reverse *reverse;
    struct windows batch; /* ids gathered */
    int64_t *order;       /* [count] windows as they come in the epoch */
    int64_t at;           /* the batch's first in it */
    float *weight;        /* [T] of a chunk, as the next */
    double *kl;
    double kl_sum; /* of the epoch so far */
    int64_t step, steps;
};

/* --- what there is to do, and room for --- */

static bool is_possible(const struct candidate *recipe, const struct model *model) {
    for (int64_t i = 0; i < model->linear_count; i++)
        if (model->linears[i].block >= 0 && tuned_by(&recipe[i])) return true;
    return false;
}

bool refine_wanted(bool given, bool refine, const struct candidate *recipe, const struct model *model) {
    bool guided = calibration_plan(recipe, model->linear_count).guided;
    return (given ? refine : guided) && is_possible(recipe, model);
}

enum rc refine_check(const struct job *job, const struct model *model, const struct candidate *recipe, struct err *e) {
    int64_t bytes = tuned_bytes(model, recipe), room = job->backend->room(job->device);
    char need[24], have[24];
    if (bytes < room) return RC_OK;
    return err_set(e, RC_NO_MEMORY,
                   "refining the scales takes %s of the device's memory, of which %s are left: set \"refine\": false, "
                   "take larger groups, or raise the limit",
                   size_format(bytes, need, sizeof need), size_format(room, have, sizeof have));
}

/* --- what the reference puts out --- */

static struct mat final_at(struct refiner *k, int64_t window) {
    int64_t cols = k->model->arch.hidden;
    return (struct mat){hidden_at(k->finals, window), k->length, cols, cols, k->job->backend->activation};
}

static enum rc copy(const struct refiner *k, struct mat from, struct mat to, struct err *e) {
    struct scale_args a = {.m = from, .out = to};
    return k->job->backend->scale(k->job->device, &a, e);
}

static enum rc keep_final(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    struct refiner *k = ctx;
    TRY(hidden_claim(k->finals, window, e));
    TRY(copy(k, x[0], final_at(k, window), e));
    return hidden_keep(k->finals, window, e);
}

static int64_t batch_windows(const struct refiner *k) {
    return k->a->windows->count < BATCH ? k->a->windows->count : BATCH;
}

/* In the host's memory, which the walk back has to itself first: its hidden states come and go at every step. */
static enum rc open_finals(struct refiner *k, struct err *e) {
    const struct job *job = k->job;
    int64_t values = k->length * k->model->arch.hidden, line = 64;
    int64_t floats = values * (int64_t)dtype_size(job->backend->activation) / (int64_t)sizeof(float) + 1;
    int64_t inputs = (k->model->arch.blocks + 1) * batch_windows(k) * values * (int64_t)sizeof(float);
    struct hidden_args a = {
        .job = job, .slots = k->a->windows->count, .slot_floats = (floats + line - 1) / line * line, .ram_limit = -1};
    if (job->ram_limit > 0) {
        a.ram_limit = job->ram_limit - packed_store_bytes(k->a->store) - inputs;
        if (a.ram_limit < 0) a.ram_limit = 0;
    }
    if (job->backend->own_memory) a.device_limit = 2 * a.slot_floats * (int64_t)sizeof(float);
    return hidden_open(&a, &k->finals, e);
}

static enum rc walk_reference(struct refiner *k, struct err *e) {
    const struct windows *windows = k->a->windows;
    struct walk_hooks hooks = {.ctx = k, .final = keep_final};
    struct walk walk = {.job = k->job,
                        .model = k->model,
                        .windows = windows,
                        .count = windows->count,
                        .streams = 1,
                        .last_block = -1,
                        .hooks = &hooks,
                        .reserved = packed_store_bytes(k->a->store),
                        .phase = "reference",
                        .tokens_total = windows->count * windows->length};
    TRY(open_finals(k, e));
    return walk_run(&walk, e);
}

/* --- the loss --- */

/* The reference's of the chunk's windows, in their place. */
static enum rc recall_reference(struct refiner *k, const struct site *site, struct err *e) {
    for (int64_t i = 0; i < site->windows; i++) {
        const int64_t *number = &k->order[k->at + site->window + i];
        int64_t next = k->at + site->window + i + 1 < k->a->windows->count ? number[1] : -1;
        TRY(hidden_recall(k->finals, *number, next, e));
        TRY(copy(k, final_at(k, *number), mat_rows(k->x_ref, i * k->length, k->length), e));
    }
    return RC_OK;
}

/* Of the mean over the batch's positions; padding has none. */
static void weigh_positions(struct refiner *k, const struct site *site) {
    for (int64_t i = 0; i < k->chunk * k->length; i++)
        k->weight[i] = i < site->windows * k->length ? 1 / (float)(k->batch.count * k->length) : 0;
}

static enum rc add_kl(struct refiner *k, const struct site *site, struct err *e) {
    double sum = 0;
    for (int64_t i = 0; i < site->windows * k->length; i++)
        sum += k->kl[i];
    if (!isfinite(sum)) return model_not_finite(k->model, "the quantized model's logits are", e);
    k->kl_sum += sum;
    return RC_OK;
}

static enum rc kl_loss(void *ctx, const struct reverse_end *at, struct err *e) {
    struct refiner *k = ctx;
    struct kl_back_args a = {.x = at->x,
                             .x_ref = k->x_ref,
                             .head = k->head_q.data ? k->head_q : k->head,
                             .bias = k->head_bias,
                             .logit_scale = (float)(1 / k->model->arch.logits_scaling),
                             .weight = k->weight,
                             .dx = at->dx,
                             .kl = k->kl};
    if (k->head_q.data) a.head_ref = k->head;
    TRY(recall_reference(k, at->site, e));
    weigh_positions(k, at->site);
    TRY(k->job->backend->kl_back(k->job->device, &a, e));
    return add_kl(k, at->site, e);
}

static enum rc show_block(void *ctx, int block, int next, struct block_weights *w, struct err *e) {
    struct refiner *k = ctx;
    return tuned_show(k->tuned, block, next, w, e);
}

static enum rc add_slopes(void *ctx, const struct linear_gradient *at, struct err *e) {
    struct refiner *k = ctx;
    return tuned_add(k->tuned, at, e);
}

/* --- what it holds --- */

static enum rc open_head_q(struct refiner *k, struct err *e) {
    const struct backend *b = k->job->backend;
    const struct stored *norm = packed_store_final_norm(k->a->store);
    struct mat *out = &k->head_q;
    if (norm->values) {
        TRY(device_floats(k->job, norm->count, &k->final_norm, e));
        TRY(b->upload(k->job->device, norm->values, norm->type, norm->count, k->final_norm, e));
    }
    if (k->a->recipe[k->model->linear_count - 1].method == METHOD_NONE) return RC_OK;
    struct mat of = {NULL, k->head.rows, k->head.cols, k->head.cols, b->activation};
    TRY(b->alloc(k->job->device, (size_t)(of.rows * of.cols) * dtype_size(of.type), &of.data, e));
    *out = of;
    return packed_store_head(k->a->store, k->job, of, e);
}

static enum rc open_loss(struct refiner *k, struct err *e) {
    const struct backend *b = k->job->backend;
    int64_t rows = k->chunk * k->length, cols = k->model->arch.hidden;
    size_t bytes = (size_t)(rows * cols) * dtype_size(b->activation);
    k->weight = xcalloc((size_t)rows, sizeof *k->weight);
    k->kl = xcalloc((size_t)rows, sizeof *k->kl);
    k->x_ref = (struct mat){NULL, rows, cols, cols, b->activation};
    TRY(b->alloc(k->job->device, bytes, &k->x_ref.data, e));
    TRY(b->clear(k->job->device, k->x_ref.data, bytes, e)); /* where a chunk has fewer windows, numbers all the same */
    TRY(upload_linear(k->job, &k->model->linears[k->model->linear_count - 1], &k->head, e));
    TRY(upload_new(k->job, k->model->head_bias, &k->head_bias, e));
    return open_head_q(k, e);
}

static void release(struct refiner *k) {
    tuned_close(k->tuned);
    hidden_close(k->finals);
    device_free(k->job, k->head.data);
    device_free(k->job, k->head_q.data);
    device_free(k->job, k->head_bias);
    device_free(k->job, k->final_norm);
    device_free(k->job, k->x_ref.data);
    free(k->batch.ids);
    free(k->order);
    free(k->weight);
    free(k->kl);
}

/* --- steps --- */

static void shuffle(int64_t *order, int64_t count, uint64_t *random) {
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t other = (int64_t)random_below(random, (uint64_t)i + 1), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

/* Rises over the first steps, then falls to 0 as half a cosine. */
static double share_of_rate(int64_t step, int64_t steps) {
    double decay = (1 + cos(M_PI * (double)(step - 1) / (double)steps)) / 2;
    return step < WARM_UP ? decay * (double)step / WARM_UP : decay;
}

static void gather_batch(struct refiner *k) {
    const struct windows *all = k->a->windows;
    int64_t left = all->count - k->at;
    k->batch.count = left < BATCH ? left : BATCH;
    for (int64_t i = 0; i < k->batch.count; i++)
        memcpy(k->batch.ids + i * k->length, all->ids + k->order[k->at + i] * k->length,
               (size_t)k->length * sizeof *k->batch.ids);
}

static enum rc run_epoch(struct refiner *k, double *kl, struct err *e) {
    int64_t count = k->a->windows->count;
    k->kl_sum = 0;
    for (k->at = 0; k->at < count; k->at += BATCH) {
        gather_batch(k);
        TRY(reverse_run(k->reverse, &k->batch, e));
        k->step++;
        TRY(tuned_step(k->tuned, k->step, share_of_rate(k->step, k->steps), e));
    }
    *kl = k->kl_sum / (double)(count * k->length);
    return RC_OK;
}

static enum rc run_epochs(struct refiner *k, struct refined *out, struct err *e) {
    int64_t count = k->a->windows->count;
    uint64_t random = (uint64_t)k->a->seed;
    k->order = xcalloc((size_t)count, sizeof *k->order);
    for (int64_t i = 0; i < count; i++)
        k->order[i] = i;
    for (int epoch = 0; epoch < REFINE_EPOCHS; epoch++) {
        shuffle(k->order, count, &random);
        TRY(run_epoch(k, epoch == 0 ? &out->kl_before : &out->kl_after, e));
    }
    return RC_OK;
}

/* --- all of it --- */

static int64_t host_bytes(const struct refiner *k) {
    int64_t bytes = packed_store_bytes(k->a->store);
    bytes += hidden_places(k->finals).ram * k->length * k->model->arch.hidden *
             (int64_t)dtype_size(k->job->backend->activation);
    return k->job->backend->own_memory ? bytes : bytes + tuned_code_bytes(k->tuned);
}

static enum rc walk_back(struct refiner *k, struct refined *out, struct err *e) {
    struct reverse_hooks hooks = {.ctx = k, .weights = show_block, .loss = kl_loss, .linear = add_slopes};
    struct windows most = k->batch;
    struct reverse_walk walk = {.job = k->job,
                                .model = k->model,
                                .windows = &most,
                                .chunk = k->chunk,
                                .replaced = tuned_shown(k->tuned),
                                .final_norm = k->final_norm,
                                .hooks = &hooks,
                                .reserved = host_bytes(k),
                                .device_reserved = tuned_code_bytes(k->tuned),
                                .phase = "refine",
                                .tokens_total = REFINE_EPOCHS * k->a->windows->count * k->length};
    enum rc rc = reverse_open(&walk, &k->reverse, e);
    if (rc == RC_OK) rc = tuned_load(k->tuned, device_reserve, e);
    if (rc == RC_OK) rc = run_epochs(k, out, e);
    reverse_close(k->reverse);
    return rc;
}

static enum rc run(struct refiner *k, struct refined *out, struct err *e) {
    if (tuned_open(k->job, k->model, k->a->store, &k->tuned, e) != RC_OK)
        return err_context(e, "refining scales, which \"refine\": false goes without");
    TRY(walk_reference(k, e));
    TRY(open_loss(k, e));
    TRY(walk_back(k, out, e));
    return tuned_store(k->tuned, e);
}

enum rc refine_run(const struct refine_args *a, struct refined *out, struct err *e) {
    double start = monotonic_seconds();
    int64_t whole = walk_chunk(a->job, a->windows);
    struct refiner k = {.a = a, .job = a->job, .model = a->model, .length = a->windows->length};
    k.batch = *a->windows;
    k.batch.count = batch_windows(&k);
    k.chunk = whole < k.batch.count ? whole : k.batch.count;
    k.batch.ids = xcalloc((size_t)(k.batch.count * k.length), sizeof *k.batch.ids);
    k.steps = REFINE_EPOCHS * ((a->windows->count + BATCH - 1) / BATCH);
    *out = (struct refined){.epochs = REFINE_EPOCHS, .steps = k.steps};
    enum rc rc = run(&k, out, e);
    release(&k);
    out->seconds = monotonic_seconds() - start;
    return rc;
}

/* --- what is told of it --- */

static const char row_phase[] = "_refined";

json_t *refined_json(const struct refined *r, bool given) {
    return json_pack("{si sI sf sf sf sb}", "epochs", r->epochs, "steps", (json_int_t)r->steps, "kl_before",
                     r->kl_before, "kl_after", r->kl_after, "seconds", r->seconds, "default", !given);
}

json_t *refine_settings_json(void) {
    return json_pack("{si si ss si}", "epochs", REFINE_EPOCHS, "batch", BATCH, "rate", TUNED_RATE, "warm_up", WARM_UP);
}

enum rc refined_send(const struct job *job, const json_t *refined, struct err *e) {
    return job_row(job, row_phase, 0) ? RC_OK : emit_row(job, row_phase, 0, refined, NULL, e);
}

json_t *refined_earlier(const struct job *job) {
    return json_incref((json_t *)job_row(job, row_phase, 0));
}
