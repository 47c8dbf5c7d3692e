/* The operations of the forward pass against float64. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/formats.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

enum { PAD = 3 };

/* Bounds: relative to the magnitude of the result (exponential, norm) or to the sum of magnitudes behind it (GEMM). */
static const double EXACT = 0, ROUNDINGS = 3e-7, GEMM_BOUND = 5e-7, ATTENTION_BOUND = 2e-6;
/* Probabilities are rounded to bf16 before they weigh the values. */
static const double ATTENTION_BF16_BOUND = 4e-3;

static void embed_gathers_converts_and_multiplies(void **state) {
    (void)state;
    enum { V = 9, D = 37, T = 5 };
    static const int32_t ids[T] = {8, 0, 3, 3, 7};
    seed(1);
    float *table = host_bf16(V * D, 1);
    uint16_t *halves[2] = {host_bytes(V * D * 2), host_bytes(V * D * 2)};
    for (int i = 0; i < V * D; i++) {
        halves[0][i] = f32_to_bf16(table[i]);
        halves[1][i] = f32_to_f16(table[i]);
    }
    struct {
        const void *table;
        enum dtype type;
    } stored[] = {{table, DTYPE_F32}, {halves[0], DTYPE_BF16}, {halves[1], DTYPE_F16}};
    for (int m = 0; m < 4; m++)
        for (size_t s = 0; s < sizeof stored / sizeof *stored; s++) {
            float multiplier = m % 2 == 0 ? 1.0f : 12.0f;
            bool there = m >= 2 && dev.b->own_memory;
            struct mat out = put_matrix(host_zeros(T * D), T, D, PAD);
            struct embed_args a = {stored[s].table, stored[s].type, V, NULL, ids, multiplier, out};
            if (there) a.on_device = put_stored(stored[s].table, stored[s].type, V * D);
            assert_ok(dev.b->embed(dev.s, &a, &err));
            double *want = host_doubles(T * D);
            for (int i = 0; i < T * D; i++) {
                float value = table[ids[i / D] * D + i % D];
                want[i] = (s == 2 ? f16_to_f32(f32_to_f16(value)) : value) * multiplier;
            }
            assert_close(get_matrix(out), want, NULL, T * D, EXACT);
        }
}

static void rmsnorm_scales_to_unit_mean_square(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++) {
        int64_t rows = shapes[i].tokens, cols = shapes[i].cols, count = rows * cols;
        seed(2);
        float *x = host_normal(count, i % 2 ? 30 : 0.01), *weight = host_normal(cols, 1);
        double *want = host_doubles(count), *scale = host_doubles(count);
        ref_rmsnorm(x, weight, rows, cols, 1e-5, want);
        for (int64_t k = 0; k < count; k++)
            scale[k] = fabs(want[k]);
        struct rmsnorm_args a = {put_matrix(x, rows, cols, PAD), put(weight, cols), 1e-5f,
                                 put_activation(host_zeros(count), rows, cols, 0)};
        assert_ok(dev.b->rmsnorm(dev.s, &a, &err)); /* the residual stream's */
        assert_matrix(a.out, want, scale, ROUNDINGS);
        a.x = a.out = put_activation(x, rows, cols, PAD); /* a head's, in place */
        ref_rmsnorm(x, weight, rows, cols, 1e-5, want);
        assert_ok(dev.b->rmsnorm(dev.s, &a, &err));
        assert_matrix(a.out, want, scale, ROUNDINGS);
    }
}

static void rmsnorm_survives_extremes(void **state) {
    (void)state;
    enum { D = 40 };
    float *x = host_zeros(3 * D), *weight = host_zeros(D);
    for (int i = 0; i < D; i++) {
        weight[i] = 1;
        x[D + i] = 1e30f;
        x[2 * D + i] = 1e-30f;
    }
    struct rmsnorm_args a = {put_matrix(x, 3, D, 0), put(weight, D), 1e-6f, put_activation(host_zeros(3 * D), 3, D, 0)};
    assert_ok(dev.b->rmsnorm(dev.s, &a, &err));
    float *got = get_matrix(a.out);
    for (int i = 0; i < D; i++) {
        assert_true(got[i] == 0);
        assert_near(got[D + i], 1, 1e-6);
        assert_near(got[2 * D + i], 1e-27, a.out.type == DTYPE_BF16 ? 4e-30 : 1e-33);
    }
}

