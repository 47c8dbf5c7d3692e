#include "tests/ops/reference.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/formats.h"

void ref_rmsnorm(const float *x, const float *weight, int64_t rows, int64_t cols, double eps, double *out) {
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0;
        for (int64_t i = 0; i < cols; i++)
            sum += (double)x[t * cols + i] * x[t * cols + i];
        double norm = sqrt(sum / (double)cols + eps);
        for (int64_t i = 0; i < cols; i++)
            out[t * cols + i] = x[t * cols + i] / norm * weight[i];
    }
}

void ref_gemm(const struct ref_gemm *g, double *out, double *scale) {
    for (int64_t t = 0; t < g->tokens; t++)
        for (int64_t n = 0; n < g->rows; n++) {
            int64_t at = t * g->rows + n;
            double sum = g->bias != NULL ? g->bias[n] : 0, magnitude = fabs(sum);
            for (int64_t k = 0; k < g->cols; k++) {
                double product = (double)g->x[t * g->cols + k] * g->w[n * g->cols + k];
                sum += product;
                magnitude += fabs(product);
            }
            double before = g->beta != 0 ? g->beta * g->before[at] : 0;
            out[at] = g->alpha * sum + before;
            scale[at] = fabs(g->alpha) * magnitude + fabs(before);
        }
}

void ref_rope(const float *x, const float *cosine, const float *sine, int64_t tokens, int heads, int head_dim,
              int rotary, double *out) {
    int half = rotary / 2;
    for (int64_t i = 0; i < tokens * heads * head_dim; i++)
        out[i] = x[i];
    for (int64_t t = 0; t < tokens; t++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < half; i++) {
                int64_t a = (t * heads + h) * head_dim + i, b = a + half;
                double c = cosine[t * half + i], s = sine[t * half + i];
                out[a] = x[a] * c - x[b] * s;
                out[b] = x[a] * s + x[b] * c;
            }
}

void ref_attention(const struct ref_attention *a, double *out) {
    int d = a->head_dim, share = a->heads / a->kv_heads;
    double *p = calloc((size_t)a->tokens, sizeof *p);
    for (int64_t t = 0; p != NULL && t < a->tokens; t++)
        for (int h = 0; h < a->heads; h++) {
            const float *q = a->q + (t * a->heads + h) * d;
            double *o = out + (t * a->heads + h) * d, max = -INFINITY, sum = 0;
            int64_t first = a->window > 0 && t - a->window + 1 > 0 ? t - a->window + 1 : 0;
            for (int64_t s = first; s <= t; s++) {
                const float *k = a->k + (s * a->kv_heads + h / share) * d;
                p[s] = 0;
                for (int i = 0; i < d; i++)
                    p[s] += (double)q[i] * k[i] * a->scale;
                max = fmax(max, p[s]);
            }
            for (int64_t s = first; s <= t; s++)
                sum += p[s] = exp(p[s] - max);
            for (int i = 0; i < d; i++)
                o[i] = 0;
            for (int64_t s = first; s <= t; s++)
                for (int i = 0; i < d; i++)
                    o[i] += p[s] / sum * a->v[(s * a->kv_heads + h / share) * d + i];
        }
    free(p);
}

double ref_silu(double gate) {
    return gate / (1 + exp(-gate));
}

double ref_log_sum_exp(const double *logits, int64_t vocab) {
    double max = -INFINITY, sum = 0;
    for (int64_t v = 0; v < vocab; v++)
        max = fmax(max, logits[v]);
    for (int64_t v = 0; v < vocab; v++)
        sum += exp(logits[v] - max);
    return max + log(sum);
}

int64_t ref_arg_max(const double *logits, int64_t vocab) {
    int64_t top = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (logits[v] > logits[top]) top = v;
    return top;
}

double ref_kl(const double *logits, const double *logits_q, int64_t vocab) {
    double total = ref_log_sum_exp(logits, vocab), total_q = ref_log_sum_exp(logits_q, vocab), kl = 0;
    for (int64_t v = 0; v < vocab; v++)
        kl += exp(logits[v] - total) * ((logits[v] - total) - (logits_q[v] - total_q));
    return kl;
}

double ref_output_energy(const float *x, const double *d, int64_t tokens, int64_t rows, int64_t cols) {
    double energy = 0;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t n = 0; n < rows; n++) {
            double y = 0;
            for (int64_t k = 0; k < cols; k++)
                y += x[t * cols + k] * d[n * cols + k];
            energy += y * y;
        }
    return energy;
}

double ref_f16(double value) {
    if (value == 0 || !isfinite(value)) return value;
    int exponent;
    frexp(value, &exponent);                                      /* |value| in [2^(exponent−1), 2^exponent) */
    double unit = ldexp(1, exponent < -13 ? -24 : exponent - 11); /* 11 significant bits, 2^−24 at least */
    double rounded = nearbyint(value / unit) * unit;
    return fabs(rounded) > 65504 ? copysign(INFINITY, value) : rounded;
}

