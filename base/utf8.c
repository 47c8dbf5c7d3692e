#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

/* Lead bytes in [from, to], the length of their sequences and the range of the second byte (Unicode, table 3-7). */
static const struct {
    uint8_t from, to, length, second_min, second_max;
} leads[] = {
    {0x00, 0x7f, 1, 0, 0},       {0xc2, 0xdf, 2, 0x80, 0xbf}, {0xe0, 0xe0, 3, 0xa0, 0xbf},
    {0xe1, 0xec, 3, 0x80, 0xbf}, {0xed, 0xed, 3, 0x80, 0x9f}, {0xee, 0xef, 3, 0x80, 0xbf},
    {0xf0, 0xf0, 4, 0x90, 0xbf}, {0xf1, 0xf3, 4, 0x80, 0xbf}, {0xf4, 0xf4, 4, 0x80, 0x8f},
};

size_t utf8_sequence(const char *text, size_t len) {
    const uint8_t *bytes = (const uint8_t *)text;
    if (len == 0) return 0;
    for (size_t i = 0; i < sizeof leads / sizeof *leads; i++) {
        if (bytes[0] < leads[i].from || bytes[0] > leads[i].to) continue;
        size_t length = leads[i].length;
        if (length > len) return 0;
        if (length > 1 && (bytes[1] < leads[i].second_min || bytes[1] > leads[i].second_max)) return 0;
        for (size_t k = 2; k < length; k++)
            if ((bytes[k] & 0xc0) != 0x80) return 0;
        return length;
    }
    return 0;
}

char *utf8_repair(char *text) {
    size_t len = strlen(text);
    for (size_t i = 0; i < len;) {
        size_t step = utf8_sequence(text + i, len - i);
        if (step == 0) text[i] = '?';
        i += step ? step : 1;
    }
    return text;
}