/* `residual`: into an fp32 matrix. */
static void gemm_case(const struct shape *s, bool bias, double alpha, double beta, bool residual) {
    int64_t out_count = s->tokens * s->rows;
    float *x = host_normal(s->tokens * s->cols, 1), *w = host_normal(s->rows * s->cols, 0.05);
    float *b = host_normal(s->rows, 1), *before = host_normal(out_count, 1);
    if (beta == 0)
        for (int64_t i = 0; i < out_count; i++)
            before[i] = NAN; /* must not be read */
    struct gemm_args a = {.x = put_activation(x, s->tokens, s->cols, PAD),
                          .w = put_activation(w, s->rows, s->cols, 2 * PAD),
                          .bias = bias ? put(b, s->rows) : NULL,
                          .alpha = (float)alpha,
                          .beta = (float)beta,
                          .out = residual ? put_matrix(before, s->tokens, s->rows, PAD)
                                          : put_activation(before, s->tokens, s->rows, PAD)};
    struct ref_gemm g = {x, w, bias ? b : NULL, before, s->tokens, s->rows, s->cols, alpha, beta};
    double *want = host_doubles(out_count), *scale = host_doubles(out_count);
    ref_gemm(&g, want, scale);
    assert_ok(dev.b->gemm(dev.s, &a, &err));
    assert_matrix(a.out, want, scale, GEMM_BOUND + (bias && a.out.type == DTYPE_BF16 ? 0x1p-8 : 0));
}

static void gemm_multiplies_adds_bias_and_accumulates(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++) {
        seed(3);
        gemm_case(&shapes[i], false, 1, 0, false);
        gemm_case(&shapes[i], true, 0.5, 0, false);
        gemm_case(&shapes[i], true, -2, 1, true);
        gemm_case(&shapes[i], false, 1, 0.25, true);
    }
}

static void gemm_of_nothing_is_nothing(void **state) {
    (void)state;
    float *w = host_normal(12, 1), *out = host_normal(6, 1);
    enum dtype type = dev.b->activation;
    struct gemm_args a = {
        .x = {NULL, 0, 4, 4, type}, .w = put_activation(w, 3, 4, 0), .alpha = 1, .out = {NULL, 0, 3, 3, type}};
    assert_ok(dev.b->gemm(dev.s, &a, &err));
    a = (struct gemm_args){
        .x = {NULL, 2, 0, 0, type}, .w = {NULL, 3, 0, 0, type}, .alpha = 1, .out = put_matrix(out, 2, 3, 0)};
    assert_ok(dev.b->gemm(dev.s, &a, &err));
    assert_close(get_matrix(a.out), host_doubles(6), NULL, 6, EXACT);
}

