/* AWQ's small operations: scaling rows and columns, and a column's share of its groups. */
#include <math.h>
#include <string.h>

#include "kernels/formats.h"
#include "tests/ops/harness.h"

#define FOR_EACH(i, table) for (size_t i = 0; (i) < sizeof(table) / sizeof *(table); (i)++)

static const struct { int64_t rows, cols; } sizes[] = {{1, 1}, {3, 17}, {33, 100}, {130, 257}, {9, 1040}};

/* A matrix of any float type on the device, with `pad` more columns; `host` gets the values it holds. */
static struct mat put_as(float *host, int64_t rows, int64_t cols, int64_t pad, enum dtype type) {
    if (type == DTYPE_F32) return put_matrix(host, rows, cols, pad);
    int64_t stride = cols + pad;
    uint16_t *halves = host_bytes((size_t)(rows * stride) * sizeof *halves);
    for (int64_t i = 0; i < rows * cols; i++) {
        uint16_t half = type == DTYPE_BF16 ? f32_to_bf16(host[i]) : f32_to_f16(host[i]);
        halves[i / cols * stride + i % cols] = half;
        host[i] = type == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
    return (struct mat){put_stored(halves, type, rows * stride), rows, cols, stride, type};
}

static double factor(const float *factors, int64_t i) {
    return factors != NULL ? factors[i] : 1;
}

static void rows_and_columns_are_scaled(void **state) {
    (void)state;
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    FOR_EACH(s, sizes) FOR_EACH(t, types) for (int which = 0; which < 8; which++) {
        int64_t rows = sizes[s].rows, cols = sizes[s].cols, pad = which & 4; /* 4: rows begin at multiples of it */
        if (types[t] != DTYPE_F32 && !dev.b->weights_as_stored) continue;
        seed(70 + s);
        float *m = host_normal(rows * cols, 1), *by_row = host_normal(rows, 2), *by_col = host_normal(cols, 2);
        struct scale_args a = {.m = put_as(m, rows, cols, pad ? pad : 3, types[t])};
        if (which & 1) a.by_row = put(by_row, rows);
        if (which & 2) a.by_col = put(by_col, cols);
        double *want = host_doubles(rows * cols), *scale = host_doubles(rows * cols);
        for (int64_t i = 0; i < rows * cols; i++) {
            want[i] = m[i] * factor(which & 1 ? by_row : NULL, i / cols) * factor(which & 2 ? by_col : NULL, i % cols);
            scale[i] = fabs(want[i]) + 1e-30;
        }
        a.out = put_matrix(host_zeros(rows * cols), rows, cols, pad ? 2 * pad : 2);
        assert_ok(dev.b->scale(dev.s, &a, &err));
        assert_matrix(a.out, want, scale, 0x1p-22);
        a.out = put_activation(host_zeros(rows * cols), rows, cols, pad);
        assert_ok(dev.b->scale(dev.s, &a, &err));
        assert_matrix(a.out, want, scale, 0x1p-22);
    }
}

static void a_matrix_is_scaled_in_place(void **state) {
    (void)state;
    enum { N = 5, K = 70 };
    seed(71);
    float *m = host_normal(N * K, 1), *by_row = host_normal(N, 1), *by_col = host_normal(K, 1);
    double *want = host_doubles(N * K), *scale = host_doubles(N * K);
    struct scale_args a = {.m = put_activation(m, N, K, 1), .by_row = put(by_row, N), .by_col = put(by_col, K)};
    for (int i = 0; i < N * K; i++)
        scale[i] = fabs(want[i] = (double)m[i] * by_row[i / K] * by_col[i % K]);
    a.out = a.m;
    assert_ok(dev.b->scale(dev.s, &a, &err));
    assert_matrix(a.out, want, scale, 0x1p-22);
}

/* H → diag(t) H diag(t), as AWQ needs it, in the backend's gram type. */
static void a_gram_matrix_is_scaled_on_both_sides(void **state) {
    (void)state;
    enum { T = 90, K = 37 };
    seed(72);
    float *x = host_normal(T * K, 1), *t = host_normal(K, 1);
    struct mat h = device_gram(K);
    assert_ok(dev.b->gram(dev.s, &(struct gram_args){.x = put_activation(x, T, K, 0), .h = h}, &err));
    double *before = get_gram(h);
    struct scale_args a = {.m = h, .by_row = put(t, K), .by_col = put(t, K), .out = h};
    assert_ok(dev.b->scale(dev.s, &a, &err));
    double *after = get_gram(h);
    for (int i = 0; i < K * K; i++) {
        double want = before[i] * t[i / K] * t[i % K];
        assert_near(after[i], want, fabs(want) * (h.type == DTYPE_F64 ? 1e-15 : 0x1p-22));
    }
}

static void ref_column_share(const float *w, int64_t rows, int64_t cols, int64_t group, double *share) {
    for (int64_t k = 0; k < cols; k++) {
        int64_t from = k / group * group, to = from + group < cols ? from + group : cols;
        share[k] = 0;
        for (int64_t n = 0; n < rows; n++) {
            double max = 0;
            for (int64_t j = from; j < to; j++)
                max = fmax(max, fabs((double)w[n * cols + j]));
            if (max > 0) share[k] += fabs((double)w[n * cols + k]) / max / (double)rows;
        }
    }
}

static void column_shares_are_means_over_rows(void **state) {
    (void)state;
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    static const int groups[] = {0, 16, 64};
    FOR_EACH(s, sizes) FOR_EACH(g, groups) FOR_EACH(t, types) {
        int64_t rows = sizes[s].rows, cols = sizes[s].cols, group = groups[g] > 0 ? groups[g] : cols;
        if (types[t] != DTYPE_F32 && !dev.b->weights_as_stored) continue;
        seed(73 + s);
        float *w = host_normal(rows * cols, 0.02);
        double *want = host_doubles(cols), *got = host_doubles(cols);
        struct column_share_args a = {.w = put_as(w, rows, cols, 5, types[t]), .group = groups[g], .share = got};
        ref_column_share(w, rows, cols, group, want);
        assert_ok(dev.b->column_share(dev.s, &a, &err));
        for (int64_t k = 0; k < cols; k++)
            assert_near(got[k], want[k], 1e-12);
    }
}

/* A group of zeros adds nothing, and tiny and huge weights have shares like others. */
static void column_shares_of_hostile_weights_are_finite(void **state) {
    (void)state;
    enum { N = 3, K = 40 };
    static const float magnitudes[] = {0, 1e-44f, 1e-38f, 3e38f};
    FOR_EACH(m, magnitudes) {
        float *w = host_zeros(N * K);
        double *want = host_doubles(K), got[K];
        for (int i = 0; i < N * K; i++)
            w[i] = i % K < 16 ? 0 : magnitudes[m] * (float)(i % 3 - 1);
        ref_column_share(w, N, K, 16, want);
        assert_ok(dev.b->column_share(dev.s, &(struct column_share_args){put_matrix(w, N, K, 0), 16, got}, &err));
        for (int k = 0; k < K; k++)
            assert_near(got[k], want[k], 1e-12);
    }
}

static void what_does_not_fit_together_is_refused(void **state) {
    (void)state;
    struct mat m = put_matrix(host_zeros(12), 3, 4, 0), wide = matd(device_doubles(12), 3, 4);
    double share[4];
#define SCALE(...) dev.b->scale(dev.s, &(struct scale_args){__VA_ARGS__}, &err)
    assert_refused(SCALE(m, NULL, NULL, mat_rows(m, 0, 2)), RC_INVALID, "scale: out");
    assert_refused(SCALE(m, NULL, NULL, wide), RC_UNSUPPORTED, "fp64 stays fp64");
    assert_refused(SCALE(wide, NULL, NULL, m), RC_UNSUPPORTED, "fp64 stays fp64");
    m.type = DTYPE_I32;
    assert_refused(SCALE(m, NULL, NULL, m), RC_UNSUPPORTED, "F32, F16 or BF16");
#undef SCALE
#define SHARE(...) dev.b->column_share(dev.s, &(struct column_share_args){__VA_ARGS__}, &err)
    assert_refused(SHARE(m, 0, share), RC_UNSUPPORTED, "F32, F16 or BF16");
    m.type = DTYPE_F32;
    assert_refused(SHARE(m, -1, share), RC_INVALID, "groups of -1");
    assert_refused(SHARE(mat_rows(m, 0, 0), 0, share), RC_INVALID, "no Linear");
    assert_refused(SHARE(m, 0, NULL), RC_INVALID, "column_share: share");
#undef SHARE
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_columns_are_scaled),
        cmocka_unit_test(a_matrix_is_scaled_in_place),
        cmocka_unit_test(a_gram_matrix_is_scaled_on_both_sides),
        cmocka_unit_test(column_shares_are_means_over_rows),
        cmocka_unit_test(column_shares_of_hostile_weights_are_finite),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
    };
    return RUN_ON_BACKENDS("scale", tests);
}
