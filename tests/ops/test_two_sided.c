/* Two-sided GPTQ against float64 (reference_gptq.h). */
#include <math.h>
#include <string.h>

#include "tests/ops/calibration.h"
#include "tests/ops/harness.h"
#include "tests/ops/reference_gptq.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

/* A code may differ from the reference's where that one's weight lies so close to a tie, in steps of the grid: fp32's
 * rounding of U and of corrections along rows and columns, which the step of a fine grid magnifies. */
static double near_tie(int bits) {
    return 3e-6 * (1 << bits);
}

static const enum column_order orders[] = {ORDER_GROUP_AWARE, ORDER_NATURAL, ORDER_ACTIVATION, ORDER_STATIC_GROUPS};

static const struct {
    bool symmetric;
    enum zero_type zero;
} kinds[] = {{false, ZERO_FLOAT}, {false, ZERO_INTEGER}, {true, ZERO_FLOAT}};

/* A Gram matrix and its factor by the backend and by the reference. */
struct side {
    double *h, *u;
    int32_t *steps;
    struct factor factor;
    double damp;
};

static struct side side(double *h, int64_t size, enum column_order order, int group, double damp) {
    struct side s = {h, host_doubles(size * size), host_bytes((size_t)size * sizeof(int32_t)), device_factor(size), 0};
    struct factor_args a = {put_gram(h, size), order, group, damp, &s.factor};
    assert_ok(dev.b->factor(dev.s, &a, &err));
    s.damp = s.factor.damp;
    ref_order(h, size, group, order, s.steps);
    assert_true(ref_factor(h, size, s.steps, s.damp, s.u));
    return s;
}

static struct side rows_side(double *g, int64_t size) {
    return side(g, size, ORDER_ACTIVATION, 0, 0.5);
}

static void release(struct side *s) {
    factor_release(dev.b, dev.s, &s->factor);
}

struct outcome {
    int64_t groups;
    uint8_t *codes;
    float *scale, *zero;
    int32_t *group_of;
    struct quantize_report report;
};

static struct outcome get_outcome(const struct quantized *q, const struct quantize_report *report) {
    struct outcome o = {.groups = q->groups, .report = *report};
    o.codes = get_bytes(q->codes, q->rows * q->cols);
    o.scale = get_floats(q->scale, q->rows * q->groups);
    o.zero = get_floats(q->zero, q->rows * q->groups);
    if (q->group_of != NULL) o.group_of = (int32_t *)(void *)get_floats((const float *)(void *)q->group_of, q->cols);
    return o;
}

/* Two-sided where there are rows. */
static struct outcome quantize(const float *w, int64_t rows, const struct candidate *c, const struct side *by,
                               const struct side *down) {
    int64_t cols = by->factor.cols;
    struct quantize_report report;
    struct quantized q = device_quantized(rows, cols, c);
    struct quantize_args a = {.w = put_matrix(w, rows, cols, 3), .candidate = *c, .factor = &by->factor};
    a.rows = down ? &down->factor : NULL;
    a.out = &q;
    a.report = &report;
    memset(&report, 0xff, sizeof report);
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    return get_outcome(&q, &report);
}

/* Parameters may differ where one lies near the middle of two half-precision numbers. */
static void check_outcome(const struct outcome *o, const float *w, const struct candidate *c, const struct side *by,
                          const struct side *down) {
    int64_t rows = down->factor.cols, cols = by->factor.cols, size = c->group > 0 ? c->group : cols;
    struct ref_rows all = {.count = rows, .groups = o->groups, .u = down->u, .steps = down->steps};
    all.first = (struct ref_row){.w = w, .cols = cols, .candidate = c, .h = by->h, .u = by->u, .steps = by->steps};
    all.first.codes = o->codes;
    all.first.scale = o->scale;
    all.first.zero = o->zero;
    all.first.stride = 1;
    struct ref_verdict verdict = {0};
    ref_check_rows(&all, &verdict);
    for (int64_t k = 0; o->group_of != NULL && k < cols; k++)
        assert_int_equal(o->group_of[by->steps[k]], k / size);
    if (verdict.farthest <= near_tie(c->bits) && verdict.parameters <= 1 + rows * o->groups / 50) return;
    char id[CANDIDATE_ID_SIZE];
    fail_msg("%s on [%lld, %lld]: %lld codes differ, one of them %g from a tie; %lld of %lld groups do",
             candidate_id(c, id), (long long)rows, (long long)cols, (long long)verdict.codes, verdict.farthest,
             (long long)verdict.parameters, (long long)(rows * o->groups));
}

