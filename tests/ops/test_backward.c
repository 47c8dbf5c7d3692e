/* The gradients of the forward pass's operations: each against float64, which is itself held against differences of
 * the forward reference. */
#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"
#include "tests/ops/reference_back.h"

enum { PAD = 3 };

/* Relative to the sum of magnitudes behind each result. */
static const double GEMM_BOUND = 5e-7, ROUNDINGS = 6e-7, ATTENTION_BOUND = 2e-6;
/* Probabilities, and the gradients of scores, are rounded to bf16 before they weigh anything, and so was the output
 * that the softmax's gradient reads. */
static const double ATTENTION_BF16_BOUND = 4e-3;

static double dot(const float *x, const double *y, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

static void assert_differences(double (*loss)(const void *), const void *ctx, float *x, int64_t count,
                               struct ref_gradient got) {
    double *want = host_doubles(count);
    ref_differences(loss, ctx, x, count, want);
    for (int64_t i = 0; i < count; i++)
        assert_near(got.value[i], want[i], 1e-7 * (got.scale[i] + 1));
}

static struct ref_gradient gradient(int64_t count) {
    return (struct ref_gradient){host_doubles(count), host_doubles(count)};
}

struct norm_loss {
    struct ref_rmsnorm_back r;
    double *out;
};

static double norm_loss(const void *ctx) {
    const struct norm_loss *l = ctx;
    ref_rmsnorm(l->r.x, l->r.weight, l->r.rows, l->r.cols, l->r.eps, l->out);
    return dot(l->r.dy, l->out, l->r.rows * l->r.cols);
}

static void rmsnorm_reference_is_the_derivative(void **state) {
    (void)state;
    enum { T = 3, D = 7 };
    seed(1);
    float *x = host_normal(T * D, 1);
    struct norm_loss l = {{x, host_normal(D, 1), host_normal(T * D, 1), T, D, 0.1}, host_doubles(T * D)};
    struct ref_gradient dx = gradient(T * D);
    ref_rmsnorm_back(&l.r, dx.value, dx.scale);
    assert_differences(norm_loss, &l, x, T * D, dx);
}

struct attention_loss {
    struct ref_attention a;
    const float *dout;
    double *out;
};

static double attention_loss(const void *ctx) {
    const struct attention_loss *l = ctx;
    ref_attention(&l->a, l->out);
    return dot(l->dout, l->out, l->a.tokens * l->a.heads * l->a.head_dim);
}

static void attention_reference_is_the_derivative(void **state) {
    (void)state;
    enum { T = 6, HEADS = 4, KV_HEADS = 2, DIM = 3, QUERY = T * HEADS * DIM, KEY = T * KV_HEADS * DIM };
    for (int window = 0; window <= 3; window += 3) {
        seed(2);
        float *q = host_normal(QUERY, 1), *k = host_normal(KEY, 1), *v = host_normal(KEY, 1);
        struct attention_loss l = {
            {q, k, v, T, HEADS, KV_HEADS, DIM, window, 0.6}, host_normal(QUERY, 1), host_doubles(QUERY)};
        struct ref_gradient dq = gradient(QUERY), dk = gradient(KEY), dv = gradient(KEY);
        ref_attention_back(&l.a, l.dout, dq, dk, dv);
        assert_differences(attention_loss, &l, q, QUERY, dq);
        assert_differences(attention_loss, &l, k, KEY, dk);
        assert_differences(attention_loss, &l, v, KEY, dv);
    }
}

static double silu_loss(const void *ctx) {
    const float *in = ctx; /* gate, up, dy */
    return ref_silu(in[0]) * in[1] * in[2];
}

static void silu_mul_reference_is_the_derivative(void **state) {
    (void)state;
    for (int i = -14; i <= 14; i++) {
        float in[] = {0.37f * (float)i, 0.7f, -1.3f};
        double value[2], scale[2] = {1, 1};
        ref_silu_mul_back(in[0], in[1], in[2], &value[0], &value[1]);
        assert_differences(silu_loss, in, in, 2, (struct ref_gradient){value, scale});
    }
}

static double head_loss(const void *ctx) {
    const struct ref_head *h = ctx;
    double logits[16];
    ref_logits(h, logits);
    return 0.7 * (ref_log_sum_exp(logits, h->vocab) - logits[4]);
}

static void score_reference_is_the_derivative(void **state) {
    (void)state;
    enum { V = 16, D = 5 };
    seed(3);
    float *x = host_normal(D, 1);
    struct ref_head h = {x, host_normal(V * D, 1), host_normal(V, 1), D, V, 1.5};
    struct ref_gradient dx = gradient(D);
    ref_score_back(&h, 4, 0.7, dx.value, dx.scale);
    assert_differences(head_loss, &h, x, D, dx);
}

struct kl_loss {
    struct ref_head own;
    const double *logits_ref;
};

static double kl_loss(const void *ctx) {
    const struct kl_loss *l = ctx;
    double logits[16];
    ref_logits(&l->own, logits);
    return 0.7 * ref_kl(l->logits_ref, logits, l->own.vocab);
}

static void kl_reference_is_the_derivative(void **state) {
    (void)state;
    enum { V = 16, D = 5 };
    seed(4);
    float *x = host_normal(D, 1);
    const float *bias = host_normal(V, 1);
    double logits_ref[V];
    struct ref_head own = {x, host_normal(V * D, 1), bias, D, V, 1.5};
    struct ref_head ref = {host_normal(D, 1), host_normal(V * D, 1), bias, D, V, 1.5};
    ref_logits(&ref, logits_ref);
    struct kl_loss loss = {own, logits_ref};
    struct ref_gradient dx = gradient(D);
    ref_kl_back(&own, &ref, 0.7, dx.value, dx.scale);
    assert_differences(kl_loss, &loss, x, D, dx);
}

/* `residual`: into an fp32 matrix. */
static void gemm_case(const struct shape *s, double alpha, double beta, bool residual) {
    int64_t count = s->tokens * s->cols;
    float *dy = host_normal(s->tokens * s->rows, 1), *w = host_normal(s->rows * s->cols, 0.05);
    float *before = host_normal(count, 1);
    if (beta == 0)
        for (int64_t i = 0; i < count; i++)
            before[i] = NAN; /* must not be read */
    struct gemm_back_args a = {.dy = put_activation(dy, s->tokens, s->rows, PAD),
                               .w = put_activation(w, s->rows, s->cols, 2 * PAD),
                               .alpha = (float)alpha,
                               .beta = (float)beta,
                               .dx = residual ? put_matrix(before, s->tokens, s->cols, PAD)
                                              : put_activation(before, s->tokens, s->cols, PAD)};
    struct ref_gemm_back g = {dy, w, before, s->tokens, s->rows, s->cols, alpha, beta};
    struct ref_gradient want = gradient(count);
    ref_gemm_back(&g, want.value, want.scale);
    assert_ok(dev.b->gemm_back(dev.s, &a, &err));
    assert_matrix(a.dx, want.value, want.scale, GEMM_BOUND);
}

static void gemm_back_multiplies_and_accumulates(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++) {
        seed(10);
        gemm_case(&shapes[i], 1, 0, false);
        gemm_case(&shapes[i], 0.5, 1, false);
        gemm_case(&shapes[i], -2, 1, true);
        gemm_case(&shapes[i], 1, 0.25, true);
        gemm_case(&shapes[i], 1, 0, true);
    }
}

