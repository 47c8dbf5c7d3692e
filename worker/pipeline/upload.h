/* Tensors of a model file → device memory, and back: fp32, or Linear weights as the backend computes on them. GPU
 * thread only. */
#ifndef HSAQ_WORKER_PIPELINE_UPLOAD_H
#define HSAQ_WORKER_PIPELINE_UPLOAD_H

#include <stdint.h>

#include "base/err.h"
#include "kernels/tensor.h"
#include "worker/model/model.h"
#include "worker/pipeline/job.h"

/* Device memory for `count` floats. */
enum rc device_floats(const struct job *job, int64_t count, float **out, struct err *e);
/* Of any; NULL is fine. */
void device_free(const struct job *job, void *memory);
/* Allocates and uploads; *out is NULL when there is no such tensor (NULL). */
enum rc upload_new(const struct job *job, const struct st_tensor *tensor, float **out, struct err *e);
/* What a Linear's weights are in device memory: fp32, or as stored where the backend computes on that; packed ones
 * become what it multiplies with. */
enum dtype linear_type(const struct job *job, const struct linear *linear);
/* A Linear's weights in memory of their own. */
enum rc upload_linear(const struct job *job, const struct linear *linear, struct mat *out, struct err *e);
/* Device values of any float type → host fp32 [rows, cols]. */
enum rc download_floats(const struct job *job, struct mat m, float *out, struct err *e);
/* Asks the kernel to read the Linear's pages soon. */
void prefetch_linear(const struct linear *linear);

#endif