static void check_one(const float *w, const struct candidate *c, const struct side *by, const struct side *down) {
    struct outcome o = quantize(w, down->factor.cols, c, by, down);
    check_outcome(&o, w, c, by, down);
}

/* Every width and kind of zero. */
static void check_candidates(struct candidate c, const struct side *by, const struct side *down) {
    static const int bit_widths[] = {2, 3, 4, 8};
    float *w = host_bf16(down->factor.cols * by->factor.cols, 0.5);
    FOR_EACH(b, bit_widths) FOR_EACH(k, kinds) {
        c.bits = bit_widths[b];
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        check_one(w, &c, by, down);
    }
}

static void codes_are_the_references(void **state) {
    (void)state;
    static const int groups[] = {16, 100, 0};
    enum { N = 41, K = 150 };
    seed(270);
    double *h = correlated(3 * K, K);
    struct side down = rows_side(correlated(2 * N, N), N);
    FOR_EACH(o, orders) FOR_EACH(g, groups) {
        struct side by = side(h, K, orders[o], groups[g], 0.01);
        struct candidate c = {.method = METHOD_GPTQ, .group = groups[g], .order = orders[o]};
        check_candidates(c, &by, &down);
        release(&by);
    }
    release(&down);
}

/* Single rows and columns, tiles that are cut either way, several of them, groups across their ends. */
static void codes_are_the_references_on_odd_shapes(void **state) {
    (void)state;
    static const struct {
        int64_t rows, cols;
        int group;
    } cases[] = {{1, 1, 0},     {1, 129, 16},   {150, 1, 0},    {17, 270, 130},
                 {130, 97, 32}, {64, 128, 128}, {65, 260, 100}, {150, 140, 0}};
    FOR_EACH(i, cases) {
        seed(271 + i);
        int64_t rows = cases[i].rows, cols = cases[i].cols;
        double *h = correlated(2 * cols, cols);
        struct side down = rows_side(correlated(2 * rows, rows), rows);
        float *w = host_bf16(rows * cols, 0.02);
        FOR_EACH(o, orders) {
            struct side by = side(h, cols, orders[o], cases[i].group, 0.05);
            struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = cases[i].group, .order = orders[o]};
            c.zero = ZERO_INTEGER;
            check_one(w, &c, &by, &down);
            release(&by);
        }
        release(&down);
    }
}

/* Fewer tokens than channels on either side, whatever order the rows come in. */
static void codes_are_the_references_on_singular_grams(void **state) {
    (void)state;
    enum { N = 70, K = 96 };
    FOR_EACH(o, orders) {
        seed(280);
        struct side by = side(correlated(30, K), K, ORDER_GROUP_AWARE, 32, 0.01);
        struct side down = side(correlated(20, N), N, orders[o], 16, 0.05);
        check_candidates((struct candidate){.method = METHOD_GPTQ, .group = 32}, &by, &down);
        release(&by);
        release(&down);
    }
}

static struct outcome by_itself(const float *w, const struct candidate *c, struct side *by, int64_t rows) {
    return quantize(w, rows, c, by, NULL);
}

/* A dead column's weights count as 0; a dead row takes nothing of others and leaves them nothing. */
static void dead_channels_have_no_say(void **state) {
    (void)state;
    enum { N = 33, K = 96 };
    FOR_EACH(o, orders) {
        seed(281);
        double *h = correlated(2 * K, K), *g = correlated(2 * N, N);
        kill_channel(h, K, 0);
        for (int k = 33; k < 64; k++)
            kill_channel(h, K, k);
        kill_channel(g, N, 0);
        kill_channel(g, N, 20);
        struct side by = side(h, K, orders[o], 32, 0.01), down = rows_side(g, N);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 32, .order = orders[o]};
        check_candidates(c, &by, &down);
        if (orders[o] == ORDER_STATIC_GROUPS) { /* fitted before, one-sided too */
            float *w = host_bf16(N * K, 0.5);
            struct outcome two = quantize(w, N, &c, &by, &down), one = by_itself(w, &c, &by, N);
            assert_memory_equal(two.codes, one.codes, K);
            assert_memory_equal(two.codes + 20 * K, one.codes + 20 * K, K);
            assert_memory_not_equal(two.codes, one.codes, N * K);
        }
        release(&by);
        release(&down);
    }
}

