/* Safetensors files: any bytes are refused with a message or give tensors whose every byte can be read. */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/target.h"
#include "worker/model/safetensors.h"

static int64_t read_all(const struct st_tensor *t) {
    int64_t sum = 0;
    for (int64_t i = 0; i < t->bytes; i++)
        sum += ((const unsigned char *)t->data)[i];
    return sum;
}

static void check(const struct st_tensor *tensors, int64_t count, size_t size) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct st_tensor *t = &tensors[i];
        if (i > 0 && strcmp(tensors[i - 1].name, t->name) >= 0) abort();
        if (t->readable && t->count * (int64_t)dtype_size(t->type) != t->bytes) abort();
        bytes += t->bytes;
        if (read_all(t) < 0) abort();
    }
    if (bytes > (int64_t)size) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct st_tensor *tensors;
    int64_t count;
    struct err e = {0};
    if (safetensors_parse(data, size, "model.safetensors", &tensors, &count, &e) == RC_OK)
        check(tensors, count, size);
    else if (e.message[0] == '\0' || tensors != NULL)
        abort();
    free(tensors);
    return 0;
}
