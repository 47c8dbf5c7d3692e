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

static int available_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int cores = CPU_COUNT(&set);
    return cores > 0 ? cores : 1;
}

static void cpu_close(struct backend_state *state) {
    if (state == NULL) return;
    cpu_free(state, state->scratch);
    free(state);
}

static enum rc cpu_open(const struct backend_options *options, struct backend_state **out, struct err *e) {
    *out = NULL;
    if (options->device != 0) return err_set(e, RC_NOT_FOUND, "cpu:%d: there is one cpu device, cpu", options->device);
    if (options->threads < 0 || options->threads > THREADS_MAX || options->memory_limit < 0)
        return err_set(e, RC_INVALID, "%d threads and a limit of %lld bytes make no sense: threads lie in 0…%d",
                       options->threads, (long long)options->memory_limit, THREADS_MAX);
    struct backend_state *state = calloc(1, sizeof *state);
    if (state == NULL) return err_set(e, RC_NO_MEMORY, "no memory to open the cpu backend");
    state->threads = options->threads > 0 ? options->threads : available_cores();
#ifndef _OPENMP
    state->threads = 1;
#endif
    state->limit = options->memory_limit;
    openblas_set_num_threads(1);
    char name[49];
    processor_name(name);
    snprintf(state->hardware, sizeof state->hardware, "%s, %d thread%s, OpenBLAS for %s", name, state->threads,
             state->threads == 1 ? "" : "s", openblas_get_corename());
    *out = state;
    return RC_OK;
}

static const char *cpu_hardware(struct backend_state *state) {
    return state->hardware;
}

static int64_t cpu_memory(struct backend_state *state) {
    (void)state;
    return (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

static int64_t cpu_memory_peak(struct backend_state *state) {
    return state->peak;
}

const struct backend backend_cpu = {
    .name = "cpu",
    .arithmetic = "cpu/fp32",
    .open = cpu_open,
    .close = cpu_close,
    .hardware = cpu_hardware,
    .memory = cpu_memory,
    .memory_peak = cpu_memory_peak,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .clear = cpu_clear,
    .upload = cpu_upload,
    .download = cpu_download,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .gemm = cpu_gemm,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .silu_mul = cpu_silu_mul,
    .score = cpu_score,
    .gram = cpu_gram,
    .quantize = cpu_quantize,
    .dequantize = cpu_dequantize,
    .error = cpu_error,
};