/* Where no outputs hang together two-sided GPTQ is the one-sided with groups that are fitted before, also with ranges
 * that are searched for and whatever a row's gradients. */
static void rows_that_do_not_hang_together_are_rounded_alone(void **state) {
    (void)state;
    static const enum range_choice ranges[] = {RANGE_FULL, RANGE_MSE, RANGE_WEIGHTED};
    enum { N = 70, K = 200 };
    seed(282);
    double *g = host_doubles(N * N);
    for (int n = 0; n < N; n++)
        g[n * N + n] = n % 7 == 3 ? 0 : exp(2 * normal());
    struct side by = side(correlated(2 * K, K), K, ORDER_STATIC_GROUPS, 64, 0.01), down = rows_side(g, N);
    float *w = host_bf16(N * K, 0.02);
    for (int i = 0; i < 64; i++)
        w[5 * K + 64 + i] = w[(N - 1) * K + i] = 0.25f; /* two groups that are constant */
    FOR_EACH(r, ranges) {
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = ORDER_STATIC_GROUPS};
        c.range = ranges[r];
        struct outcome two = quantize(w, N, &c, &by, &down), one = by_itself(w, &c, &by, N);
        assert_memory_equal(two.scale, one.scale, (size_t)(N * one.groups) * sizeof(float));
        assert_memory_equal(two.zero, one.zero, (size_t)(N * one.groups) * sizeof(float));
        assert_memory_equal(two.codes, one.codes, N * K);
        assert_int_equal(one.report.constant_groups, 2);
        assert_int_equal(two.report.constant_groups, 2);
    }
    release(&by);
    release(&down);
}

/* Ranges go by what columns cannot make up for, found where the column lies: the order of fitting changes none. */
static void weighted_ranges_are_those_of_static_groups(void **state) {
    (void)state;
    enum { N = 20, K = 160 };
    seed(283);
    double *h = host_doubles(K * K);
    for (int k = 0; k < K; k++)
        h[k * K + k] = k % 8 == 5 ? 0 : exp(2 * normal()); /* U's diagonal is the same in all orders */
    float *w = host_bf16(N * K, 0.02);
    struct side down = rows_side(correlated(2 * N, N), N);
    struct outcome first = {0};
    static const enum column_order as_they_lie[] = {ORDER_STATIC_GROUPS, ORDER_GROUP_AWARE, ORDER_NATURAL};
    FOR_EACH(o, as_they_lie) {
        struct side by = side(h, K, as_they_lie[o], 64, 0.01);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = as_they_lie[o]};
        c.range = RANGE_WEIGHTED;
        struct outcome outcome = quantize(w, N, &c, &by, &down);
        if (o == 0) first = outcome;
        assert_memory_equal(outcome.scale, first.scale, (size_t)(N * first.groups) * sizeof(float));
        assert_memory_equal(outcome.codes, first.codes, N * K);
        release(&by);
    }
    release(&down);
}

/* tr(G′·E·H′·Eᵀ), dead channels apart. */
static double objective(const float *w, const struct outcome *o, const struct side *by, const struct side *down) {
    int64_t rows = down->factor.cols, cols = by->factor.cols, size = cols / o->groups;
    double *h = host_doubles(cols * cols), *g = host_doubles(rows * rows), *e = host_doubles(rows * cols), sum = 0;
    double *eh = host_doubles(rows * cols);
    ref_damped(by->h, cols, by->damp, h);
    ref_damped(down->h, rows, down->damp, g);
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t k = i % cols, at = i / cols * o->groups + (o->group_of ? o->group_of[k] : k / size);
        e[i] = (o->codes[i] - o->zero[at]) * o->scale[at] - w[i];
    }
    for (int64_t i = 0; i < rows * cols; i++)
        for (int64_t k = 0; k < cols; k++)
            eh[i] += e[i / cols * cols + k] * h[k * cols + i % cols];
    for (int64_t n = 0; n < rows; n++)
        for (int64_t m = 0; m < rows; m++)
            for (int64_t k = 0; k < cols; k++)
                sum += g[n * rows + m] * eh[m * cols + k] * e[n * cols + k];
    return sum;
}

