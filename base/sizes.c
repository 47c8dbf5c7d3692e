#include "base/sizes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const struct {
    const char *suffix;
    double factor;
} units[] = {
    {"", 1},
    {"B", 1},
    {"kB", 1e3},
    {"MB", 1e6},
    {"GB", 1e9},
    {"TB", 1e12},
    {"KiB", 1024},
    {"MiB", 1024.0 * 1024},
    {"GiB", 1073741824.0},
    {"TiB", 1099511627776.0},
};

enum rc size_parse(const char *text, int64_t *bytes, struct err *e) {
    char *end;
    double value = strtod(text, &end);
    /* Plain decimals only: strtod would also take "0x10", "1e3", "-1", " 1" and "inf". */
    if (end == text || end != text + strspn(text, "0123456789."))
        return err_set(e, RC_INVALID, "'%.64s' is not a byte size; write for example \"12GiB\", \"12GB\" or 1073741824",
                       text);
    int digits = (int)(end - text);
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcasecmp(end, units[i].suffix) != 0) continue;
        if (units[i].factor == 1 && value != floor(value))
            return err_set(e, RC_INVALID,
                           "'%.64s' is a fraction of a byte; a number without a unit counts bytes: write for example "
                           "\"%.*sGiB\", or a whole number",
                           text, digits > 16 ? 16 : digits, text);
        value *= units[i].factor;
        if (value > 0 && value < 1) return err_set(e, RC_INVALID, "byte size '%.64s' is less than a byte", text);
        if (value >= 9.2e18) return err_set(e, RC_INVALID, "byte size '%.64s' is too large", text);
        *bytes = (int64_t)value;
        return RC_OK;
    }
    return err_set(e, RC_INVALID, "unknown unit in byte size '%.64s'; use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB",
                   text);
}

char *size_format(int64_t bytes, char *buffer, size_t capacity) {
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (fabs(value) >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(buffer, capacity, unit == 0 ? "%.0f %s" : "%.2f %s", value, names[unit]);
    return buffer;
}
