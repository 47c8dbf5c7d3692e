/* Labels drawn from the softmax and the losses' gradients by the final hidden state, over vocabularies that end inside
 * and at the edges of a chunk, against float64. */
#include <math.h>

#include "tests/ops/harness.h"
#include "tests/ops/reference_back.h"

struct head_case {
    int64_t tokens, vocab, hidden;
    double spread; /* deviation of the logits */
    bool bias;
    float logit_scale;
};

static const struct head_case cases[] = {
    {1, 1, 4, 1, false, 1},        {3, 5, 8, 1, true, 1},        {7, 512, 33, 3, false, 1},
    {5, 513, 64, 3, true, 0.25f},  {260, 1300, 16, 4, false, 2}, {4, 3000, 24, 60, false, 1},
    {3, 16500, 16, 2, true, 1.5f},
};
static const int case_count = sizeof cases / sizeof *cases;

struct inputs {
    float *x, *head, *bias;
    struct mat device_x, device_head;
    const float *device_bias;
};

static struct inputs inputs(const struct head_case *c) {
    struct inputs in = {.x = host_normal(c->tokens * c->hidden, 1),
                        .head = host_normal(c->vocab * c->hidden, c->spread / sqrt((double)c->hidden)),
                        .bias = c->bias ? host_normal(c->vocab, 1) : NULL};
    in.device_x = put_activation(in.x, c->tokens, c->hidden, 2);
    in.device_head = put_activation(in.head, c->vocab, c->hidden, 8);
    in.device_bias = c->bias ? put(in.bias, c->vocab) : NULL;
    return in;
}

static struct ref_head position(const struct head_case *c, const struct inputs *in, int64_t t) {
    return (struct ref_head){in->x + t * c->hidden, in->head, in->bias, c->hidden, c->vocab, c->logit_scale};
}

/* The cumulative probability before each token, and 1 after the last: [V + 1]. */
static double *cumulative(const struct ref_head *h) {
    double *p = host_doubles(h->vocab + 1), *logits = host_doubles(h->vocab);
    ref_logits(h, logits);
    double total = ref_log_sum_exp(logits, h->vocab);
    for (int64_t v = 0; v < h->vocab; v++)
        p[v + 1] = p[v] + exp(logits[v] - total);
    return p;
}

static struct sample_labels_args sampling(const struct head_case *c, const struct inputs *in, const double *u) {
    return (struct sample_labels_args){.x = in->device_x,
                                       .head = in->device_head,
                                       .bias = in->device_bias,
                                       .logit_scale = c->logit_scale,
                                       .u = u,
                                       .labels = host_bytes((size_t)c->tokens * sizeof(int32_t))};
}

/* u lies in the label's own part of [0, 1), but for what fp32 logits move its borders by. */
static void labels_are_where_u_lies(void **state) {
    (void)state;
    for (int i = 0; i < case_count; i++) {
        const struct head_case *c = &cases[i];
        seed(20 + (uint64_t)i);
        struct inputs in = inputs(c);
        double *u = host_doubles(c->tokens), tolerance = 4e-6 * (1 + c->spread * c->logit_scale);
        for (int64_t t = 0; t < c->tokens; t++)
            u[t] = t == 0 ? 0 : t == 1 ? 1 - 0x1p-53 : uniform();
        struct sample_labels_args a = sampling(c, &in, u);
        assert_ok(dev.b->sample_labels(dev.s, &a, &err));
        for (int64_t t = 0; t < c->tokens; t++) {
            struct ref_head h = position(c, &in, t);
            const double *p = cumulative(&h);
            int32_t label = a.labels[t];
            assert_in_range(label, 0, c->vocab - 1);
            assert_true(u[t] >= p[label] - tolerance && u[t] <= p[label + 1] + tolerance);
        }
    }
}

