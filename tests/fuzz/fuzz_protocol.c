/* Protocol lines: any bytes decode or are refused; what decodes encodes, and that decodes to the same line. */
#include <stdlib.h>
#include <string.h>

#include "base/protocol.h"
#include "tests/fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct message m, again;
    struct err e = {0};
    if (message_decode((const char *)data, size, &m, &e) != RC_OK) {
        if (e.message[0] == '\0') abort();
        return 0;
    }
    char *line = message_encode(&m);
    if (line == NULL || message_decode(line, strlen(line) - 1, &again, &e) != RC_OK) abort();
    char *second = message_encode(&again);
    if (second == NULL || strcmp(line, second) != 0) abort();
    free(line);
    free(second);
    message_release(&m);
    message_release(&again);
    return 0;
}
