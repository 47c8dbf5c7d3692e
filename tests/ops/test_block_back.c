/* One block of a transformer, forward and backward through the operations alone: the gradients at its input and at
 * every Linear's output are what differences of the forward pass say. Grouped heads with norms of their own, partial
 * rotary, a sliding window, a residual multiplier. In fp32 only: differences drown in the rounding of bf16. */
#include <math.h>
#include <string.h>

#include "tests/ops/harness.h"

enum { LENGTH = 7, T = 2 * LENGTH, D = 16, HEADS = 4, KV_HEADS = 2, DIM = 6, ROTARY = 4, INNER = 20 };
enum { WIDE = HEADS * DIM, NARROW = KV_HEADS * DIM, WINDOW = 4 };
static const float multiplier = 0.7f, eps = 1e-5f;

enum { Q, K, V, O, GATE, UP, DOWN, LINEARS };
static const struct {
    int64_t rows, cols;
} linears[LINEARS] = {{WIDE, D}, {NARROW, D}, {NARROW, D}, {D, WIDE}, {INNER, D}, {INNER, D}, {D, INNER}};

struct block {
    float *x, *bias[LINEARS], *loss; /* host: what is moved, and what the output is weighed with */
    struct mat w[LINEARS];
    const float *input_norm, *post_norm, *q_norm, *k_norm, *cos, *sin, *minus_sin;
    struct mat before, between, after; /* the residual stream */
    struct mat normed, post_normed;
    struct mat out[LINEARS]; /* O and DOWN: {0}, they go into the residual stream */
    struct mat q, k;         /* after norm and rope */
    struct mat mixed, act;
    const float *device_bias[LINEARS];
    struct mat gradient[LINEARS]; /* at each Linear's output */
    struct mat dx;                /* at the block's input, in the end */
};

static struct mat dense(int64_t cols) {
    return put_activation(host_zeros(T * cols), T, cols, 0);
}

static const float *norm_weight(int64_t count) {
    float *weight = host_normal(count, 0.3);
    for (int64_t i = 0; i < count; i++)
        weight[i] += 1;
    return put(weight, count);
}

static void make_angles(struct block *b) {
    enum { COUNT = LENGTH * ROTARY / 2 };
    float cosine[COUNT], sine[COUNT], minus[COUNT];
    for (int i = 0; i < COUNT; i++) {
        double angle = 10 * uniform();
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
        minus[i] = -sine[i];
    }
    b->cos = put(cosine, COUNT);
    b->sin = put(sine, COUNT);
    b->minus_sin = put(minus, COUNT);
}

static struct block make_block(void) {
    struct block b = {.x = host_normal(T * D, 1), .loss = host_normal(T * D, 1)};
    for (int i = 0; i < LINEARS; i++) {
        int64_t rows = linears[i].rows, cols = linears[i].cols;
        b.bias[i] = host_normal(rows, 0.5);
        b.w[i] = put_activation(host_normal(rows * cols, 1 / sqrt((double)cols)), rows, cols, 0);
        b.out[i] = i == O || i == DOWN ? (struct mat){0} : dense(rows);
        b.gradient[i] = dense(rows);
        b.device_bias[i] = put(b.bias[i], rows);
    }
    b.input_norm = norm_weight(D);
    b.post_norm = norm_weight(D);
    b.q_norm = norm_weight(DIM);
    b.k_norm = norm_weight(DIM);
    make_angles(&b);
    b.before = dense(D), b.between = dense(D), b.after = dense(D), b.dx = dense(D);
    b.normed = dense(D), b.post_normed = dense(D), b.mixed = dense(WIDE), b.act = dense(INNER);
    b.q = dense(WIDE), b.k = dense(NARROW);
    return b;
}

static void copy(struct mat from, struct mat to) {
    assert_ok(dev.b->upload(dev.s, get_matrix(from), DTYPE_F32, from.rows * from.cols, to.data, &err));
}

