/* What the CPU operations share: the open device, its memory, and parallel tiles of single-threaded BLAS.
 *
 * OpenBLAS runs with one thread; parallelism is OpenMP over tiles whose results do not depend on who computes them.
 * Built without OpenMP the same code runs on one core. */
#ifndef HSAQ_KERNELS_CPU_CPU_H
#define HSAQ_KERNELS_CPU_CPU_H

#include <stddef.h>

#include "kernels/backend.h"

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) {
    return 0;
}
#endif

struct backend_state {
    int threads;
    int64_t limit, held, peak; /* bytes; limit 0: none */
    void *scratch;             /* counts against the limit; grows, never shrinks */
    size_t scratch_bytes;
    char hardware[160];
};

/* memory.c */
enum rc cpu_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e);
void cpu_free(struct backend_state *state, void *memory);
enum rc cpu_upload(struct backend_state *state, const void *host, enum dtype type, int64_t count, float *out,
                   struct err *e);
enum rc cpu_host_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e);
void cpu_host_free(struct backend_state *state, void *memory);
enum rc cpu_load(struct backend_state *state, const struct load_item *items, size_t count, struct err *e);
enum rc cpu_loaded(struct backend_state *state, struct err *e);
enum rc cpu_clear(struct backend_state *state, void *memory, size_t bytes, struct err *e);
enum rc cpu_download(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e);
enum rc cpu_fetch(struct backend_state *state, const void *host, size_t bytes, void *device, struct err *e);
/* Workspace of at least `bytes` (64-byte aligned), valid until the next call. */
enum rc cpu_scratch(struct backend_state *state, size_t bytes, void **memory, struct err *e);
/* `count` values of `type` (F32, F16 or BF16, any alignment) → fp32. */
void cpu_convert(const void *host, enum dtype type, int64_t count, float *out);

/* One file each. */
enum rc cpu_embed(struct backend_state *state, const struct embed_args *a, struct err *e);
enum rc cpu_rmsnorm(struct backend_state *state, const struct rmsnorm_args *a, struct err *e);
enum rc cpu_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e);
enum rc cpu_rope(struct backend_state *state, const struct rope_args *a, struct err *e);
enum rc cpu_attention(struct backend_state *state, const struct attention_args *a, struct err *e);
enum rc cpu_silu_mul(struct backend_state *state, const struct silu_mul_args *a, struct err *e);
enum rc cpu_score(struct backend_state *state, const struct score_args *a, struct err *e);
enum rc cpu_gemm_back(struct backend_state *state, const struct gemm_back_args *a, struct err *e);
enum rc cpu_rmsnorm_back(struct backend_state *state, const struct rmsnorm_back_args *a, struct err *e);
enum rc cpu_attention_back(struct backend_state *state, const struct attention_back_args *b, struct err *e);
enum rc cpu_silu_mul_back(struct backend_state *state, const struct silu_mul_back_args *a, struct err *e);
enum rc cpu_sample_labels(struct backend_state *state, const struct sample_labels_args *a, struct err *e);
enum rc cpu_score_back(struct backend_state *state, const struct score_back_args *a, struct err *e);
enum rc cpu_fisher(struct backend_state *state, const struct fisher_args *a, struct err *e);
enum rc cpu_row_norms(struct backend_state *state, const struct row_norms_args *a, struct err *e);
enum rc cpu_kl_back(struct backend_state *state, const struct kl_back_args *a, struct err *e);
enum rc cpu_scale_back(struct backend_state *state, const struct scale_back_args *a, struct err *e);
enum rc cpu_adam(struct backend_state *state, const struct adam_args *a, struct err *e);
enum rc cpu_gram(struct backend_state *state, const struct gram_args *a, struct err *e);
enum rc cpu_gram_finish(struct backend_state *state, struct mat h, struct err *e);
enum rc cpu_combine(const struct combine_args *a, struct err *e);
enum rc cpu_scale(struct backend_state *state, const struct scale_args *a, struct err *e);
enum rc cpu_column_share(struct backend_state *state, const struct column_share_args *a, struct err *e);
enum rc cpu_factor(struct backend_state *state, const struct factor_args *a, struct err *e);
enum rc cpu_quantize(struct backend_state *state, const struct quantize_args *a, int count, struct err *e);
/* … of which cpu_quantize checks the arguments. */
enum rc cpu_fp8(struct backend_state *state, const struct quantize_args *a, struct err *e);
enum rc cpu_gptq(struct backend_state *state, const struct quantize_args *a, struct err *e);
struct steps;
enum rc cpu_descend(struct backend_state *state, const struct quantize_args *a, const struct steps *steps,
                    struct err *e);
enum rc cpu_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e);
enum rc cpu_error(struct backend_state *state, const struct error_args *a, struct error_report *report, struct err *e);
enum rc cpu_scaled_error(struct backend_state *state, const struct scaled_error_args *a, struct err *e);
enum rc cpu_perturb(struct backend_state *state, const struct perturb_args *a, struct err *e);
enum rc cpu_kfac(struct backend_state *state, const struct kfac_args *a, struct kfac_report *report, struct err *e);

#endif