/* Tokens without probability are never drawn, at neither end; where u falls on a border, the token behind it is. */
static void labels_have_probability(void **state) {
    (void)state;
    enum { V = 20000, T = 6 };
    float one[T] = {1, 1, 1, 1, 1, 1}, *head = host_zeros(V);
    for (int v = 0; v < V; v++)
        head[v] = -1e4f;
    head[5] = head[700] = head[9000] = head[19000] = 0; /* a quarter each */
    double u[T] = {0, 0.25, 0.5, 0.75, 0.2499, 1 - 0x1p-53};
    static const int32_t want[T] = {5, 700, 9000, 19000, 5, 19000};
    int32_t labels[T];
    struct sample_labels_args a = {.x = put_activation(one, T, 1, 7),
                                   .head = put_activation(head, V, 1, 7),
                                   .logit_scale = 1,
                                   .u = u,
                                   .labels = labels};
    assert_ok(dev.b->sample_labels(dev.s, &a, &err));
    for (int t = 0; t < T; t++)
        assert_int_equal(labels[t], want[t]);
}

/* u next to 1, and a sum that was rescaled on the way, so that the second one does not quite get there: still a token
 * that has probability. */
static void labels_next_to_one_have_probability(void **state) {
    (void)state;
    enum { V = 1500, LIVE = 700, T = 64 };
    seed(29);
    float *x = host_zeros(T), *head = host_normal(V, 1);
    double *u = host_doubles(T);
    int32_t labels[T];
    for (int v = LIVE; v < V; v++)
        head[v] = -1e4f;
    head[LIVE - 1] = 5; /* beyond the first chunk of some backends */
    for (int t = 0; t < T; t++) {
        x[t] = 1 + (float)t / T;
        u[t] = 1 - 0x1p-53;
    }
    struct sample_labels_args a = {.x = put_activation(x, T, 1, 7),
                                   .head = put_activation(head, V, 1, 7),
                                   .logit_scale = 1,
                                   .u = u,
                                   .labels = labels};
    assert_ok(dev.b->sample_labels(dev.s, &a, &err));
    for (int t = 0; t < T; t++)
        assert_in_range(labels[t], 0, LIVE - 1);
}

/* As often as their probability says: 4 standard deviations over 20 bins. */
static void labels_follow_the_softmax(void **state) {
    (void)state;
    enum { T = 4000, V = 20, D = 8 };
    const struct head_case c = {T, V, D, 1.5, false, 1};
    seed(30);
    struct inputs in = inputs(&c);
    for (int i = D; i < T * D; i++)
        in.x[i] = in.x[i % D]; /* one position, many times */
    in.device_x = put_activation(in.x, T, D, 0);
    double *u = host_doubles(T), count[V] = {0};
    for (int t = 0; t < T; t++)
        u[t] = uniform();
    struct sample_labels_args a = sampling(&c, &in, u);
    assert_ok(dev.b->sample_labels(dev.s, &a, &err));
    for (int t = 0; t < T; t++)
        count[a.labels[t]]++;
    struct ref_head h = position(&c, &in, 0);
    const double *p = cumulative(&h);
    for (int v = 0; v < V; v++) {
        double share = p[v + 1] - p[v];
        assert_near(count[v], T * share, 4 * sqrt(T * share) + 1);
    }
}

/* Relative to the sum of magnitudes, besides what fp32 logits are off by; on the tensor cores softmax − onehot is
 * rounded to bf16. */