static void norm(struct mat x, const float *weight, struct mat out) {
    struct rmsnorm_args a = {x, weight, eps, out};
    assert_ok(dev.b->rmsnorm(dev.s, &a, &err));
}

static void linear(const struct block *b, int i, struct mat x, struct mat residual) {
    struct gemm_args a = {.x = x, .w = b->w[i], .bias = b->device_bias[i], .alpha = 1, .out = b->out[i]};
    if (residual.data != NULL) {
        a.alpha = multiplier;
        a.beta = 1;
        a.out = residual;
    }
    assert_ok(dev.b->gemm(dev.s, &a, &err));
}

/* As rows of heads. */
static struct mat heads_of(struct mat m) {
    return (struct mat){m.data, m.rows * m.cols / DIM, DIM, DIM, m.type};
}

static void rotate(const struct block *b, struct mat x, const float *sine) {
    struct rope_args a = {x, LENGTH, (int)(x.cols / DIM), DIM, ROTARY, b->cos, sine};
    assert_ok(dev.b->rope(dev.s, &a, &err));
}

static struct attention_args attention_of(const struct block *b) {
    return (struct attention_args){b->q, b->k, b->out[V], LENGTH, HEADS, KV_HEADS, DIM, WINDOW, 0.4f, b->mixed};
}

static void forward(const struct block *b) {
    assert_ok(dev.b->upload(dev.s, b->x, DTYPE_F32, T * D, b->before.data, &err));
    for (int i = 0; i < LINEARS; i++)
        assert_ok(dev.b->upload(dev.s, b->bias[i], DTYPE_F32, linears[i].rows, (float *)b->device_bias[i], &err));
    norm(b->before, b->input_norm, b->normed);
    for (int i = Q; i <= V; i++)
        linear(b, i, b->normed, (struct mat){0});
    norm(heads_of(b->out[Q]), b->q_norm, heads_of(b->q));
    norm(heads_of(b->out[K]), b->k_norm, heads_of(b->k));
    rotate(b, b->q, b->sin);
    rotate(b, b->k, b->sin);
    struct attention_args attention = attention_of(b);
    assert_ok(dev.b->attention(dev.s, &attention, &err));
    copy(b->before, b->between);
    linear(b, O, b->mixed, b->between);
    norm(b->between, b->post_norm, b->post_normed);
    linear(b, GATE, b->post_normed, (struct mat){0});
    linear(b, UP, b->post_normed, (struct mat){0});
    struct silu_mul_args silu = {b->out[GATE], b->out[UP], b->act};
    assert_ok(dev.b->silu_mul(dev.s, &silu, &err));
    copy(b->between, b->after);
    linear(b, DOWN, b->act, b->after);
}

static void linear_back(const struct block *b, int i, struct mat dy, float alpha, float beta, struct mat dx) {
    struct gemm_back_args a = {dy, b->w[i], alpha, beta, dx};
    assert_ok(dev.b->gemm_back(dev.s, &a, &err));
}

static void norm_back(struct mat x, const float *weight, struct mat dy, struct mat dx, bool add) {
    struct rmsnorm_back_args a = {x, weight, eps, dy, dx, add};
    assert_ok(dev.b->rmsnorm_back(dev.s, &a, &err));
}

/* The gradient at the output of a Linear that goes into the residual stream. */
static void hand_out(const struct block *b, int i) {
    float *dx = get_matrix(b->dx);
    for (int k = 0; k < T * D; k++)
        dx[k] *= multiplier;
    assert_ok(dev.b->upload(dev.s, dx, DTYPE_F32, T * D, b->gradient[i].data, &err));
}

static void mlp_back(const struct block *b) {
    struct mat dact = dense(INNER), dnormed = dense(D);
    hand_out(b, DOWN);
    linear_back(b, DOWN, b->dx, multiplier, 0, dact);
    struct silu_mul_back_args silu = {b->out[GATE], b->out[UP], dact, b->gradient[GATE], b->gradient[UP]};
    assert_ok(dev.b->silu_mul_back(dev.s, &silu, &err));
    linear_back(b, GATE, b->gradient[GATE], 1, 0, dnormed);
    linear_back(b, UP, b->gradient[UP], 1, 1, dnormed);
    norm_back(b->between, b->post_norm, dnormed, b->dx, true);
}

