/* Every operation at the shapes of an 8B model, one chunk of windows at a time: seconds, TFLOP/s and GB/s.
 *
 *   bench_ops [cpu|fp32|bf16 [PART]]     on the first GPU but for cpu; PART: quantize, backwards
 *
 * Without arguments: in bf16 where there is a GPU.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/random.h"
#include "kernels/backend.h"

enum { HIDDEN = 4096, INTERMEDIATE = 12800, HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, LENGTH = 2048, VOCAB = 49155 };

static const struct backend *b;
static struct backend_state *state;
static struct err err;
static int64_t tokens = 8192;

static void must(enum rc rc) {
    if (rc == RC_OK) return;
    fprintf(stderr, "%s: %s\n", rc_name(rc), err.message);
    exit(1);
}

static void *take(int64_t bytes) {
    void *memory;
    must(b->alloc(state, (size_t)bytes, &memory, &err));
    return memory;
}

/* Values of a normal network's size: a card's clock depends on what it multiplies. */
static struct mat filled(int64_t rows, int64_t cols, enum dtype type) {
    static float pattern[1 << 20];
    struct mat m = {take(rows * cols * (int64_t)dtype_size(type)), rows, cols, cols, type};
    uint64_t seed = 1;
    const int64_t size = sizeof pattern / sizeof *pattern;
    uint16_t *halves = (uint16_t *)pattern;
    for (int64_t i = 0; i < size; i++) {
        float value = (float)((double)(splitmix64(&seed) >> 11) * 0x1p-53 - 0.5) * 0.1f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (type == DTYPE_BF16)
            halves[i] = (uint16_t)(bits >> 16);
        else
            pattern[i] = value;
    }
    for (int64_t at = 0; at < rows * cols; at += size) {
        int64_t count = rows * cols - at < size ? rows * cols - at : size;
        struct load_item item = {pattern, type, count, (char *)m.data + (size_t)at * dtype_size(type), type};
        must(b->load(state, &item, 1, &err));
        must(b->loaded(state, &err));
    }
    return m;
}

static struct mat activations(int64_t cols) {
    return filled(tokens, cols, b->activation);
}

