#include <cblas.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/cpu/cpu.h"

enum { THREADS_MAX = 1024 };

/* "AMD EPYC 9654 96-Core Processor"; the brand string fills 48 bytes of three cpuid leaves. */
static void processor_name(char name[49]) {
    snprintf(name, 49, "CPU");
#if defined(__x86_64__)
    unsigned words[12];
    if ((unsigned)__get_cpuid_max(0x80000000u, NULL) < 0x80000004u) return;
    for (unsigned i = 0; i < 3; i++)
        __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
    snprintf(name, 49, "%.48s", (const char *)words);
#endif
}

#ifdef _OPENMP
static int default_threads(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int cores = CPU_COUNT(&set);
    return cores > 0 ? cores : 1;
}
#else
static int default_threads(void) {
    return 1;
}
#endif

static void describe_hardware(int threads, char *text, size_t capacity) {
    char name[49];
    processor_name(name);
    snprintf(text, capacity, "%s, %d thread%s, OpenBLAS for %s", name, threads, threads == 1 ? "" : "s",
             openblas_get_corename());
}

static int64_t machine_memory(void) {
    return (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

static enum rc cpu_count(int *count, struct err *e) {
    (void)e;
    *count = 1;
    return RC_OK;
}

static enum rc no_such_device(int device, struct err *e) {
    return err_set(e, RC_NOT_FOUND, "cpu:%d: there is one cpu device, cpu", device);
}

static enum rc cpu_describe(int device, struct device_description *out, struct err *e) {
    if (device != 0) return no_such_device(device, e);
    describe_hardware(default_threads(), out->hardware, sizeof out->hardware);
    out->memory = machine_memory();
    return RC_OK;
}

static void cpu_close(struct backend_state *state) {
    if (state == NULL) return;
    cpu_free(state, state->scratch);
    free(state);
}

static enum rc cpu_open(const struct backend_options *options, struct backend_state **out, struct err *e) {
    *out = NULL;
    if (options->device != 0) return no_such_device(options->device, e);
    if (options->threads < 0 || options->threads > THREADS_MAX || options->memory_limit < 0)
        return err_set(e, RC_INVALID, "%d threads and a limit of %lld bytes make no sense: threads lie in 0…%d",
                       options->threads, (long long)options->memory_limit, THREADS_MAX);
    struct backend_state *state = calloc(1, sizeof *state);
    if (state == NULL) return err_set(e, RC_NO_MEMORY, "no memory to open the cpu backend");
    state->threads = options->threads > 0 ? options->threads : default_threads();
    if (options->shares > 1) state->threads = state->threads > options->shares ? state->threads / options->shares : 1;
#ifndef _OPENMP
    state->threads = 1;
#endif
    state->limit = options->memory_limit;
    openblas_set_num_threads(1);
    describe_hardware(state->threads, state->hardware, sizeof state->hardware);
    *out = state;
    return RC_OK;
}

static enum rc cpu_attach(struct backend_state *state, struct err *e) {
    (void)state, (void)e;
    return RC_OK;
}

static const char *cpu_hardware(struct backend_state *state) {
    return state->hardware;
}

static int64_t cpu_memory(struct backend_state *state) {
    (void)state;
    return machine_memory();
}

static int64_t cpu_memory_peak(struct backend_state *state) {
    return state->peak;
}

/* What fits the machine's memory is for the machine to say. */
static int64_t cpu_room(struct backend_state *state) {
    return state->limit > 0 ? state->limit - state->held : INT64_MAX;
}

/* Every operation waits for itself. */
static enum rc cpu_keep_pace(struct backend_state *state, struct err *e) {
    (void)state, (void)e;
    return RC_OK;
}

const struct backend backend_cpu = {
    .name = "cpu",
    .arithmetic = "cpu/fp32",
    .activation = DTYPE_F32,
    .gram_type = DTYPE_F64,
    .chunk_tokens = 1,
    .batch_tokens = 32768,
    .count = cpu_count,
    .describe = cpu_describe,
    .open = cpu_open,
    .attach = cpu_attach,
    .close = cpu_close,
    .hardware = cpu_hardware,
    .memory = cpu_memory,
    .memory_peak = cpu_memory_peak,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .clear = cpu_clear,
    .room = cpu_room,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_host_free,
    .upload = cpu_upload,
    .load = cpu_load,
    .loaded = cpu_loaded,
    .offload = cpu_download,
    .fetch = cpu_fetch,
    .offloaded = cpu_loaded,
    .fetched = cpu_loaded,
    .keep_pace = cpu_keep_pace,
    .download = cpu_download,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .gemm = cpu_gemm,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .silu_mul = cpu_silu_mul,
    .score = cpu_score,
    .gemm_back = cpu_gemm_back,
    .rmsnorm_back = cpu_rmsnorm_back,
    .attention_back = cpu_attention_back,
    .silu_mul_back = cpu_silu_mul_back,
    .sample_labels = cpu_sample_labels,
    .score_back = cpu_score_back,
    .fisher = cpu_fisher,
    .row_norms = cpu_row_norms,
    .kl_back = cpu_kl_back,
    .scale_back = cpu_scale_back,
    .adam = cpu_adam,
    .gram = cpu_gram,
    .gram_finish = cpu_gram_finish,
    .combine = cpu_combine,
    .scale = cpu_scale,
    .column_share = cpu_column_share,
    .factor = cpu_factor,
    .quantize = cpu_quantize,
    .dequantize = cpu_dequantize,
    .error = cpu_error,
    .scaled_error = cpu_scaled_error,
    .perturb = cpu_perturb,
    .kfac = cpu_kfac,
};
