/* Which of OpenBLAS's kernels this processor deserves.
 *
 * OpenBLAS recognizes processors by model number: one newer than the library gets kernels for a Pentium 4, four times
 * slower (Debian 12's 0.3.21 on Emerald Rapids). Its choice is made while the library loads and can be overruled by
 * an environment variable alone, so the program that wants speed sets it and executes itself again. */
#ifndef HSAQ_KERNELS_CPU_BLAS_H
#define HSAQ_KERNELS_CPU_BLAS_H

#define BLAS_CORE_VARIABLE "OPENBLAS_CORETYPE"

enum simd_level { SIMD_NONE, SIMD_AVX2, SIMD_AVX512 }; /* what the processor can do */
enum simd_level blas_simd_level(void);

/* A better value for the variable than `chosen`, OpenBLAS's name of its own choice; NULL when that one is fine. */
const char *blas_better_core(const char *chosen, enum simd_level level);

/* Call first thing in main, before anything is open: executes the program again with a better core when there is one.
 * Not when the user has set the variable; and when it fails, the slow kernels still compute. */
void blas_insist_on_fast_core(char **argv);

#endif
