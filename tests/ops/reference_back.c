#include "tests/ops/reference_back.h"

#include <math.h>
#include <stdlib.h>

void ref_gemm_back(const struct ref_gemm_back *g, double *dx, double *scale) {
    for (int64_t t = 0; t < g->tokens; t++)
        for (int64_t k = 0; k < g->cols; k++) {
            int64_t at = t * g->cols + k;
            double sum = 0, magnitude = 0, before = g->beta != 0 ? g->beta * g->before[at] : 0;
            for (int64_t n = 0; n < g->rows; n++) {
                double product = (double)g->dy[t * g->rows + n] * g->w[n * g->cols + k];
                sum += product;
                magnitude += fabs(product);
            }
            dx[at] = g->alpha * sum + before;
            scale[at] = fabs(g->alpha) * magnitude + fabs(before);
        }
}

/* ∂y_j/∂x_i = weight_j · (δ_ij/n − x_i·x_j / (D·n³)), n = sqrt(mean(x²) + eps) */
void ref_rmsnorm_back(const struct ref_rmsnorm_back *r, double *dx, double *scale) {
    for (int64_t t = 0; t < r->rows; t++) {
        const float *x = r->x + t * r->cols, *dy = r->dy + t * r->cols;
        double square = r->eps;
        for (int64_t i = 0; i < r->cols; i++)
            square += (double)x[i] * x[i] / (double)r->cols;
        double n = sqrt(square);
        for (int64_t i = 0; i < r->cols; i++) {
            double sum = 0, magnitude = 0;
            for (int64_t j = 0; j < r->cols; j++) {
                double along = (double)x[i] * x[j] / ((double)r->cols * square * n);
                double own = i == j ? 1 / n : 0, loss = (double)dy[j] * r->weight[j];
                sum += loss * (own - along);
                magnitude += fabs(loss) * (own + fabs(along));
            }
            dx[t * r->cols + i] = sum;
            scale[t * r->cols + i] = magnitude;
        }
    }
}

