#include "worker/pipeline/block_feed.h"

static bool loads_ahead(const struct block_feed *f) {
    return f->blocks[0].job->backend->loads_ahead;
}

static int place_of(const struct block_feed *f, int block) {
    return loads_ahead(f) ? block % 2 : 0;
}

struct block *block_feed_at(struct block_feed *f, int block) {
    return &f->blocks[place_of(f, block)];
}

static int blocks_held(const struct job *job) {
    return job->backend->loads_ahead ? 2 : 1;
}

int64_t block_feed_bytes(const struct job *job, const struct model *model, int last, const bool *replaced) {
    return blocks_held(job) * (int64_t)block_bytes(job, model, last, replaced);
}

enum rc block_feed_open(const struct job *job, const struct model *model, int last, const bool *replaced,
                        struct block_feed *f, struct err *e) {
    *f = (struct block_feed){.held = {-1, -1}};
    for (int i = 0; i < blocks_held(job); i++)
        TRY(block_open_without(job, model, last, replaced, &f->blocks[i], e));
    return RC_OK;
}

void block_feed_close(struct block_feed *f) {
    block_close(&f->blocks[0]);
    block_close(&f->blocks[1]);
}

static enum rc begin_load(struct block_feed *f, int block, struct err *e) {
    int *held = &f->held[place_of(f, block)];
    if (*held == block) return RC_OK;
    *held = -1;
    TRY(block_load(block_feed_at(f, block), block, e));
    *held = block;
    return RC_OK;
}

enum rc block_feed_ready(struct block_feed *f, int block, int next, struct err *e) {
    const struct job *job = f->blocks[0].job;
    TRY(begin_load(f, block, e));
    TRY(job->backend->loaded(job->device, e));
    if (next < 0) return RC_OK;
    if (loads_ahead(f)) return begin_load(f, next, e);
    block_prefetch(f->blocks[0].model, next);
    return RC_OK;
}