double ref_code(const struct ref_grid *g, double w) {
    return fmin(fmax(nearbyint(w / g->scale + g->zero), 0), g->top);
}

double ref_grid_error(const struct ref_grid *g, const float *w, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double error = w[i] - (ref_code(g, w[i]) - g->zero) * g->scale;
        sum += error * error;
    }
    return sum;
}

static struct ref_grid between(double min, double max, const struct candidate *c) {
    struct ref_grid g = {.top = (1 << c->bits) - 1};
    g.scale = ref_f16((max - min) / g.top);
    g.zero = c->zero == ZERO_INTEGER ? nearbyint(-min / g.scale) : ref_f16(-min / g.scale);
    return g;
}

struct ref_grid ref_rtn(const float *w, int64_t n, const struct candidate *c) {
    double min = w[0], max = w[0];
    for (int64_t i = 1; i < n; i++) {
        min = fmin(min, w[i]);
        max = fmax(max, w[i]);
    }
    struct ref_grid plain = between(min, max, c), other = between(fmin(min, 0), fmax(max, 0), c);
    if (c->symmetric) {
        double half = 1 << (c->bits - 1), top = 2 * half - 1, extreme = fmax(fabs(min), fabs(max));
        plain = (struct ref_grid){ref_f16(extreme / (half - 1)), half, top};
        other = (struct ref_grid){ref_f16(extreme / half), half, top};
    } else if (c->zero == ZERO_INTEGER) {
        return other;
    } else if (min <= 0 && max >= 0) {
        return plain;
    }
    return ref_grid_error(&other, w, n) < ref_grid_error(&plain, w, n) ? other : plain;
}

struct hqq_group {
    const float *w;
    int64_t n;
    double scale, zero, next_zero; /* of the library: the inverse of ours */
};

/* One iteration over one group; returns Σ|x|. */
static double hqq_step(struct hqq_group *g, double top, double beta) {
    double sum = 0, error = 0;
    for (int64_t i = 0; i < g->n; i++) {
        double q = fmin(fmax(nearbyint(g->w[i] * g->scale + g->zero), 0), top);
        double x = g->w[i] - (q - g->zero) / g->scale;
        double kept = x == 0 ? 0 : fmax(fabs(x) - pow(fabs(x), -0.3) / beta, 0);
        sum += q - (g->w[i] - copysign(kept, x)) * g->scale;
        error += fabs(x);
    }
    g->next_zero = sum / (double)g->n;
    return error;
}

static struct hqq_group hqq_start(const float *w, int64_t n, int bits) {
    double min = w[0], max = w[0], top = (1 << bits) - 1;
    for (int64_t i = 1; i < n; i++) {
        min = fmin(min, w[i]);
        max = fmax(max, w[i]);
    }
    struct hqq_group g = {.w = w, .n = n, .scale = max - min <= 1e-4 ? 1 : fmin(top / (max - min), 2e4)};
    g.zero = bits == 4 ? nearbyint(-min * g.scale) : -min * g.scale;
    return g;
}

/* Scale and zero are kept in 16 bits, by the library as by us; the codes were chosen before. */
static double stored(double parameter) {
    return (double)f16_to_f32(f32_to_f16((float)parameter));
}

void ref_hqq(const float *w, int64_t rows, int64_t cols, int group, int bits, double *w_hat) {
    int64_t per_row = (cols + group - 1) / group, count = rows * per_row;
    struct hqq_group *groups = calloc((size_t)count, sizeof *groups);
    double top = (1 << bits) - 1, beta = 10, best = INFINITY;
    for (int64_t i = 0; groups != NULL && i < count; i++) {
        int64_t from = i % per_row * group, n = cols - from < group ? cols - from : group;
        groups[i] = hqq_start(w + i / per_row * cols + from, n, bits);
    }
    for (int iteration = 0; groups != NULL && iteration < 20; iteration++, beta *= 1.01) {
        double error = 0;
        for (int64_t i = 0; i < count; i++)
            error += hqq_step(&groups[i], top, beta);
        for (int64_t i = 0; i < count; i++)
            groups[i].zero = groups[i].next_zero;
        if (error >= best) break;
        best = error;
    }
    for (int64_t i = 0; groups != NULL && i < count; i++)
        for (int64_t j = 0; j < groups[i].n; j++) {
            double q = fmin(fmax(nearbyint(groups[i].w[j] * groups[i].scale + groups[i].zero), 0), top);
            w_hat[groups[i].w + j - w] = (q - stored(groups[i].zero)) * stored(1 / groups[i].scale);
        }
    free(groups);
}
