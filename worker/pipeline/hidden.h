/* Hidden states of a walk: one fp32 slot [T, D] per stream and window.
 *
 * The first slots live in memory as far as the limit goes, the rest in one unlinked file, so that memory does not grow
 * with the number of windows. A full disk is RC_NO_SPACE naming the folder. One thread. */
#ifndef HSAQ_WORKER_PIPELINE_HIDDEN_H
#define HSAQ_WORKER_PIPELINE_HIDDEN_H

#include <stdint.h>

#include "base/err.h"

struct hidden;

/* `limit`: bytes of memory for slots, < 0: no limit. `scratch`: folder of the spill file; made only when needed. */
enum rc hidden_open(int64_t slots, int64_t slot_floats, int64_t limit, const char *scratch, struct hidden **hidden,
                    struct err *e);
void hidden_close(struct hidden *hidden);            /* NULL is fine */
int64_t hidden_spilled(const struct hidden *hidden); /* slots that live in the file */

/* The slot's values, valid until the next call. Before the first hidden_put of a slot its values are unspecified. */
enum rc hidden_get(struct hidden *hidden, int64_t slot, float **values, struct err *e);
/* Where to write a slot's new values; hidden_put makes them last. */
float *hidden_buffer(struct hidden *hidden, int64_t slot);
enum rc hidden_put(struct hidden *hidden, int64_t slot, struct err *e);

#endif