static void rope_rotates_the_first_channels(void **state) {
    (void)state;
    static const struct {
        int64_t tokens;
        int heads, head_dim, rotary;
    } cases[] = {{1, 1, 2, 2}, {7, 3, 16, 16}, {5, 2, 80, 20}, {40, 4, 96, 96}, {3, 2, 10, 6}, {3, 2, 8, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t T = cases[i].tokens, cols = (int64_t)cases[i].heads * cases[i].head_dim;
        int half = cases[i].rotary / 2;
        seed(4);
        float *x = host_normal(2 * T * cols, 1), *cosine = host_zeros(T * half), *sine = host_zeros(T * half);
        for (int64_t k = 0; k < T * half; k++) {
            double angle = 10 * uniform();
            cosine[k] = (float)cos(angle);
            sine[k] = (float)sin(angle);
        }
        double *want = host_doubles(2 * T * cols);
        struct rope_args a = {.x = put_activation(x, 2 * T, cols, PAD),
                              .length = T,
                              .heads = cases[i].heads,
                              .head_dim = cases[i].head_dim,
                              .rotary = cases[i].rotary,
                              .cos = put(cosine, T * half),
                              .sin = put(sine, T * half)};
        for (int64_t at = 0; at < 2 * T * cols; at += T * cols) /* two windows */
            ref_rope(x + at, cosine, sine, T, cases[i].heads, cases[i].head_dim, cases[i].rotary, want + at);
        assert_ok(dev.b->rope(dev.s, &a, &err));
        assert_matrix(a.x, want, NULL, 6e-7);
    }
}

struct attention_case {
    int64_t tokens;
    int heads, kv_heads, head_dim, window;
    double deviation; /* of q: how peaked the softmax is */
    int64_t pad;      /* 8: rows begin where wide loads can read them */
};

static const struct attention_case attention_cases[] = {
    {1, 1, 1, 8, 0, 1, PAD},      {5, 2, 1, 16, 0, 1, PAD},     {129, 4, 2, 64, 0, 1, PAD},
    {130, 3, 3, 80, 7, 1, PAD},   {300, 2, 1, 96, 128, 4, PAD}, {140, 2, 2, 128, 200, 1, PAD},
    {70, 1, 1, 256, 1, 1, PAD},   {33, 6, 3, 5, 4, 1, PAD},     {256, 9, 3, 64, 0, 1, PAD},
    {260, 1, 1, 8, 129, 30, PAD}, {128, 2, 1, 8, 127, 0, PAD},  {1, 1, 1, 8, 0, 1, 8},
    {5, 2, 1, 16, 0, 1, 8},       {129, 4, 2, 64, 0, 1, 8},     {130, 3, 3, 80, 0, 1, 8},
    {131, 3, 3, 80, 7, 1, 8},     {300, 2, 1, 96, 128, 4, 8},   {301, 2, 1, 96, 0, 4, 8},
    {140, 2, 2, 128, 200, 1, 8},  {70, 1, 1, 256, 0, 1, 8},     {71, 2, 2, 256, 1, 1, 8},
    {260, 1, 1, 8, 0, 30, 8},     {256, 9, 3, 64, 0, 1, 0},
};

/* Two windows, of which neither sees the other. */
static void attention_case(const struct attention_case *c) {
    int64_t T = c->tokens, query = (int64_t)c->heads * c->head_dim, key = (int64_t)c->kv_heads * c->head_dim;
    float *q = host_normal(2 * T * query, c->deviation), *k = host_normal(2 * T * key, 1);
    float *v = host_normal(2 * T * key, 1);
    struct attention_args a = {.q = put_activation(q, 2 * T, query, c->pad),
                               .k = put_activation(k, 2 * T, key, c->pad),
                               .v = put_activation(v, 2 * T, key, c->pad),
                               .length = T,
                               .heads = c->heads,
                               .kv_heads = c->kv_heads,
                               .head_dim = c->head_dim,
                               .window = c->window,
                               .scale = (float)(1 / sqrt(c->head_dim)),
                               .out = put_activation(host_zeros(2 * T * query), 2 * T, query, c->pad)};
    double *want = host_doubles(2 * T * query);
    for (int i = 0; i < 2; i++) {
        struct ref_attention r = {q + i * T * query, k + i * T * key, v + i * T * key, T,      c->heads,
                                  c->kv_heads,       c->head_dim,     c->window,       a.scale};
        ref_attention(&r, want + i * T * query);
    }
    assert_ok(dev.b->attention(dev.s, &a, &err));
    double bound = dev.b->activation == DTYPE_BF16 ? ATTENTION_BF16_BOUND : ATTENTION_BOUND;
    assert_matrix(a.out, want, NULL, bound * (1 + c->deviation));
}

static void attention_is_causal_grouped_and_windowed(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++) {
        seed(5);
        attention_case(&attention_cases[i]);
    }
}

