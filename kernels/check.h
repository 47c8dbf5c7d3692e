/* What every operation refuses before it touches memory, once for all backends: sizes that are negative, do not fit
 * together or exceed what BLAS can count, missing pointers, ids out of range. RC_INVALID or RC_UNSUPPORTED. */
#ifndef HSAQ_KERNELS_CHECK_H
#define HSAQ_KERNELS_CHECK_H

#include "kernels/backend.h"

/* Every matrix holds values of this type. */
#define CHECK_TYPE(type, e, ...)                                                                                       \
    check_type((type), (const struct mat[]){__VA_ARGS__},                                                              \
               sizeof((const struct mat[]){__VA_ARGS__}) / sizeof(struct mat), (e))
enum rc check_type(enum dtype type, const struct mat *matrices, size_t count, struct err *e);

enum rc check_load(const struct load_item *items, size_t count, struct err *e);
enum rc check_upload(const void *host, enum dtype type, int64_t count, const void *out, struct err *e);
enum rc check_clear(const void *memory, size_t bytes, struct err *e);
enum rc check_download(const void *device, size_t bytes, const void *host, struct err *e);
enum rc check_embed(const struct embed_args *a, struct err *e);
enum rc check_rmsnorm(const struct rmsnorm_args *a, struct err *e);
enum rc check_gemm(const struct gemm_args *a, struct err *e);
enum rc check_rope(const struct rope_args *a, struct err *e);
enum rc check_attention(const struct attention_args *a, struct err *e);
enum rc check_silu_mul(const struct silu_mul_args *a, struct err *e);
enum rc check_score(const struct score_args *a, struct err *e);
enum rc check_gemm_back(const struct gemm_back_args *a, struct err *e);
enum rc check_rmsnorm_back(const struct rmsnorm_back_args *a, struct err *e);
enum rc check_attention_back(const struct attention_back_args *a, struct err *e);
enum rc check_silu_mul_back(const struct silu_mul_back_args *a, struct err *e);
enum rc check_sample_labels(const struct sample_labels_args *a, struct err *e);
enum rc check_score_back(const struct score_back_args *a, struct err *e);
enum rc check_fisher(const struct fisher_args *a, struct err *e);
enum rc check_row_norms(const struct row_norms_args *a, struct err *e);
enum rc check_kl_back(const struct kl_back_args *a, struct err *e);
enum rc check_scale_back(const struct scale_back_args *a, struct err *e);
enum rc check_adam(const struct adam_args *a, struct err *e);
enum rc check_gram(const struct gram_args *a, struct err *e);
enum rc check_gram_finish(struct mat h, struct err *e);
enum rc check_combine(const struct combine_args *a, struct err *e);
enum rc check_scale(const struct scale_args *a, struct err *e);
enum rc check_column_share(const struct column_share_args *a, struct err *e);
enum rc check_factor(const struct factor_args *a, struct err *e);
/* Bits 2–8, group 0 or more, a method that quantizes. */
enum rc check_candidate(const struct candidate *c, struct err *e);
/* Buffers present, and rows, cols and groups as the candidate gives them. */
enum rc check_quantized(const struct quantized *q, struct err *e);
enum rc check_quantize(const struct quantize_args *a, struct err *e);
enum rc check_dequantize(const struct dequantize_args *a, struct err *e);
enum rc check_error(const struct error_args *a, struct err *e);
enum rc check_scaled_error(const struct scaled_error_args *a, struct err *e);
enum rc check_perturb(const struct perturb_args *a, struct err *e);
enum rc check_kfac(const struct kfac_args *a, struct err *e);

#endif
