#include "worker/pipeline/reverse.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/random.h"
#include "worker/pipeline/block_feed.h"
#include "worker/pipeline/hidden.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

/* Device memory that hidden states leave to operations' workspaces and hooks. */
static const int64_t device_reserve = (int64_t)1536 << 20;
/* As far as it is counted in advance, no more than this part of the room: what fits in little works with less. */
enum { RESERVE_PART = 4 };

/* What a visit of a block costs, in products with its weights: on the way back it is computed anew. */
enum { FORWARD_STEPS = 1, BACKWARD_STEPS = 2 };

struct reverse {
    const struct reverse_walk *r;
    struct walk walk;        /* what the forward pass of a block knows of its walk */
    const struct windows *w; /* of the run at hand */
    int64_t windows, chunks; /* windows of a chunk, chunks of the run */
    int64_t most_chunks;     /* of any run */
    int parts;
    struct forward forward;
    struct backward backward;
    struct block_feed feed;
    struct block_weights seen; /* of the block at hand */
    struct hidden *hidden; /* slot = block · most_chunks + chunk: the block's input, [blocks]: the last one's output */
    float *memory;         /* [2, T, D] the next two */
    struct mat middle, dx;
    struct mat final; /* [T, D] after the final norm */
    struct mat head;
    float *head_bias, *final_norm; /* [V] or NULL, [D] */
    int32_t *ids, *labels;         /* [T] of one chunk, as the next */
    double *u, *nll;
    float *weight;
    _Atomic int64_t steps; /* of the run, as the next */
    int64_t steps_total;
    int64_t tokens_before; /* of earlier runs */
};

static int blocks_of(const struct reverse *k) {
    return k->r->model->arch.blocks;
}

static int64_t chunk_tokens(const struct reverse *k) {
    return k->windows * k->r->windows->length;
}

static int64_t windows_of_chunk(const struct reverse_walk *r) {
    return r->chunk > 0 ? r->chunk : walk_chunk(r->job, r->windows);
}

static int64_t scored_from(const struct windows *windows) {
    return windows->first_label > 0 ? windows->first_label - 1 : 0;
}

int64_t reverse_scored(const struct windows *windows) {
    return windows->count * (windows->length - 1 - scored_from(windows));
}

/* --- what it holds --- */

static enum rc open_matrices(struct reverse *k, struct err *e) {
    const struct job *job = k->r->job;
    int64_t rows = chunk_tokens(k), cols = k->r->model->arch.hidden;
    TRY(device_floats(job, 2 * rows * cols, &k->memory, e));
    k->middle = matf(k->memory, rows, cols);
    k->dx = matf(k->memory + rows * cols, rows, cols);
    k->final = (struct mat){NULL, rows, cols, cols, job->backend->activation};
    return job->backend->alloc(job->device, (size_t)(rows * cols) * dtype_size(k->final.type), &k->final.data, e);
}

/* Whoever has a loss of his own has what it takes. */
static enum rc open_head(struct reverse *k, struct err *e) {
    const struct model *model = k->r->model;
    if (!k->r->final_norm) TRY(upload_new(k->r->job, model->final_norm, &k->final_norm, e));
    if (k->r->hooks->loss) return RC_OK;
    TRY(upload_linear(k->r->job, &model->linears[model->linear_count - 1], &k->head, e));
    return upload_new(k->r->job, model->head_bias, &k->head_bias, e);
}

static int64_t positive(int64_t bytes) {
    return bytes > 0 ? bytes : 0;
}

static enum rc open_hidden(struct reverse *k, struct err *e) {
    const struct reverse_walk *r = k->r;
    const struct job *job = r->job;
    struct hidden_args a = {.job = job,
                            .slots = (blocks_of(k) + 1) * k->most_chunks,
                            .slot_floats = chunk_tokens(k) * r->model->arch.hidden,
                            .ram_limit = job->ram_limit <= 0 ? -1 : positive(job->ram_limit - r->reserved)};
    if (job->backend->own_memory)
        a.device_limit = positive(job->backend->room(job->device) - device_reserve - r->device_reserved);
    return hidden_open(&a, &k->hidden, e);
}

