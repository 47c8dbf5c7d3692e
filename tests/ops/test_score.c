/* NLL, KL and top-1 agreement against float64, over vocabularies that end inside and at the edges of a chunk. */
#include <math.h>

#include "tests/ops/harness.h"
#include "tests/ops/reference.h"

struct score_case {
    int64_t tokens, vocab, hidden;
    double spread; /* deviation of the logits */
    double noise;  /* of the quantized state, relative */
    bool bias, head_q;
    float logit_scale;
};

static const struct score_case cases[] = {
    {1, 1, 4, 1, 0.1, false, false, 1},       {3, 5, 8, 1, 0.1, true, false, 1},
    {7, 512, 33, 3, 0.01, false, true, 1},    {5, 513, 64, 3, 0.05, true, true, 0.25f},
    {260, 1300, 16, 4, 0.1, false, false, 2}, {4, 3000, 24, 60, 0.3, false, true, 1},
};

struct buffers {
    double *nll, *nll_q, *kl;
    uint8_t *agree;
};

static struct buffers buffers(int64_t tokens) {
    return (struct buffers){host_doubles(tokens), host_doubles(tokens), host_doubles(tokens),
                            host_bytes((size_t)tokens)};
}

static double *logits(const struct score_case *c, const float *x, const float *head, const float *bias) {
    double *out = host_doubles(c->tokens * c->vocab);
    for (int64_t t = 0; t < c->tokens; t++)
        for (int64_t v = 0; v < c->vocab; v++) {
            double sum = 0;
            for (int64_t k = 0; k < c->hidden; k++)
                sum += (double)x[t * c->hidden + k] * head[v * c->hidden + k];
            out[t * c->vocab + v] = sum * c->logit_scale + (c->bias ? bias[v] : 0);
        }
    return out;
}

struct inputs {
    float *x, *x_q, *head, *head_q, *bias;
    int32_t *labels;
};

static struct inputs inputs(const struct score_case *c) {
    int64_t count = c->tokens * c->hidden;
    struct inputs in = {.x = host_normal(count, 1), .x_q = host_zeros(count)};
    in.head = host_normal(c->vocab * c->hidden, c->spread / sqrt((double)c->hidden));
    in.head_q = host_zeros(c->vocab * c->hidden);
    in.bias = host_normal(c->vocab, 1);
    in.labels = host_bytes((size_t)c->tokens * sizeof(int32_t));
    for (int64_t i = 0; i < count; i++)
        in.x_q[i] = in.x[i] + (float)(c->noise * normal());
    for (int64_t i = 0; i < c->vocab * c->hidden; i++)
        in.head_q[i] = in.head[i] * (float)(1 + c->noise * normal());
    for (int64_t t = 0; t < c->tokens; t++)
        in.labels[t] = (int32_t)(t == 0 ? c->vocab - 1 : below(c->vocab));
    return in;
}

static struct score_args arguments(const struct score_case *c, const struct inputs *in, const struct buffers *b) {
    return (struct score_args){
        .x = put_activation(in->x, c->tokens, c->hidden, 2),
        .x_q = put_activation(in->x_q, c->tokens, c->hidden, 0),
        .head = put_activation(in->head, c->vocab, c->hidden, 1),
        .head_q = c->head_q ? put_activation(in->head_q, c->vocab, c->hidden, 0) : (struct mat){0},
        .bias = c->bias ? put(in->bias, c->vocab) : NULL,
        .logit_scale = c->logit_scale,
        .labels = in->labels,
        .nll = b->nll,
        .nll_q = b->nll_q,
        .kl = b->kl,
        .top1_agree = b->agree,
    };
}

/* fp32 logits of magnitude m carry an error of some 1e-7·m each. */
static void score_case(const struct score_case *c) {
    struct inputs in = inputs(c);
    struct buffers got = buffers(c->tokens);
    struct score_args a = arguments(c, &in, &got);
    assert_ok(dev.b->score(dev.s, &a, &err));
    double *ref = logits(c, in.x, in.head, in.bias);
    double *quant = logits(c, in.x_q, c->head_q ? in.head_q : in.head, in.bias);
    double tolerance = 2e-6 * (1 + c->spread * c->logit_scale), mean = 0, mean_error = 0;
    int64_t agreed = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        const double *l = ref + t * c->vocab, *l_q = quant + t * c->vocab;
        double nll = ref_log_sum_exp(l, c->vocab) - l[in.labels[t]];
        assert_near(got.nll[t], nll, tolerance);
        assert_near(got.nll_q[t], ref_log_sum_exp(l_q, c->vocab) - l_q[in.labels[t]], tolerance);
        assert_near(got.kl[t], ref_kl(l, l_q, c->vocab), tolerance);
        assert_int_equal(got.agree[t], ref_arg_max(l, c->vocab) == ref_arg_max(l_q, c->vocab));
        agreed += got.agree[t];
        mean += nll;
        mean_error += got.nll[t] - nll;
    }
    assert_true(fabs(mean_error) <= 1e-6 * mean + 1e-12);
    if (c->tokens > 100) assert_true(agreed > 0 && agreed < c->tokens);
}

static void score_matches_float64(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        seed(10 + i);
        score_case(&cases[i]);
    }
}

static void a_model_does_not_diverge_from_itself(void **state) {
    (void)state;
    const struct score_case c = {40, 1100, 32, 5, 0, true, false, 1};
    seed(20);
    struct inputs in = inputs(&c);
    struct buffers got = buffers(c.tokens);
    struct score_args a = arguments(&c, &in, &got);
    assert_ok(dev.b->score(dev.s, &a, &err));
    for (int64_t t = 0; t < c.tokens; t++) {
        assert_true(got.kl[t] == 0);
        assert_true(got.nll[t] == got.nll_q[t]);
        assert_int_equal(got.agree[t], 1);
    }
}

