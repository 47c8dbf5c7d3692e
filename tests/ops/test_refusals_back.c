/* The operations that go backwards refuse arguments that do not fit together, by name. */
#include <math.h>

#include "tests/ops/refusals.h"

static struct gemm_back_args gemm_back_arguments(void) {
    return (struct gemm_back_args){.dy = zeros(T, N), .w = zeros(N, K), .alpha = 1, .dx = zeros(T, K)};
}

static void gemm_back_refuses_shapes_that_do_not_multiply(void **state) {
    (void)state;
    ACCEPTED(gemm_back);
    REFUSED(gemm_back, RC_INVALID, "gemm_back: w: [4, 7] where [4, 8]", a.w.cols = 7);
    REFUSED(gemm_back, RC_INVALID, "gemm_back: w: [3, 8] where [4, 8]", a.w.rows = 3);
    REFUSED(gemm_back, RC_INVALID, "gemm_back: dx: [2, 8] where [3, 8]", a.dx.rows = 2);
    REFUSED(gemm_back, RC_INVALID, "gemm_back: dy: no data", a.dy.data = NULL);
}

static struct rmsnorm_back_args rmsnorm_back_arguments(void) {
    return (struct rmsnorm_back_args){fp32_zeros(T, K), put(host_zeros(K), K), 1e-5f,
                                      zeros(T, K),      fp32_zeros(T, K),      false};
}

static void rmsnorm_back_refuses_different_shapes(void **state) {
    (void)state;
    ACCEPTED(rmsnorm_back);
    REFUSED(rmsnorm_back, RC_INVALID, "rmsnorm_back: x: no data", a.x.data = NULL);
    REFUSED(rmsnorm_back, RC_INVALID, "rmsnorm_back: dy: [3, 7] where [3, 8]", a.dy.cols = 7);
    REFUSED(rmsnorm_back, RC_INVALID, "rmsnorm_back: dx: [2, 8] where [3, 8]", a.dx.rows = 2);
    REFUSED(rmsnorm_back, RC_INVALID, "rmsnorm_back: weight", a.weight = NULL);
}

static struct attention_back_args attention_back_arguments(void) {
    return (struct attention_back_args){
        .forward = {zeros(T, 8), zeros(T, 4), zeros(T, 4), T, 4, 2, 2, 0, 1, zeros(T, 8)},
        .dout = zeros(T, 8),
        .dq = zeros(T, 8),
        .dk = zeros(T, 4),
        .dv = zeros(T, 4)};
}

static void attention_back_refuses_heads_that_do_not_fit(void **state) {
    (void)state;
    ACCEPTED(attention_back);
    REFUSED(attention_back, RC_INVALID, "3 key heads", a.forward.kv_heads = 3);
    REFUSED(attention_back, RC_INVALID, "no whole windows of 2", a.forward.length = 2);
    REFUSED(attention_back, RC_INVALID, "attention_back: dout", a.dout.cols = 4);
    REFUSED(attention_back, RC_INVALID, "attention_back: dq", a.dq.rows = 2);
    REFUSED(attention_back, RC_INVALID, "attention_back: dk", a.dk.cols = 8);
    REFUSED(attention_back, RC_INVALID, "attention_back: dv: no data", a.dv.data = NULL);
}

static struct silu_mul_back_args silu_mul_back_arguments(void) {
    return (struct silu_mul_back_args){zeros(T, K), zeros(T, K), zeros(T, K), zeros(T, K), zeros(T, K)};
}

static void silu_mul_back_refuses_different_shapes(void **state) {
    (void)state;
    ACCEPTED(silu_mul_back);
    REFUSED(silu_mul_back, RC_INVALID, "silu_mul_back: gate", a.gate.data = NULL);
    REFUSED(silu_mul_back, RC_INVALID, "silu_mul_back: up", a.up.cols = 7);
    REFUSED(silu_mul_back, RC_INVALID, "silu_mul_back: dy", a.dy.rows = 2);
    REFUSED(silu_mul_back, RC_INVALID, "silu_mul_back: dgate", a.dgate.cols = 7);
    REFUSED(silu_mul_back, RC_INVALID, "silu_mul_back: dup", a.dup.rows = 2);
}