static void attention_survives_huge_scores(void **state) {
    (void)state;
    enum { T = 150, D = 8 };
    float *q = host_zeros(T * D), *v = host_normal(T * D, 1);
    for (int i = 0; i < T * D; i++)
        q[i] = (i / D % 3 - 1) * 1e4f;
    struct attention_args a = {.q = put_activation(q, T, D, 0),
                               .k = put_activation(q, T, D, 0),
                               .v = put_activation(v, T, D, 0),
                               .length = T,
                               .heads = 1,
                               .kv_heads = 1,
                               .head_dim = D,
                               .scale = 1,
                               .out = put_activation(v, T, D, 0)};
    assert_ok(dev.b->attention(dev.s, &a, &err));
    float *got = get_matrix(a.out);
    for (int i = 0; i < T * D; i++)
        assert_true(fabsf(got[i]) < 10);
}

static void silu_mul_gates(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++) {
        int64_t rows = shapes[i].tokens, cols = shapes[i].cols, count = rows * cols;
        seed(6);
        float *gate = host_normal(count, 8), *up = host_normal(count, 1);
        double *want = host_doubles(count), *scale = host_doubles(count);
        struct silu_mul_args a = {put_activation(gate, rows, cols, PAD), put_activation(up, rows, cols, 0),
                                  put_activation(host_zeros(count), rows, cols, 1)};
        for (int64_t k = 0; k < count; k++) {
            want[k] = ref_silu(gate[k]) * up[k];
            scale[k] = fabs(want[k]);
        }
        assert_ok(dev.b->silu_mul(dev.s, &a, &err));
        assert_matrix(a.out, want, scale, 5e-7);
    }
}

/* Every magnitude from deep underflow to overflow; gate · sigmoid(gate) never turns into NaN. */
static void silu_mul_survives_extremes(void **state) {
    (void)state;
    enum { COUNT = 4000 };
    float *gate = host_zeros(COUNT), *one = host_zeros(COUNT);
    double *want = host_doubles(COUNT), *scale = host_doubles(COUNT);
    for (int i = 0; i < COUNT; i++) {
        gate[i] = (i % 2 ? 1.0f : -1.0f) * (i < 2 ? 3e38f : i < 4 ? 1e10f : (float)(i * 0.03));
        one[i] = 1;
    }
    struct silu_mul_args a = {put_activation(gate, 1, COUNT, 0), put_activation(one, 1, COUNT, 0),
                              put_activation(host_zeros(COUNT), 1, COUNT, 0)};
    for (int i = 0; i < COUNT; i++) {
        want[i] = ref_silu(gate[i]);
        scale[i] = fabs(want[i]) + 1e-30; /* e^89 is Inf in fp32 */
    }
    assert_ok(dev.b->silu_mul(dev.s, &a, &err));
    assert_matrix(a.out, want, scale, 5e-7);
}

/* More rows than a grid of GPU blocks has in its second and third direction. */
enum { MANY = 66000 };

static void many_rows_are_embedded_and_normalised(void **state) {
    (void)state;
    enum { V = 7, D = 5 };
    seed(7);
    float *table = host_normal(V * D, 1), *rows = host_zeros(MANY * D);
    int32_t *ids = host_bytes(MANY * sizeof *ids);
    double *want = host_doubles(MANY * D), *scale = host_doubles(MANY * D);
    for (int i = 0; i < MANY * D; i++) {
        ids[i / D] = i % D ? ids[i / D] : (int32_t)below(V);
        want[i] = rows[i] = table[ids[i / D] * D + i % D];
    }
    for (int there = 0; there <= (dev.b->own_memory ? 1 : 0); there++) {
        struct embed_args a = {table, DTYPE_F32, V, NULL, ids, 1, put_matrix(host_zeros(MANY * D), MANY, D, 0)};
        if (there) a.on_device = put(table, V * D);
        assert_ok(dev.b->embed(dev.s, &a, &err));
        assert_close(get_matrix(a.out), want, NULL, MANY * D, EXACT);
    }
    ref_rmsnorm(rows, table, MANY, D, 1e-5, want);
    for (int i = 0; i < MANY * D; i++)
        scale[i] = fabs(want[i]);
    struct rmsnorm_args a = {put_matrix(rows, MANY, D, 0), put(table, D), 1e-5f,
                             put_activation(host_zeros(MANY * D), MANY, D, 0)};
    assert_ok(dev.b->rmsnorm(dev.s, &a, &err));
    assert_matrix(a.out, want, scale, ROUNDINGS);
}

