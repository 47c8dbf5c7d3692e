/* Blocks one after the other, in whatever order a walk takes them. On a device that loads ahead there are two in its
 * memory, and the next is on its way while one is computed; elsewhere one, and the next one's pages are asked for. GPU
 * thread only. */
#ifndef HSAQ_WORKER_PIPELINE_BLOCK_FEED_H
#define HSAQ_WORKER_PIPELINE_BLOCK_FEED_H

#include "worker/pipeline/block.h"

struct block_feed {
    struct block blocks[2]; /* the second only where the device loads ahead */
    int held[2];            /* which one is in them, or on its way; −1: none */
};

/* For the blocks 0 … last of the model; `replaced` as of block_open_without. Closed also after a failure. */
enum rc block_feed_open(const struct job *job, const struct model *model, int last, const bool *replaced,
                        struct block_feed *f, struct err *e);
int64_t block_feed_bytes(const struct job *job, const struct model *model, int last, const bool *replaced);
void block_feed_close(struct block_feed *f); /* waits for what is on its way */

/* The block becomes ready to compute with, and `next` (−1: none) starts on its way. */
enum rc block_feed_ready(struct block_feed *f, int block, int next, struct err *e);
/* One that is ready. */
struct block *block_feed_at(struct block_feed *f, int block);

#endif