/* Weights that keep the type of their checkpoint where activations have another. */
static void gemm_back_takes_weights_as_stored(void **state) {
    (void)state;
    enum { T = 5, N = 24, K = 40 };
    seed(11);
    float *dy = host_normal(T * N, 1), *w = host_normal(N * K, 0.05);
    struct gemm_back_args a = {.dy = put_activation(dy, T, N, 0),
                               .w = put_matrix(w, N, K, 0),
                               .alpha = 1,
                               .dx = put_matrix(host_zeros(T * K), T, K, PAD)};
    struct ref_gemm_back g = {dy, w, NULL, T, N, K, 1, 0};
    struct ref_gradient want = gradient(T * K);
    ref_gemm_back(&g, want.value, want.scale);
    assert_ok(dev.b->gemm_back(dev.s, &a, &err));
    assert_matrix(a.dx, want.value, want.scale, GEMM_BOUND + (dev.b->activation == DTYPE_BF16 ? 0x1p-8 : 0));
}

/* x and dx of the residual stream are fp32, dy is what a product left; a head's are all activations, in place. */
static void rmsnorm_case(const struct shape *s, double deviation, bool head, bool add) {
    int64_t rows = s->tokens, cols = s->cols, count = rows * cols;
    float *x = host_normal(count, deviation), *dy = host_normal(count, 1), *weight = host_normal(cols, 1);
    float *before = host_normal(count, 1 / deviation);
    struct rmsnorm_back_args a = {.x = head ? put_activation(x, rows, cols, PAD) : put_matrix(x, rows, cols, PAD),
                                  .weight = put(weight, cols),
                                  .eps = 1e-5f,
                                  .dy = put_activation(dy, rows, cols, 1),
                                  .add = add};
    a.dx = head && !add ? a.dy : head ? put_activation(before, rows, cols, 0) : put_matrix(before, rows, cols, 0);
    struct ref_rmsnorm_back r = {x, weight, dy, rows, cols, a.eps};
    struct ref_gradient want = gradient(count);
    ref_rmsnorm_back(&r, want.value, want.scale);
    for (int64_t i = 0; add && i < count; i++) {
        want.value[i] += before[i];
        want.scale[i] += fabsf(before[i]);
    }
    assert_ok(dev.b->rmsnorm_back(dev.s, &a, &err));
    assert_matrix(a.dx, want.value, want.scale, ROUNDINGS);
}

