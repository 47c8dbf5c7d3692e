#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

/* Memory given back stays with the process: the walk takes and gives the same sizes over and over. */
static enum rc keep_freed_memory(const struct backend_state *state, struct err *e) {
    cudaMemPool_t pool;
    uint64_t everything = UINT64_MAX;
    CUDA_TRY(cudaDeviceGetDefaultMemPool(&pool, state->device));
    CUDA_TRY(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &everything));
    return RC_OK;
}

static enum rc cuda_count(int *count, struct err *e) {
    *count = 0;
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaSuccess) return RC_OK;
    return err_set(e, RC_NOT_FOUND, "no GPU can be used: %s (%s); check nvidia-smi, or choose --device cpu",
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

/* The code for one compute capability runs on later ones, but on none before it. */
static enum rc check_capability(int device, const struct cudaDeviceProp *card, struct err *e) {
    static const int built_for[] = {__CUDA_ARCH_LIST__}; /* 800: 8.0 */
    int oldest = built_for[0], capability = 100 * card->major + 10 * card->minor;
    for (size_t i = 0; i < sizeof built_for / sizeof *built_for; i++)
        if (built_for[i] < oldest) oldest = built_for[i];
    if (capability >= oldest) return RC_OK;
    return err_set(e, RC_UNSUPPORTED,
                   "cuda:%d, %.100s, has compute capability %d.%d, and this build needs %d.%d or later: build with "
                   "CUDA_ARCHS=%d%d",
                   device, card->name, card->major, card->minor, oldest / 100, oldest / 10 % 10, card->major,
                   card->minor);
}

static enum rc find_card(int device, struct cudaDeviceProp *card, struct err *e) {
    int count;
    TRY(cuda_count(&count, e));
    if (device < 0 || device >= count)
        return err_set(e, RC_NOT_FOUND, "there is no cuda:%d: this machine has %d GPU%s", device, count,
                       count == 1 ? "" : "s");
    CUDA_TRY(cudaGetDeviceProperties(card, device));
    return check_capability(device, card, e);
}

static void describe_card(const struct cudaDeviceProp *card, char *text, size_t capacity) {
    snprintf(text, capacity, "%.100s, compute capability %d.%d", card->name, card->major, card->minor);
}

static enum rc cuda_describe(int device, struct device_description *out, struct err *e) {
    struct cudaDeviceProp card;
    TRY(find_card(device, &card, e));
    describe_card(&card, out->hardware, sizeof out->hardware);
    out->memory = (int64_t)card.totalGlobalMem;
    return RC_OK;
}

static enum rc open_copies(struct copies *c, struct err *e) {
    CUDA_TRY(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    for (cudaEvent_t *event : {&c->may_begin, &c->offloaded, &c->fetched})
        CUDA_TRY(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    return RC_OK;
}

static void close_copies(struct copies *c) {
    for (cudaEvent_t event : {c->may_begin, c->offloaded, c->fetched})
        if (event) cudaEventDestroy(event);
    if (c->stream) {
        cudaStreamSynchronize(c->stream);
        cudaStreamDestroy(c->stream);
    }
}

static enum rc set_up(struct backend_state *state, const struct backend_options *options, struct err *e) {
    struct cudaDeviceProp card;
    state->device = options->device;
    state->limit = options->memory_limit;
    TRY(find_card(options->device, &card, e));
    CUDA_TRY(cudaSetDevice(options->device));
    describe_card(&card, state->hardware, sizeof state->hardware);
    TRY(keep_freed_memory(state, e));
    CUDA_TRY(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking));
    TRY(open_copies(&state->copies, e));
    for (int i = 0; i < 2; i++)
        CUDA_TRY(cudaEventCreateWithFlags(&state->paces[i], cudaEventDisableTiming | cudaEventBlockingSync));
    CUBLAS_TRY(cublasCreate(&state->blas));
    CUBLAS_TRY(cublasLtCreate(&state->lt));
    CUBLAS_TRY(cublasSetStream(state->blas, state->stream));
    TRY(cuda_alloc(state, cuda_blas_workspace_bytes, &state->blas_workspace, e));
    CUBLAS_TRY(cublasSetWorkspace(state->blas, state->blas_workspace, cuda_blas_workspace_bytes));
    return RC_OK;
}

enum rc cuda_attach(struct backend_state *state, struct err *e) {
    CUDA_TRY(cudaSetDevice(state->device));
    return RC_OK;
}

static void cuda_close(struct backend_state *state) {
    if (state == NULL) return;
    cudaSetDevice(state->device);
    cuda_load_end(state);
    close_copies(&state->copies);
    cuda_collective_close(state);
    cuda_gemm_forget(state);
    cuda_cudnn_close(state);
    cuda_solver_close(state);
    if (state->blas) cublasDestroy(state->blas);
    if (state->lt) cublasLtDestroy(state->lt);
    cuda_free(state, state->blas_workspace);
    cuda_free(state, state->scratch.memory);
    cuda_free(state, state->converted.memory);
    cudaFreeHost(state->staging.memory);
    for (int i = 0; i < 2; i++)
        if (state->paces[i]) cudaEventDestroy(state->paces[i]);
    if (state->stream) {
        cudaStreamSynchronize(state->stream);
        cudaStreamDestroy(state->stream);
    }
    free(state->blocks);
    free(state);
}

static enum rc open_in(enum dtype activation, const struct backend_options *options, struct backend_state **out,
                       struct err *e) {
    *out = NULL;
    struct backend_state *state = (struct backend_state *)calloc(1, sizeof *state);
    if (state == NULL) return err_set(e, RC_NO_MEMORY, "no memory to open the cuda backend");
    state->activation = activation;
    enum rc rc = set_up(state, options, e);
    if (rc == RC_OK)
        *out = state;
    else
        cuda_close(state);
    return rc;
}

static enum rc open_fp32(const struct backend_options *options, struct backend_state **out, struct err *e) {
    return open_in(DTYPE_F32, options, out, e);
}

static enum rc open_bf16(const struct backend_options *options, struct backend_state **out, struct err *e) {
    return open_in(DTYPE_BF16, options, out, e);
}

static const char *cuda_hardware(struct backend_state *state) {
    return state->hardware;
}

static int64_t cuda_memory(struct backend_state *state) {
    (void)state;
    size_t available = 0, total = 0;
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? (int64_t)total : 0;
}

static int64_t cuda_memory_peak(struct backend_state *state) {
    return state->peak;
}

/* What does not depend on the precision. */
#define OPERATIONS(open_)                                                                                              \
    .count = cuda_count, .describe = cuda_describe, .open = open_, .attach = cuda_attach, .close = cuda_close,         \
    .hardware = cuda_hardware, .memory = cuda_memory, .memory_peak = cuda_memory_peak, .room = cuda_room,              \
    .alloc = cuda_alloc, .free = cuda_free, .clear = cuda_clear, .host_alloc = cuda_host_alloc,                        \
    .host_free = cuda_host_free, .upload = cuda_upload, .load = cuda_load, .loaded = cuda_loaded,                      \
    .download = cuda_download, .offload = cuda_offload, .fetch = cuda_fetch, .offloaded = cuda_offloaded,              \
    .fetched = cuda_fetched, .keep_pace = cuda_keep_pace, .embed = cuda_embed, .rmsnorm = cuda_rmsnorm,                \
    .gemm = cuda_gemm, .rope = cuda_rope, .attention = cuda_attention, .silu_mul = cuda_silu_mul, .score = cuda_score, \
    .gram = cuda_gram, .gram_finish = cuda_gram_finish, .combine = cuda_combine, .scale = cuda_scale,                  \
    .column_share = cuda_column_share, .factor = cuda_factor, .quantize = cuda_quantize,                               \
    .dequantize = cuda_dequantize, .error = cuda_error, .scaled_error = cuda_scaled_error, .perturb = cuda_perturb,    \
    .kfac = cuda_kfac

/* … and goes backwards. */
#define BACKWARDS                                                                                                      \
    .gemm_back = cuda_gemm_back, .rmsnorm_back = cuda_rmsnorm_back, .attention_back = cuda_attention_back,             \
    .silu_mul_back = cuda_silu_mul_back, .sample_labels = cuda_sample_labels, .score_back = cuda_score_back,           \
    .fisher = cuda_fisher, .row_norms = cuda_row_norms, .kl_back = cuda_kl_back, .scale_back = cuda_scale_back,        \
    .adam = cuda_adam

extern "C" {
extern const char backend_cuda_interface[]; /* as it was built: load.c compares */
const char backend_cuda_interface[] = HSAQ_INTERFACE;
extern const struct backend backend_cuda_fp32, backend_cuda_bf16; /* C++ would keep constants to this file */
const struct backend backend_cuda_fp32 = {
    .name = "cuda",
    .arithmetic = "cuda/fp32",
    .activation = DTYPE_F32,
    .weights_as_stored = false,
    .gram_type = DTYPE_F64,
    .own_memory = true,
    .loads_ahead = true,
    .chunk_tokens = 8192,
    .batch_tokens = 131072,
    OPERATIONS(open_fp32),
    BACKWARDS,
};
const struct backend backend_cuda_bf16 = {
    .name = "cuda",
    .arithmetic = "cuda/bf16",
    .activation = DTYPE_BF16,
    .weights_as_stored = true,
    .gram_type = DTYPE_F32,
    .own_memory = true,
    .loads_ahead = true,
    .chunk_tokens = 8192,
    .batch_tokens = 131072,
    OPERATIONS(open_bf16),
    BACKWARDS,
};
}
