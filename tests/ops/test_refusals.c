/* Every operation refuses arguments that do not fit together, by name, before it touches memory. */
#include <limits.h>
#include <math.h>

#include "tests/ops/refusals.h"

static struct embed_args embed_arguments(void) {
    static const int32_t ids[T] = {0, 5, 2};
    return (struct embed_args){host_zeros(6 * K), DTYPE_F32, 6, NULL, ids, 1, fp32_zeros(T, K)};
}

static void embed_refuses_ids_outside_the_vocabulary(void **state) {
    (void)state;
    static const int32_t negative[T] = {0, 1, -1}, beyond[T] = {0, 6, 1};
    ACCEPTED(embed);
    REFUSED(embed, RC_INVALID, "token id -1 at position 2", a.ids = negative);
    REFUSED(embed, RC_INVALID, "token id 6 at position 1, but the vocabulary has 6", a.ids = beyond);
    REFUSED(embed, RC_INVALID, "embed: no data", a.ids = NULL);
    REFUSED(embed, RC_INVALID, "embed: table", a.table = NULL);
    REFUSED(embed, RC_INVALID, "embed: out", a.out.data = NULL);
    REFUSED(embed, RC_UNSUPPORTED, "F32, F16 or BF16", a.type = DTYPE_U8);
}

static struct rmsnorm_args rmsnorm_arguments(void) {
    return (struct rmsnorm_args){zeros(T, K), put(host_zeros(K), K), 1e-5f, zeros(T, K)};
}

/* What is no matrix at all is the same for every operation: tried on this one. */
static void rmsnorm_refuses_what_is_no_matrix(void **state) {
    (void)state;
    ACCEPTED(rmsnorm);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: x: [-1, 8]", a.x.rows = -1);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: x: [3, -1]", a.x.cols = -1);
    REFUSED(rmsnorm, RC_INVALID, "with stride 7", a.x.stride = 7);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: x", a.x.rows = (int64_t)INT_MAX + 1);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: x", a.x.stride = (int64_t)INT_MAX + 1);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: x: no data", a.x.data = NULL);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: out: [2, 8] where [3, 8]", a.out.rows = 2);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: out: [3, 7] where [3, 8]", a.out.cols = 7);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: out: no data", a.out.data = NULL);
    REFUSED(rmsnorm, RC_INVALID, "rmsnorm: weight", a.weight = NULL);
}

static struct gemm_args gemm_arguments(void) {
    return (struct gemm_args){.x = zeros(T, K), .w = zeros(N, K), .alpha = 1, .out = zeros(T, N)};
}

static void gemm_refuses_shapes_that_do_not_multiply(void **state) {
    (void)state;
    ACCEPTED(gemm);
    REFUSED(gemm, RC_INVALID, "gemm: w: [4, 7] where [4, 8]", a.w.cols = 7);
    REFUSED(gemm, RC_INVALID, "gemm: w: [3, 8] where [4, 8]", a.w.rows = 3);
    REFUSED(gemm, RC_INVALID, "gemm: out: [2, 4] where [3, 4]", a.out.rows = 2);
    REFUSED(gemm, RC_INVALID, "gemm: x: no data", a.x.data = NULL);
}

static struct rope_args rope_arguments(void) {
    const float *angles = put(host_zeros(T * 2), T * 2);
    return (struct rope_args){zeros(T, K), T, 2, 4, 4, angles, angles};
}

static void rope_refuses_heads_that_do_not_fit(void **state) {
    (void)state;
    ACCEPTED(rope);
    REFUSED(rope, RC_INVALID, "0 heads", a.heads = 0);
    REFUSED(rope, RC_INVALID, "rope: x: [3, 8] where [3, 12]", a.heads = 3);
    REFUSED(rope, RC_INVALID, "of 0 channels", a.head_dim = 0);
    REFUSED(rope, RC_INVALID, "cannot rotate 3", a.rotary = 3);
    REFUSED(rope, RC_INVALID, "cannot rotate 6", a.rotary = 6);
    REFUSED(rope, RC_INVALID, "cannot rotate -2", a.rotary = -2);
    REFUSED(rope, RC_INVALID, "rope: cos", a.cos = NULL);
    REFUSED(rope, RC_INVALID, "rope: sin", a.sin = NULL);
}