static void a_reference_alone_writes_only_its_nll(void **state) {
    (void)state;
    const struct score_case c = {9, 600, 16, 3, 0.1, false, true, 1};
    seed(21);
    struct inputs in = inputs(&c);
    struct buffers both = buffers(c.tokens), alone = buffers(c.tokens);
    struct score_args a = arguments(&c, &in, &both);
    assert_ok(dev.b->score(dev.s, &a, &err));
    a.x_q = (struct mat){0};
    a.nll = alone.nll;
    a.nll_q = a.kl = NULL;
    a.top1_agree = NULL;
    assert_ok(dev.b->score(dev.s, &a, &err));
    for (int64_t t = 0; t < c.tokens; t++)
        assert_true(alone.nll[t] == both.nll[t]);
}

/* Any number of models beside one reference, other rows between them, over several tiles and chunks: each has the bits
 * that it has alone. */
static void models_together_have_the_bits_of_each_alone(void **state) {
    (void)state;
    enum { MODELS = 3, GAP = 5 };
    static const struct score_case table[] = {{9, 600, 16, 3, 0.1, true, true, 1},
                                              {270, 9000, 24, 3, 0.1, false, false, 0.5f}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const struct score_case *c = &table[i];
        int64_t apart = c->tokens + GAP, count = (MODELS * apart) * c->hidden;
        seed(22 + i);
        struct inputs in = inputs(c);
        struct buffers got = buffers(MODELS * c->tokens), alone = buffers(c->tokens);
        struct score_args a = arguments(c, &in, &got);
        struct mat all = put_activation(host_normal(count, 1), MODELS * apart, c->hidden, 2);
        a.x_q = mat_rows(all, 0, c->tokens);
        a.more = MODELS - 1;
        a.apart = apart;
        assert_ok(dev.b->score(dev.s, &a, &err));
        for (int64_t q = 0; q < MODELS; q++) {
            struct score_args one = arguments(c, &in, &alone);
            int64_t at = q * c->tokens;
            size_t bytes = (size_t)c->tokens * sizeof *got.kl;
            one.head_q = a.head_q;
            one.x_q = mat_rows(all, q * apart, c->tokens);
            assert_ok(dev.b->score(dev.s, &one, &err));
            assert_memory_equal(got.nll, alone.nll, bytes);
            assert_memory_equal(got.nll_q + at, alone.nll_q, bytes);
            assert_memory_equal(got.kl + at, alone.kl, bytes);
            assert_memory_equal(got.agree + at, alone.agree, (size_t)c->tokens);
        }
        assert_true(got.kl[0] != got.kl[c->tokens] && got.kl[0] > 0);
    }
}

/* Equal logits: the first of them counts, in one chunk as across chunks. */
static void ties_go_to_the_first_token(void **state) {
    (void)state;
    enum { V = 1200 };
    float one = 1, *head = host_zeros(V), *head_q = host_zeros(V);
    static const struct {
        int first, second, quant;
        bool agree;
    } ties[] = {
        {3, 7, 3, true}, {3, 7, 7, false}, {100, 1000, 100, true}, {100, 1000, 1000, false}, {10, 600, 522, false}};
    for (size_t i = 0; i < sizeof ties / sizeof *ties; i++) {
        for (int v = 0; v < V; v++)
            head[v] = head_q[v] = -1;
        head[ties[i].first] = head[ties[i].second] = head_q[ties[i].quant] = 2;
        int32_t label = 0;
        struct buffers got = buffers(1);
        struct score_args a = {.x = put_activation(&one, 1, 1, 0),
                               .x_q = put_activation(&one, 1, 1, 0),
                               .head = put_activation(head, V, 1, 0),
                               .head_q = put_activation(head_q, V, 1, 0),
                               .logit_scale = 1,
                               .labels = &label,
                               .nll = got.nll,
                               .nll_q = got.nll_q,
                               .kl = got.kl,
                               .top1_agree = got.agree};
        assert_ok(dev.b->score(dev.s, &a, &err));
        assert_int_equal(got.agree[0], ties[i].agree);
    }
}

static void huge_logits_stay_finite(void **state) {
    (void)state;
    enum { V = 700 };
    float one = 1, *head = host_zeros(V), *head_q = host_zeros(V);
    for (int v = 0; v < V; v++) {
        head[v] = v % 2 ? -1e30f : 1e30f;
        head_q[v] = v % 3 ? -1e5f : 1e5f;
    }
    int32_t label = 0;
    struct buffers got = buffers(1);
    struct score_args a = {.x = put_activation(&one, 1, 1, 0),
                           .x_q = put_activation(&one, 1, 1, 0),
                           .head = put_activation(head, V, 1, 0),
                           .head_q = put_activation(head_q, V, 1, 0),
                           .logit_scale = 1,
                           .labels = &label,
                           .nll = got.nll,
                           .nll_q = got.nll_q,
                           .kl = got.kl,
                           .top1_agree = got.agree};
    assert_ok(dev.b->score(dev.s, &a, &err));
    assert_true(isfinite(got.nll[0]) && isfinite(got.nll_q[0]) && isfinite(got.kl[0]));
    assert_near(got.nll_q[0], log(234), 1e-6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(score_matches_float64),
        cmocka_unit_test(a_model_does_not_diverge_from_itself),
        cmocka_unit_test(a_reference_alone_writes_only_its_nll),
        cmocka_unit_test(models_together_have_the_bits_of_each_alone),
        cmocka_unit_test(ties_go_to_the_first_token),
        cmocka_unit_test(huge_logits_stay_finite),
    };
    return RUN_ON_BACKENDS("score", tests);
}