static void rmsnorm_back_is_the_norms_gradient(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++)
        for (int variant = 0; variant < 4; variant++) {
            seed(12);
            rmsnorm_case(&shapes[i], i % 2 ? 30 : 0.01, variant / 2, variant % 2);
        }
}

/* dy in fp32: what score_back leaves for the final norm. */
static void rmsnorm_back_takes_a_gradient_in_fp32(void **state) {
    (void)state;
    enum { T = 4, D = 72 };
    seed(13);
    float *x = host_normal(T * D, 2), *dy = host_normal(T * D, 1), *weight = host_normal(D, 1);
    struct rmsnorm_back_args a = {
        .x = put_matrix(x, T, D, PAD), .weight = put(weight, D), .eps = 1e-5f, .dy = put_matrix(dy, T, D, 0)};
    a.dx = a.dy;
    struct ref_rmsnorm_back r = {x, weight, dy, T, D, a.eps};
    struct ref_gradient want = gradient(T * D);
    ref_rmsnorm_back(&r, want.value, want.scale);
    assert_ok(dev.b->rmsnorm_back(dev.s, &a, &err));
    assert_matrix(a.dx, want.value, want.scale, ROUNDINGS);
}

/* A rotation's transpose turns the other way: Σ dy·rope(x) = Σ rope₋(dy)·x, for every x: the columns of the identity.
 */
static void rope_with_minus_sine_is_its_gradient(void **state) {
    (void)state;
    enum { T = 3, HEADS = 2, DIM = 10, COLS = HEADS * DIM, COUNT = T * COLS };
    for (int rotary = 6; rotary <= 10; rotary += 4) {
        int half = rotary / 2;
        seed(14);
        float *dy = host_normal(COUNT, 1), *x = host_zeros(COUNT);
        float *cosine = host_zeros(T * half), *sine = host_zeros(T * half), *minus = host_zeros(T * half);
        double *out = host_doubles(COUNT), *want = host_doubles(COUNT);
        for (int i = 0; i < T * half; i++) {
            double angle = 10 * uniform();
            cosine[i] = (float)cos(angle);
            sine[i] = (float)sin(angle);
            minus[i] = -sine[i];
        }
        struct rope_args a = {.x = put_activation(dy, T, COLS, PAD),
                              .length = T,
                              .heads = HEADS,
                              .head_dim = DIM,
                              .rotary = rotary,
                              .cos = put(cosine, T * half),
                              .sin = put(minus, T * half)};
        for (int i = 0; i < COUNT; i++) {
            x[i] = 1;
            ref_rope(x, cosine, sine, T, HEADS, DIM, rotary, out);
            want[i] = dot(dy, out, COUNT);
            x[i] = 0;
        }
        assert_ok(dev.b->rope(dev.s, &a, &err));
        assert_matrix(a.x, want, NULL, 1e-6);
    }
}

struct attention_case {
    int64_t tokens;
    int heads, kv_heads, head_dim, window;
    double deviation; /* of q: how peaked the softmax is */
    int64_t pad;      /* 8: rows begin where wide loads can read them */
};

static const struct attention_case attention_cases[] = {
    {1, 1, 1, 8, 0, 1, PAD},      {5, 2, 1, 16, 0, 1, PAD},      {129, 4, 2, 64, 0, 1, PAD}, {130, 3, 3, 80, 7, 1, PAD},
    {300, 2, 1, 96, 128, 4, PAD}, {140, 2, 2, 128, 200, 1, PAD}, {70, 1, 1, 256, 1, 1, PAD}, {33, 6, 3, 5, 4, 1, PAD},
    {260, 1, 1, 8, 129, 30, PAD}, {128, 2, 1, 8, 127, 0, PAD},   {1, 1, 1, 8, 0, 1, 8},      {129, 4, 2, 64, 0, 1, 8},
    {130, 3, 3, 80, 0, 1, 8},     {131, 6, 2, 80, 7, 1, 8},      {301, 2, 1, 96, 0, 4, 8},   {300, 4, 1, 96, 65, 4, 8},
    {140, 2, 2, 128, 200, 1, 8},  {257, 4, 1, 128, 33, 1, 8},    {70, 1, 1, 256, 0, 1, 8},   {135, 4, 2, 256, 40, 1, 8},
    {260, 1, 1, 8, 0, 30, 8},     {256, 9, 3, 64, 0, 1, 0},
};

