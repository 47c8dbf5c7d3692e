/* What the CUDA operations share: the open device, its memory, and how a failed call becomes an error.
 *
 * Everything runs on one stream in the order called, but for loads, and copies to and from pinned memory (offload,
 * fetch); the host waits in download, and where a result goes back to it.
 * Twins of kernels/cpu/<op>.c, in the same order, so that a pair can be read side by side. */
#ifndef HSAQ_KERNELS_CUDA_CUDA_H
#define HSAQ_KERNELS_CUDA_CUDA_H

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>

extern "C" {
#include "kernels/backend.h"
#include "kernels/check.h"
}

struct block { /* of device memory that the backend's user holds */
    void *memory;
    size_t bytes;
};

struct buffer { /* grows, never shrinks */
    void *memory;
    size_t bytes;
};

struct copies { /* beside the operations, in the order asked for */
    cudaStream_t stream;
    cudaEvent_t may_begin, offloaded, fetched; /* operations asked for before; the last of each kind is done */
};

static const size_t cuda_blas_workspace_bytes = 64 << 20;

struct gemm_plans;
struct loader;
struct cudnn;
struct collective;
struct solver;

struct backend_state {
    int device;
    int64_t limit, held, peak; /* bytes; limit 0: none but the card's */
    struct block *blocks;      /* [block_count] in no order */
    size_t block_count, block_room;
    cudaStream_t stream;
    struct copies copies;
    enum dtype activation;
    cublasHandle_t blas;
    cublasLtHandle_t lt;
    void *blas_workspace;
    struct gemm_plans *gemm_plans;    /* gemm_bf16.cu */
    struct loader *loader;            /* load.cu; NULL before the first load */
    struct cudnn *cudnn;              /* attention_cudnn.cu; NULL before the first attention */
    struct collective *collective;    /* combine.cu; NULL before the first sum over devices */
    struct solver *solver;            /* factor.cu; NULL before the first factor */
    struct buffer scratch, converted; /* device memory, counts against the limit */
    struct buffer staging;            /* pinned host memory */
    cudaEvent_t paces[2];             /* the last two calls of keep_pace */
    unsigned pace;
    char hardware[160];
};

/* RC_NO_MEMORY, or RC_UNAVAILABLE: the device has failed, and only a new process can use it again. */
enum rc cuda_failure(cudaError_t error, const char *call, struct err *e);
enum rc cublas_failure(cublasStatus_t status, const char *call, struct err *e);

#define CUDA_TRY(call)                                                                                                 \
    do {                                                                                                               \
        cudaError_t cuda_try_ = (call);                                                                                \
        if (cuda_try_ != cudaSuccess) return cuda_failure(cuda_try_, #call, e);                                        \
    } while (0)
#define CUBLAS_TRY(call)                                                                                               \
    do {                                                                                                               \
        cublasStatus_t cublas_try_ = (call);                                                                           \
        if (cublas_try_ != CUBLAS_STATUS_SUCCESS) return cublas_failure(cublas_try_, #call, e);                        \
    } while (0)
/* After a launch: what the launch itself refused. What a kernel did wrong shows at the next wait. */
#define LAUNCHED() CUDA_TRY(cudaGetLastError())

/* backend.cu */
enum rc cuda_attach(struct backend_state *state, struct err *e);

/* memory.cu */
enum rc cuda_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e);
void cuda_free(struct backend_state *state, void *memory);
enum rc cuda_clear(struct backend_state *state, void *memory, size_t bytes, struct err *e);
enum rc cuda_upload(struct backend_state *state, const void *host, enum dtype type, int64_t count, float *out,
                    struct err *e);
enum rc cuda_host_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e);
void cuda_host_free(struct backend_state *state, void *memory);
enum rc cuda_offload(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e);
enum rc cuda_fetch(struct backend_state *state, const void *host, size_t bytes, void *device, struct err *e);
enum rc cuda_offloaded(struct backend_state *state, struct err *e);
enum rc cuda_fetched(struct backend_state *state, struct err *e);
/* One value of a matrix of any float type → host. */
enum rc cuda_read_value(struct backend_state *state, const struct mat *m, int64_t row, int64_t col, float *value,
                        struct err *e);
