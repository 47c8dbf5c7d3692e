/* The header of one safetensors file: JSON into tensor views, with every bound checked. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "worker/model/safetensors.h"

enum { PREFIX = 8, HEADER_MAX = 100 * 1000 * 1000 };

static const struct {
    const char *name;
    int bits; /* of one element */
    bool readable;
    enum dtype type;
} dtypes[] = {
    {"F32", 32, true, DTYPE_F32}, {"F16", 16, true, DTYPE_F16}, {"BF16", 16, true, DTYPE_BF16},
    {"F64", 64, true, DTYPE_F64}, {"U8", 8, true, DTYPE_U8},    {"I32", 32, true, DTYPE_I32},
    {"BOOL", 8, false, 0},        {"I8", 8, false, 0},          {"F8_E5M2", 8, false, 0},
    {"F8_E4M3", 8, false, 0},     {"F8_E8M0", 8, false, 0},     {"I16", 16, false, 0},
    {"U16", 16, false, 0},        {"U32", 32, false, 0},        {"I64", 64, false, 0},
    {"U64", 64, false, 0},        {"C64", 64, false, 0},        {"F6_E2M3", 6, false, 0},
    {"F6_E3M2", 6, false, 0},     {"F4", 4, false, 0},
};

/* Where we are, for messages and bounds. */
struct header {
    const char *file;
    const unsigned char *data; /* the bytes after the header */
    int64_t data_len;
};

static enum rc bad(const struct header *h, const char *tensor, struct err *e, const char *what) {
    return err_set(e, RC_INVALID, "%s: tensor '%.*s': %s; the file is damaged or was not written as safetensors",
                   h->file, 128, tensor, what);
}

const char *shape_text(const int64_t *shape, int dims, char *buffer, size_t capacity) {
    size_t used = (size_t)snprintf(buffer, capacity, "[");
    for (int i = 0; i < dims && used < capacity; i++)
        used += (size_t)snprintf(buffer + used, capacity - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < capacity) snprintf(buffer + used, capacity - used, "]");
    return buffer;
}

static enum rc parse_shape(const struct header *h, const json_t *shape, struct st_tensor *t, struct err *e) {
    if (!json_is_array(shape)) return bad(h, t->name, e, "shape is no array");
    if (json_array_size(shape) > TENSOR_MAX_DIMS) return bad(h, t->name, e, "shape has more than 8 dimensions");
    t->dims = (int)json_array_size(shape);
    t->count = 1;
    for (int i = 0; i < t->dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return bad(h, t->name, e, "shape is no list of sizes");
        t->shape[i] = json_integer_value(dim);
        if (__builtin_mul_overflow(t->count, t->shape[i], &t->count))
            return bad(h, t->name, e, "the product of its shape overflows");
    }
    return RC_OK;
}

static enum rc parse_offsets(const struct header *h, const json_t *offsets, struct st_tensor *t, struct err *e) {
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return bad(h, t->name, e, "data_offsets is no pair of integers");
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin) return bad(h, t->name, e, "data_offsets are out of order");
    if (end > h->data_len) return bad(h, t->name, e, "data_offsets lie beyond the end of the file (truncated?)");
    t->data = h->data + begin;
    t->bytes = end - begin;
    return RC_OK;
}

/* A dtype we have never heard of is tolerated: only a tensor that the model needs has to be readable. */
static enum rc parse_dtype(const struct header *h, const char *name, struct st_tensor *t, struct err *e) {
    t->stored_as = "unknown";
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(name, dtypes[i].name) != 0) continue;
        t->stored_as = dtypes[i].name;
        t->readable = dtypes[i].readable;
        t->type = dtypes[i].type;
        int64_t bits;
        if (__builtin_mul_overflow(t->count, dtypes[i].bits, &bits)) return bad(h, t->name, e, "its size overflows");
        if (bits % 8 != 0 || bits / 8 != t->bytes)
            return bad(h, t->name, e, "data_offsets do not span dtype × shape bytes");
        return RC_OK;
    }
    return RC_OK;
}

