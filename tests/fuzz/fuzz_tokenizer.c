/* A hostile tokenizer.json (up to the first NUL) and a hostile text (after it). What encodes must stay below the
 * tokenizer's own vocab_size. */
#include <stdlib.h>
#include <string.h>

#include "worker/model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *json = (const char *)data, *nul = memchr(data, 0, size);
    size_t json_len = nul != NULL ? (size_t)(nul - json) : size, used = json_len + (nul != NULL);
    struct tokenizer *t;
    struct err e = {0};
    if (tokenizer_parse(json, json_len, &t, &e) != RC_OK) return 0;
    int32_t *ids;
    size_t count;
    if (tokenizer_encode(t, json + used, size - used, true, &ids, &count, &e) == RC_OK) {
        for (size_t i = 0; i < count; i++)
            if (ids[i] < 0 || ids[i] >= tokenizer_vocab_size(t)) abort();
        free(ids);
    }
    tokenizer_free(t);
    return 0;
}
