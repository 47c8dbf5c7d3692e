#include "worker/pipeline/walk.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/block_feed.h"
#include "worker/pipeline/forward.h"
#include "worker/pipeline/hidden.h"
#include "worker/pipeline/upload.h"

/* Device memory that hidden states leave to operations' workspaces and hooks. */
static const int64_t device_reserve = (int64_t)768 << 20;

struct walker {
    const struct walk *walk;
    int64_t windows, chunks; /* windows of a chunk, chunks of a stream */
    struct forward forward;
    struct hidden *hidden; /* slot = stream · chunks + chunk */
    struct block_feed feed;
    char *kept;         /* [chunks] of forward_kept bytes: the input that a stage leaves to the next; or NULL */
    bool is_kept;       /* it is there */
    int active;         /* streams that the block at hand has */
    void *final_memory; /* of `finals` */
    struct mat *finals; /* [final_count] of [T, D]: one for each stream, or for the first and some forks in turn */
    float *final_norm;  /* [D] */
    int32_t *ids;       /* [T] of one chunk */
    int64_t steps, steps_total, tokens_done;
};

int64_t walk_chunk(const struct job *job, const struct windows *windows) {
    int64_t whole = job->backend->chunk_tokens / windows->length;
    return whole > 0 ? whole : 1;
}

int64_t walk_aligned(const struct job *job, const struct windows *windows, int64_t window) {
    return window - window % walk_chunk(job, windows);
}

struct span walk_share(const struct job *job, const struct windows *windows, struct span all, int part, int parts) {
    int64_t chunk = walk_chunk(job, windows), chunks = (all.count + chunk - 1) / chunk;
    int64_t from = chunks * part / parts * chunk, to = chunks * (part + 1) / parts * chunk;
    return (struct span){all.first + from, (to < all.count ? to : all.count) - from};
}

static int last_block(const struct walk *w) {
    return w->last_block < 0 ? w->model->arch.blocks - 1 : w->last_block;
}

static bool whole_model(const struct walk *w) {
    return w->last_block < 0;
}

static int64_t chunk_tokens(const struct walker *k) {
    return k->windows * k->walk->windows->length;
}

/* Streams that forked and are finished together: their logits share the first stream's. */
enum { FORKS_TOGETHER = 8 };

static int final_count(const struct walk *w) {
    return w->begins && w->streams > 1 + FORKS_TOGETHER ? 1 + FORKS_TOGETHER : w->streams;
}

static enum rc allocate_finals(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    const struct backend *b = w->job->backend;
    int count = final_count(w);
    int64_t rows = chunk_tokens(k), cols = w->model->arch.hidden;
    k->finals = xcalloc((size_t)count, sizeof *k->finals);
    if (!whole_model(w)) return RC_OK;
    TRY(upload_new(w->job, w->model->final_norm, &k->final_norm, e));
    struct mat all = {NULL, count * rows, cols, cols, b->activation};
    TRY(b->alloc(w->job->device, (size_t)(all.rows * cols) * dtype_size(all.type), &k->final_memory, e));
    all.data = k->final_memory;
    for (int i = 0; i < count; i++)
        k->finals[i] = mat_rows(all, i * rows, rows);
    return RC_OK;
}

static int64_t positive(int64_t bytes) {
    return bytes > 0 ? bytes : 0;
}

/* After everything else that the walk holds: hidden states get what is left. */
static enum rc open_hidden(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    const struct job *job = w->job;
    struct hidden_args a = {.job = job,
                            .slots = w->streams * k->chunks,
                            .slot_floats = chunk_tokens(k) * w->model->arch.hidden,
                            .ram_limit = job->ram_limit <= 0 ? -1 : positive(job->ram_limit - w->reserved)};
    if (job->backend->own_memory)
        a.device_limit = positive(job->backend->room(job->device) - device_reserve - w->device_reserved);
    return hidden_open(&a, &k->hidden, e);
}

/* What the host's memory may take for the inputs kept between stages; a device's own has its room. */
static const int64_t host_kept_limit = (int64_t)256 << 20;