/* What it is for. */
static void the_objective_is_below_that_of_one_side(void **state) {
    (void)state;
    enum { N = 96, K = 128 };
    seed(284);
    double *h = correlated(3 * K, K);
    struct side down = rows_side(correlated(3 * N, N), N);
    float *w = host_bf16(N * K, 0.02);
    FOR_EACH(o, orders) {
        struct side by = side(h, K, orders[o], 32, 0.01);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 32, .order = orders[o]};
        struct outcome two = quantize(w, N, &c, &by, &down), one = by_itself(w, &c, &by, N);
        double share = objective(w, &two, &by, &down) / objective(w, &one, &by, &down);
        if (!(share < 0.85)) fail_msg("order %d: %g of the one-sided error", (int)orders[o], share);
        release(&by);
    }
    release(&down);
}

/* Gradients are counted over any number of tokens, in whatever unit. */
static void codes_do_not_depend_on_the_unit_of_g(void **state) {
    (void)state;
    enum { N = 70, K = 140 };
    static const double units[] = {1, 0x1p-60, 0x1p40};
    uint8_t *codes[3];
    FOR_EACH(u, units) {
        seed(285);
        struct side by = side(correlated(2 * K, K), K, ORDER_GROUP_AWARE, 16, 0.01);
        double *g = correlated(2 * N, N);
        for (int i = 0; i < N * N; i++)
            g[i] *= units[u];
        struct side down = rows_side(g, N);
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 16};
        codes[u] = quantize(host_bf16(N * K, 0.02), N, &c, &by, &down).codes;
        release(&by);
        release(&down);
    }
    assert_memory_equal(codes[0], codes[1], N * K);
    assert_memory_equal(codes[0], codes[2], N * K);
}

/* Corrections that leave fp32's range: what is stored is numbers and codes of the grid. */
static void extreme_weights_stay_finite(void **state) {
    (void)state;
    enum { N = 40, K = 96 };
    static const double magnitudes[] = {1e-44, 1e-38, 1e-9, 1e9, 1e30, 3e38};
    seed(286);
    struct side by = side(correlated(2 * K, K), K, ORDER_GROUP_AWARE, 32, 0.0001);
    struct side down = rows_side(correlated(2 * N, N), N);
    FOR_EACH(m, magnitudes) FOR_EACH(k, kinds) {
        float *w = host_zeros(N * K);
        for (int i = 0; i < N * K; i++)
            w[i] = (float)(magnitudes[m] * (2 * uniform() - 1));
        struct candidate c = {.method = METHOD_GPTQ, .bits = 3, .group = 32};
        c.symmetric = kinds[k].symmetric;
        c.zero = kinds[k].zero;
        struct outcome o = quantize(w, N, &c, &by, &down);
        for (int64_t i = 0; i < N * o.groups; i++)
            assert_true(o.scale[i] > 0 && isfinite(o.scale[i]) && isfinite(o.zero[i]));
        for (int i = 0; i < N * K; i++)
            assert_true(o.codes[i] < 8);
    }
    release(&by);
    release(&down);
}

enum { TOGETHER = 11 };

