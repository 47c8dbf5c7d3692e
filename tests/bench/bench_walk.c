/* What the walk costs, as ratios inside one run: eval against the fp32 GEMM rate, six candidates against one.
 * A model of SmolLM2's widths with random weights is made in a temporary folder. What is compared runs side by side,
 * ROUNDS times over, and the median of the rounds' ratios counts: the clock and the neighbours of a machine wander. */
#include <cblas.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/waiting.h"
#include "worker/execute.h"

enum {
    D = 576,
    MLP = 1536,
    HEADS = 9,
    KV_HEADS = 3,
    HEAD_DIM = 64,
    V = 1024,
    BLOCKS = 2,
    LENGTH = 1024,
    WINDOWS = 16,
    CALIBRATION = 48,
    ROUNDS = 5
};
enum { KV = KV_HEADS * HEAD_DIM, BLOCK_PARAMS = 2 * D * D + 2 * D * KV + 3 * D * MLP };

struct tensor {
    const char *name;
    int rows, cols; /* cols 0: a vector of ones */
};
static const struct tensor block_tensors[] = {
    {"input_layernorm", D, 0},   {"post_attention_layernorm", D, 0},
    {"self_attn.q_proj", D, D},  {"self_attn.k_proj", KV, D},
    {"self_attn.v_proj", KV, D}, {"self_attn.o_proj", D, D},
    {"mlp.gate_proj", MLP, D},   {"mlp.up_proj", MLP, D},
    {"mlp.down_proj", D, MLP},
};

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static _Noreturn void give_up(const char *what) {
    fprintf(stderr, "bench_walk: %s\n", what);
    exit(EXIT_FAILURE);
}

/* --- the model --- */

static void add_tensor(struct strbuf *header, struct strbuf *data, const char *name, int rows, int cols) {
    size_t count = (size_t)rows * (size_t)(cols ? cols : 1), begin = data->len;
    for (size_t i = 0; i < count; i++) {
        float value = cols ? ((float)rand() / (float)RAND_MAX - 0.5f) * 0.1f : 1;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        uint16_t half = (uint16_t)(bits >> 16); /* bf16, truncated */
        strbuf_append(data, &half, sizeof half);
    }
    strbuf_printf(header, "%s\"%s.weight\":{\"dtype\":\"BF16\",\"shape\":[%d%s", begin ? "," : "{", name, rows,
                  cols ? "," : "");
    if (cols) strbuf_printf(header, "%d", cols);
    strbuf_printf(header, "],\"data_offsets\":[%zu,%zu]}", begin, data->len);
}

static void write_file(const char *dir, const char *name, const void *bytes, size_t len, const char *mode) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, mode);
    if (!file || fwrite(bytes, 1, len, file) != len || fclose(file)) give_up("cannot write the model");
}

static void write_weights(const char *dir) {
    struct strbuf header = STRBUF_INIT, data = STRBUF_INIT;
    add_tensor(&header, &data, "model.embed_tokens", V, D);
    add_tensor(&header, &data, "model.norm", D, 0);
    for (int b = 0; b < BLOCKS; b++)
        for (size_t i = 0; i < sizeof block_tensors / sizeof *block_tensors; i++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%d.%s", b, block_tensors[i].name);
            add_tensor(&header, &data, name, block_tensors[i].rows, block_tensors[i].cols);
        }
    strbuf_puts(&header, "}");
    uint64_t len = header.len;
    write_file(dir, "model.safetensors", &len, sizeof len, "w");
    write_file(dir, "model.safetensors", header.data, header.len, "a");
    write_file(dir, "model.safetensors", data.data, data.len, "a");
    strbuf_release(&header);
    strbuf_release(&data);
}

static void write_model(const char *dir) {
    struct strbuf config = STRBUF_INIT;
    strbuf_printf(&config,
                  "{\"model_type\":\"llama\",\"hidden_size\":%d,\"intermediate_size\":%d,\"num_attention_heads\":%d,"
                  "\"num_key_value_heads\":%d,\"num_hidden_layers\":%d,\"vocab_size\":%d,\"rms_norm_eps\":1e-5,"
                  "\"max_position_embeddings\":%d,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
                  "\"tie_word_embeddings\":true}",
                  D, MLP, HEADS, KV_HEADS, BLOCKS, V, LENGTH);
    write_file(dir, "config.json", config.data, config.len, "w");
    strbuf_release(&config);
    write_weights(dir);
    static char tokenizer[1 << 20];
    FILE *file = fopen("tests/fixture/tiny/tokenizer.json", "r");
    if (!file) give_up("run it in the project's root");
    size_t len = fread(tokenizer, 1, sizeof tokenizer, file);
    fclose(file);
    write_file(dir, "tokenizer.json", tokenizer, len, "w");
}

/* --- the jobs --- */

static enum rc drop(void *ctx, const struct message *m, struct err *e) {
    (void)ctx, (void)m, (void)e;
    return RC_OK;
}

static enum rc nothing(void *ctx, enum cache_name cache, json_t *keys, json_t **entries, struct err *e) {
    (void)ctx, (void)cache, (void)keys, (void)e;
    *entries = json_object();
    return RC_OK;
}