/* Last of all: it spares work, and may be left out. */
static enum rc open_kept(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    const struct backend *b = w->job->backend;
    int64_t bytes = k->chunks * (int64_t)forward_kept(&k->forward), room = host_kept_limit;
    void *memory = NULL;
    if (b->own_memory) room = b->room(w->job->device) - device_reserve - w->device_reserved;
    if (!w->hooks->stage || !w->inputs_stay || bytes > room) return RC_OK;
    TRY(b->alloc(w->job->device, (size_t)bytes, &memory, e));
    k->kept = memory;
    return RC_OK;
}

static bool in_stages(const struct walk *w, int block) {
    return w->hooks->stage && block >= w->whole_blocks;
}

/* Streams that a block has. */
static int active_streams(const struct walk *w, int block) {
    int count = w->streams;
    while (w->begins && w->begins[count - 1] > block)
        count--;
    return count;
}

/* Over all blocks and streams, how often a chunk goes through one or a piece of it. */
static int64_t passes(const struct walk *w) {
    int64_t count = 0;
    for (int block = 0; block <= last_block(w); block++)
        count += active_streams(w, block) * (in_stages(w, block) ? INPUT_COUNT : 1);
    return count;
}

static enum rc walker_open(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    k->windows = walk_chunk(w->job, w->windows);
    k->chunks = (w->count + k->windows - 1) / k->windows;
    k->steps_total = passes(w) * k->chunks;
    k->active = w->streams;
    k->ids = xcalloc((size_t)chunk_tokens(k), sizeof *k->ids);
    TRY(forward_open(&k->forward, w, k->windows, false, e));
    TRY(block_feed_open(w->job, w->model, last_block(w), NULL, &k->feed, e));
    TRY(allocate_finals(k, e));
    TRY(open_hidden(k, e));
    return open_kept(k, e);
}

static void walker_release(struct walker *k) {
    const struct job *job = k->walk->job;
    block_feed_close(&k->feed); /* first: it waits for loads under way */
    hidden_close(k->hidden);
    device_free(job, k->final_memory);
    free(k->finals);
    free(k->ids);
    device_free(job, k->kept);
    device_free(job, k->final_norm);
    forward_release(&k->forward);
}

static int64_t slot(const struct walker *k, int stream, int64_t chunk) {
    return stream * k->chunks + chunk;
}

static struct site site_at(const struct walker *k, int stream, int block, int64_t chunk) {
    const struct walk *w = k->walk;
    int64_t done = chunk * k->windows, left = w->count - done;
    return (struct site){stream, block, w->first + done, left < k->windows ? left : k->windows};
}

static struct mat hidden_matrix(struct walker *k, int64_t at) {
    return matf(hidden_at(k->hidden, at), chunk_tokens(k), k->walk->model->arch.hidden);
}

static enum rc check_cancel(const struct walk *w, struct err *e) {
    return job_cancelled(w->job) ? err_set(e, RC_CANCELLED, "cancelled") : RC_OK;
}

void walk_gather_ids(const struct windows *windows, const struct site *site, int64_t chunk, int32_t *ids) {
    for (int64_t i = 0; i < chunk; i++) {
        int64_t window = site->window + (i < site->windows ? i : site->windows - 1);
        for (int64_t t = 0; t < windows->length; t++)
            ids[i * windows->length + t] = windows->ids[window * windows->length + t];
    }
}

static const void *embedding_on_device(const struct walk *w) {
    bool same = w->head && w->model->head == w->model->embedding && w->head->type == w->model->embedding->type;
    return same ? w->head->data : NULL;
}

static enum rc embed_chunk(struct walker *k, int64_t chunk, struct err *e) {
    const struct walk *w = k->walk;
    struct site site = site_at(k, 0, 0, chunk);
    struct embed_args a = {.table = w->model->embedding->data,
                           .type = w->model->embedding->type,
                           .vocab = w->model->embedding->shape[0],
                           .on_device = embedding_on_device(w),
                           .ids = k->ids,
                           .multiplier = (float)w->model->arch.embedding_multiplier};
    TRY(check_cancel(w, e));
    walk_gather_ids(w->windows, &site, k->windows, k->ids);
    for (int stream = 0; stream < (w->begins ? 1 : w->streams); stream++) {
        int64_t at = slot(k, stream, chunk);
        a.out = hidden_matrix(k, at);
        TRY(hidden_claim(k->hidden, at, e));
        TRY(w->job->backend->embed(w->job->device, &a, e));
        TRY(hidden_keep(k->hidden, at, e));
    }
    return RC_OK;
}