static struct attention_args attention_arguments(void) {
    return (struct attention_args){zeros(T, 8), zeros(T, 4), zeros(T, 4), T, 4, 2, 2, 0, 1, zeros(T, 8)};
}

static void attention_refuses_heads_that_do_not_fit(void **state) {
    (void)state;
    ACCEPTED(attention);
    REFUSED(attention, RC_INVALID, "3 key heads", a.kv_heads = 3);
    REFUSED(attention, RC_INVALID, "0 key heads", a.kv_heads = 0);
    REFUSED(attention, RC_INVALID, "0 query heads", a.heads = 0);
    REFUSED(attention, RC_INVALID, "0 channels", a.head_dim = 0);
    REFUSED(attention, RC_INVALID, "window -1", a.window = -1);
    REFUSED(attention, RC_INVALID, "attention: q: [3, 8] where [3, 16]", a.heads = 8);
    REFUSED(attention, RC_INVALID, "attention: k", a.k.rows = 2);
    REFUSED(attention, RC_INVALID, "attention: v", a.v.cols = 3);
    REFUSED(attention, RC_INVALID, "attention: out", a.out.cols = 4);
}

static struct silu_mul_args silu_mul_arguments(void) {
    return (struct silu_mul_args){zeros(T, K), zeros(T, K), zeros(T, K)};
}

static void silu_mul_refuses_different_shapes(void **state) {
    (void)state;
    ACCEPTED(silu_mul);
    REFUSED(silu_mul, RC_INVALID, "silu_mul: gate", a.gate.data = NULL);
    REFUSED(silu_mul, RC_INVALID, "silu_mul: up", a.up.cols = 7);
    REFUSED(silu_mul, RC_INVALID, "silu_mul: out", a.out.rows = 2);
}

static struct score_args score_arguments(void) {
    static const int32_t labels[T] = {0, 5, 2};
    double *results = host_doubles(3 * T);
    return (struct score_args){.x = zeros(T, K),
                               .x_q = zeros(T, K),
                               .head = zeros(6, K),
                               .head_q = zeros(6, K),
                               .logit_scale = 1,
                               .labels = labels,
                               .nll = results,
                               .nll_q = results + T,
                               .kl = results + 2 * T,
                               .top1_agree = host_bytes(T)};
}

static void score_refuses_labels_and_shapes_that_do_not_fit(void **state) {
    (void)state;
    static const int32_t beyond[T] = {0, 6, 1};
    ACCEPTED(score);
    REFUSED(score, RC_INVALID, "score: labels: token id 6 at position 1", a.labels = beyond);
    REFUSED(score, RC_INVALID, "score: head: [6, 7] where [6, 8]", a.head.cols = 7);
    REFUSED(score, RC_INVALID, "score: head_q", a.head_q.rows = 5);
    REFUSED(score, RC_INVALID, "score: x_q", a.x_q.rows = 2);
    REFUSED(score, RC_INVALID, "more models", a.more = -1);
    REFUSED(score, RC_INVALID, "more models", a.more = 1);
    REFUSED(score, RC_INVALID, "score: x", a.x.data = NULL);
    REFUSED(score, RC_INVALID, "score: nll:", a.nll = NULL);
    REFUSED(score, RC_INVALID, "score: nll_q", a.nll_q = NULL);
    REFUSED(score, RC_INVALID, "score: kl", a.kl = NULL);
    REFUSED(score, RC_INVALID, "score: top1_agree", a.top1_agree = NULL);
}

static struct gram_args gram_arguments(void) {
    return (struct gram_args){.x = zeros(T, K), .h = device_gram(K)};
}

static void gram_refuses_an_h_of_another_size(void **state) {
    (void)state;
    ACCEPTED(gram);
    REFUSED(gram, RC_INVALID, "h is [7, 8] but x has 8", a.h.rows = 7);
    REFUSED(gram, RC_INVALID, "h is [8, 9] but x has 8", a.h.cols = 9);
    REFUSED(gram, RC_INVALID, "gram: h: no data", a.h.data = NULL);
    REFUSED(gram, RC_INVALID, "gram: h: [8, 8] with stride 7", a.h.stride = 7);
    REFUSED(gram, RC_INVALID, "gram: x: no data", a.x.data = NULL);
}

