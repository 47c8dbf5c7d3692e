#include "kernels/cpu/grid.h"

#include "kernels/cpu/simd.h"

SIMD struct range grid_range(const float *w, int64_t n) {
    float low[LANES], high[LANES];
    for (int l = 0; l < LANES; l++)
        low[l] = high[l] = w[0];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            low[l] = w[i + l] < low[l] ? w[i + l] : low[l];
            high[l] = w[i + l] > high[l] ? w[i + l] : high[l];
        }
    struct range r = {w[0], w[0]};
    for (int l = 0; l < LANES; l++) {
        r.min = low[l] < r.min ? low[l] : r.min;
        r.max = high[l] > r.max ? high[l] : r.max;
    }
    for (; i < n; i++) {
        r.min = w[i] < r.min ? w[i] : r.min;
        r.max = w[i] > r.max ? w[i] : r.max;
    }
    return r;
}

struct grid grid_constant(float value, const struct candidate *c) {
    struct grid g = {.scale = 1, .top = (1 << c->bits) - 1};
    if (c->symmetric) g.zero = (float)(1 << (c->bits - 1));
    if (value == 0) return g;
    double magnitude = fabs((double)value);
    bool in_range = magnitude >= F16_MIN_NORMAL && magnitude <= F16_MAX;
    if (in_range || c->symmetric || c->zero == ZERO_INTEGER) {
        g.scale = grid_store_scale(magnitude); /* one step from zero */
        if (!c->symmetric) g.zero = value < 0 ? 1 : 0;
    } else { /* a power of two carries the exponent, the zero the digits */
        g.scale = magnitude < 1 ? 0x1p-14f : 0x1p15f;
        g.zero = grid_store_zero(-(double)value / g.scale, c);
    }
    return g;
}

SIMD double grid_error(const struct grid *g, const float *w, int64_t n) {
    double scale = g->scale, zero = g->zero, top = g->top, lane[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t live = n - i < LANES ? n - i : LANES;
        for (int l = 0; l < live; l++) {
            double q = rint(w[i + l] / scale + zero);
            q = q < 0 ? 0 : q;
            q = q > top ? top : q;
            double error = w[i + l] - (q - zero) * scale;
            lane[l] += error * error;
        }
    }
    return add_lanes_f64(lane);
}

SIMD void grid_encode(const struct grid *g, const float *w, int64_t n, uint8_t *codes) {
    double scale = g->scale, zero = g->zero, top = g->top;
    for (int64_t i = 0; i < n; i++) {
        double q = rint(w[i] / scale + zero);
        q = q < 0 ? 0 : q;
        q = q > top ? top : q;
        codes[i] = (uint8_t)q;
    }
}
