#include "kernels/cuda/device.cuh"

static __device__ float gaussian(uint64_t key, int64_t i) {
    uint64_t h = key + ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    h ^= h >> 31;
    float u = (float)((h >> 40) + 1) * 0x1p-24f, v = (float)(h >> 16 & 0xffffff) * 0x1p-24f;
    return sqrtf(-2 * logf(u)) * cospif(2 * v);
}

static __global__ void perturb(struct perturb_args a) {
    int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= a.w.cols) return;
    for (int64_t n = blockIdx.y; n < a.w.rows; n += gridDim.y) {
        float w = load_stored(a.w.data, a.w.type, n * a.w.stride + k);
        store_as(a.out.data, a.out.type, n * a.out.stride + k, w + a.deviation * gaussian(a.key, n * a.w.cols + k));
    }
}

enum rc cuda_perturb(struct backend_state *state, const struct perturb_args *a, struct err *e) {
    TRY(check_perturb(a, e));
    if (a->out.type == DTYPE_F16) return err_set(e, RC_UNSUPPORTED, "perturb: into fp32 or bf16");
    if (a->w.rows == 0 || a->w.cols == 0) return RC_OK;
    dim3 blocks(blocks_for(a->w.cols, BLOCK), grid_rows(a->w.rows));
    perturb<<<blocks, BLOCK, 0, state->stream>>>(*a);
    LAUNCHED();
    return RC_OK;
}
