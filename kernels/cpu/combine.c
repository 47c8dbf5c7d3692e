#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { CHUNK = 1 << 12 }; /* elements that stay in cache while all parts are added */

SIMD static void add_f32(float *restrict sum, const float *restrict part, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        sum[i] += part[i];
}

SIMD static void add_f64(double *restrict sum, const double *restrict part, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        sum[i] += part[i];
}

/* Elements [at, at + n) of every part become their sum, added up in the order of the parts. */
static void combine_chunk(const struct combine_args *a, int64_t at, int64_t n) {
    bool wide = a->parts[0].type == DTYPE_F64;
    size_t size = dtype_size(a->parts[0].type), offset = (size_t)at * size;
    char *sum = (char *)a->parts[0].data + offset;
    for (int i = 1; i < a->count; i++) {
        const char *part = (const char *)a->parts[i].data + offset;
        if (wide)
            add_f64((double *)sum, (const double *)part, n);
        else
            add_f32((float *)sum, (const float *)part, n);
    }
    for (int i = 1; i < a->count; i++)
        memcpy((char *)a->parts[i].data + offset, sum, (size_t)n * size);
}

enum rc cpu_combine(const struct combine_args *a, struct err *e) {
    TRY(check_combine(a, e));
    if (a->parts[0].type == DTYPE_BF16) return err_set(e, RC_UNSUPPORTED, "combine: no bf16 matrices on the cpu");
    int64_t count = a->parts[0].rows * a->parts[0].cols;
#pragma omp parallel for num_threads(a->states[0]->threads) if (count > 4 * CHUNK)
    for (int64_t at = 0; at < count; at += CHUNK)
        combine_chunk(a, at, count - at < CHUNK ? count - at : CHUNK);
    return RC_OK;
}