struct attention_inputs {
    float *q, *k, *v, *out, *dout;
    int64_t query, key; /* columns */
};

/* Two windows, of which neither sees the other; out is what the forward reference says. */
static struct attention_inputs attention_inputs(const struct attention_case *c, struct ref_attention *windows) {
    int64_t T = c->tokens, query = (int64_t)c->heads * c->head_dim, key = (int64_t)c->kv_heads * c->head_dim;
    struct attention_inputs in = {host_normal(2 * T * query, c->deviation),
                                  host_normal(2 * T * key, 1),
                                  host_normal(2 * T * key, 1),
                                  host_zeros(2 * T * query),
                                  host_normal(2 * T * query, 1),
                                  query,
                                  key};
    for (int i = 0; i < 2; i++)
        windows[i] = (struct ref_attention){in.q + i * T * query,
                                            in.k + i * T * key,
                                            in.v + i * T * key,
                                            T,
                                            c->heads,
                                            c->kv_heads,
                                            c->head_dim,
                                            c->window,
                                            (float)(1 / sqrt(c->head_dim))};
    return in;
}

static struct attention_back_args attention_arguments(const struct attention_case *c, struct attention_inputs *in,
                                                      const struct ref_attention *windows) {
    int64_t T = c->tokens, rows = 2 * T;
    struct attention_back_args a = {.forward = {.q = put_activation(in->q, rows, in->query, c->pad),
                                                .k = put_activation(in->k, rows, in->key, c->pad),
                                                .v = put_activation(in->v, rows, in->key, c->pad),
                                                .length = T,
                                                .heads = c->heads,
                                                .kv_heads = c->kv_heads,
                                                .head_dim = c->head_dim,
                                                .window = c->window,
                                                .scale = (float)windows[0].scale},
                                    .dout = put_activation(in->dout, rows, in->query, c->pad)};
    double *out = host_doubles(T * in->query);
    for (int i = 0; i < 2; i++) { /* of the inputs as they are rounded now */
        ref_attention(&windows[i], out);
        for (int64_t k = 0; k < T * in->query; k++)
            in->out[i * T * in->query + k] = (float)out[k];
    }
    a.forward.out = put_activation(in->out, rows, in->query, c->pad);
    a.dq = put_activation(host_zeros(rows * in->query), rows, in->query, c->pad);
    a.dk = put_activation(host_zeros(rows * in->key), rows, in->key, c->pad);
    a.dv = put_activation(host_zeros(rows * in->key), rows, in->key, c->pad);
    return a;
}

static struct ref_gradient offset(struct ref_gradient g, int64_t by) {
    return (struct ref_gradient){g.value + by, g.scale + by};
}

static void attention_case(const struct attention_case *c) {
    struct ref_attention windows[2];
    struct attention_inputs in = attention_inputs(c, windows);
    struct attention_back_args a = attention_arguments(c, &in, windows);
    int64_t query = c->tokens * in.query, key = c->tokens * in.key; /* of a window */
    struct ref_gradient dq = gradient(2 * query), dk = gradient(2 * key), dv = gradient(2 * key);
    for (int i = 0; i < 2; i++)
        ref_attention_back(&windows[i], in.dout + i * query, offset(dq, i * query), offset(dk, i * key),
                           offset(dv, i * key));
    for (int64_t i = 0; i < 2 * query; i++)
        dq.scale[i] += 1e-30; /* probabilities next to 0 lose their last digits */
    for (int64_t i = 0; i < 2 * key; i++) {
        dk.scale[i] += 1e-30;
        dv.scale[i] += 1e-30;
    }
    assert_ok(dev.b->attention_back(dev.s, &a, &err));
    double bound = dev.b->activation == DTYPE_BF16 ? ATTENTION_BF16_BOUND : ATTENTION_BOUND * (1 + c->deviation);
    assert_matrix(a.dv, dv.value, dv.scale, bound);
    assert_matrix(a.dq, dq.value, dq.scale, bound);
    assert_matrix(a.dk, dk.value, dk.scale, bound);
    float *first = get_matrix(a.dk);
    assert_ok(dev.b->attention_back(dev.s, &a, &err));
    assert_memory_equal(first, get_matrix(a.dk), (size_t)(2 * key) * sizeof *first);
}

