/* Hidden states of a walk: one fp32 slot [T, D] per stream and chunk of windows.
 *
 * The first slots live in the device's own memory as far as its limit goes, where the blocks work on them in place; the
 * next in the host's, the rest in one unlinked file, so that memory does not grow with the number of windows. Those of
 * the last two take turns in working memory on the device, where there is room for two of them: while one is worked on,
 * the one before leaves and the next comes from the host's memory. A full disk is RC_NO_SPACE naming the folder. GPU
 * thread only. */
#ifndef HSAQ_WORKER_PIPELINE_HIDDEN_H
#define HSAQ_WORKER_PIPELINE_HIDDEN_H

#include <stdint.h>

#include "base/err.h"
#include "worker/pipeline/job.h"

struct hidden;

struct hidden_args {
    const struct job *job; /* its scratch is the folder of the spill file, made only when needed */
    int64_t slots, slot_floats;
    int64_t device_limit, ram_limit; /* bytes of each kind of memory for slots; < 0: no limit */
};

enum rc hidden_open(const struct hidden_args *args, struct hidden **hidden, struct err *e);
void hidden_close(struct hidden *hidden); /* NULL is fine */

/* How many slots live where. */
struct hidden_places {
    int64_t device, ram, file;
};
struct hidden_places hidden_places(const struct hidden *hidden);

/* Device memory in which a slot's values are worked on: the slot's own, or one that it shares with others. */
float *hidden_at(struct hidden *hidden, int64_t slot);
/* It is the slot's until another is recalled or claimed: recall brings the values there, which before the slot's first
 * hidden_keep are unspecified, claim leaves what is there to be written over. `next` is the slot that will probably be
 * recalled next; < 0: none. */
enum rc hidden_recall(struct hidden *hidden, int64_t slot, int64_t next, struct err *e);
enum rc hidden_claim(struct hidden *hidden, int64_t slot, struct err *e);
/* The values of `from`, which was recalled or copied last, are kept as those of `to` as well. */
enum rc hidden_copy(struct hidden *hidden, int64_t from, int64_t to, struct err *e);
/* Makes the values there last. */
enum rc hidden_keep(struct hidden *hidden, int64_t slot, struct err *e);

#endif