enum rc cuda_download(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e);
/* Workspace of at least `bytes` (256-byte aligned), valid until the next call. */
enum rc cuda_scratch(struct backend_state *state, size_t bytes, void **memory, struct err *e);
/* A dense matrix of any float type as bf16, valid until the next call. */
enum rc cuda_converted(struct backend_state *state, const struct mat *m, struct mat *out, struct err *e);
enum rc cuda_keep_pace(struct backend_state *state, struct err *e);
int64_t cuda_room(struct backend_state *state);
/* Pinned host memory of at least `bytes`, valid until the next call; the device no longer reads it. */
enum rc cuda_staging(struct backend_state *state, size_t bytes, void **memory, struct err *e);

/* load.cu: threads of their own bring tensors to the device while the operations' stream goes on. */
enum rc cuda_load(struct backend_state *state, const struct load_item *items, size_t count, struct err *e);
enum rc cuda_loaded(struct backend_state *state, struct err *e);
void cuda_load_end(struct backend_state *state);

/* gemm_bf16.cu, attention_cudnn.cu, flash.cu, flash_back.cu: the ways of bf16. */
enum rc cuda_gemm_bf16(struct backend_state *state, const struct gemm_args *a, struct err *e);
enum rc cuda_gemm_back_bf16(struct backend_state *state, const struct gemm_back_args *a, struct err *e);
void cuda_gemm_forget(struct backend_state *state); /* its plans */
/* `done`: whether cuDNN is there and took it. */
enum rc cuda_cudnn_attention(struct backend_state *state, const struct attention_args *a, bool *done, struct err *e);
void cuda_cudnn_close(struct backend_state *state);
enum rc cuda_flash_attention(struct backend_state *state, const struct attention_args *a, struct err *e);
enum rc cuda_flash_attention_back(struct backend_state *state, const struct attention_back_args *b, struct err *e);

/* gemm.cu: out [M, N] = aᵀ·b + beta · out over the rows of a [T, M] and b [T, N], both bf16 or both fp32, and out is
 * fp32, as the sums are; or all fp64. T, M and N are not 0. */
struct outer_args {
    struct mat a, b;
    float beta;
    struct mat out;
};
enum rc cuda_outer(struct backend_state *state, const struct outer_args *a, struct err *e);

/* wide.cu: products in H's type, which a trace is taken of: fp64, as where an output is small because its terms cancel
 * fp32 products would leave few digits of it; or fp32 by TF32. All row-major. */
enum rc cuda_wide_product(struct backend_state *state, const struct mat *a, const struct mat *b, double alpha,
                          double beta, struct mat *out, struct err *e);
/* out [R, K] = rows [R, K] · H′ with x H′ xᵀ = x H xᵀ for every x. */
enum rc cuda_times_gram(struct backend_state *state, const struct mat *rows, const struct mat *h, struct mat *out,
                        struct err *e);

/* gptq.cu: quantize by GPTQ; what was asked for is checked. More than one: all two-sided. */
enum rc cuda_gptq(struct backend_state *state, const struct quantize_args *a, int count, struct err *e);
/* What else goes through the columns needs of what GPTQ has in hand. */
struct gptq_columns {
    float *error;         /* [N, K] workspace */
    float *slope;         /* [N, STEPS_MAX] workspace */
    const int32_t *order; /* [K] the column of each step */
    const int32_t *group; /* [K] its group */
    const uint8_t *dead;  /* [K] by column */
};
/* descend.cu: GPTQ's codes gone through again. */
enum rc cuda_descend(struct backend_state *state, const struct quantize_args *a, const struct gptq_columns *c,
                     struct err *e);
