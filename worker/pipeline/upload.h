/* Tensors of a model file → device memory, and back: fp32, or Linear weights as the backend computes on them. GPU
 * thread only. */
#ifndef HSAQ_WORKER_PIPELINE_UPLOAD_H
#define HSAQ_WORKER_PIPELINE_UPLOAD_H

#include <stdint.h>

#include "base/err.h"
#include "kernels/tensor.h"
#include "worker/model/safetensors.h"
#include "worker/pipeline/job.h"

/* Device memory for `count` floats; job->backend->free releases it. */
enum rc device_floats(const struct job *job, int64_t count, float **out, struct err *e);
/* Allocates and uploads; *out is NULL when there is no such tensor (NULL). */
enum rc upload_new(const struct job *job, const struct st_tensor *tensor, float **out, struct err *e);
/* A Linear's weights in memory of their own, of the type that the backend computes with. */
enum rc upload_weights(const struct job *job, const struct st_tensor *tensor, struct mat *out, struct err *e);
/* Device values of any float type → host fp32 [rows, cols]. */
enum rc download_floats(const struct job *job, struct mat m, float *out, struct err *e);
/* Asks the kernel to read the tensor's pages soon. */
void prefetch_tensor(const struct st_tensor *tensor);

#endif