/* Where the next one is loaded already, the one after it is asked for. */
static enum rc ready_block(struct walker *k, int block, struct err *e) {
    const struct walk *w = k->walk;
    int last = last_block(w);
    TRY(block_feed_ready(&k->feed, block, block < last ? block + 1 : -1, e));
    if (w->job->backend->loads_ahead && block + 2 <= last) block_prefetch(w->model, block + 2);
    return RC_OK;
}

/* Streams that a token counts for. */
static int counted_streams(const struct walk *w) {
    return w->begins && w->streams > 1 ? w->streams - 1 : 1;
}

static enum rc report(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    int64_t tokens = counted_streams(w) * w->count * w->windows->length;
    int64_t done = (int64_t)((double)k->steps / (double)k->steps_total * (double)tokens), fresh = done - k->tokens_done;
    k->tokens_done = done;
    if (w->tally) done = atomic_fetch_add(w->tally, fresh) + fresh;
    return emit_progress(w->job, w->phase, w->tokens_before + done, w->tokens_total, "tokens", e);
}

/* One chunk of a stream in a block, and what it sees there. */
struct step {
    struct site site;
    int64_t at; /* slot */
    const struct block_weights *weights;
};

static struct forward_args forward_args(struct walker *k, const struct step *s) {
    return (struct forward_args){.x = hidden_matrix(k, s->at),
                                 .params = &block_feed_at(&k->feed, s->site.block)->params,
                                 .weights = s->weights,
                                 .site = &s->site};
}

/* The block's next chunk, or the first one that the next block, stage or stream begins with. */
static int64_t slot_after(const struct walker *k, int64_t at) {
    return (at + 1) % (k->active * k->chunks);
}

static enum rc end_step(struct walker *k, struct err *e) {
    const struct job *job = k->walk->job;
    TRY(job->backend->keep_pace(job->device, e));
    k->steps++;
    return report(k, e);
}

static enum rc walk_chunk_through(struct walker *k, const struct step *s, struct err *e) {
    struct forward_args a = forward_args(k, s);
    TRY(hidden_recall(k->hidden, s->at, slot_after(k, s->at), e));
    TRY(forward_block(&k->forward, &a, e));
    TRY(hidden_keep(k->hidden, s->at, e));
    return end_step(k, e);
}

static enum rc walk_chunk_to(struct walker *k, const struct step *s, enum linear_input until, struct err *e) {
    struct forward_args a = forward_args(k, s);
    if (k->kept) a.kept = k->kept + (size_t)s->at * forward_kept(&k->forward);
    a.is_kept = k->is_kept;
    TRY(hidden_recall(k->hidden, s->at, slot_after(k, s->at), e));
    TRY(forward_stage(&k->forward, &a, until, e));
    if (forward_stage_moves(until)) TRY(hidden_keep(k->hidden, s->at, e));
    return end_step(k, e);
}

static struct step step_at(struct walker *k, int stream, int block, int64_t chunk, const struct block_weights *seen) {
    return (struct step){site_at(k, stream, block, chunk), slot(k, stream, chunk), seen};
}

static bool leads_nowhere(const struct walk_hooks *hooks, int block, enum linear_input until) {
    return !forward_stage_moves(until) && hooks->looks && !hooks->looks(hooks->ctx, block, until);
}

static enum rc walk_stage(struct walker *k, int block, enum linear_input until, struct block_weights *seen,
                          struct err *e) {
    if (leads_nowhere(k->walk->hooks, block, until)) {
        k->steps += k->chunks;
        return RC_OK;
    }
    for (int64_t chunk = 0; chunk < k->chunks; chunk++) {
        struct step s = step_at(k, 0, block, chunk, seen);
        TRY(walk_chunk_to(k, &s, until, e));
    }
    k->is_kept = k->kept && !forward_stage_moves(until) && until != INPUT_ATTENTION;
    return RC_OK;
}

static enum rc walk_stages(struct walker *k, int block, struct block_weights *seen, struct err *e) {
    const struct walk_hooks *hooks = k->walk->hooks;
    for (int until = INPUT_ATTENTION; until <= INPUT_HEAD; until++) {
        TRY(walk_stage(k, block, (enum linear_input)until, seen, e));
        if (until < INPUT_HEAD) TRY(hooks->stage(hooks->ctx, block, (enum linear_input)until, seen, e));
    }
    return RC_OK;
}