/* gptq_rows.cu: two-sided, side by side; all groups are fitted. */
struct gptq_rows_args {
    const struct quantize_args *a;
    struct gptq_columns c;
};
enum rc cuda_gptq_rows(struct backend_state *state, const struct gptq_rows_args *all, int count, struct err *e);
/* quantize.cu: the weight at index n·K + k is no number: RC_INVALID, naming it. */
enum rc cuda_refuse_weight(struct backend_state *state, const struct mat *w, unsigned long long bad, struct err *e);
/* range.cu, fp8.cu: parts of cuda_quantize, and the grids of some groups' columns for GPTQ. */
enum rc cuda_fp8(struct backend_state *state, const struct quantize_args *a, struct err *e);
struct fit_columns_args {
    struct mat w;  /* [N, n] fp32: the columns of the groups, finite */
    int64_t group; /* columns */
    const struct candidate *candidate;
    const float *weight; /* [n] device memory, for RANGE_WEIGHTED; else NULL */
    float *scale, *zero; /* device memory: those of row r begin at [r·stride] */
    int64_t stride;
};
enum rc cuda_fit_columns(struct backend_state *state, const struct fit_columns_args *a, struct err *e);

/* One file each. */
enum rc cuda_embed(struct backend_state *state, const struct embed_args *a, struct err *e);
enum rc cuda_rmsnorm(struct backend_state *state, const struct rmsnorm_args *a, struct err *e);
enum rc cuda_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e);
enum rc cuda_rope(struct backend_state *state, const struct rope_args *a, struct err *e);
enum rc cuda_attention(struct backend_state *state, const struct attention_args *a, struct err *e);
enum rc cuda_silu_mul(struct backend_state *state, const struct silu_mul_args *a, struct err *e);
enum rc cuda_score(struct backend_state *state, const struct score_args *a, struct err *e);
enum rc cuda_gemm_back(struct backend_state *state, const struct gemm_back_args *a, struct err *e);
enum rc cuda_rmsnorm_back(struct backend_state *state, const struct rmsnorm_back_args *a, struct err *e);
enum rc cuda_attention_back(struct backend_state *state, const struct attention_back_args *b, struct err *e);
enum rc cuda_silu_mul_back(struct backend_state *state, const struct silu_mul_back_args *a, struct err *e);
enum rc cuda_sample_labels(struct backend_state *state, const struct sample_labels_args *a, struct err *e);
enum rc cuda_score_back(struct backend_state *state, const struct score_back_args *a, struct err *e);
enum rc cuda_fisher(struct backend_state *state, const struct fisher_args *a, struct err *e);
enum rc cuda_row_norms(struct backend_state *state, const struct row_norms_args *a, struct err *e);
enum rc cuda_kl_back(struct backend_state *state, const struct kl_back_args *a, struct err *e);
enum rc cuda_scale_back(struct backend_state *state, const struct scale_back_args *a, struct err *e);
enum rc cuda_adam(struct backend_state *state, const struct adam_args *a, struct err *e);
enum rc cuda_gram(struct backend_state *state, const struct gram_args *a, struct err *e);
enum rc cuda_gram_finish(struct backend_state *state, struct mat h, struct err *e);
enum rc cuda_combine(const struct combine_args *a, struct err *e);
void cuda_collective_close(struct backend_state *state);
enum rc cuda_scale(struct backend_state *state, const struct scale_args *a, struct err *e);
enum rc cuda_column_share(struct backend_state *state, const struct column_share_args *a, struct err *e);
enum rc cuda_factor(struct backend_state *state, const struct factor_args *a, struct err *e);
void cuda_solver_close(struct backend_state *state);
enum rc cuda_quantize(struct backend_state *state, const struct quantize_args *a, int count, struct err *e);
enum rc cuda_dequantize(struct backend_state *state, const struct dequantize_args *a, struct err *e);
enum rc cuda_error(struct backend_state *state, const struct error_args *a, struct error_report *report, struct err *e);
enum rc cuda_scaled_error(struct backend_state *state, const struct scaled_error_args *a, struct err *e);
enum rc cuda_perturb(struct backend_state *state, const struct perturb_args *a, struct err *e);
enum rc cuda_kfac(struct backend_state *state, const struct kfac_args *a, struct kfac_report *report, struct err *e);

#endif
