#include "kernels/cpu/syrk.h"

#include <cblas.h>

int64_t syrk_tile_count(int64_t channels) {
    int64_t side = (channels + SYRK_TILE - 1) / SYRK_TILE;
    return side * (side + 1) / 2;
}

struct syrk_tile syrk_tile_at(int64_t channels, int64_t index) {
    int64_t col = 0; /* tiles are counted column by column: column c holds c + 1 of them */
    while (index > col)
        index -= ++col;
    struct syrk_tile t = {.row = index * SYRK_TILE, .col = col * SYRK_TILE};
    t.rows = channels - t.row < SYRK_TILE ? channels - t.row : SYRK_TILE;
    t.cols = channels - t.col < SYRK_TILE ? channels - t.col : SYRK_TILE;
    return t;
}

void syrk_tile_compute(struct mat x, const struct syrk_tile *tile, float *out) {
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)tile->rows, (int)tile->cols, (int)x.rows, 1,
                f32_row(x, 0) + tile->row, (int)x.stride, f32_row(x, 0) + tile->col, (int)x.stride, 0, out, SYRK_TILE);
}