static struct sample_labels_args sample_labels_arguments(void) {
    return (struct sample_labels_args){.x = zeros(T, K),
                                       .head = zeros(6, K),
                                       .logit_scale = 1,
                                       .u = host_doubles(T),
                                       .labels = host_bytes(T * sizeof(int32_t))};
}

static void sample_labels_refuses_what_no_cumulative_sum_exceeds(void **state) {
    (void)state;
    static const double one[T] = {0, 1, 0}, negative[T] = {0, 0, -0.5}, nan[T] = {NAN, 0, 0};
    ACCEPTED(sample_labels);
    REFUSED(sample_labels, RC_INVALID, "u[1] is 1", a.u = one);
    REFUSED(sample_labels, RC_INVALID, "u[2] is -0.5", a.u = negative);
    REFUSED(sample_labels, RC_INVALID, "not in [0, 1)", a.u = nan);
    REFUSED(sample_labels, RC_INVALID, "sample_labels: u", a.u = NULL);
    REFUSED(sample_labels, RC_INVALID, "sample_labels: labels", a.labels = NULL);
    REFUSED(sample_labels, RC_INVALID, "sample_labels: head: [6, 7] where [6, 8]", a.head.cols = 7);
    REFUSED(sample_labels, RC_INVALID, "vocabulary is empty", a.head.rows = 0);
}

static struct score_back_args score_back_arguments(void) {
    static const int32_t labels[T] = {0, 5, 2};
    return (struct score_back_args){.x = zeros(T, K),
                                    .head = zeros(6, K),
                                    .logit_scale = 1,
                                    .labels = labels,
                                    .dx = fp32_zeros(T, K),
                                    .nll = host_doubles(T)};
}

static void score_back_refuses_labels_and_shapes_that_do_not_fit(void **state) {
    (void)state;
    static const int32_t beyond[T] = {0, 6, 1};
    ACCEPTED(score_back);
    REFUSED(score_back, RC_INVALID, "score_back: labels: token id 6 at position 1", a.labels = beyond);
    REFUSED(score_back, RC_INVALID, "score_back: head: [6, 7] where [6, 8]", a.head.cols = 7);
    REFUSED(score_back, RC_INVALID, "score_back: dx: [2, 8]", a.dx.rows = 2);
    REFUSED(score_back, RC_UNSUPPORTED, "in fp32", a.dx.type = DTYPE_BF16);
    REFUSED(score_back, RC_INVALID, "score_back: nll", a.nll = NULL);
}

static struct fisher_args fisher_arguments(void) {
    return (struct fisher_args){.x = zeros(T, K),
                                .g = zeros(T, N),
                                .d = zeros(N, K),
                                .length = T,
                                .sum = device_doubles(1),
                                .squares = device_doubles(1)};
}

static void fisher_refuses_shapes_that_do_not_fit(void **state) {
    (void)state;
    ACCEPTED(fisher);
    REFUSED(fisher, RC_INVALID, "fisher: g: [3, 3] where [3, 4]", a.g.cols = 3);
    REFUSED(fisher, RC_INVALID, "fisher: d: [4, 7] where [4, 8]", a.d.cols = 7);
    REFUSED(fisher, RC_INVALID, "no whole windows of 2", a.length = 2);
    REFUSED(fisher, RC_INVALID, "fisher: sum", a.sum = NULL);
    REFUSED(fisher, RC_INVALID, "fisher: squares", a.squares = NULL);
}

static struct row_norms_args row_norms_arguments(void) {
    return (struct row_norms_args){.g = zeros(T, N), .norms = device_doubles(T)};
}