static int64_t head_bytes(const struct reverse_walk *r) {
    const struct linear *head = &r->model->linears[r->model->linear_count - 1];
    return r->hooks->loss ? 0 : head->rows * head->cols * (int64_t)dtype_size(linear_type(r->job, head));
}

/* Of open_all's; of hidden states the two that are worked on by turns. */
int64_t reverse_bytes(const struct reverse_walk *r) {
    enum dtype activation = r->job->backend->activation;
    struct walk walk = {.job = r->job, .model = r->model, .windows = r->windows};
    struct forward forward;
    int64_t windows = windows_of_chunk(r), state = windows * r->windows->length * r->model->arch.hidden;
    int64_t passes = (int64_t)forward_measure(&forward, &walk, windows, true) + (int64_t)backward_bytes(&forward);
    int64_t states = state * (int64_t)(dtype_size(activation) + 4 * sizeof(float));
    return passes + states + block_feed_bytes(r->job, r->model, r->model->arch.blocks - 1, r->replaced) + head_bytes(r);
}

int64_t reverse_reserve(int64_t room) {
    return room / RESERVE_PART < device_reserve ? room / RESERVE_PART : device_reserve;
}

/* Of the first `windows` ones: that all walks of the job have, and that are this one's. */
static int64_t all_chunks(const struct reverse *k, int64_t windows) {
    return (windows + k->windows - 1) / k->windows;
}

static int64_t own_chunks(const struct reverse *k, int64_t windows) {
    return (all_chunks(k, windows) - k->r->part + k->parts - 1) / k->parts;
}

static int64_t windows_again(const struct reverse *k) {
    return k->r->again < k->w->count ? k->r->again : k->w->count;
}

static int64_t rounds_again(const struct reverse *k, int block) {
    if (!k->r->hooks->linear_again) return 0;
    return k->r->rounds ? k->r->rounds[block] : 1;
}

/* Of all the walks, whose progress is one. */
static int64_t count_steps(const struct reverse *k) {
    int64_t chunks = all_chunks(k, k->w->count), again = all_chunks(k, windows_again(k)), visits = 0;
    for (int block = k->r->first_block; block < blocks_of(k); block++)
        visits += chunks + rounds_again(k, block) * again;
    return blocks_of(k) * chunks * FORWARD_STEPS + visits * BACKWARD_STEPS;
}

static enum rc open_all(struct reverse *k, struct err *e) {
    const struct reverse_walk *r = k->r;
    size_t tokens = (size_t)chunk_tokens(k);
    k->most_chunks = own_chunks(k, r->windows->count);
    k->ids = xcalloc(tokens, sizeof *k->ids);
    k->labels = xcalloc(tokens, sizeof *k->labels);
    k->u = xcalloc(tokens, sizeof *k->u);
    k->nll = xcalloc(tokens, sizeof *k->nll);
    k->weight = xcalloc(tokens, sizeof *k->weight);
    TRY(forward_open(&k->forward, &k->walk, k->windows, true, e));
    TRY(backward_open(&k->backward, &k->forward, e));
    TRY(block_feed_open(r->job, r->model, blocks_of(k) - 1, r->replaced, &k->feed, e));
    TRY(open_matrices(k, e));
    TRY(open_head(k, e));
    return open_hidden(k, e);
}

static void release(struct reverse *k) {
    const struct job *job = k->r->job;
    void *on_device[] = {k->memory, k->final.data, k->head.data, k->head_bias, k->final_norm};
    void *on_host[] = {k->ids, k->labels, k->u, k->nll, k->weight};
    block_feed_close(&k->feed); /* first: it waits for loads under way */
    hidden_close(k->hidden);
    for (size_t i = 0; i < sizeof on_device / sizeof *on_device; i++)
        if (on_device[i]) job->backend->free(job->device, on_device[i]);
    for (size_t i = 0; i < sizeof on_host / sizeof *on_host; i++)
        free(on_host[i]);
    backward_release(&k->backward);
    forward_release(&k->forward);
}

/* The block becomes ready to compute with, as it is to be seen; `next`: −1 for none. */
static enum rc ready_block(struct reverse *k, int block, int next, struct err *e) {
    const struct reverse_hooks *hooks = k->r->hooks;
    TRY(block_feed_ready(&k->feed, block, next, e));
    k->seen = block_feed_at(&k->feed, block)->weights;
    return hooks->weights ? hooks->weights(hooks->ctx, block, next, &k->seen, e) : RC_OK;
}