static struct factor_args factor_arguments(void) {
    float *identity = host_zeros(2 * K * K);
    double *wide = (double *)(void *)identity;
    for (int k = 0; k < K; k++)
        if (dev.b->gram_type == DTYPE_F64)
            wide[k * K + k] = 1;
        else
            identity[k * K + k] = 1;
    static int32_t order[K];
    static uint8_t dead[K];
    static struct factor out;
    out = (struct factor){K, put(host_zeros(K * K), K * K), order, dead, 0, 0};
    return (struct factor_args){{put(identity, 2 * K * K), K, K, K, dev.b->gram_type}, ORDER_NATURAL, 0, 0.01, &out};
}

static void factor_refuses_what_does_not_fit_together(void **state) {
    (void)state;
    ACCEPTED(factor);
    REFUSED(factor, RC_INVALID, "factor: h: [7, 8] where [8, 8]", a.h.rows = 7);
    REFUSED(factor, RC_INVALID, "factor: h: no data", a.h.data = NULL);
    REFUSED(factor, RC_INVALID, "0 channels", a.h.rows = a.h.cols = 0);
    REFUSED(factor, RC_INVALID, "groups of -1", a.group = -1);
    REFUSED(factor, RC_INVALID, "damping 0", a.damp = 0);
    REFUSED(factor, RC_INVALID, "damping nan", a.damp = NAN);
    REFUSED(factor, RC_INVALID, "damping 1.5", a.damp = 1.5);
    REFUSED(factor, RC_INVALID, "of 7 channels where 8", a.out->cols = 7);
    REFUSED(factor, RC_INVALID, "no buffers", a.out->upper = NULL);
    REFUSED(factor, RC_INVALID, "no buffers", a.out->order = NULL);
    REFUSED(factor, RC_INVALID, "no buffers", a.out->dead = NULL);
    REFUSED(factor, RC_UNSUPPORTED, "of type", a.h.type = DTYPE_BF16);
}

static const struct candidate four_bits = {.method = METHOD_RTN, .bits = 4, .group = 4};

static struct quantized *quantized(void) {
    struct quantized *q = host_bytes(sizeof *q);
    *q = device_quantized(N, K, &four_bits);
    return q;
}

static struct quantize_args quantize_arguments(void) {
    return (struct quantize_args){.w = fp32_zeros(N, K),
                                  .candidate = four_bits,
                                  .out = quantized(),
                                  .report = host_bytes(sizeof(struct quantize_report))};
}

#define QUANTIZE_REFUSED(rc, part, change) REFUSED_CALL(dev.b->quantize(dev.s, &a, 1, &err), quantize, rc, part, change)

static void quantize_refuses_buffers_of_another_candidate(void **state) {
    (void)state;
    struct quantize_args good = quantize_arguments();
    assert_ok(dev.b->quantize(dev.s, &good, 1, &err));
    QUANTIZE_REFUSED(RC_INVALID, "another candidate", a.candidate.bits = 3);
    QUANTIZE_REFUSED(RC_INVALID, "another candidate", a.candidate.group = 8);
    QUANTIZE_REFUSED(RC_INVALID, "quantize: w: [4, 7] where [4, 8]", a.w.cols = 7);
    QUANTIZE_REFUSED(RC_INVALID, "nowhere to report", a.report = NULL);
    QUANTIZE_REFUSED(RC_INVALID, "no buffers", a.out->codes = NULL);
    QUANTIZE_REFUSED(RC_INVALID, "3 groups of 4", a.out->groups = 3);
}

static void candidates_that_nobody_can_make_are_refused(void **state) {
    (void)state;
    QUANTIZE_REFUSED(RC_UNSUPPORTED, "9 bits", a.candidate.bits = 9);
    QUANTIZE_REFUSED(RC_UNSUPPORTED, "1 bits", a.candidate.bits = 1);
    QUANTIZE_REFUSED(RC_INVALID, "group -1", a.candidate.group = -1);
    QUANTIZE_REFUSED(RC_INVALID, "nothing to quantize", a.candidate.method = METHOD_NONE);
    QUANTIZE_REFUSED(RC_UNSUPPORTED, "use rtn", a.candidate.method = METHOD_HQQ; a.candidate.symmetric = true);
}

static struct dequantize_args dequantize_arguments(void) {
    return (struct dequantize_args){.q = quantized(), .out = fp32_zeros(N, K)};
}

