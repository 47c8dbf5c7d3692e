/* What the device does best, timed by calling the backend directly: the only part of the bench that knows the
 * signatures of single operations. Shapes are those of the model's first block. Device thread only. */
#ifndef HSAQ_WORKER_BENCH_RATES_H
#define HSAQ_WORKER_BENCH_RATES_H

#include "base/candidate.h"
#include "worker/model/model.h"
#include "worker/pipeline/job.h"

struct rate {
    double work;    /* FLOPs, or weights */
    double seconds; /* for that work */
};

/* One product with each of a block's Linears, `tokens` rows at a time as the walk does it, each repeated until it has
 * been timed for its share of `seconds`. rate->work / rate->seconds is what floors are divided by. */
enum rc rate_gemm(const struct job *job, const struct model *model, int64_t tokens, double seconds, struct rate *rate,
                  struct err *e);
/* Every Linear of a block quantized, codes left on the device; timed likewise. */
enum rc rate_quantize(const struct job *job, const struct model *model, const struct candidate *candidate,
                      double seconds, struct rate *rate, struct err *e);

#endif