static enum rc parse_tensor(const struct header *h, const json_t *entry, struct st_tensor *t, struct err *e) {
    if (!json_is_object(entry)) return bad(h, t->name, e, "its entry is no object");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (dtype == NULL) return bad(h, t->name, e, "dtype is missing or no string");
    TRY(parse_shape(h, json_object_get(entry, "shape"), t, e));
    TRY(parse_offsets(h, json_object_get(entry, "data_offsets"), t, e));
    return parse_dtype(h, dtype, t, e);
}

static int by_offset(const void *a, const void *b) {
    const struct st_tensor *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

/* Tensors must tile the data: no hole to hide things in, no byte in two tensors. */
static enum rc check_cover(const struct header *h, struct st_tensor *tensors, int64_t count, struct err *e) {
    qsort(tensors, (size_t)count, sizeof *tensors, by_offset);
    const unsigned char *at = h->data;
    for (int64_t i = 0; i < count; i++) {
        if ((const unsigned char *)tensors[i].data > at)
            return bad(h, tensors[i].name, e, "a hole lies before its data");
        if ((const unsigned char *)tensors[i].data < at)
            return bad(h, tensors[i].name, e, "it overlaps another tensor");
        at += tensors[i].bytes;
    }
    if (at != h->data + h->data_len)
        return err_set(e, RC_INVALID, "%s: %lld bytes after the last tensor belong to none", h->file,
                       (long long)(h->data + h->data_len - at));
    return RC_OK;
}

static enum rc check_names(const struct header *h, const json_t *root, int64_t *count, size_t *name_bytes,
                           struct err *e) {
    const char *key;
    const json_t *value;
    *count = 0;
    *name_bytes = 0;
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "__metadata__") == 0) continue;
        if (key[0] == '\0' || strlen(key) > TENSOR_NAME_MAX)
            return bad(h, key, e, "its name is empty or longer than 512 bytes");
        *name_bytes += strlen(key) + 1;
        (*count)++;
    }
    return RC_OK;
}

static enum rc parse_entries(const struct header *h, const json_t *root, struct st_tensor **tensors, int64_t *count,
                             struct err *e) {
    size_t name_bytes;
    TRY(check_names(h, root, count, &name_bytes, e));
    size_t table_bytes = (size_t)*count * sizeof **tensors;
    *tensors = calloc(1, table_bytes + name_bytes + 1);
    if (*tensors == NULL) return err_set(e, RC_NO_MEMORY, "no memory for the header of %s", h->file);
    char *names = (char *)*tensors + table_bytes;
    struct st_tensor *t = *tensors;
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "__metadata__") == 0) continue;
        size_t key_size = strlen(key) + 1;
        t->name = memcpy(names, key, key_size);
        t->file = h->file;
        names += key_size;
        TRY(parse_tensor(h, value, t++, e));
    }
    TRY(check_cover(h, *tensors, *count, e));
    qsort(*tensors, (size_t)*count, sizeof **tensors, by_name);
    return RC_OK;
}

static uint64_t read_le64(const unsigned char *bytes) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

enum rc safetensors_parse(const void *bytes, size_t len, const char *file, struct st_tensor **tensors, int64_t *count,
                          struct err *e) {
    *tensors = NULL;
    *count = 0;
    if (len < PREFIX) return err_set(e, RC_INVALID, "%s has %zu bytes: too short for a safetensors file", file, len);
    uint64_t header_len = read_le64(bytes);
    if (header_len > HEADER_MAX)
        return err_set(e, RC_INVALID, "%s says its header has %llu bytes; at most %d are allowed", file,
                       (unsigned long long)header_len, HEADER_MAX);
    if (header_len > len - PREFIX)
        return err_set(e, RC_INVALID, "%s says its header has %llu bytes, but only %zu follow (truncated?)", file,
                       (unsigned long long)header_len, len - PREFIX);
    const unsigned char *header = (const unsigned char *)bytes + PREFIX;
    struct header h = {file, header + header_len, (int64_t)(len - PREFIX - header_len)};
    json_t *root;
    if (json_parse((const char *)header, header_len, &root, e) != RC_OK) return err_context(e, "%s: header", file);
    enum rc rc = json_is_object(root) ? parse_entries(&h, root, tensors, count, e)
                                      : err_set(e, RC_INVALID, "%s: the header is no JSON object", file);
    json_decref(root);
    if (rc == RC_OK) return RC_OK;
    free(*tensors);
    *tensors = NULL;
    *count = 0;
    return rc;
}