static void row_norms_needs_somewhere_to_put_them(void **state) {
    (void)state;
    ACCEPTED(row_norms);
    REFUSED(row_norms, RC_INVALID, "row_norms: norms", a.norms = NULL);
    REFUSED(row_norms, RC_INVALID, "row_norms: g", a.g.data = NULL);
}

static struct kl_back_args kl_back_arguments(void) {
    return (struct kl_back_args){.x = zeros(T, K),
                                 .x_ref = zeros(T, K),
                                 .head = zeros(6, K),
                                 .logit_scale = 1,
                                 .dx = fp32_zeros(T, K),
                                 .kl = host_doubles(T)};
}

static void kl_back_refuses_models_of_different_shapes(void **state) {
    (void)state;
    ACCEPTED(kl_back);
    REFUSED(kl_back, RC_INVALID, "kl_back: x: no data", a.x.data = NULL);
    REFUSED(kl_back, RC_INVALID, "kl_back: x_ref: [2, 8] where [3, 8]", a.x_ref.rows = 2);
    REFUSED(kl_back, RC_INVALID, "kl_back: x_ref: no data", a.x_ref.data = NULL);
    REFUSED(kl_back, RC_INVALID, "kl_back: head: [6, 7] where [6, 8]", a.head.cols = 7);
    REFUSED(kl_back, RC_INVALID, "kl_back: head_ref: [5, 8] where [6, 8]", a.head_ref = zeros(5, K));
    REFUSED(kl_back, RC_INVALID, "vocabulary is empty", a.head.rows = 0);
    REFUSED(kl_back, RC_INVALID, "kl_back: dx: [2, 8]", a.dx.rows = 2);
    REFUSED(kl_back, RC_UNSUPPORTED, "in fp32", a.dx.type = DTYPE_BF16);
    REFUSED(kl_back, RC_INVALID, "kl_back: kl", a.kl = NULL);
}

static struct scale_back_args scale_back_arguments(void) {
    return (struct scale_back_args){
        .x = zeros(T, K), .g = zeros(T, N), .w_hat = zeros(N, K), .group = 3, .slope = device_floats(N * 3)};
}

static void scale_back_refuses_shapes_and_groups_that_do_not_fit(void **state) {
    (void)state;
    ACCEPTED(scale_back);
    REFUSED(scale_back, RC_INVALID, "scale_back: x: no data", a.x.data = NULL);
    REFUSED(scale_back, RC_INVALID, "scale_back: g: [3, 3] where [3, 4]", a.g.cols = 3);
    REFUSED(scale_back, RC_INVALID, "scale_back: g: [2, 4] where [3, 4]", a.g.rows = 2);
    REFUSED(scale_back, RC_INVALID, "scale_back: w_hat: [4, 7] where [4, 8]", a.w_hat.cols = 7);
    REFUSED(scale_back, RC_INVALID, "8 columns have no groups of 0", a.group = 0);
    REFUSED(scale_back, RC_INVALID, "8 columns have no groups of 9", a.group = 9);
    REFUSED(scale_back, RC_INVALID, "scale_back: slope", a.slope = NULL);
}

static struct adam_args adam_arguments(void) {
    return (struct adam_args){.count = K,
                              .rate = 1e-3f,
                              .beta1 = 0.9f,
                              .beta2 = 0.99f,
                              .epsilon = 1e-8f,
                              .step = 1,
                              .base = device_floats(K),
                              .slope = device_floats(K),
                              .mean = device_floats(K),
                              .square = device_floats(K),
                              .theta = device_floats(K),
                              .scale = device_floats(K)};
}