static void attention_half_back(const struct block *b) {
    struct mat dmixed = dense(WIDE), dq = dense(WIDE), dk = dense(NARROW), dnormed = dense(D);
    hand_out(b, O);
    linear_back(b, O, b->dx, multiplier, 0, dmixed);
    struct attention_back_args attention = {attention_of(b), dmixed, dq, dk, b->gradient[V]};
    assert_ok(dev.b->attention_back(dev.s, &attention, &err));
    rotate(b, dq, b->minus_sin);
    rotate(b, dk, b->minus_sin);
    norm_back(heads_of(b->out[Q]), b->q_norm, heads_of(dq), heads_of(b->gradient[Q]), false);
    norm_back(heads_of(b->out[K]), b->k_norm, heads_of(dk), heads_of(b->gradient[K]), false);
    for (int i = Q; i <= V; i++)
        linear_back(b, i, b->gradient[i], 1, i > Q, dnormed);
    norm_back(b->before, b->input_norm, dnormed, b->dx, true);
}

static double loss_of(const struct block *b) {
    forward(b);
    const float *out = get_matrix(b->after);
    double loss = 0;
    for (int i = 0; i < T * D; i++)
        loss += (double)b->loss[i] * out[i];
    return loss;
}

static double difference(const struct block *b, float *values, const float *direction, int64_t count, float step) {
    float *kept = host_zeros(count);
    memcpy(kept, values, (size_t)count * sizeof *kept);
    double loss[2];
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < count; i++)
            values[i] = kept[i] + (side == 0 ? step : -step) * direction[i];
        loss[side] = loss_of(b);
    }
    memcpy(values, kept, (size_t)count * sizeof *kept);
    return (loss[0] - loss[1]) / (2 * (double)step);
}

/* Moves the values along a few random directions. gradient [count]: of each. */
static void assert_gradient(const struct block *b, float *values, const double *gradient, int64_t count) {
    for (int n = 0; n < 3; n++) {
        float *direction = host_normal(count, 1 / sqrt((double)count));
        double slope = 0, size = 0;
        for (int64_t i = 0; i < count; i++) {
            slope += gradient[i] * direction[i];
            size += gradient[i] * gradient[i];
        }
        double near = difference(b, values, direction, count, 0x1p-6f);
        double far = difference(b, values, direction, count, 0x1p-5f);
        assert_near((4 * near - far) / 3, slope, 5e-4 * (sqrt(size) + 1));
    }
}

static void gradients_are_those_of_the_whole_block(void **state) {
    (void)state;
    if (dev.b->activation != DTYPE_F32) skip();
    seed(90);
    struct block b = make_block();
    forward(&b);
    assert_ok(dev.b->upload(dev.s, b.loss, DTYPE_F32, T * D, b.dx.data, &err));
    mlp_back(&b);
    attention_half_back(&b);
    const float *dx = get_matrix(b.dx);
    double *at_input = host_doubles(T * D);
    for (int i = 0; i < T * D; i++)
        at_input[i] = dx[i];
    for (int i = 0; i < LINEARS; i++) { /* a bias moves the output of all tokens */
        const float *gradient = get_matrix(b.gradient[i]);
        double *at_bias = host_doubles(linears[i].rows);
        for (int64_t k = 0; k < T * linears[i].rows; k++)
            at_bias[k % linears[i].rows] += gradient[k];
        assert_gradient(&b, b.bias[i], at_bias, linears[i].rows);
    }
    assert_gradient(&b, b.x, at_input, T * D);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gradients_are_those_of_the_whole_block)};
    return RUN_ON_BACKENDS("a block backwards", tests);
}
