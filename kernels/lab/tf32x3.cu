/* Question: would three products on the tensor cores in TF32 make a better --precision fp32 than SGEMM?
 *
 *     build/kernels/lab/tf32x3 [N]
 *
 * x = high + low, both TF32 (11 bits of mantissa each, rounded to nearest); x·w ≈ low·high + high·low + high·high,
 * added up in fp32, the small ones first. Beside SGEMM, one TF32 product, and cuBLAS's own emulation (nine products of
 * bf16), where it has one for this card. C = A · Bᵀ of normal values, [4096, 4096] each, as a Linear multiplies.
 *
 * Errors are against fp64: the largest, relative to the sum of magnitudes behind each value, |A|·|B|ᵀ, which tests/ops
 * bounds at 5e-7 for fp32; the largest, relative to the deviation of C; and that of all of C (Frobenius). Tensor cores
 * do not round their sums to nearest, so the error grows with K: the second table cuts K into parts that are added up
 * in fp32 outside of them. Times are medians; the split of both sides is in the time, and shown alone.
 *
 * measured (H100, 4096³): SGEMM 49.5 TFLOP/s at 3.8e-7 of |A|·|B|; three TF32 products 115 at 1.7e-6, in four parts of
 * K 80 at 3.8e-7, in eight 64 at 1.9e-7; one TF32 product 386 at 4.0e-5; cuBLAS's nine bf16 products are SGEMM. So fp32
 * could be 1.6 times as fast at the same error, and is not worth a second path: it is there to check bf16 with. */
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <cublas_v2.h>
#include <cuda_runtime.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) {                                                                                   \
            fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error_));                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define CHECK_BLAS(call)                                                                                               \
    do {                                                                                                               \
        cublasStatus_t status_ = (call);                                                                               \
        if (status_ != CUBLAS_STATUS_SUCCESS) {                                                                        \
            fprintf(stderr, "%s: %s\n", #call, cublasGetStatusName(status_));                                          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static const int BLOCK = 256, REPEATS = 11;

struct lab {
    int n; /* all sides */
    size_t count;
    cublasHandle_t blas;
    float *a, *b, *c, *a_high, *a_low, *b_high, *b_low;
    double *exact, *magnitude; /* A · Bᵀ, |A| · |B|ᵀ */
};

template <typename T> static T *device_values(size_t count) {
    T *out;
    CHECK(cudaMalloc(&out, count * sizeof(T)));
    return out;
}

static unsigned blocks_for(size_t count) {
    return (unsigned)((count + BLOCK - 1) / BLOCK);
}

/* --- what is multiplied --- */

static __device__ unsigned long long mix(unsigned long long x) { /* splitmix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static __global__ void fill_normal(float *out, size_t count, unsigned long long seed) {
    size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= count) return;
    unsigned long long bits = mix(seed + i * 0x9e3779b97f4a7c15ull);
    double u = ((bits >> 32) + 0.5) * 0x1p-32, v = ((bits & 0xffffffffu) + 0.5) * 0x1p-32;
    out[i] = (float)(sqrt(-2 * log(u)) * cospi(2 * v));
}

static __global__ void widen(const float *in, double *out, size_t count, bool magnitude) {
    size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) out[i] = magnitude ? fabs((double)in[i]) : in[i];
}

static void multiply_exactly(struct lab *l, double *out, bool magnitude) {
    const double one = 1, zero = 0;
    double *a = device_values<double>(l->count), *b = device_values<double>(l->count);
    widen<<<blocks_for(l->count), BLOCK>>>(l->a, a, l->count, magnitude);
    widen<<<blocks_for(l->count), BLOCK>>>(l->b, b, l->count, magnitude);
    CHECK_BLAS(
        cublasDgemm(l->blas, CUBLAS_OP_T, CUBLAS_OP_N, l->n, l->n, l->n, &one, b, l->n, a, l->n, &zero, out, l->n));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(a));
    CHECK(cudaFree(b));
}

/* --- the products --- */

/* Rounded to nearest, ties away from zero. */
static __device__ float to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

static __global__ void split(const float *in, float *high, float *low, size_t count) {
    size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= count) return;
    high[i] = to_tf32(in[i]);
    low[i] = to_tf32(in[i] - high[i]);
}

/* c = beta · c + a · bᵀ over channels [from, from + count). */
static cublasStatus_t multiply(struct lab *l, const float *a, const float *b, int from, int count, float beta,
                               cublasComputeType_t compute) {
    const float one = 1;
    return cublasGemmEx(l->blas, CUBLAS_OP_T, CUBLAS_OP_N, l->n, l->n, count, &one, b + from, CUDA_R_32F, l->n,
                        a + from, CUDA_R_32F, l->n, &beta, l->c, CUDA_R_32F, l->n, compute, CUBLAS_GEMM_DEFAULT);
}

static void split_both(struct lab *l) {
    split<<<blocks_for(l->count), BLOCK>>>(l->a, l->a_high, l->a_low, l->count);
    split<<<blocks_for(l->count), BLOCK>>>(l->b, l->b_high, l->b_low, l->count);
}

static cublasStatus_t sgemm(struct lab *l, int) {
    return multiply(l, l->a, l->b, 0, l->n, 0, CUBLAS_COMPUTE_32F);
}

static cublasStatus_t one_tf32(struct lab *l, int) {
    return multiply(l, l->a, l->b, 0, l->n, 0, CUBLAS_COMPUTE_32F_FAST_TF32);
}

static cublasStatus_t split_alone(struct lab *l, int) {
    split_both(l);
    return CUBLAS_STATUS_SUCCESS;
}

/* In `parts` of K. */
static cublasStatus_t three_tf32(struct lab *l, int parts) {
    const cublasComputeType_t compute = CUBLAS_COMPUTE_32F_FAST_TF32;
    int part = l->n / parts;
    split_both(l);
    for (int from = 0; from < l->n; from += part) {
        cublasStatus_t status = multiply(l, l->a_low, l->b_high, from, part, from > 0, compute);
        if (status == CUBLAS_STATUS_SUCCESS) status = multiply(l, l->a_high, l->b_low, from, part, 1, compute);
        if (status == CUBLAS_STATUS_SUCCESS) status = multiply(l, l->a_high, l->b_high, from, part, 1, compute);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
    }
    return CUBLAS_STATUS_SUCCESS;
}

#if CUBLAS_VERSION >= 120900
static cublasStatus_t emulated(struct lab *l, int) {
    return multiply(l, l->a, l->b, 0, l->n, 0, CUBLAS_COMPUTE_32F_EMULATED_16BFX9);
}
#endif

/* --- measuring --- */

struct errors {
    double to_magnitude, to_deviation, frobenius;
};

static struct errors compare(const struct lab *l) {
    float *c = (float *)malloc(l->count * sizeof *c);
    double *exact = (double *)malloc(l->count * sizeof *exact), *magnitude = (double *)malloc(l->count * sizeof *exact);
    CHECK(cudaMemcpy(c, l->c, l->count * sizeof *c, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(exact, l->exact, l->count * sizeof *exact, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(magnitude, l->magnitude, l->count * sizeof *exact, cudaMemcpyDeviceToHost));
    double squares = 0, error_squares = 0, largest = 0, to_magnitude = 0;
    for (size_t i = 0; i < l->count; i++) {
        double error = fabs(c[i] - exact[i]);
        squares += exact[i] * exact[i];
        error_squares += error * error;
        largest = fmax(largest, error);
        to_magnitude = fmax(to_magnitude, error / magnitude[i]);
    }
    free(c);
    free(exact);
    free(magnitude);
    return {to_magnitude, largest / sqrt(squares / (double)l->count), sqrt(error_squares / squares)};
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

typedef cublasStatus_t way(struct lab *l, int parts);

static float median_ms(struct lab *l, way *multiply_so, int parts) {
    float ms[REPEATS];
    cudaEvent_t before, after;
    CHECK(cudaEventCreate(&before));
    CHECK(cudaEventCreate(&after));
    for (int i = 0; i < REPEATS; i++) {
        CHECK(cudaEventRecord(before));
        CHECK_BLAS(multiply_so(l, parts));
        CHECK(cudaEventRecord(after));
        CHECK(cudaEventSynchronize(after));
        CHECK(cudaEventElapsedTime(&ms[i], before, after));
    }
    CHECK(cudaEventDestroy(before));
    CHECK(cudaEventDestroy(after));
    qsort(ms, REPEATS, sizeof *ms, by_value);
    return ms[REPEATS / 2];
}

static void measure(struct lab *l, const char *name, way *multiply_so, int parts) {
    CHECK(cudaMemset(l->c, 0, l->count * sizeof *l->c));
    cublasStatus_t status = multiply_so(l, parts);
    if (status != CUBLAS_STATUS_SUCCESS) {
        printf("%-26s %s\n", name, cublasGetStatusName(status));
        return;
    }
    CHECK(cudaDeviceSynchronize());
    struct errors e = compare(l);
    float ms = median_ms(l, multiply_so, parts);
    printf("%-26s %8.3f %8.1f %12.2e %12.2e %12.2e\n", name, ms, 2e-9 * l->n * l->n * l->n / ms, e.to_magnitude,
           e.to_deviation, e.frobenius);
}

static struct lab open_lab(int n) {
    struct lab l = {};
    l.n = n;
    l.count = (size_t)n * (size_t)n;
    CHECK_BLAS(cublasCreate(&l.blas));
    for (float **values : {&l.a, &l.b, &l.c, &l.a_high, &l.a_low, &l.b_high, &l.b_low})
        *values = device_values<float>(l.count);
    l.exact = device_values<double>(l.count);
    l.magnitude = device_values<double>(l.count);
    fill_normal<<<blocks_for(l.count), BLOCK>>>(l.a, l.count, 1);
    fill_normal<<<blocks_for(l.count), BLOCK>>>(l.b, l.count, 1ull << 40);
    multiply_exactly(&l, l.exact, false);
    multiply_exactly(&l, l.magnitude, true);
    return l;
}

int main(int argc, char **argv) {
    struct cudaDeviceProp card;
    struct lab l = open_lab(argc > 1 ? (int)strtol(argv[1], NULL, 10) : 4096);
    CHECK(cudaGetDeviceProperties(&card, 0));
    printf("%s, [%d, %d] · [%d, %d]ᵀ\n\n", card.name, l.n, l.n, l.n, l.n);
    printf("%-26s %8s %8s %12s %12s %12s\n", "", "ms", "TFLOP/s", "to |A|·|B|", "to deviation", "Frobenius");
    measure(&l, "SGEMM", sgemm, 1);
    measure(&l, "one TF32 product", one_tf32, 1);
    measure(&l, "three TF32 products", three_tf32, 1);
#if CUBLAS_VERSION >= 120900
    measure(&l, "nine bf16 products, cuBLAS", emulated, 1);
#endif
    printf("%-26s %8.3f\n\nthree TF32 products, K in parts\n", "the split alone", median_ms(&l, split_alone, 1));
    for (int parts = 2; parts <= 16 && l.n % parts == 0; parts *= 2) {
        char name[32];
        snprintf(name, sizeof name, "%d parts of %d", parts, l.n / parts);
        measure(&l, name, three_tf32, parts);
    }
    return 0;
}