static double run(const struct worker *worker, const char *dir, const char *text, json_t *spec) {
    static const atomic_bool never;
    struct job_link link = {.send = drop, .lookup = nothing};
    struct msg_start start = {.job = "bench",
                              .spec = spec,
                              .model = json_pack("{ss ss}", "name", "M", "path", dir),
                              .dataset = json_pack("{ss ss}", "name", "D", "path", text)};
    json_t *result = NULL;
    struct err e = {0};
    double begin = seconds();
    if (worker_execute(worker, &start, &link, &never, &result, &e) != RC_OK) give_up(e.message);
    double elapsed = seconds() - begin;
    json_decref(result);
    json_decref(start.spec);
    json_decref(start.model);
    json_decref(start.dataset);
    return elapsed;
}

static json_t *profile_spec(json_t *bits) {
    return json_pack("{ss ss s{ss si si ss} s[{ss so si}]}", "kind", "profile", "model", "M", "calibration", "dataset",
                     "D", "samples", CALIBRATION, "length", LENGTH, "sampling", "sequential", "candidates", "method",
                     "hqq", "bits", bits, "group", 64);
}

static json_t *eval_spec(void) {
    return json_pack("{ss ss ss si si}", "kind", "eval", "model", "M", "dataset", "D", "length", LENGTH, "windows",
                     WINDOWS);
}

static double eval_flops(void) {
    double block = (double)BLOCK_PARAMS + (double)LENGTH * D; /* causal attention: half of two T·T·D products */
    return 2.0 * WINDOWS * LENGTH * (BLOCKS * block + (double)V * D);
}

static float *random_floats(size_t count) {
    float *x = malloc(count * sizeof *x);
    if (!x) give_up("out of memory");
    for (size_t i = 0; i < count; i++)
        x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    return x;
}

/* GFLOP/s of the walk's own largest product, by OpenBLAS's own threads on every core: what the backend, whose OpenBLAS
 * has one thread and whose cores have tiles, is held against. */
static double gemm_rate(void) {
    enum { WARM_UP = 4, TIMES = 200 };
    float *x = random_floats(LENGTH * D), *w = random_floats(MLP * D), *y = random_floats(LENGTH * MLP);
    double begin = 0;
    openblas_set_num_threads(openblas_get_num_procs());
    for (int i = -WARM_UP; i < TIMES; i++) {
        if (i == 0) begin = seconds();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, LENGTH, MLP, D, 1, x, D, w, D, 0, y, MLP);
    }
    double rate = 2.0 * LENGTH * MLP * D * TIMES / (seconds() - begin) * 1e-9;
    openblas_set_num_threads(1);
    free(x);
    free(w);
    free(y);
    return rate;
}

/* --- the table --- */

struct rounds {
    double gemm[ROUNDS], eval[ROUNDS], eval_share[ROUNDS]; /* GFLOP/s, GFLOP/s, their ratio */
    double one[ROUNDS], six[ROUNDS], growth[ROUNDS];       /* s, s, their ratio */
};

static void measure(const struct worker *worker, const char *dir, struct rounds *r) {
    const char *text = "tests/fixture/calibration.txt";
    for (int i = 0; i < ROUNDS; i++) {
        double before = gemm_rate();
        r->eval[i] = eval_flops() / run(worker, dir, text, eval_spec()) * 1e-9;
        r->gemm[i] = (before + gemm_rate()) / 2;
        r->eval_share[i] = r->eval[i] / r->gemm[i];
        r->one[i] = run(worker, dir, text, profile_spec(json_integer(4)));
        r->six[i] = run(worker, dir, text, profile_spec(json_pack("[iiiiii]", 2, 3, 4, 5, 6, 8)));
        r->growth[i] = r->six[i] / r->one[i];
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double values[ROUNDS]) { /* and sorts them */
    qsort(values, ROUNDS, sizeof *values, by_value);
    return values[ROUNDS / 2];
}

static void print_ratio(const char *what, double values[ROUNDS], const char *target) {
    double middle = median(values);
    printf("%-34s %9.2f          %-7s  (%.2f to %.2f)\n", what, middle, target, values[0], values[ROUNDS - 1]);
}

static void print_table(struct rounds *r) {
    printf("%-34s %9s          %-7s\n", "median of rounds", "measured", "target");
    printf("%-34s %9.1f GFLOP/s\n", "fp32 GEMM, every core", median(r->gemm));
    printf("%-34s %9.1f GFLOP/s\n", "eval", median(r->eval));
    printf("%-34s %9.2f s\n", "profile, 1 candidate", median(r->one));
    printf("%-34s %9.2f s\n", "profile, 6 candidates", median(r->six));
    print_ratio("eval / GEMM", r->eval_share, ">= 0.60");
    print_ratio("6 candidates / 1", r->growth, "< 1.30");
}

static void remove_model(const char *dir) {
    static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
}

int main(int argc, char **argv) {
    (void)argc;
    insist_on_sleeping_waits(argv);
    blas_insist_on_fast_core(argv);
    char dir[] = "/tmp/hsaq-bench-XXXXXX";
    struct worker worker = {0};
    struct worker_options options = {.devices = "cpu", .scratch = "/tmp"};
    struct rounds rounds;
    struct err e = {0};
    if (!mkdtemp(dir)) give_up("cannot make a temporary folder");
    write_model(dir);
    if (worker_open(&options, &worker, &e) != RC_OK) give_up(e.message);
    measure(&worker, dir, &rounds);
    print_table(&rounds);
    worker_release(&worker);
    remove_model(dir);
    return EXIT_SUCCESS;
}
