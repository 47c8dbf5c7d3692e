/* XᵀX in square tiles of its upper triangle: shared by gram and error. */
#ifndef HSAQ_KERNELS_CPU_SYRK_H
#define HSAQ_KERNELS_CPU_SYRK_H

#include "kernels/tensor.h"

enum { SYRK_TILE = 256 };

struct syrk_tile {
    int64_t row, col, rows, cols; /* of XᵀX; row <= col */
};

int64_t syrk_tile_count(int64_t channels);
struct syrk_tile syrk_tile_at(int64_t channels, int64_t index);
/* out [rows, cols] with stride SYRK_TILE = X[:, row…]ᵀ · X[:, col…] in fp32. */
void syrk_tile_compute(struct mat x, const struct syrk_tile *tile, float *out);

#endif
