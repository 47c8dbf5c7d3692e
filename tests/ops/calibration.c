#include "tests/ops/calibration.h"

double *correlated(int64_t tokens, int64_t cols) {
    double *h = host_doubles(cols * cols), *x = host_doubles(cols), mean[4];
    for (int64_t t = 0; t < tokens; t++) {
        for (int i = 0; i < 4; i++)
            mean[i] = normal();
        for (int64_t k = 0; k < cols; k++)
            x[k] = (0.3 + 2.0 * (double)(k * 7 % 11 == 0)) * (mean[k % 4] + mean[(k / 4) % 4] + 0.7 * normal());
        for (int64_t i = 0; i < cols; i++)
            for (int64_t j = 0; j < cols; j++)
                h[i * cols + j] += x[i] * x[j];
    }
    return h;
}

void kill_channel(double *h, int64_t cols, int64_t dead) {
    for (int64_t k = 0; k < cols; k++)
        h[k * cols + dead] = h[dead * cols + k] = 0;
}

struct mat put_gram(double *h, int64_t cols) {
    struct mat m = {NULL, cols, cols, cols, dev.b->gram_type};
    float *narrow = host_zeros(cols * cols);
    for (int64_t i = 0; m.type == DTYPE_F32 && i < cols * cols; i++)
        h[i] = narrow[i] = (float)h[i];
    m.data = m.type == DTYPE_F32 ? put(narrow, cols * cols) : put((const float *)h, 2 * cols * cols);
    return m;
}

struct factor device_factor(int64_t cols) {
    struct factor f;
    assert_ok(factor_alloc(dev.b, dev.s, cols, &f, &err));
    return f;
}
