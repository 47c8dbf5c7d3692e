/* Plain views of memory that the backends compute on. Nothing here owns anything.
 *
 * Row-major; `stride` is the distance between rows in elements (>= cols). Shapes are written in brackets beside every
 * declaration, outermost first: [T, K] is T tokens of K channels. Letters used throughout:
 *   T tokens of one window    D hidden size    N out_features    K in_features    V vocabulary    G groups along K */
#ifndef HSAQ_KERNELS_TENSOR_H
#define HSAQ_KERNELS_TENSOR_H

#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F64, DTYPE_U8, DTYPE_I32 };

static inline size_t dtype_size(enum dtype type) {
    static const size_t sizes[] = {4, 2, 2, 8, 1, 4};
    return sizes[type];
}

struct matf { /* fp32 matrix */
    float *data;
    int64_t rows, cols, stride;
};

struct matd { /* fp64 matrix */
    double *data;
    int64_t rows, cols, stride;
};

static inline struct matf matf(float *data, int64_t rows, int64_t cols) {
    return (struct matf){data, rows, cols, cols};
}

#endif
