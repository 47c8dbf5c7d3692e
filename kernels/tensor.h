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

struct mat {
    void *data;
    int64_t rows, cols, stride;
    enum dtype type;
};

/* Dense matrices of the two types that results are counted in. */
static inline struct mat matf(float *data, int64_t rows, int64_t cols) {
    return (struct mat){data, rows, cols, cols, DTYPE_F32};
}
static inline struct mat matd(double *data, int64_t rows, int64_t cols) {
    return (struct mat){data, rows, cols, cols, DTYPE_F64};
}

static inline struct mat mat_rows(struct mat m, int64_t first, int64_t rows) {
    char *data = (char *)m.data + (size_t)(first * m.stride) * dtype_size(m.type);
    return (struct mat){data, rows, m.cols, m.stride, m.type};
}

static inline struct mat mat_cols(struct mat m, int64_t first, int64_t cols) {
    char *data = (char *)m.data + (size_t)first * dtype_size(m.type);
    return (struct mat){data, m.rows, cols, m.stride, m.type};
}

/* Where row `row` of an fp32 or fp64 matrix begins; what the type is has been checked. */
static inline float *f32_row(struct mat m, int64_t row) {
    return (float *)m.data + row * m.stride;
}
static inline double *f64_row(struct mat m, int64_t row) {
    return (double *)m.data + row * m.stride;
}

#endif