/* What goes in one call: `by` which of the factors, and whether also by that of the rows. */
static const struct {
    struct candidate c;
    int by;
    bool two_sided;
} mixed[TOGETHER] = {
    {{.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = ORDER_STATIC_GROUPS}, 0, true},
    {{.method = METHOD_GPTQ, .bits = 2, .order = ORDER_STATIC_GROUPS, .zero = ZERO_INTEGER}, 0, true},
    {{.method = METHOD_GPTQ, .bits = 8, .group = 16, .order = ORDER_STATIC_GROUPS, .symmetric = true}, 0, true},
    {{.method = METHOD_RTN, .bits = 4, .group = 32}, 0, false},
    {{.method = METHOD_GPTQ, .bits = 4, .group = 100, .order = ORDER_NATURAL}, 1, true},
    {{.method = METHOD_GPTQ, .bits = 3, .group = 64, .order = ORDER_STATIC_GROUPS}, 0, false},
    {{.method = METHOD_GPTQ, .bits = 3, .group = 32, .order = ORDER_NATURAL}, 1, false},
    {{.method = METHOD_HQQ, .bits = 3, .group = 64}, 0, false},
    {{.method = METHOD_GPTQ, .bits = 5, .group = 64, .order = ORDER_STATIC_GROUPS, .range = RANGE_WEIGHTED}, 0, true},
    {{.method = METHOD_GPTQ, .bits = 3, .group = 32, .order = ORDER_ACTIVATION}, 2, true},
    {{.method = METHOD_GPTQ, .bits = 4, .group = 64, .order = ORDER_STATIC_GROUPS, .range = RANGE_MSE}, 0, true},
};

/* A Linear, or more than one, and what its candidates go by. */
struct several {
    const float *w[2]; /* [N, K] */
    int64_t rows[2], cols;
    struct side by[3], down[2];
    struct quantize_args args[TOGETHER];
    struct quantized q[TOGETHER];
    struct quantize_report report[TOGETHER];
};

static void make_several(struct several *s, int linears) {
    enum { K = 200 };
    static const enum column_order their_orders[] = {ORDER_STATIC_GROUPS, ORDER_NATURAL, ORDER_ACTIVATION};
    static const int64_t rows[] = {150, 70};
    double *h = correlated(2 * K, K);
    s->cols = K;
    FOR_EACH(o, their_orders) s->by[o] = side(h, K, their_orders[o], 32, 0.01);
    for (int l = 0; l < 2; l++) {
        s->rows[l] = rows[l];
        s->w[l] = host_bf16(rows[l] * K, 0.02);
        s->down[l] = rows_side(correlated(2 * rows[l], rows[l]), rows[l]);
    }
    for (int i = 0; i < TOGETHER; i++) {
        int l = i % linears;
        struct quantize_args *a = &s->args[i];
        *a = (struct quantize_args){.w = put_matrix(s->w[l], s->rows[l], K, 3), .candidate = mixed[i].c};
        s->q[i] = device_quantized(s->rows[l], K, &mixed[i].c);
        if (mixed[i].c.method == METHOD_GPTQ) a->factor = &s->by[mixed[i].by].factor;
        if (mixed[i].two_sided) a->rows = &s->down[l].factor;
        a->out = &s->q[i];
        a->report = &s->report[i];
        memset(a->report, 0xff, sizeof *a->report);
    }
}

static void release_several(struct several *s) {
    for (int i = 0; i < 3; i++)
        release(&s->by[i]);
    for (int l = 0; l < 2; l++)
        release(&s->down[l]);
}

/* One after the other, or side by side: of one Linear, and of two that take turns. */
static void several_at_once_are_as_each_alone(void **state) {
    (void)state;
    for (int linears = 1; linears <= 2; linears++) {
        struct several s, alone;
        seed(288);
        make_several(&s, linears);
        assert_ok(dev.b->quantize(dev.s, s.args, TOGETHER, &err));
        seed(288);
        make_several(&alone, linears);
        for (int i = 0; i < TOGETHER; i++) {
            assert_ok(dev.b->quantize(dev.s, &alone.args[i], 1, &err));
            struct outcome got = get_outcome(&s.q[i], &s.report[i]);
            struct outcome want = get_outcome(&alone.q[i], &alone.report[i]);
            size_t weights = (size_t)(s.q[i].rows * s.cols), parameters = (size_t)(s.q[i].rows * want.groups);
            assert_memory_equal(got.codes, want.codes, weights);
            assert_memory_equal(got.scale, want.scale, parameters * sizeof(float));
            assert_memory_equal(got.zero, want.zero, parameters * sizeof(float));
            assert_int_equal(got.report.constant_groups, want.report.constant_groups);
            assert_int_equal(got.report.rtn_groups, want.report.rtn_groups);
            if (want.group_of) assert_memory_equal(got.group_of, want.group_of, (size_t)s.cols * sizeof(int32_t));
        }
        release_several(&s);
        release_several(&alone);
    }
}