static void score_case(const struct head_case *c, bool weighted) {
    struct inputs in = inputs(c);
    int64_t T = c->tokens, D = c->hidden;
    int32_t *labels = host_bytes((size_t)T * sizeof *labels);
    float *weight = host_zeros(T);
    for (int64_t t = 0; t < T; t++) {
        labels[t] = (int32_t)(t == 0 ? c->vocab - 1 : below(c->vocab));
        weight[t] = t % 3 == 1 ? 0 : (float)(1 + uniform());
    }
    struct score_back_args a = {.x = in.device_x,
                                .head = in.device_head,
                                .bias = in.device_bias,
                                .logit_scale = c->logit_scale,
                                .labels = labels,
                                .weight = weighted ? weight : NULL,
                                .dx = put_matrix(host_normal(T * D, 1), T, D, 3), /* written over */
                                .nll = host_doubles(T)};
    assert_ok(dev.b->score_back(dev.s, &a, &err));
    double *want = host_doubles(T * D), *scale = host_doubles(T * D), *logits = host_doubles(c->vocab);
    double tolerance = 2e-6 * (1 + c->spread * c->logit_scale);
    for (int64_t t = 0; t < T; t++) {
        struct ref_head h = position(c, &in, t);
        ref_logits(&h, logits);
        assert_near(a.nll[t], ref_log_sum_exp(logits, c->vocab) - logits[labels[t]], tolerance);
        ref_score_back(&h, labels[t], weighted ? weight[t] : 1, want + t * D, scale + t * D);
    }
    assert_matrix(a.dx, want, scale, tolerance + (dev.b->activation == DTYPE_BF16 ? 0x1p-8 : 0));
}

static void score_back_is_the_gradient_of_the_nll(void **state) {
    (void)state;
    for (int i = 0; i < case_count; i++)
        for (int weighted = 0; weighted < 2; weighted++) {
            seed(40 + (uint64_t)i);
            score_case(&cases[i], weighted);
        }
}

/* What is not scored moves nothing: exactly 0, whatever the logits are. */
static void positions_without_weight_have_no_gradient(void **state) {
    (void)state;
    const struct head_case c = {4, 700, 16, 50, false, 1};
    seed(50);
    struct inputs in = inputs(&c);
    static const int32_t labels[4] = {1, 699, 3, 4};
    static const float weight[4] = {0, 1, 0, 0};
    struct score_back_args a = {.x = in.device_x,
                                .head = in.device_head,
                                .logit_scale = 1,
                                .labels = labels,
                                .weight = weight,
                                .dx = put_matrix(host_normal(4 * 16, 1), 4, 16, 0),
                                .nll = host_doubles(4)};
    assert_ok(dev.b->score_back(dev.s, &a, &err));
    const float *dx = get_matrix(a.dx);
    for (int i = 0; i < 4 * 16; i++)
        assert_true((dx[i] != 0) == (i / 16 == 1));
}

/* One pass with the loss and one without say the same of it. */
static void score_back_and_score_agree(void **state) {
    (void)state;
    const struct head_case c = {9, 1100, 32, 3, true, 0.5f};
    seed(51);
    struct inputs in = inputs(&c);
    int32_t labels[9];
    double alone[9], with[9];
    for (int t = 0; t < 9; t++)
        labels[t] = (int32_t)below(c.vocab);
    struct score_args s = {.x = in.device_x,
                           .head = in.device_head,
                           .bias = in.device_bias,
                           .logit_scale = 0.5f,
                           .labels = labels,
                           .nll = alone};
    struct score_back_args a = {.x = in.device_x,
                                .head = in.device_head,
                                .bias = in.device_bias,
                                .logit_scale = 0.5f,
                                .labels = labels,
                                .dx = put_matrix(host_zeros(9 * 32), 9, 32, 0),
                                .nll = with};
    assert_ok(dev.b->score(dev.s, &s, &err));
    assert_ok(dev.b->score_back(dev.s, &a, &err));
    for (int t = 0; t < 9; t++)
        assert_near(with[t], alone[t], 1e-12);
}

struct reference {
    float *x, *head;
    struct mat device_x, device_head;
};

/* What `in` was before it moved by a share of its own size. */
static struct reference reference(const struct head_case *c, const struct inputs *in, double share) {
    int64_t states = c->tokens * c->hidden, weights = c->vocab * c->hidden;
    struct reference r = {.x = host_zeros(states), .head = host_zeros(weights)};
    for (int64_t i = 0; i < states; i++)
        r.x[i] = in->x[i] + (float)(share * normal());
    for (int64_t i = 0; i < weights; i++)
        r.head[i] = in->head[i] * (float)(1 + share * normal());
    r.device_x = put_activation(r.x, c->tokens, c->hidden, 1);
    r.device_head = put_activation(r.head, c->vocab, c->hidden, 0);
    return r;
}