static struct mat weights(int64_t rows, int64_t cols) {
    return filled(rows, cols, b->weights_as_stored ? DTYPE_BF16 : DTYPE_F32);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void wait_for_device(const void *memory) {
    float value;
    must(b->download(state, memory, sizeof value, &value, &err));
}

/* `call` as often as takes a fifth of a second, after once to warm up. */
#define TIME(name, flops, bytes, memory, call)                                                                         \
    do {                                                                                                               \
        must(call);                                                                                                    \
        wait_for_device(memory);                                                                                       \
        int times = 0;                                                                                                 \
        double begin = seconds(), took;                                                                                \
        do {                                                                                                           \
            for (int i_ = 0; i_ < 4; i_++, times++)                                                                    \
                must(call);                                                                                            \
            wait_for_device(memory);                                                                                   \
            took = seconds() - begin;                                                                                  \
        } while (took < 0.2);                                                                                          \
        took /= times;                                                                                                 \
        printf("%-28s %10.1f %10.1f %10.1f\n", name, took * 1e6, (flops) / took * 1e-12, (bytes) / took * 1e-9);       \
        fflush(stdout);                                                                                                \
    } while (0)

static void release(struct mat m) {
    b->free(state, m.data);
}

static void time_gemm(const char *name, int64_t rows, int64_t cols, bool residual) {
    struct gemm_args a = {.x = activations(cols), .w = weights(rows, cols), .alpha = 1, .beta = residual ? 1 : 0};
    a.out = residual ? filled(tokens, rows, DTYPE_F32) : activations(rows);
    double bytes = (double)(tokens * cols + rows * cols) * (double)dtype_size(a.x.type) +
                   (double)(tokens * rows) * (double)dtype_size(a.out.type) * (residual ? 2 : 1);
    TIME(name, 2.0 * (double)tokens * (double)rows * (double)cols, bytes, a.out.data, b->gemm(state, &a, &err));
    release(a.x);
    release(a.w);
    release(a.out);
}

static void time_gemm_back(const char *name, int64_t rows, int64_t cols, bool residual) {
    struct gemm_back_args a = {.dy = activations(rows), .w = weights(rows, cols), .alpha = 1};
    a.dx = residual ? filled(tokens, cols, DTYPE_F32) : activations(cols);
    TIME(name, 2.0 * (double)tokens * (double)rows * (double)cols, 0.0, a.dx.data, b->gemm_back(state, &a, &err));
    release(a.dy);
    release(a.w);
    release(a.dx);
}

static void time_attention(const char *name, int heads, int kv_heads, int dim, int window) {
    struct attention_args a = {.q = activations(heads * dim),
                               .k = activations(kv_heads * dim),
                               .v = activations(kv_heads * dim),
                               .length = LENGTH,
                               .heads = heads,
                               .kv_heads = kv_heads,
                               .head_dim = dim,
                               .window = window,
                               .scale = 0.1f,
                               .out = activations(heads * dim)};
    double seen = 0;
    for (int t = 0; t < LENGTH; t++)
        seen += window && t + 1 > window ? window : t + 1;
    double flops = 4.0 * seen * dim * heads * (double)tokens / LENGTH;
    TIME(name, flops, 0.0, a.out.data, b->attention(state, &a, &err));
    release(a.q);
    release(a.k);
    release(a.v);
    release(a.out);
}

/* Its gradients count five products where the forward pass counts two; what is computed twice does not count. */
static void time_attention_back(const char *name, int heads, int kv_heads, int dim, int window) {
    struct attention_back_args a = {.forward = {.q = activations(heads * dim),
                                                .k = activations(kv_heads * dim),
                                                .v = activations(kv_heads * dim),
                                                .length = LENGTH,
                                                .heads = heads,
                                                .kv_heads = kv_heads,
                                                .head_dim = dim,
                                                .window = window,
                                                .scale = 0.1f,
                                                .out = activations(heads * dim)},
                                    .dout = activations(heads * dim),
                                    .dq = activations(heads * dim),
                                    .dk = activations(kv_heads * dim),
                                    .dv = activations(kv_heads * dim)};
    double seen = 0;
    for (int t = 0; t < LENGTH; t++)
        seen += window && t + 1 > window ? window : t + 1;
    double flops = 10.0 * seen * dim * heads * (double)tokens / LENGTH;
    must(b->attention(state, &a.forward, &err));
    TIME(name, flops, 0.0, a.dk.data, b->attention_back(state, &a, &err));
    struct mat all[] = {a.forward.q, a.forward.k, a.forward.v, a.forward.out, a.dout, a.dq, a.dk, a.dv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        release(all[i]);
}

static void time_rows(void) {
    double size = (double)dtype_size(b->activation), T = (double)tokens;
    struct mat x = filled(tokens, HIDDEN, DTYPE_F32), out = activations(HIDDEN), weight = filled(1, HIDDEN, DTYPE_F32);
    struct rmsnorm_args norm = {x, weight.data, 1e-5f, out};
    TIME("rmsnorm", 0.0, T * HIDDEN * (4 + size), out.data, b->rmsnorm(state, &norm, &err));
    struct mat angles = filled(LENGTH, HEAD_DIM / 2, DTYPE_F32);
    struct rope_args rope = {out, LENGTH, HEADS, HEAD_DIM, HEAD_DIM, angles.data, angles.data};
    TIME("rope", 0.0, 2 * T * HIDDEN * size, out.data, b->rope(state, &rope, &err));
    struct silu_mul_args silu = {activations(INTERMEDIATE), activations(INTERMEDIATE), activations(INTERMEDIATE)};
    TIME("silu_mul", 0.0, 3 * T * INTERMEDIATE * size, silu.out.data, b->silu_mul(state, &silu, &err));
    release(x);
    release(out);
    release(weight);
    release(angles);
    release(silu.gate);
    release(silu.up);
    release(silu.out);
}

static void time_gram(int64_t channels) {
    char name[32];
    snprintf(name, sizeof name, "gram %lld", (long long)channels);
    struct mat x = activations(channels);
    struct mat h = {take(channels * channels * (int64_t)dtype_size(b->gram_type)), channels, channels, channels,
                    b->gram_type};
    must(b->clear(state, h.data, (size_t)(channels * channels) * dtype_size(h.type), &err));
    struct gram_args a = {.x = x, .h = h};
    TIME(name, 2.0 * (double)tokens * (double)channels * (double)channels, 0.0, h.data, b->gram(state, &a, &err));
    snprintf(name, sizeof name, "gram %lld with mean |x|", (long long)channels);
    a.sum_abs = take(channels * (int64_t)sizeof *a.sum_abs);
    must(b->clear(state, a.sum_abs, (size_t)channels * sizeof *a.sum_abs, &err));
    TIME(name, 2.0 * (double)tokens * (double)channels * (double)channels, 0.0, h.data, b->gram(state, &a, &err));
    b->free(state, a.sum_abs);
    TIME("gram_finish", 0.0, (double)(channels * channels) * (double)dtype_size(h.type), h.data,
         b->gram_finish(state, h, &err));
    release(x);
    release(h);
}

static void time_error(int64_t rows, int64_t cols) {
    char name[48];
    snprintf(name, sizeof name, "error %lldx%lld", (long long)rows, (long long)cols);
    struct mat w = weights(rows, cols), w_hat = filled(rows, cols, DTYPE_F32), h = filled(cols, cols, DTYPE_F32);
    if (b->gram_type != DTYPE_F32) {
        release(h);
        h = (struct mat){take(cols * cols * 8), cols, cols, cols, DTYPE_F64};
        must(b->clear(state, h.data, (size_t)(cols * cols) * 8, &err));
    }
    double known = 1;
    struct error_report report;
    struct error_args a = {.w = w, .w_hat = w_hat, .h = h, .drift_den = &known};
    TIME(name, 2.0 * (double)rows * (double)cols * (double)cols, 0.0, w.data, b->error(state, &a, &report, &err));
    release(w);
    release(w_hat);
    release(h);
}

static void time_quantize(const char *id) {
    struct candidate c;
    struct quantized q;
    struct quantize_report report;
    must(candidate_from_id(id, &c, &err));
    must(quantized_alloc(b, state, HIDDEN, INTERMEDIATE, &c, &q, &err));
    struct mat w = weights(HIDDEN, INTERMEDIATE), w_hat = filled(HIDDEN, INTERMEDIATE, b->activation);
    struct quantize_args a = {.w = w, .candidate = c, .out = &q, .report = &report};
    const double count = (double)HIDDEN * INTERMEDIATE;
    char name[64];
    snprintf(name, sizeof name, "quantize %s (G weights)", id);
    TIME(name, 0.0, count, w.data, b->quantize(state, &a, 1, &err));
    struct dequantize_args d = {.q = &q, .out = w_hat};
    TIME("dequantize", 0.0, count * (1 + (double)dtype_size(w_hat.type)), w_hat.data, b->dequantize(state, &d, &err));
    quantized_release(b, state, &q);
    release(w);
    release(w_hat);
}

static struct mat gram_of(int64_t channels) {
    struct mat x = activations(channels), h = {take(channels * channels * (int64_t)dtype_size(b->gram_type)), channels,
                                               channels, channels, b->gram_type};
    must(b->clear(state, h.data, (size_t)(channels * channels) * dtype_size(h.type), &err));
    must(b->gram(state, &(struct gram_args){.x = x, .h = h}, &err));
    must(b->gram_finish(state, h, &err));
    release(x);
    return h;
}

static void time_gptq(const char *id, int64_t rows, int64_t cols) {
    struct candidate c;
    struct quantized q;
    struct factor f;
    struct quantize_report report;
    must(candidate_from_id(id, &c, &err));
    must(quantized_alloc(b, state, rows, cols, &c, &q, &err));
    must(factor_alloc(b, state, cols, &f, &err));
    struct mat h = gram_of(cols), w = weights(rows, cols);
    struct factor_args factor = {h, c.order, c.group, (double)c.damp / PARTS, &f};
    struct quantize_args a = {.w = w, .candidate = c, .h = h, .factor = &f, .out = &q, .report = &report};
    double columns = (double)cols;
    char name[64];
    snprintf(name, sizeof name, "factor %lld", (long long)cols);
    TIME(name, columns * columns * columns * 2 / 3, 0.0, f.upper, b->factor(state, &factor, &err));
    snprintf(name, sizeof name, "%s %lldx%lld", id, (long long)rows, (long long)cols);
    TIME(name, columns * columns * (double)rows * (1 + 2 * c.descend), 0.0, w.data, b->quantize(state, &a, 1, &err));
    factor_release(b, state, &f);
    quantized_release(b, state, &q);
    release(h);
    release(w);
}

enum { AT_ONCE = 6 };

/* So many candidates in one call. The factor of the rows is made before: all share it. */
static void time_two_sided(int64_t rows, int64_t cols, int count) {
    struct candidate c;
    struct quantized q[AT_ONCE];
    struct factor across, down;
    struct quantize_report report;
    struct quantize_args a[AT_ONCE];
    must(candidate_from_id("gptq3g64", &c, &err));
    must(factor_alloc(b, state, cols, &across, &err));
    must(factor_alloc(b, state, rows, &down, &err));
    struct mat h = gram_of(cols), g = gram_of(rows), w = weights(rows, cols);
    struct factor_args of_h = {h, c.order, c.group, (double)c.damp / PARTS, &across};
    struct factor_args of_g = {g, ORDER_ACTIVATION, 0, 0.5, &down};
    must(b->factor(state, &of_h, &err));
    must(b->factor(state, &of_g, &err));
    for (int i = 0; i < count; i++) {
        must(quantized_alloc(b, state, rows, cols, &c, &q[i], &err));
        a[i] = (struct quantize_args){w, c, h, &across, &down, &q[i], &report};
    }
    char name[64];
    snprintf(name, sizeof name, "%d two-sided %lldx%lld", count, (long long)rows, (long long)cols);
    double flops = (double)count * (double)rows * (double)cols * (double)(rows + cols);
    TIME(name, flops, 0.0, w.data, b->quantize(state, a, count, &err));
    for (int i = 0; i < count; i++)
        quantized_release(b, state, &q[i]);
    factor_release(b, state, &across);
    factor_release(b, state, &down);
    release(h);
    release(g);
    release(w);
}

/* One scale of AWQ's search, and the range of what it quantizes then. */
static void time_awq(int64_t rows, int64_t cols) {
    struct candidate awq;
    must(candidate_from_id("awq4g64", &awq, &err));
    struct candidate plain = candidate_rtn(&awq);
    struct mat h = gram_of(cols), w = weights(rows, cols), factors = filled(2, cols, DTYPE_F32);
    double *sum = take(sizeof *sum);
    struct scaled_error_args a = {.w = &w,
                                  .candidate = &plain,
                                  .count = 1,
                                  .by_col = factors.data,
                                  .inverse = f32_row(factors, 1),
                                  .h = h,
                                  .sum = sum};
    struct quantized q;
    struct quantize_report report;
    must(quantized_alloc(b, state, rows, cols, &awq, &q, &err));
    struct quantize_args quantize = {.w = w, .candidate = awq, .h = h, .out = &q, .report = &report};
    char name[64];
    snprintf(name, sizeof name, "scaled_error %lldx%lld", (long long)rows, (long long)cols);
    TIME(name, 2.0 * (double)rows * (double)cols * (double)cols, 0.0, sum, b->scaled_error(state, &a, &err));
    snprintf(name, sizeof name, "awq4g64 %lldx%lld (G weights)", (long long)rows, (long long)cols);
    TIME(name, 0.0, (double)rows * (double)cols, w.data, b->quantize(state, &quantize, 1, &err));
    quantized_release(b, state, &q);
    b->free(state, sum);
    release(h);
    release(w);
    release(factors);
}

static void time_score(bool pair) {
    int64_t whole = tokens;
    tokens = LENGTH; /* window by window */
    struct mat x = activations(HIDDEN), x_q = activations(HIDDEN), head = weights(VOCAB, HIDDEN);
    int32_t *labels = calloc(LENGTH, sizeof *labels);
    double *out = calloc(3 * LENGTH, sizeof *out);
    uint8_t *agree = calloc(LENGTH, 1);
    struct score_args a = {.x = x,
                           .head = head,
                           .logit_scale = 1,
                           .labels = labels,
                           .nll = out,
                           .nll_q = out + LENGTH,
                           .kl = out + 2 * LENGTH,
                           .top1_agree = agree};
    if (pair) a.x_q = x_q;
    TIME(pair ? "score, pair" : "score", (pair ? 4.0 : 2.0) * LENGTH * VOCAB * HIDDEN, 0.0, x.data,
         b->score(state, &a, &err));
    free(labels);
    free(out);
    free(agree);
    release(x);
    release(x_q);
    release(head);
    tokens = whole;
}

static void time_quantizers(void) {
    time_quantize("rtn4g64");
    time_quantize("hqq2g64");
    time_quantize("hqq3g64");
    time_quantize("hqq4g64");
    time_gptq("gptq4g64", HIDDEN, HIDDEN);
    time_gptq("gptq4g64-minmax", HIDDEN, HIDDEN);
    time_gptq("gptq4g64-minmax-descend1", HIDDEN, HIDDEN);
    time_gptq("gptq4g64-minmax-descend4", HIDDEN, HIDDEN);
    for (int count = 1; count <= AT_ONCE; count += AT_ONCE - 1) {
        time_two_sided(576, 576, count);
        time_two_sided(1536, 576, count);
        time_two_sided(HIDDEN, HIDDEN, count);
    }
    time_two_sided(INTERMEDIATE, HIDDEN, 1);
    time_two_sided(HIDDEN, INTERMEDIATE, 1);
    time_two_sided(HIDDEN, INTERMEDIATE, 2);
    time_awq(HIDDEN, HIDDEN);
    time_awq(INTERMEDIATE, HIDDEN);
    time_awq(HIDDEN, INTERMEDIATE);
}

/* Three products; the logits that are computed twice do not count. */
static void time_kl_back(void) {
    int64_t whole = tokens;
    tokens = LENGTH; /* window by window */
    double *kl = calloc(LENGTH, sizeof *kl);
    struct kl_back_args a = {.x = activations(HIDDEN),
                             .x_ref = activations(HIDDEN),
                             .head = weights(VOCAB, HIDDEN),
                             .logit_scale = 1,
                             .dx = filled(LENGTH, HIDDEN, DTYPE_F32),
                             .kl = kl};
    TIME("kl_back", 6.0 * LENGTH * VOCAB * HIDDEN, 0.0, a.dx.data, b->kl_back(state, &a, &err));
    free(kl);
    release(a.x);
    release(a.x_ref);
    release(a.head);
    release(a.dx);
    tokens = whole;
}

static void time_scale_back(const char *name, int64_t rows, int64_t cols) {
    struct mat slope = filled(rows, cols / 64, DTYPE_F32);
    struct scale_back_args a = {.x = activations(cols),
                                .g = activations(rows),
                                .w_hat = filled(rows, cols, b->activation),
                                .group = 64,
                                .slope = slope.data};
    TIME(name, 2.0 * (double)tokens * (double)rows * (double)cols, 0.0, slope.data, b->scale_back(state, &a, &err));
    release(a.x);
    release(a.g);
    release(a.w_hat);
    release(slope);
}

static void time_adam(int64_t count) {
    float *values[6];
    for (int i = 0; i < 6; i++)
        must(b->clear(state, values[i] = take(count * 4), (size_t)count * 4, &err));
    struct adam_args a = {count,     1e-3f,     0.9f,      0.99f,     1e-8f,     1,
                          values[0], values[1], values[2], values[3], values[4], values[5]};
    TIME("adam", 0.0, 40.0 * (double)count, a.theta, b->adam(state, &a, &err));
    for (int i = 0; i < 6; i++)
        b->free(state, values[i]);
}

static void time_backwards(void) {
    time_gemm_back("gemm_back q", HIDDEN, HIDDEN, false);
    time_gemm_back("gemm_back gate, to fp32", INTERMEDIATE, HIDDEN, true);
    time_gemm_back("gemm_back down", HIDDEN, INTERMEDIATE, false);
    time_attention_back("attention_back d128", HEADS, KV_HEADS, HEAD_DIM, 0);
    time_attention_back("attention_back d128, w 1024", HEADS, KV_HEADS, HEAD_DIM, 1024);
    time_attention_back("attention_back d64", HEADS, KV_HEADS, 64, 0);
    time_attention_back("attention_back d96", HEADS, HEADS, 96, 0);
    time_attention_back("attention_back d256", HEADS / 2, KV_HEADS, 256, 0);
    time_kl_back();
    time_scale_back("scale_back q", HIDDEN, HIDDEN);
    time_scale_back("scale_back gate", INTERMEDIATE, HIDDEN);
    time_scale_back("scale_back down", HIDDEN, INTERMEDIATE);
    time_adam((int64_t)HIDDEN * INTERMEDIATE / 16);
}

static void time_all(void) {
    time_gemm("gemm q", HIDDEN, HIDDEN, false);
    time_gemm("gemm k", KV_HEADS * HEAD_DIM, HIDDEN, false);
    time_gemm("gemm o, residual", HIDDEN, HIDDEN, true);
    time_gemm("gemm gate", INTERMEDIATE, HIDDEN, false);
    time_gemm("gemm down, residual", HIDDEN, INTERMEDIATE, true);
    time_attention("attention d128", HEADS, KV_HEADS, HEAD_DIM, 0);
    time_attention("attention d128, window 1024", HEADS, KV_HEADS, HEAD_DIM, 1024);
    time_attention("attention d64", HEADS, KV_HEADS, 64, 0);
    time_attention("attention d96", HEADS, HEADS, 96, 0);
    time_attention("attention d256", HEADS / 2, KV_HEADS, 256, 0);
    time_backwards();
    time_rows();
    time_gram(HIDDEN);
    time_gram(INTERMEDIATE);
    time_error(HIDDEN, HIDDEN);
    time_error(HIDDEN, INTERMEDIATE);
    time_quantizers();
    time_score(false);
    time_score(true);
}

static enum rc open_device(const char *choice) {
    b = &backend_cpu;
    if (strcmp(choice, "cpu") != 0)
        TRY(backend_cuda_load(strcmp(choice, "fp32") == 0 ? DTYPE_F32 : DTYPE_BF16, &b, &err));
    else
        tokens = LENGTH;
    return b->open(&(struct backend_options){0}, &state, &err);
}

int main(int argc, char **argv) {
    enum rc rc = open_device(argc > 1 ? argv[1] : "bf16");
    if (rc == RC_NOT_FOUND && argc == 1) {
        printf("not measured: %s\n", err.message);
        return 0;
    }
    must(rc);
    printf("%s, %s, %lld tokens\n\n", b->hardware(state), b->arithmetic, (long long)tokens);
    printf("%-28s %10s %10s %10s\n", "", "us", "TFLOP/s", "GB/s");
    const char *part = argc > 2 ? argv[2] : "";
    if (strcmp(part, "quantize") == 0)
        time_quantizers();
    else if (strcmp(part, "backwards") == 0)
        time_backwards();
    else
        time_all();
    b->close(state);
    return 0;
}