static void dequantize_refuses_another_shape(void **state) {
    (void)state;
    struct quantized none = {0};
    ACCEPTED(dequantize);
    REFUSED(dequantize, RC_INVALID, "dequantize: out: [3, 8] where [4, 8]", a.out.rows = 3);
    REFUSED(dequantize, RC_INVALID, "no quantized Linear", a.q = &none);
}

static struct error_args error_arguments(void) {
    return (struct error_args){.w = fp32_zeros(N, K), .w_hat = fp32_zeros(N, K), .h = device_gram(K)};
}

static void error_refuses_shapes_that_do_not_fit(void **state) {
    (void)state;
    static const struct {
        int64_t w_hat_cols, h_rows, h_cols, h_stride;
        const char *part;
    } cases[] = {{7, 8, 8, 8, "error: w_hat: [4, 7] where [4, 8]"},
                 {8, 7, 8, 8, "h is [7, 8] but w has 8"},
                 {8, 8, 9, 9, "h is [8, 9] but w has 8"},
                 {8, 8, 8, 7, "error: h: [8, 8] with stride 7"}};
    struct error_report report;
    struct error_args a = error_arguments();
    assert_ok(dev.b->error(dev.s, &a, &report, &err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        a = error_arguments();
        a.w_hat.cols = cases[i].w_hat_cols;
        a.h.rows = cases[i].h_rows;
        a.h.cols = cases[i].h_cols;
        a.h.stride = cases[i].h_stride;
        assert_refused(dev.b->error(dev.s, &a, &report, &err), RC_INVALID, cases[i].part);
    }
    a = error_arguments();
    a.difference = zeros(N, K - 1);
    assert_refused(dev.b->error(dev.s, &a, &report, &err), RC_INVALID, "error: difference: [4, 7] where [4, 8]");
    a.difference = zeros(N, K);
    a.difference.type = DTYPE_F16;
    assert_refused(dev.b->error(dev.s, &a, &report, &err), RC_UNSUPPORTED, "of type");
}

static struct kfac_args kfac_arguments(void) {
    return (struct kfac_args){fp32_zeros(N, K), fp32_zeros(N, K), device_gram(K), device_gram(N)};
}

static void kfac_refused(struct kfac_args a, enum rc rc, const char *part) {
    struct kfac_report report;
    assert_refused(dev.b->kfac(dev.s, &a, &report, &err), rc, part);
}

static void kfac_refuses_factors_of_another_size(void **state) {
    (void)state;
    struct kfac_report report;
    struct kfac_args good = kfac_arguments(), a = good;
    assert_ok(dev.b->kfac(dev.s, &good, &report, &err));
    a.w_hat.cols = 7;
    kfac_refused(a, RC_INVALID, "kfac: w_hat: [4, 7] where [4, 8]");
    a = good;
    a.h = device_gram(N);
    kfac_refused(a, RC_INVALID, "kfac: h: [4, 4] where [8, 8]");
    a = good;
    a.g = device_gram(K);
    kfac_refused(a, RC_INVALID, "kfac: g: [8, 8] where [4, 4]");
    a.g = (struct mat){0};
    kfac_refused(a, RC_INVALID, "kfac: g");
    a = good;
    a.g.type = DTYPE_F16;
    kfac_refused(a, RC_UNSUPPORTED, "of type");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embed_refuses_ids_outside_the_vocabulary),
        cmocka_unit_test(rmsnorm_refuses_what_is_no_matrix),
        cmocka_unit_test(gemm_refuses_shapes_that_do_not_multiply),
        cmocka_unit_test(rope_refuses_heads_that_do_not_fit),
        cmocka_unit_test(attention_refuses_heads_that_do_not_fit),
        cmocka_unit_test(silu_mul_refuses_different_shapes),
        cmocka_unit_test(score_refuses_labels_and_shapes_that_do_not_fit),
        cmocka_unit_test(gram_refuses_an_h_of_another_size),
        cmocka_unit_test(factor_refuses_what_does_not_fit_together),
        cmocka_unit_test(quantize_refuses_buffers_of_another_candidate),
        cmocka_unit_test(candidates_that_nobody_can_make_are_refused),
        cmocka_unit_test(dequantize_refuses_another_shape),
        cmocka_unit_test(error_refuses_shapes_that_do_not_fit),
        cmocka_unit_test(kfac_refuses_factors_of_another_size),
    };
    return RUN_ON_BACKENDS("refusals", tests);
}
