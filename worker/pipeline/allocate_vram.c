#include <string.h>

#include "base/json.h"
#include "worker/pipeline/allocate.h"

enum { PREFILL_CHUNK = 2048, DIM_MAX = 1 << 24 };

/* Bytes beyond this are "more than any machine has": sums of a few such terms still fit. */
#define BYTES_CEILING (INT64_MAX / 16)

static int64_t product(int64_t a, int64_t b) {
    int64_t result;
    return __builtin_mul_overflow(a, b, &result) || result > BYTES_CEILING ? BYTES_CEILING : result;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

struct dims {
    int64_t blocks, hidden, intermediate, heads, kv_heads, head_dim, vocab;
};

static enum rc read_dims(const json_t *architecture, struct dims *dims, struct err *e) {
    const struct {
        const char *key;
        int64_t *value;
    } members[] = {
        {"blocks", &dims->blocks}, {"hidden", &dims->hidden},     {"intermediate", &dims->intermediate},
        {"heads", &dims->heads},   {"kv_heads", &dims->kv_heads}, {"head_dim", &dims->head_dim},
        {"vocab", &dims->vocab},
    };
    for (size_t m = 0; m < sizeof members / sizeof *members; m++) {
        *members[m].value = 0;
        TRY(json_get_int(architecture, members[m].key, 1, DIM_MAX, members[m].value, e));
        if (*members[m].value == 0)
            return err_set(e, RC_INVALID, "the profile's model.architecture has no %s", members[m].key);
    }
    return RC_OK;
}

/* Tokens that block `block` keeps of a context: all, or its window. */
static int64_t keys_kept(const json_t *windows, int64_t block, int64_t context) {
    int64_t window = json_integer_value(json_array_get(windows, (size_t)block));
    return window > 0 ? smaller(window, context) : context;
}

static int64_t kv_cache(const struct dims *dims, const json_t *windows, const struct spec_budget *budget) {
    int64_t tokens = 0;
    for (int64_t block = 0; block < dims->blocks; block++)
        tokens += keys_kept(windows, block, budget->context);
    int64_t per_token = product(product(2 * dims->kv_heads, dims->head_dim), budget->kv_bits);
    return product(product(tokens, budget->batch), per_token) / 8;
}

static int64_t workspace(const struct profile_table *table, const struct dims *dims, const struct spec_budget *budget) {
    int64_t attention = product(2 * (dims->heads + dims->kv_heads), dims->head_dim);
    int64_t channels = 3 * dims->hidden + larger(attention, 3 * dims->intermediate);
    int64_t tokens = product(budget->batch, smaller(budget->context, PREFILL_CHUNK));
    int64_t largest = 0;
    for (int i = 0; i < table->linear_count; i++)
        largest = larger(largest, table->linears[i].params);
    return product(2 * channels, tokens) + 2 * largest + product(2 * 4 * dims->vocab, budget->batch);
}

enum rc vram_terms(const struct profile_table *table, const struct spec_budget *budget, struct vram_terms *terms,
                   struct err *e) {
    const json_t *model = json_object_get(table->result, "model");
    struct dims dims;
    *terms = (struct vram_terms){.unquantized = -1, .reserve = budget->reserve};
    TRY(json_get_int(model, "unquantized_bytes", 0, BYTES_CEILING, &terms->unquantized, e));
    if (terms->unquantized < 0) return err_set(e, RC_INVALID, "the profile's model has no unquantized_bytes");
    TRY(read_dims(json_object_get(model, "architecture"), &dims, e));
    terms->kv_cache = kv_cache(&dims, json_object_get(model, "windows"), budget);
    terms->workspace = workspace(table, &dims, budget);
    return RC_OK;
}

int64_t vram_sum(const struct vram_terms *terms) {
    return terms->unquantized + terms->kv_cache + terms->workspace + terms->reserve;
}