static void adam_refuses_rates_that_lead_nowhere(void **state) {
    (void)state;
    ACCEPTED(adam);
    REFUSED(adam, RC_INVALID, "steps count from 1", a.step = 0);
    REFUSED(adam, RC_INVALID, "-1 values", a.count = -1);
    REFUSED(adam, RC_INVALID, "a rate of -1", a.rate = -1);
    REFUSED(adam, RC_INVALID, "a rate of nan", a.rate = NAN);
    REFUSED(adam, RC_INVALID, "betas of 1 and", a.beta1 = 1);
    REFUSED(adam, RC_INVALID, "and 1 and epsilon", a.beta2 = 1);
    REFUSED(adam, RC_INVALID, "epsilon 0", a.epsilon = 0);
    REFUSED(adam, RC_INVALID, "epsilon inf", a.epsilon = INFINITY);
    REFUSED(adam, RC_INVALID, "adam: base", a.base = NULL);
    REFUSED(adam, RC_INVALID, "adam: slope", a.slope = NULL);
    REFUSED(adam, RC_INVALID, "adam: mean", a.mean = NULL);
    REFUSED(adam, RC_INVALID, "adam: square", a.square = NULL);
    REFUSED(adam, RC_INVALID, "adam: theta", a.theta = NULL);
    REFUSED(adam, RC_INVALID, "adam: scale", a.scale = NULL);
}

/* What Linears read and write has one type; the cpu knows no other. */
static void matrices_of_another_type_are_refused(void **state) {
    (void)state;
    REFUSED(gemm_back, RC_UNSUPPORTED, "of type", a.dy.type = DTYPE_F16);
    REFUSED(gemm_back, RC_UNSUPPORTED, "of type", a.dx.type = DTYPE_F16);
    REFUSED(rmsnorm_back, RC_UNSUPPORTED, "of type", a.dx.type = DTYPE_F16);
    REFUSED(attention_back, RC_UNSUPPORTED, "of type", a.dk.type = DTYPE_F16);
    REFUSED(silu_mul_back, RC_UNSUPPORTED, "of type", a.dup.type = DTYPE_F16);
    REFUSED(score_back, RC_UNSUPPORTED, "of type", a.x.type = DTYPE_F16);
    REFUSED(sample_labels, RC_UNSUPPORTED, "of type", a.x.type = DTYPE_F16);
    REFUSED(fisher, RC_UNSUPPORTED, "of type", a.g.type = DTYPE_F16);
    REFUSED(fisher, RC_UNSUPPORTED, "of type", a.d.type = DTYPE_F16);
    REFUSED(row_norms, RC_UNSUPPORTED, "of type", a.g.type = DTYPE_F16);
    REFUSED(kl_back, RC_UNSUPPORTED, "of type", a.x.type = DTYPE_F16);
    REFUSED(kl_back, RC_UNSUPPORTED, "of type", a.x_ref.type = DTYPE_F16);
    REFUSED(scale_back, RC_UNSUPPORTED, "of type", a.x.type = DTYPE_F16);
    REFUSED(scale_back, RC_UNSUPPORTED, "of type", a.g.type = DTYPE_F16);
    REFUSED(scale_back, RC_UNSUPPORTED, "of type", a.w_hat.type = DTYPE_F16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_back_refuses_shapes_that_do_not_multiply),
        cmocka_unit_test(rmsnorm_back_refuses_different_shapes),
        cmocka_unit_test(attention_back_refuses_heads_that_do_not_fit),
        cmocka_unit_test(silu_mul_back_refuses_different_shapes),
        cmocka_unit_test(sample_labels_refuses_what_no_cumulative_sum_exceeds),
        cmocka_unit_test(score_back_refuses_labels_and_shapes_that_do_not_fit),
        cmocka_unit_test(fisher_refuses_shapes_that_do_not_fit),
        cmocka_unit_test(row_norms_needs_somewhere_to_put_them),
        cmocka_unit_test(kl_back_refuses_models_of_different_shapes),
        cmocka_unit_test(scale_back_refuses_shapes_and_groups_that_do_not_fit),
        cmocka_unit_test(adam_refuses_rates_that_lead_nowhere),
        cmocka_unit_test(matrices_of_another_type_are_refused),
    };
    return RUN_ON_BACKENDS("refusals, backwards", tests);
}
