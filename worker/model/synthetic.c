#include "worker/model/synthetic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/random.h"

static const float sigma = 0.02f;
enum { CHUNK = 1 << 16 };     /* values that one thread draws in a row */
enum { ALIGNMENT = 1 << 12 }; /* as a mapped file has it */

struct made {
    struct st_tensor tensor;
    void *memory; /* NULL when the bytes are another tensor's */
};

struct synthetic {
    uint64_t seed;
    struct made **made; /* [count] */
    int count, capacity;
};

struct synthetic *synthetic_new(uint64_t seed) {
    struct synthetic *s = xcalloc(1, sizeof *s);
    s->seed = seed;
    return s;
}

static void made_free(struct made *m) {
    free((char *)m->tensor.name);
    free(m->memory);
    free(m);
}

void synthetic_free(struct synthetic *s) {
    if (s == NULL) return;
    for (int i = 0; i < s->count; i++)
        made_free(s->made[i]);
    free(s->made);
    free(s);
}

char *synthetic_identity(const struct synthetic *s) {
    return xasprintf("synthetic %llu\n", (unsigned long long)s->seed);
}

/* --- names --- */

/* The part of "model.layers.N.rest" after N; NULL for other names. */
static const char *within_block(const char *name) {
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return NULL;
    return strchr(name + sizeof prefix - 1, '.');
}

static bool same_tensor(const char *a, const char *b) {
    const char *rest_a = within_block(a), *rest_b = within_block(b);
    return rest_a && rest_b ? strcmp(rest_a, rest_b) == 0 : strcmp(a, b) == 0;
}

const struct st_tensor *synthetic_find(const struct synthetic *s, const char *name) {
    for (int i = 0; i < s->count; i++)
        if (same_tensor(s->made[i]->tensor.name, name)) return &s->made[i]->tensor;
    return NULL;
}

/* --- values --- */

static uint16_t bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to nearest even; never NaN here */
}

/* The sum of four uniform numbers, scaled: normal enough for a quantizer's and a multiplier's work. */
static float near_normal(uint64_t bits) {
    const float mean = 2 * 65535.0f, deviation = 37837.2f; /* 65536 · sqrt(4 / 12) */
    uint32_t sum = 0;
    for (int shift = 0; shift < 64; shift += 16)
        sum += bits >> shift & 0xffff;
    return ((float)sum - mean) / deviation;
}

static void fill_normal(uint16_t *out, int64_t count, uint64_t seed) {
#pragma omp parallel for
    for (int64_t first = 0; first < count; first += CHUNK) {
        uint64_t chunk = (uint64_t)(first / CHUNK), state = seed + splitmix64(&chunk);
        int64_t end = first + CHUNK < count ? first + CHUNK : count;
        for (int64_t i = first; i < end; i++)
            out[i] = bf16(sigma * near_normal(splitmix64(&state)));
    }
}

static void fill_ones(uint16_t *out, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        out[i] = bf16(1);
}

static bool is_norm(const struct st_tensor *t) {
    static const char suffix[] = "norm.weight";
    size_t len = strlen(t->name);
    return len >= sizeof suffix - 1 && strcmp(t->name + len - (sizeof suffix - 1), suffix) == 0;
}

static enum rc fill(struct made *m, uint64_t seed, struct err *e) {
    struct st_tensor *t = &m->tensor;
    size_t bytes = ((size_t)t->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    m->memory = aligned_alloc(ALIGNMENT, bytes);
    if (m->memory == NULL)
        return err_set(e, RC_NO_MEMORY, "no memory for the %lld bytes of %s", (long long)t->bytes, t->name);
    t->data = m->memory;
    if (is_norm(t))
        fill_ones(m->memory, t->count);
    else
        fill_normal(m->memory, t->count, seed);
    return RC_OK;
}

/* --- tensors --- */

static struct made *made_new(const char *name, const int64_t *shape, int dims) {
    struct made *m = xcalloc(1, sizeof *m);
    m->tensor = (struct st_tensor){.name = xstrdup(name),
                                   .file = "generated weights",
                                   .stored_as = "BF16",
                                   .readable = true,
                                   .type = DTYPE_BF16,
                                   .dims = dims,
                                   .count = 1};
    for (int i = 0; i < dims; i++) {
        m->tensor.shape[i] = shape[i];
        m->tensor.count *= shape[i];
    }
    m->tensor.bytes = m->tensor.count * (int64_t)dtype_size(DTYPE_BF16);
    return m;
}

/* The head's bytes; which they are makes no difference to its cost. */
static const struct st_tensor *lender(const struct synthetic *s, const char *name) {
    return strcmp(name, "lm_head.weight") == 0 ? synthetic_find(s, "model.embed_tokens.weight") : NULL;
}

enum rc synthetic_make(struct synthetic *s, const char *name, const int64_t *shape, int dims,
                       const struct st_tensor **out, struct err *e) {
    struct made *m = made_new(name, shape, dims);
    const struct st_tensor *lent = lender(s, name);
    uint64_t nth = s->seed + (uint64_t)s->count, seed = splitmix64(&nth);
    enum rc rc = RC_OK;
    if (lent && lent->bytes == m->tensor.bytes)
        m->tensor.data = lent->data;
    else
        rc = fill(m, seed, e);
    if (rc != RC_OK) {
        made_free(m);
        return rc;
    }
    GROW(s->made, s->count, s->capacity);
    s->made[s->count++] = m;
    *out = &m->tensor;
    return RC_OK;
}