/* Wherever the one lies that is refused. */
static void one_of_several_is_refused(void **state) {
    (void)state;
    struct several s;
    seed(289);
    make_several(&s, 1);
    float *w = host_bf16(s.rows[0] * s.cols, 0.02);
    w[s.cols + 5] = NAN;
    struct mat good = s.args[0].w, bad = put_matrix(w, s.rows[0], s.cols, 3);
    static const int places[] = {0, 1, 3, TOGETHER - 1};
    FOR_EACH(p, places) {
        int i = places[p];
        s.args[i].w = bad;
        assert_refused(dev.b->quantize(dev.s, s.args, TOGETHER, &err), RC_INVALID, "row 1, column 5 is NaN");
        s.args[i].w = good;
        s.args[i].out = &s.q[(i + 1) % TOGETHER]; /* none has its neighbour's form */
        assert_refused(dev.b->quantize(dev.s, s.args, TOGETHER, &err), RC_INVALID, "another candidate");
        s.args[i].out = &s.q[i];
    }
    assert_ok(dev.b->quantize(dev.s, s.args, TOGETHER, &err));
    release_several(&s);
}

static void what_does_not_fit_together_is_refused(void **state) {
    (void)state;
    enum { N = 6, K = 64 };
    seed(287);
    double *h = correlated(2 * K, K);
    struct side by = side(h, K, ORDER_GROUP_AWARE, 16, 0.01), down = rows_side(correlated(2 * N, N), N);
    struct candidate c = {.method = METHOD_GPTQ, .bits = 4, .group = 16};
    struct quantized q = device_quantized(N, K, &c);
    struct quantize_report report;
    float *w = host_bf16(N * K, 0.02);
    struct quantize_args good = {put_matrix(w, N, K, 0), c, put_gram(h, K), &by.factor, &down.factor, &q, &report},
                         a = good;
    assert_ok(dev.b->quantize(dev.s, &a, 1, &err));
    a.rows = &by.factor;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "factor of the rows is of 64 channels where 6");
    struct factor other = down.factor;
    a.rows = &other;
    other.upper = NULL;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "factor of the rows has no buffers");
    other = down.factor;
    other.order = host_bytes(N * sizeof *other.order); /* 0 everywhere */
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "order of the rows");
    other.order[0] = N;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "order of the rows");
    a = good;
    a.candidate.descend = 1;
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_UNSUPPORTED, "by H alone");
    a.candidate = (struct candidate){.method = METHOD_RTN, .bits = 4, .group = 16};
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "only gptq goes by a factor of the rows");
    a = good;
    other = by.factor;
    other.order = host_bytes(K * sizeof *other.order);
    for (int k = 0; k < K; k++)
        other.order[k] = (k * 5) % K;
    a.factor = &other; /* its groups are scattered, which a group-aware order's are not */
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "another order or group");
    w[K + 5] = NAN;
    a = good;
    a.w = put_matrix(w, N, K, 0);
    assert_refused(dev.b->quantize(dev.s, &a, 1, &err), RC_INVALID, "row 1, column 5 is NaN");
    release(&by);
    release(&down);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_the_references),
        cmocka_unit_test(codes_are_the_references_on_odd_shapes),
        cmocka_unit_test(codes_are_the_references_on_singular_grams),
        cmocka_unit_test(dead_channels_have_no_say),
        cmocka_unit_test(rows_that_do_not_hang_together_are_rounded_alone),
        cmocka_unit_test(weighted_ranges_are_those_of_static_groups),
        cmocka_unit_test(the_objective_is_below_that_of_one_side),
        cmocka_unit_test(codes_do_not_depend_on_the_unit_of_g),
        cmocka_unit_test(extreme_weights_stay_finite),
        cmocka_unit_test(several_at_once_are_as_each_alone),
        cmocka_unit_test(one_of_several_is_refused),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
    };
    return RUN_ON_BACKENDS("two_sided", tests);
}