/* --- steps that both ways have --- */

static struct site site_at(const struct reverse *k, int block, int64_t chunk) {
    int64_t done = (chunk * k->parts + k->r->part) * k->windows, left = k->w->count - done;
    return (struct site){0, block, done, left < k->windows ? left : k->windows};
}

static int64_t slot(const struct reverse *k, int block, int64_t chunk) {
    return block * k->most_chunks + chunk;
}

static struct mat hidden_matrix(struct reverse *k, int64_t at) {
    return matf(hidden_at(k->hidden, at), chunk_tokens(k), k->r->model->arch.hidden);
}

static enum rc copy(const struct reverse *k, struct mat from, struct mat to, struct err *e) {
    struct scale_args a = {.m = from, .out = to};
    return k->r->job->backend->scale(k->r->job->device, &a, e);
}

static enum rc recall(struct reverse *k, int64_t at, int64_t next, struct mat to, struct err *e) {
    TRY(hidden_recall(k->hidden, at, next, e));
    return copy(k, hidden_matrix(k, at), to, e);
}

static enum rc keep(struct reverse *k, int64_t at, struct mat from, struct err *e) {
    TRY(hidden_claim(k->hidden, at, e));
    TRY(copy(k, from, hidden_matrix(k, at), e));
    return hidden_keep(k->hidden, at, e);
}

static enum rc end_step(struct reverse *k, int steps, struct err *e) {
    const struct reverse_walk *r = k->r;
    int64_t tokens = k->w->count * k->w->length, total = r->tokens_total > 0 ? r->tokens_total : tokens;
    TRY(r->job->backend->keep_pace(r->job->device, e));
    if (job_cancelled(r->job)) return err_set(e, RC_CANCELLED, "cancelled");
    int64_t all = atomic_fetch_add(r->tally ? r->tally : &k->steps, steps) + steps;
    int64_t done = (int64_t)((double)all / (double)k->steps_total * (double)tokens);
    return emit_progress(r->job, r->phase, k->tokens_before + done, total, "tokens", e);
}

/* --- forward --- */

static enum rc embed_chunk(struct reverse *k, int64_t chunk, struct err *e) {
    const struct model *m = k->r->model;
    const struct job *job = k->r->job;
    struct site site = site_at(k, 0, chunk);
    bool held = k->head.data && m->head == m->embedding && k->head.type == m->embedding->type;
    walk_gather_ids(k->w, &site, k->windows, k->ids);
    struct embed_args a = {.table = m->embedding->data,
                           .type = m->embedding->type,
                           .vocab = m->embedding->shape[0],
                           .on_device = held ? k->head.data : NULL,
                           .ids = k->ids,
                           .multiplier = (float)m->arch.embedding_multiplier,
                           .out = k->middle};
    TRY(job->backend->embed(job->device, &a, e));
    return keep(k, slot(k, 0, chunk), k->middle, e);
}

static enum rc chunk_forward(struct reverse *k, int block, int64_t chunk, struct err *e) {
    struct site site = site_at(k, block, chunk);
    const struct block *b = block_feed_at(&k->feed, block);
    struct forward_args a = {.x = k->middle, .params = &b->params, .weights = &k->seen, .site = &site};
    TRY(recall(k, slot(k, block, chunk), -1, k->middle, e));
    TRY(forward_block(&k->forward, &a, e));
    TRY(keep(k, slot(k, block + 1, chunk), k->middle, e));
    return end_step(k, FORWARD_STEPS, e);
}

static enum rc walk_forward(struct reverse *k, struct err *e) {
    int last = blocks_of(k) - 1;
    for (int64_t chunk = 0; chunk < k->chunks; chunk++)
        TRY(embed_chunk(k, chunk, e));
    for (int block = 0; block <= last; block++) {
        TRY(ready_block(k, block, block < last ? block + 1 : last - 1, e));
        for (int64_t chunk = 0; chunk < k->chunks; chunk++)
            TRY(chunk_forward(k, block, chunk, e));
    }
    return RC_OK;
}

/* --- the loss --- */

