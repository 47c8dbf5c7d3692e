/* A block's candidates in rounds: those of one round are measured and scored together (gradwalk.h), and what they
 * change of their Linears lies side by side on the device. A round takes whole Linears with all their candidates, since
 * what a Linear's candidates share is made once a round; a Linear that is too much by itself has rounds of its own,
 * with equal shares of the candidates. Pure. */
#ifndef HSAQ_WORKER_PIPELINE_ROUNDS_H
#define HSAQ_WORKER_PIPELINE_ROUNDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/model/model.h"
#include "worker/pipeline/gramwalk.h"

struct rounds {
    const struct model *model;
    const bool *wanted; /* [model.linear_count] */
    size_t candidates;  /* of each wanted Linear; 0: one round of nothing */
    size_t value_size;  /* bytes */
    int64_t bytes;      /* what a round takes at most, carved; one candidate of one Linear it takes in any case */
};

struct round {
    int first, end;               /* positions in the block, of which those wanted count */
    struct gram_share candidates; /* of each */
};

/* The block's round after `r`, after {0} its first. False: that was the last one. */
bool rounds_next(const struct rounds *s, int block, struct round *r);
int64_t rounds_count(const struct rounds *s, int block);

/* For all the candidates of any one block, and for one of any one Linear: more and less are of no use. */
int64_t rounds_most_bytes(const struct rounds *s);
int64_t rounds_least_bytes(const struct rounds *s);

#endif
