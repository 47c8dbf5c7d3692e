#include <stdlib.h>

#include "kernels/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/formats.h"

enum { ALIGNMENT = 64 };

/* Stands before every block so that free knows what to give back. */
struct block {
    _Alignas(ALIGNMENT) size_t bytes;
};
_Static_assert(sizeof(struct block) == ALIGNMENT, "the block behind the header keeps its alignment");

static enum rc refuse(const struct backend_state *state, size_t bytes, struct err *e) {
    if (state->limit > 0)
        return err_set(e, RC_NO_MEMORY,
                       "needs %zu more bytes, holds %lld of the %lld that the memory limit allows; raise --ram-limit "
                       "(or --vram-limit on a GPU), or use shorter windows",
                       bytes, (long long)state->held, (long long)state->limit);
    return err_set(e, RC_NO_MEMORY,
                   "needs %zu more bytes, holds %lld, no limit set, and the machine has no more to give; end other "
                   "programs, or set --ram-limit so that state spills to disk in time",
                   bytes, (long long)state->held);
}

enum rc cpu_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    *memory = NULL;
    if (bytes > (size_t)INT64_MAX / 2) return refuse(state, bytes, e);
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (state->limit > 0 && (int64_t)rounded > state->limit - state->held) return refuse(state, bytes, e);
    struct block *block = aligned_alloc(ALIGNMENT, sizeof *block + rounded);
    if (block == NULL) return refuse(state, bytes, e);
    block->bytes = rounded;
    state->held += (int64_t)rounded;
    if (state->held > state->peak) state->peak = state->held;
    *memory = block + 1;
    return RC_OK;
}

void cpu_free(struct backend_state *state, void *memory) {
    if (memory == NULL) return;
    struct block *block = (struct block *)memory - 1;
    state->held -= (int64_t)block->bytes;
    free(block);
}

enum rc cpu_scratch(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    if (bytes > state->scratch_bytes) {
        cpu_free(state, state->scratch);
        state->scratch = NULL;
        state->scratch_bytes = 0;
        TRY(cpu_alloc(state, bytes, &state->scratch, e));
        state->scratch_bytes = bytes;
    }
    *memory = state->scratch;
    return RC_OK;
}

SIMD static void convert_bf16(const uint8_t *restrict host, int64_t count, float *restrict out) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, host + 2 * i, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* f16_to_f32 without branches: the exponent is rebased by a multiplication, which also normalises subnormals. */
SIMD static void convert_f16(const uint8_t *restrict host, int64_t count, float *restrict out) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, host + 2 * i, sizeof half);
        uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = (uint32_t)(half & 0x7fffu) << 13;
        uint32_t special = (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0;
        float value;
        memcpy(&value, &magnitude, sizeof value);
        value *= 0x1p112f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign | special;
        memcpy(out + i, &bits, sizeof bits);
    }
}

void cpu_convert(const void *host, enum dtype type, int64_t count, float *out) {
    if (count <= 0) return;
    if (type == DTYPE_BF16)
        convert_bf16(host, count, out);
    else if (type == DTYPE_F16)
        convert_f16(host, count, out);
    else
        memcpy(out, host, (size_t)count * sizeof *out);
}

static void load(struct backend_state *state, const struct load_item *item) {
    const int64_t chunk = 1 << 16;
#pragma omp parallel for num_threads(state->threads) if (item->count > 4 * chunk)
    for (int64_t at = 0; at < item->count; at += chunk)
        cpu_convert((const uint8_t *)item->host + (size_t)at * dtype_size(item->type), item->type,
                    item->count - at < chunk ? item->count - at : chunk, (float *)item->out + at);
    (void)state;
}

enum rc cpu_load(struct backend_state *state, const struct load_item *items, size_t count, struct err *e) {
    TRY(check_load(items, count, e));
    for (size_t i = 0; i < count; i++)
        if (items[i].out_type != DTYPE_F32) return err_set(e, RC_UNSUPPORTED, "load: the cpu computes in fp32");
    for (size_t i = 0; i < count; i++)
        load(state, &items[i]);
    return RC_OK;
}

enum rc cpu_upload(struct backend_state *state, const void *host, enum dtype type, int64_t count, float *out,
                   struct err *e) {
    struct load_item item = {host, type, count, out, DTYPE_F32};
    return cpu_load(state, &item, 1, e);
}

enum rc cpu_loaded(struct backend_state *state, struct err *e) {
    (void)state, (void)e;
    return RC_OK;
}

enum rc cpu_clear(struct backend_state *state, void *memory, size_t bytes, struct err *e) {
    (void)state;
    TRY(check_clear(memory, bytes, e));
    if (bytes > 0) memset(memory, 0, bytes);
    return RC_OK;
}

enum rc cpu_download(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e) {
    (void)state;
    TRY(check_download(device, bytes, host, e));
    if (bytes > 0) memcpy(host, device, bytes);
    return RC_OK;
}

enum rc cpu_fetch(struct backend_state *state, const void *host, size_t bytes, void *device, struct err *e) {
    const size_t piece = 1 << 18;
    TRY(check_download(host, bytes, device, e));
#pragma omp parallel for num_threads(state->threads) if (bytes > 4 * piece)
    for (size_t at = 0; at < bytes; at += piece)
        memcpy((char *)device + at, (const char *)host + at, bytes - at < piece ? bytes - at : piece);
    (void)state;
    return RC_OK;
}

enum rc cpu_host_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    (void)state;
    *memory = malloc(bytes > 0 ? bytes : 1);
    return *memory ? RC_OK : err_set(e, RC_NO_MEMORY, "the host has no %zu bytes left", bytes);
}

void cpu_host_free(struct backend_state *state, void *memory) {
    (void)state;
    free(memory);
}