/* Number `position` of the stream that the seed begins: the same however windows are put together. */
static double draw_at(uint64_t seed, uint64_t position) {
    uint64_t state = seed + position * 0x9e3779b97f4a7c15u;
    return (double)(splitmix64(&state) >> 11) * 0x1p-53;
}

/* Padding is not scored. */
static void set_positions(struct reverse *k, const struct site *site) {
    const struct windows *w = k->w;
    for (int64_t i = 0; i < chunk_tokens(k); i++) {
        int64_t window = i / w->length, t = i % w->length;
        bool real = window < site->windows;
        uint64_t position = (uint64_t)((site->window + window) * w->length + t);
        k->u[i] = draw_at(k->r->seed, position);
        k->labels[i] = real && k->r->labels ? k->r->labels[position] : 0;
        k->weight[i] = real && t >= scored_from(w) && t < w->length - 1;
    }
}

static enum rc draw_labels(struct reverse *k, struct err *e) {
    struct sample_labels_args a = {.x = k->final,
                                   .head = k->head,
                                   .bias = k->head_bias,
                                   .logit_scale = (float)(1 / k->r->model->arch.logits_scaling),
                                   .u = k->u,
                                   .labels = k->labels};
    return k->r->job->backend->sample_labels(k->r->job->device, &a, e);
}

static enum rc score_back(struct reverse *k, struct err *e) {
    struct score_back_args a = {.x = k->final,
                                .head = k->head,
                                .bias = k->head_bias,
                                .logit_scale = (float)(1 / k->r->model->arch.logits_scaling),
                                .labels = k->labels,
                                .weight = k->weight,
                                .dx = k->dx,
                                .nll = k->nll};
    return k->r->job->backend->score_back(k->r->job->device, &a, e);
}

static void add_nll(struct reverse *k, const struct site *site) {
    int64_t length = k->w->length;
    for (int64_t window = 0; k->r->nll && window < site->windows; window++) {
        double *sum = &k->r->nll[site->window + window];
        *sum = 0;
        for (int64_t i = window * length; i < (window + 1) * length; i++)
            if (k->weight[i] > 0) *sum += k->nll[i];
    }
}

/* The labels' NLL. */
static enum rc own_loss(struct reverse *k, const struct site *site, struct err *e) {
    set_positions(k, site);
    if (!k->r->labels) TRY(draw_labels(k, e));
    TRY(score_back(k, e));
    add_nll(k, site);
    return RC_OK;
}

static enum rc loss(struct reverse *k, const struct site *site, struct err *e) {
    const struct reverse_hooks *hooks = k->r->hooks;
    struct reverse_end at = {site, k->final, k->dx};
    return hooks->loss ? hooks->loss(hooks->ctx, &at, e) : own_loss(k, site, e);
}

/* The final hidden state makes room for its gradient. */
static enum rc chunk_turn(struct reverse *k, int64_t chunk, struct err *e) {
    const struct job *job = k->r->job;
    struct site site = site_at(k, blocks_of(k), chunk);
    float eps = (float)k->r->model->arch.norm_eps;
    const float *weight = k->r->final_norm ? k->r->final_norm : k->final_norm;
    struct rmsnorm_args norm = {.x = k->middle, .weight = weight, .eps = eps, .out = k->final};
    struct rmsnorm_back_args back = {.x = k->middle, .weight = weight, .eps = eps, .dy = k->dx, .dx = k->dx};
    TRY(recall(k, slot(k, blocks_of(k), chunk), -1, k->middle, e));
    TRY(job->backend->rmsnorm(job->device, &norm, e));
    TRY(loss(k, &site, e));
    TRY(job->backend->rmsnorm_back(job->device, &back, e));
    TRY(keep(k, slot(k, blocks_of(k), chunk), k->dx, e));
    return end_step(k, 0, e);
}

/* --- backward --- */

typedef enum rc (*linear_hook)(void *ctx, const struct linear_gradient *at, struct err *e);