static enum rc walk_stream(struct walker *k, int stream, int block, struct err *e) {
    const struct walk_hooks *hooks = k->walk->hooks;
    struct block_weights seen = block_feed_at(&k->feed, block)->weights;
    if (hooks->weights) TRY(hooks->weights(hooks->ctx, stream, block, &seen, e));
    if (in_stages(k->walk, block)) return walk_stages(k, block, &seen, e);
    for (int64_t chunk = 0; chunk < k->chunks; chunk++) {
        struct step s = step_at(k, stream, block, chunk, &seen);
        TRY(walk_chunk_through(k, &s, e));
    }
    return RC_OK;
}

/* Streams [from, to) become the first one, as it is before the next block. */
static enum rc fork_chunk(struct walker *k, int from, int to, int64_t chunk, struct err *e) {
    int64_t first = slot(k, 0, chunk);
    TRY(check_cancel(k->walk, e));
    TRY(hidden_recall(k->hidden, first, -1, e));
    for (int stream = from; stream < to; stream++)
        TRY(hidden_copy(k->hidden, first, slot(k, stream, chunk), e));
    return RC_OK;
}

/* Before the first stream goes through the block. */
static enum rc fork_streams(struct walker *k, int block, struct err *e) {
    const struct walk *w = k->walk;
    k->active = active_streams(w, block);
    if (!w->begins) return RC_OK;
    int from = block > 0 ? active_streams(w, block - 1) : 1;
    for (int64_t chunk = 0; from < k->active && chunk < k->chunks; chunk++)
        TRY(fork_chunk(k, from, k->active, chunk, e));
    return RC_OK;
}

static enum rc walk_block(struct walker *k, int block, struct err *e) {
    const struct walk *w = k->walk;
    TRY(ready_block(k, block, e));
    TRY(fork_streams(k, block, e));
    for (int stream = 0; stream < k->active; stream++)
        TRY(walk_stream(k, stream, block, e));
    if (!w->hooks->block_end) return RC_OK;
    return w->hooks->block_end(w->hooks->ctx, block, &block_feed_at(&k->feed, block)->weights, e);
}

/* All streams' share of a chunk, then the next chunk's. */
static int64_t slot_finished_after(const struct walker *k, int stream, int64_t chunk) {
    if (stream + 1 < k->walk->streams) return slot(k, stream + 1, chunk);
    return chunk + 1 < k->chunks ? slot(k, 0, chunk + 1) : -1;
}

static enum rc norm_chunk(struct walker *k, int stream, int64_t chunk, struct mat out, struct err *e) {
    const struct walk *w = k->walk;
    int64_t at = slot(k, stream, chunk);
    TRY(hidden_recall(k->hidden, at, slot_finished_after(k, stream, chunk), e));
    struct rmsnorm_args a = {.x = hidden_matrix(k, at),
                             .weight =
                                 w->final_norms && w->final_norms[stream] ? w->final_norms[stream] : k->final_norm,
                             .eps = (float)w->model->arch.norm_eps,
                             .out = out};
    return w->job->backend->rmsnorm(w->job->device, &a, e);
}

/* Window i of the chunk, as every stream has it. */
static enum rc finish_window(struct walker *k, const struct site *site, int64_t i, struct mat *x, struct err *e) {
    const struct walk *w = k->walk;
    TRY(check_cancel(w, e));
    for (int stream = 0; stream < w->streams; stream++)
        x[stream] = mat_rows(k->finals[stream], i * w->windows->length, w->windows->length);
    return w->hooks->final(w->hooks->ctx, site->window + i, x, e);
}

static enum rc finish_chunk(struct walker *k, int64_t chunk, struct err *e) {
    struct site site = site_at(k, 0, last_block(k->walk), chunk);
    struct mat *x = xcalloc((size_t)k->walk->streams, sizeof *x);
    enum rc rc = RC_OK;
    for (int stream = 0; rc == RC_OK && stream < k->walk->streams; stream++)
        rc = norm_chunk(k, stream, chunk, k->finals[stream], e);
    for (int64_t i = 0; rc == RC_OK && i < site.windows; i++)
        rc = finish_window(k, &site, i, x, e);
    free(x);
    return rc;
}

