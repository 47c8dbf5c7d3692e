/* A tensor's values in host memory as a checkpoint stores them, to be changed: what is computed with them is what an
 * artifact will hold. Any thread. */
#ifndef HSAQ_WORKER_PIPELINE_STORED_H
#define HSAQ_WORKER_PIPELINE_STORED_H

#include <stdint.h>

#include "base/err.h"
#include "worker/model/safetensors.h"

struct stored {
    void *values; /* malloc'ed; NULL: nothing has been changed */
    enum dtype type;
    int64_t count;
};

/* A copy, unless there is one already. A tensor that is NULL stays nothing. */
enum rc stored_copy(struct stored *s, const struct st_tensor *tensor, struct err *e);
void stored_release(struct stored *s);
int64_t stored_bytes(const struct stored *s); /* 0 without values */

float stored_get(const struct stored *s, int64_t i);
void stored_set(struct stored *s, int64_t i, float value); /* rounded to the type */

/* Of a matrix [N, K]: columns times by_col [K]. */
void stored_scale_columns(struct stored *s, int64_t cols, const float *by_col);
/* Rows [first, first + rows) times by_row [rows]; a vector is a matrix of one column. */
void stored_scale_rows(struct stored *s, int64_t cols, int64_t first, int64_t rows, const float *by_row);

/* A factor to the nearest float of that type, and never to Inf. */
float round_to(enum dtype type, float value);

#endif