static void attention_back_is_causal_grouped_windowed_and_repeatable(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++) {
        seed(15);
        attention_case(&attention_cases[i]);
    }
}

static void silu_mul_back_is_the_gates_gradient(void **state) {
    (void)state;
    for (int i = 0; i < shape_count; i++) {
        int64_t rows = shapes[i].tokens, cols = shapes[i].cols, count = rows * cols;
        seed(16);
        float *gate = host_normal(count, 8), *up = host_normal(count, 1), *dy = host_normal(count, 1);
        struct silu_mul_back_args a = {.gate = put_activation(gate, rows, cols, PAD),
                                       .up = put_activation(up, rows, cols, 8),
                                       .dy = put_activation(dy, rows, cols, 0)};
        struct mat both = put_activation(host_zeros(2 * count), rows, 2 * cols, PAD); /* side by side */
        a.dgate = (struct mat){both.data, rows, cols, both.stride, both.type};
        a.dup = a.dgate;
        a.dup.data = (char *)both.data + (size_t)cols * dtype_size(both.type);
        struct ref_gradient want = gradient(2 * count);
        for (int64_t k = 0; k < count; k++) {
            int64_t at = k / cols * 2 * cols + k % cols;
            ref_silu_mul_back(gate[k], up[k], dy[k], &want.value[at], &want.value[at + cols]);
            want.scale[at] = fabs((double)dy[k] * up[k]);
            want.scale[at + cols] = fabs(want.value[at + cols]);
        }
        assert_ok(dev.b->silu_mul_back(dev.s, &a, &err));
        assert_matrix(both, want.value, want.scale, 2e-6);
        a.dgate = a.gate;
        a.dup = a.up;
        float *apart = get_matrix(both);
        assert_ok(dev.b->silu_mul_back(dev.s, &a, &err));
        const float *dgate = get_matrix(a.dgate), *dup = get_matrix(a.dup);
        for (int64_t k = 0; k < count; k++) {
            assert_true(dgate[k] == apart[k / cols * 2 * cols + k % cols]);
            assert_true(dup[k] == apart[k / cols * 2 * cols + cols + k % cols]);
        }
    }
}

/* Gates beyond where e^x overflows: neither Inf nor NaN. */
static void silu_mul_back_survives_extremes(void **state) {
    (void)state;
    float gate[] = {3e38f, -3e38f, 1e10f, -1e10f, 100, -100, 88.8f, -88.8f, 0}, one[] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    enum { COUNT = sizeof gate / sizeof *gate };
    struct silu_mul_back_args a = {put_activation(gate, 1, COUNT, 0), put_activation(one, 1, COUNT, 0),
                                   put_activation(one, 1, COUNT, 0), put_activation(host_zeros(COUNT), 1, COUNT, 0),
                                   put_activation(host_zeros(COUNT), 1, COUNT, 0)};
    assert_ok(dev.b->silu_mul_back(dev.s, &a, &err));
    const float *dgate = get_matrix(a.dgate), *dup = get_matrix(a.dup);
    for (int i = 0; i < COUNT; i++) {
        assert_near(dgate[i], gate[i] > 0 ? 1 : gate[i] < 0 ? 0 : 0.5, 1e-6);
        assert_near(dup[i], gate[i] > 0 ? gate[i] : 0, gate[i] > 0 ? 1e-6 * gate[i] : 1e-6);
    }
}

int main(void) {
    const struct CMUnitTest references[] = {
        cmocka_unit_test(rmsnorm_reference_is_the_derivative),  cmocka_unit_test(attention_reference_is_the_derivative),
        cmocka_unit_test(silu_mul_reference_is_the_derivative), cmocka_unit_test(score_reference_is_the_derivative),
        cmocka_unit_test(kl_reference_is_the_derivative),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_back_multiplies_and_accumulates),
        cmocka_unit_test(gemm_back_takes_weights_as_stored),
        cmocka_unit_test(rmsnorm_back_is_the_norms_gradient),
        cmocka_unit_test(rmsnorm_back_takes_a_gradient_in_fp32),
        cmocka_unit_test(rope_with_minus_sine_is_its_gradient),
        cmocka_unit_test(attention_back_is_causal_grouped_windowed_and_repeatable),
        cmocka_unit_test(silu_mul_back_is_the_gates_gradient),
        cmocka_unit_test(silu_mul_back_survives_extremes),
    };
    return RUN_ON_CPU("references of gradients", references) + RUN_ON_BACKENDS("backward", tests);
}