/* Streams [from, from + count), which forked, beside the first, whose final norm is there. */
static enum rc finish_some(struct walker *k, int64_t chunk, int from, int count, struct err *e) {
    const struct walk *w = k->walk;
    struct site site = site_at(k, 0, last_block(w), chunk);
    int64_t length = w->windows->length;
    for (int i = 0; i < count; i++)
        TRY(norm_chunk(k, from + i, chunk, k->finals[1 + i], e));
    for (int64_t i = 0; i < site.windows; i++) {
        struct walk_forks x = {mat_rows(k->finals[0], i * length, length), {0}, from, count, chunk_tokens(k)};
        if (count > 0) x.x = mat_rows(k->finals[1], i * length, length);
        TRY(check_cancel(w, e));
        TRY(w->hooks->forks(w->hooks->ctx, site.window + i, &x, e));
    }
    return RC_OK;
}

static enum rc finish_forks(struct walker *k, int64_t chunk, struct err *e) {
    int streams = k->walk->streams, from = 1;
    TRY(norm_chunk(k, 0, chunk, k->finals[0], e));
    do {
        int count = streams - from < FORKS_TOGETHER ? streams - from : FORKS_TOGETHER;
        TRY(finish_some(k, chunk, from, count, e));
        from += count;
    } while (from < streams);
    return RC_OK;
}

static enum rc finish(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    enum rc (*finish_one)(struct walker *, int64_t, struct err *) = NULL;
    if (w->begins && w->hooks->forks)
        finish_one = finish_forks;
    else if (!w->begins && w->hooks->final)
        finish_one = finish_chunk;
    for (int64_t chunk = 0; finish_one && whole_model(w) && chunk < k->chunks; chunk++)
        TRY(finish_one(k, chunk, e));
    return RC_OK;
}

static enum rc walk_all(struct walker *k, struct err *e) {
    const struct walk *w = k->walk;
    for (int64_t chunk = 0; chunk < k->chunks; chunk++)
        TRY(embed_chunk(k, chunk, e));
    for (int block = 0; block <= last_block(w); block++)
        TRY(walk_block(k, block, e));
    return finish(k, e);
}

enum rc walk_run(const struct walk *walk, struct err *e) {
    struct walker k = {.walk = walk, .forward = {.walk = walk}};
    if (walk->hooks->stage && walk->streams != 1) return err_set(e, RC_INTERNAL, "only one stream goes in stages");
    enum rc rc = walker_open(&k, e);
    if (rc == RC_OK) rc = walk_all(&k, e);
    walker_release(&k);
    return rc;
}

/* --- how many streams --- */

/* Bytes that a chunk's way through a block takes, about, and its final norms. */
static int64_t working_bytes(const struct walk *w) {
    const struct arch *a = &w->model->arch;
    int64_t tokens = walk_chunk(w->job, w->windows) * w->windows->length;
    int64_t heads = (int64_t)a->head_dim * 2 * (a->heads + a->kv_heads);
    int64_t floats = heads + 3 * (int64_t)a->intermediate + (2 + FORKS_TOGETHER) * (int64_t)a->hidden;
    return tokens * floats * (int64_t)dtype_size(w->job->backend->activation);
}

/* Without a limit of the job's, hidden states may take this share of the machine's memory. */
enum { HOST_SHARE = 4 };

static int64_t quick_memory(const struct walk *w) {
    const struct job *job = w->job;
    const struct backend *b = job->backend;
    if (b->own_memory)
        return b->room(job->device) - device_reserve - w->device_reserved - working_bytes(w) -
               block_feed_bytes(job, w->model, last_block(w), NULL);
    return (job->ram_limit > 0 ? job->ram_limit : b->memory(job->device) / HOST_SHARE) - w->reserved;
}

int64_t walk_streams_fitting(const struct walk *w) {
    int64_t windows = walk_chunk(w->job, w->windows), chunks = (w->count + windows - 1) / windows;
    int64_t stream = chunks * windows * w->windows->length * w->model->arch.hidden * (int64_t)sizeof(float);
    int64_t fitting = quick_memory(w) / stream;
    return fitting > 1 ? fitting : 1;
}