static void many_rows_are_rotated(void **state) {
    (void)state;
    enum { D = 16 };
    seed(8);
    float *x = host_normal(MANY * D, 1), *cosine = host_zeros(MANY * D / 2), *sine = host_zeros(MANY * D / 2);
    double *want = host_doubles(MANY * D);
    for (int i = 0; i < MANY * D / 2; i++) {
        cosine[i] = (float)cos(i);
        sine[i] = (float)sin(i);
    }
    for (int64_t pad = 0; pad <= 1; pad++) { /* with wide loads and without */
        struct rope_args a = {.x = put_activation(x, MANY, D, pad),
                              .length = MANY,
                              .heads = 1,
                              .head_dim = D,
                              .rotary = D,
                              .cos = put(cosine, MANY * D / 2),
                              .sin = put(sine, MANY * D / 2)};
        ref_rope(x, cosine, sine, MANY, 1, D, D, want);
        assert_ok(dev.b->rope(dev.s, &a, &err));
        assert_matrix(a.x, want, NULL, 1e-6);
    }
}

static void many_rows_are_gated(void **state) {
    (void)state;
    enum { D = 8 };
    seed(9);
    float *gate = host_normal(MANY * D, 8), *up = host_normal(MANY * D, 1);
    double *want = host_doubles(MANY * D), *scale = host_doubles(MANY * D);
    for (int64_t pad = 0; pad <= 1; pad++) {
        struct silu_mul_args a = {put_activation(gate, MANY, D, pad), put_activation(up, MANY, D, pad),
                                  put_activation(host_zeros(MANY * D), MANY, D, pad)};
        for (int i = 0; i < MANY * D; i++) {
            want[i] = ref_silu(gate[i]) * up[i];
            scale[i] = fabs(want[i]);
        }
        assert_ok(dev.b->silu_mul(dev.s, &a, &err));
        assert_matrix(a.out, want, scale, 5e-7);
    }
}

/* Tokens that see themselves alone: each gets its own value. */
static void many_windows_are_attended(void **state) {
    (void)state;
    enum { T = 2, D = 8 };
    if (dev.b->own_memory && dev.b->activation == DTYPE_F32) skip(); /* a GPU in fp32 takes windows one by one */
    seed(10);
    float *x = host_normal(MANY * T * D, 1);
    struct mat m = put_activation(x, MANY * T, D, 0);
    double *want = host_doubles(MANY * T * D);
    for (int i = 0; i < MANY * T * D; i++)
        want[i] = x[i];
    struct attention_args a = {.q = m,
                               .k = m,
                               .v = m,
                               .length = T,
                               .heads = 1,
                               .kv_heads = 1,
                               .head_dim = D,
                               .window = 1,
                               .scale = 1,
                               .out = put_activation(host_zeros(MANY * T * D), MANY * T, D, 0)};
    assert_ok(dev.b->attention(dev.s, &a, &err));
    assert_matrix(a.out, want, NULL, ATTENTION_BF16_BOUND);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embed_gathers_converts_and_multiplies),
        cmocka_unit_test(rmsnorm_scales_to_unit_mean_square),
        cmocka_unit_test(rmsnorm_survives_extremes),
        cmocka_unit_test(gemm_multiplies_adds_bias_and_accumulates),
        cmocka_unit_test(gemm_of_nothing_is_nothing),
        cmocka_unit_test(rope_rotates_the_first_channels),
        cmocka_unit_test(attention_is_causal_grouped_and_windowed),
        cmocka_unit_test(attention_survives_huge_scores),
        cmocka_unit_test(silu_mul_gates),
        cmocka_unit_test(silu_mul_survives_extremes),
        cmocka_unit_test(many_rows_are_embedded_and_normalised),
        cmocka_unit_test(many_rows_are_rotated),
        cmocka_unit_test(many_rows_are_gated),
        cmocka_unit_test(many_windows_are_attended),
    };
    return RUN_ON_BACKENDS("forward", tests);
}