static double dot(const float *x, const float *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

static double magnitude_of(const float *x, const float *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += fabs((double)x[i] * y[i]);
    return sum;
}

/* One query: its probabilities p over keys [first, t], then what each says of dq, dk and dv. */
static void query_back(const struct ref_attention *a, const float *dout, int64_t t, int h, double *p,
                       struct ref_gradient dq, struct ref_gradient dk, struct ref_gradient dv) {
    int d = a->head_dim, share = a->heads / a->kv_heads;
    int64_t first = a->window > 0 && t - a->window + 1 > 0 ? t - a->window + 1 : 0, at = (t * a->heads + h) * d;
    const float *q = a->q + at, *g = dout + at;
    double max = -INFINITY, sum = 0, mean = 0, mean_scale = 0;
    for (int64_t s = first; s <= t; s++)
        max = fmax(max, p[s] = a->scale * dot(q, a->k + (s * a->kv_heads + h / share) * d, d));
    for (int64_t s = first; s <= t; s++)
        sum += p[s] = exp(p[s] - max);
    for (int64_t s = first; s <= t; s++) {
        const float *v = a->v + (s * a->kv_heads + h / share) * d;
        mean += (p[s] /= sum) * dot(g, v, d);
        mean_scale += p[s] * magnitude_of(g, v, d);
    }
    for (int64_t s = first; s <= t; s++) {
        int64_t key = (s * a->kv_heads + h / share) * d;
        double ds = a->scale * p[s] * (dot(g, a->v + key, d) - mean);
        double ds_scale = a->scale * p[s] * (magnitude_of(g, a->v + key, d) + mean_scale);
        for (int i = 0; i < d; i++) {
            dq.value[at + i] += ds * a->k[key + i];
            dq.scale[at + i] += ds_scale * fabsf(a->k[key + i]);
            dk.value[key + i] += ds * q[i];
            dk.scale[key + i] += ds_scale * fabsf(q[i]);
            dv.value[key + i] += p[s] * g[i];
            dv.scale[key + i] += p[s] * fabsf(g[i]);
        }
    }
}

void ref_attention_back(const struct ref_attention *a, const float *dout, struct ref_gradient dq,
                        struct ref_gradient dk, struct ref_gradient dv) {
    double *p = calloc((size_t)a->tokens, sizeof *p);
    for (int64_t i = 0; i < a->tokens * a->heads * a->head_dim; i++)
        dq.value[i] = dq.scale[i] = 0;
    for (int64_t i = 0; i < a->tokens * a->kv_heads * a->head_dim; i++)
        dk.value[i] = dk.scale[i] = dv.value[i] = dv.scale[i] = 0;
    for (int64_t t = 0; p != NULL && t < a->tokens; t++)
        for (int h = 0; h < a->heads; h++)
            query_back(a, dout, t, h, p, dq, dk, dv);
    free(p);
}

/* silu' = (silu(x) + σ(x)·(1 − silu(x))) */
void ref_silu_mul_back(double gate, double up, double dy, double *dgate, double *dup) {
    double sigma = 1 / (1 + exp(-gate)), silu = ref_silu(gate);
    *dgate = dy * up * (silu + sigma * (1 - silu));
    *dup = dy * silu;
}

void ref_logits(const struct ref_head *h, double *logits) {
    for (int64_t v = 0; v < h->vocab; v++)
        logits[v] = dot(h->x, h->head + v * h->hidden, (int)h->hidden) * h->scale + (h->bias ? h->bias[v] : 0);
}

void ref_score_back(const struct ref_head *h, int64_t label, double weight, double *dx, double *scale) {
    double *logits = calloc((size_t)h->vocab, sizeof *logits);
    if (logits == NULL) return;
    ref_logits(h, logits);
    double total = ref_log_sum_exp(logits, h->vocab);
    for (int64_t i = 0; i < h->hidden; i++)
        dx[i] = scale[i] = 0;
    for (int64_t v = 0; v < h->vocab; v++) {
        double p = exp(logits[v] - total), loss = weight * h->scale * (p - (v == label));
        for (int64_t i = 0; i < h->hidden; i++) {
            dx[i] += loss * h->head[v * h->hidden + i];
            scale[i] += fabs(weight * h->scale) * (p + (v == label)) * fabsf(h->head[v * h->hidden + i]);
        }
    }
    free(logits);
}

void ref_kl_back(const struct ref_head *own, const struct ref_head *ref, double weight, double *dx, double *scale) {
    double *logits = calloc(2 * (size_t)own->vocab, sizeof *logits), *logits_ref = logits + own->vocab;
    if (logits == NULL) return;
    ref_logits(own, logits);
    ref_logits(ref, logits_ref);
    double total = ref_log_sum_exp(logits, own->vocab), total_ref = ref_log_sum_exp(logits_ref, own->vocab);
    for (int64_t i = 0; i < own->hidden; i++)
        dx[i] = scale[i] = 0;
    for (int64_t v = 0; v < own->vocab; v++) {
        double p = exp(logits[v] - total), p_ref = exp(logits_ref[v] - total_ref), factor = weight * own->scale;
        for (int64_t i = 0; i < own->hidden; i++) {
            dx[i] += factor * (p - p_ref) * own->head[v * own->hidden + i];
            scale[i] += fabs(factor) * (p + p_ref) * fabsf(own->head[v * own->hidden + i]);
        }
    }
    free(logits);
}

void ref_scale_back(const struct ref_scale_back *r, double *slope, double *scale) {
    for (int64_t n = 0; n < r->rows; n++)
        for (int64_t k = 0; k < r->cols; k++) {
            int64_t at = n * r->groups + r->group_of[k];
            double w = r->w_hat[n * r->cols + k];
            for (int64_t t = 0; t < r->tokens; t++) {
                double product = (double)r->g[t * r->rows + n] * r->x[t * r->cols + k] * w;
                slope[at] += product;
                scale[at] += fabs(product);
            }
        }
}

static double difference(double (*loss)(const void *), const void *ctx, float *x, float step) {
    float at = *x, above = at + step, below = at - step;
    *x = above;
    double gain = loss(ctx);
    *x = below;
    gain -= loss(ctx);
    *x = at;
    return gain / ((double)above - below);
}

/* Two steps, of which the error's leading term cancels. */
void ref_differences(double (*loss)(const void *), const void *ctx, float *x, int64_t count, double *out) {
    const float step = 0x1p-8f;
    for (int64_t i = 0; i < count; i++)
        out[i] = (4 * difference(loss, ctx, x + i, step) - difference(loss, ctx, x + i, 2 * step)) / 3;
}