/* A block's input is not needed after its last visit, and makes room for its gradient. */
static enum rc chunk_back(struct reverse *k, int block, int64_t chunk, linear_hook hook, bool last, struct err *e) {
    struct site site = site_at(k, block, chunk);
    const struct block *b = block_feed_at(&k->feed, block);
    int64_t at = slot(k, block, chunk), after = chunk + 1 < k->chunks ? slot(k, block + 1, chunk + 1) : -1;
    TRY(recall(k, slot(k, block + 1, chunk), at, k->dx, e));
    TRY(hidden_recall(k->hidden, at, after, e));
    struct backward_args a = {.x = hidden_matrix(k, at),
                              .middle = k->middle,
                              .dx = k->dx,
                              .params = &b->params,
                              .weights = &k->seen,
                              .site = &site,
                              .linear = hook,
                              .ctx = k->r->hooks->ctx};
    TRY(backward_block(&k->backward, &a, e));
    if (last && block > k->r->first_block) {
        TRY(copy(k, k->dx, hidden_matrix(k, at), e));
        TRY(hidden_keep(k->hidden, at, e));
    }
    return end_step(k, BACKWARD_STEPS, e);
}

static enum rc visit_again(struct reverse *k, int block, bool last, struct err *e) {
    const struct reverse_hooks *hooks = k->r->hooks;
    for (int64_t chunk = 0; chunk < own_chunks(k, windows_again(k)); chunk++)
        TRY(chunk_back(k, block, chunk, hooks->linear_again, last, e));
    return hooks->done ? hooks->done(hooks->ctx, block, &block_feed_at(&k->feed, block)->weights, e) : RC_OK;
}

static enum rc block_back(struct reverse *k, int block, struct err *e) {
    const struct reverse_hooks *hooks = k->r->hooks;
    const struct block_weights *w = &block_feed_at(&k->feed, block)->weights;
    int64_t again = rounds_again(k, block) > 0 ? own_chunks(k, windows_again(k)) : 0;
    TRY(ready_block(k, block, block > k->r->first_block ? block - 1 : -1, e));
    if (hooks->begin) TRY(hooks->begin(hooks->ctx, block, w, e));
    for (int64_t chunk = 0; chunk < k->chunks; chunk++)
        TRY(chunk_back(k, block, chunk, hooks->linear, chunk >= again, e));
    if (hooks->end) TRY(hooks->end(hooks->ctx, block, w, e));
    for (int64_t left = rounds_again(k, block); left > 0; left--)
        TRY(visit_again(k, block, left == 1, e));
    return RC_OK;
}

static enum rc walk_all(struct reverse *k, struct err *e) {
    TRY(walk_forward(k, e));
    for (int64_t chunk = 0; chunk < k->chunks; chunk++)
        TRY(chunk_turn(k, chunk, e));
    for (int block = blocks_of(k) - 1; block >= k->r->first_block; block--)
        TRY(block_back(k, block, e));
    return RC_OK;
}

/* --- opened, run, closed --- */

enum rc reverse_open(const struct reverse_walk *r, struct reverse **out, struct err *e) {
    static const struct walk_hooks no_hooks = {0};
    struct reverse *k = xcalloc(1, sizeof *k);
    *k = (struct reverse){.r = r, .windows = windows_of_chunk(r), .tokens_before = r->tokens_before};
    k->parts = r->parts > 0 ? r->parts : 1;
    k->walk = (struct walk){.job = r->job, .model = r->model, .windows = r->windows, .hooks = &no_hooks};
    k->forward.walk = &k->walk;
    enum rc rc = open_all(k, e);
    if (rc != RC_OK) {
        reverse_close(k);
        k = NULL;
    }
    *out = k;
    return rc;
}

void reverse_close(struct reverse *k) {
    if (!k) return;
    release(k);
    free(k);
}

enum rc reverse_run(struct reverse *k, const struct windows *windows, struct err *e) {
    int64_t chunks = own_chunks(k, windows->count);
    if (chunks > k->most_chunks || windows->length != k->r->windows->length)
        return err_set(e, RC_INTERNAL, "the walk was opened for other windows");
    k->w = windows;
    k->chunks = chunks;
    k->steps = 0;
    k->steps_total = count_steps(k);
    TRY(walk_all(k, e));
    k->tokens_before += windows->count * windows->length;
    return RC_OK;
}

enum rc reverse_walk_run(const struct reverse_walk *r, struct err *e) {
    struct reverse *k;
    TRY(reverse_open(r, &k, e));
    enum rc rc = reverse_run(k, r->windows, e);
    reverse_close(k);
    return rc;
}
