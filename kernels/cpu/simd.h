/* Loops that choose their instruction set at run time, and the exponential they share.
 *
 * A function marked SIMD is compiled for AVX-512, AVX2 and plain x86-64; the loader picks one. Contraction to fused
 * multiply-add is off (Makefile), so all three give the same bits. Reductions keep LANES partial results side by side
 * for the same reason: the order of additions is ours, not the compiler's. */
#ifndef HSAQ_KERNELS_CPU_SIMD_H
#define HSAQ_KERNELS_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HSAQ_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HSAQ_SANITIZED
#endif

/* The loader runs the choosing code before a sanitizer is ready for it. */
#if defined(__x86_64__) && defined(__linux__) && !defined(HSAQ_SANITIZED)
#define SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIMD
#endif

enum { LANES = 16 };

/* Σ lane, pair by pair: what lanes that exchange their sums on a GPU get. */
static inline float add_lanes_f32(float *lane) {
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}
static inline double add_lanes_f64(double *lane) {
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}

/* e^x = 2^exponent · (1 + the result), |x| < 2^20: Cody–Waite reduction to |r| <= ln2/2, then the degree-6 minimax
 * polynomial of Cephes. */
static inline float exp_reduced(float x, int32_t *exponent) {
    const float magic = 0x1.8p23f; /* adding it rounds to the nearest integer */
    float shifted = x * 1.44269504f + magic, n = shifted - magic;
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    uint32_t bits, magic_bits;
    memcpy(&bits, &shifted, sizeof bits);
    memcpy(&magic_bits, &magic, sizeof magic_bits);
    *exponent = (int32_t)(bits - magic_bits);
    return p * (r * r) + r;
}

/* e^x to 2 ulp, 0 below −104, Inf above 89, NaN for NaN. The power of two goes in as two factors so that subnormal
 * results come out right. */
static inline float exp_f32(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    int32_t exponent;
    float p = exp_reduced(x, &exponent) + 1.0f;
    int32_t half = exponent >> 1;
    uint32_t low_bits = (uint32_t)(half + 127) << 23, high_bits = (uint32_t)(exponent - half + 127) << 23;
    float low, high;
    memcpy(&low, &low_bits, sizeof low);
    memcpy(&high, &high_bits, sizeof high);
    return p * low * high;
}

/* e^x − 1 for x <= 0, to 2 ulp: keeps its digits where e^x is nearly 1. −1 below −80, NaN for NaN. */
static inline float expm1_f32(float x) {
    x = x < -80.0f ? -80.0f : x;
    int32_t exponent;
    float p = exp_reduced(x, &exponent), power;
    uint32_t bits = (uint32_t)(exponent + 127) << 23;
    memcpy(&power, &bits, sizeof power);
    return p * power + (power - 1.0f);
}

#endif
