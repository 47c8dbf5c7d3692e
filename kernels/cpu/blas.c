#include "kernels/cpu/blas.h"

#include <cblas.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

enum simd_level blas_simd_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return SIMD_NONE;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
               ? SIMD_AVX512
               : SIMD_AVX2;
#else
    return SIMD_NONE;
#endif
}

/* What OpenBLAS falls back to without AVX2, whatever the processor has. */
static bool is_fallback(const char *core) {
    static const char *const without_avx2[] = {"Prescott", "Core2",       "Penryn",  "Dunnington", "Nehalem",
                                               "Atom",     "Sandybridge", "Generic", "Unknown"};
    for (size_t i = 0; i < sizeof without_avx2 / sizeof *without_avx2; i++)
        if (strcasecmp(core, without_avx2[i]) == 0) return true;
    return false;
}

const char *blas_better_core(const char *chosen, enum simd_level level) {
    static const char *const best[] = {[SIMD_NONE] = NULL, [SIMD_AVX2] = "Haswell", [SIMD_AVX512] = "SkylakeX"};
    return is_fallback(chosen) ? best[level] : NULL;
}

void blas_insist_on_fast_core(char **argv) {
    if (getenv(BLAS_CORE_VARIABLE)) return;
    const char *core = blas_better_core(openblas_get_corename(), blas_simd_level());
    if (core && setenv(BLAS_CORE_VARIABLE, core, 1) == 0) execv("/proc/self/exe", argv);
}