static struct kl_back_args divergence(const struct head_case *c, const struct inputs *in, const struct reference *r) {
    return (struct kl_back_args){.x = in->device_x,
                                 .x_ref = r->device_x,
                                 .head = in->device_head,
                                 .head_ref = r->device_head,
                                 .bias = in->device_bias,
                                 .logit_scale = c->logit_scale,
                                 .dx = put_matrix(host_normal(c->tokens * c->hidden, 1), c->tokens, c->hidden, 3),
                                 .kl = host_doubles(c->tokens)};
}

/* `own_head`: the reference has one too; else both use the model's. Some positions have weights. */
static void kl_case(const struct head_case *c, double share, bool own_head, bool weighted) {
    struct inputs in = inputs(c);
    struct reference r = reference(c, &in, share);
    struct kl_back_args a = divergence(c, &in, &r);
    int64_t T = c->tokens, D = c->hidden;
    float *weight = host_zeros(T);
    for (int64_t t = 0; t < T; t++)
        weight[t] = t % 3 == 1 ? 0 : (float)(1 + uniform());
    if (weighted) a.weight = weight;
    if (!own_head) a.head_ref = (struct mat){0};
    assert_ok(dev.b->kl_back(dev.s, &a, &err));
    double *want = host_doubles(T * D), *scale = host_doubles(T * D);
    double *logits = host_doubles(c->vocab), *logits_ref = host_doubles(c->vocab);
    double tolerance = 2e-6 * (1 + c->spread * c->logit_scale), further = 1 + share * share; /* logits_ref spread */
    for (int64_t t = 0; t < T; t++) {
        struct ref_head own = position(c, &in, t), ref = own;
        ref.x = r.x + t * D;
        if (own_head) ref.head = r.head;
        ref_logits(&own, logits);
        ref_logits(&ref, logits_ref);
        double kl = ref_kl(logits_ref, logits, c->vocab);
        assert_near(a.kl[t], kl, tolerance * (1 + kl)); /* far away, what P_ref is off by counts as often */
        ref_kl_back(&own, &ref, weighted ? weight[t] : 1, want + t * D, scale + t * D);
    }
    assert_matrix(a.dx, want, scale, further * tolerance + (dev.b->activation == DTYPE_BF16 ? 0x1p-8 : 0));
}

/* Near the reference, and far from it: where all that one finds likely the other does not. */
static void kl_back_is_the_gradient_of_the_divergence(void **state) {
    (void)state;
    for (int i = 0; i < case_count; i++)
        for (int variant = 0; variant < 4; variant++) {
            seed(60 + (uint64_t)i);
            kl_case(&cases[i], variant == 3 ? 2 : 0.1, variant % 2, variant / 2);
        }
}

/* Where one token has nearly all of both, P − P_ref keeps digits that the difference of two softmaxes in fp32 has lost.
 * The logits are held exactly by fp32 and differ by multiples of 2^-12. */
static void a_small_divergence_keeps_its_digits(void **state) {
    (void)state;
    enum { V = 9000, D = 2, LIKELY = 8500 };
    seed(70);
    float x[D] = {1, 0x1p-12f}, *head = host_zeros(V * D), *head_ref = host_zeros(V * D);
    for (int v = 0; v < V; v++) {
        head[D * v] = head_ref[D * v] = v == LIKELY ? 16 : (float)below(64) / 8 - 4;
        head[D * v + 1] = v == LIKELY ? 3 : (float)below(7) - 3;
    }
    struct mat device_x = put_activation(x, 1, D, 6);
    struct kl_back_args a = {.x = device_x,
                             .x_ref = device_x,
                             .head = put_activation(head, V, D, 6),
                             .head_ref = put_activation(head_ref, V, D, 6),
                             .logit_scale = 1,
                             .dx = put_matrix(host_zeros(D), 1, D, 0),
                             .kl = host_doubles(1)};
    assert_ok(dev.b->kl_back(dev.s, &a, &err));
    struct ref_head own = {x, head, NULL, D, V, 1}, ref = {x, head_ref, NULL, D, V, 1};
    double *logits = host_doubles(V), *logits_ref = host_doubles(V), want[D], scale[D], tolerance[D];
    ref_logits(&own, logits);
    ref_logits(&ref, logits_ref);
    ref_kl_back(&own, &ref, 1, want, scale);
    double total = ref_log_sum_exp(logits, V), total_ref = ref_log_sum_exp(logits_ref, V);
    for (int i = 0; i < D; i++)
        tolerance[i] = 1e-9 * scale[i]; /* what the sums in fp32 leave */
    for (int v = 0; v < V; v++)
        for (int i = 0; i < D; i++) {
            double moved = (exp(logits[v] - total) - exp(logits_ref[v] - total_ref)) * (double)head[D * v + i];
            tolerance[i] += fabs(moved) * (dev.b->activation == DTYPE_BF16 ? 0x1p-8 : 1e-6);
        }
    assert_matrix(a.dx, want, tolerance, 1);
    assert_near(a.kl[0], ref_kl(logits_ref, logits, V), 1e-9);
}

/* Nothing is lost and nothing moves: exactly 0. */
static void a_model_that_is_the_reference_has_no_gradient(void **state) {
    (void)state;
    const struct head_case c = {7, 1100, 24, 8, true, 1};
    seed(71);
    struct inputs in = inputs(&c);
    struct reference same = {in.x, in.head, in.device_x, in.device_head};
    struct kl_back_args a = divergence(&c, &in, &same);
    assert_ok(dev.b->kl_back(dev.s, &a, &err));
    const float *dx = get_matrix(a.dx);
    for (int64_t i = 0; i < c.tokens * c.hidden; i++)
        assert_true(dx[i] == 0);
    for (int64_t t = 0; t < c.tokens; t++)
        assert_true(a.kl[t] == 0);
}

/* Whatever the logits are, a position that does not count moves nothing, and none is NaN. */
static void positions_that_do_not_count_have_no_gradient(void **state) {
    (void)state;
    const struct head_case c = {4, 700, 16, 5000, false, 1};
    static const float weight[4] = {0, 1, 0, 0};
    seed(72);
    struct inputs in = inputs(&c);
    struct reference r = reference(&c, &in, 2);
    struct kl_back_args a = divergence(&c, &in, &r);
    a.weight = weight;
    assert_ok(dev.b->kl_back(dev.s, &a, &err));
    const float *dx = get_matrix(a.dx);
    for (int i = 0; i < 4 * 16; i++)
        assert_true(isfinite(dx[i]) && (dx[i] != 0) == (i / 16 == 1));
    for (int t = 0; t < 4; t++)
        assert_true(isfinite(a.kl[t]) && a.kl[t] > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(labels_are_where_u_lies),
        cmocka_unit_test(labels_have_probability),
        cmocka_unit_test(labels_next_to_one_have_probability),
        cmocka_unit_test(labels_follow_the_softmax),
        cmocka_unit_test(score_back_is_the_gradient_of_the_nll),
        cmocka_unit_test(positions_without_weight_have_no_gradient),
        cmocka_unit_test(score_back_and_score_agree),
        cmocka_unit_test(kl_back_is_the_gradient_of_the_divergence),
        cmocka_unit_test(a_small_divergence_keeps_its_digits),
        cmocka_unit_test(a_model_that_is_the_reference_has_no_gradient),
        cmocka_unit_test(positions_that_do_not_count_have_no_gradient),
    };
    return RUN_ON_BACKENDS("the head backwards", tests);
}
