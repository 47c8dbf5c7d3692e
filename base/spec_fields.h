/* What the tables of spec.c and spec_sweep.c are written in. Theirs alone. */
#ifndef HSAQ_BASE_SPEC_FIELDS_H
#define HSAQ_BASE_SPEC_FIELDS_H

#include <stddef.h>

#include "base/spec.h"

enum { NAME_MAX_BYTES = 255, LABEL_MAX = 200, ARTIFACT_NAME_MAX = 128, ID_MAX = 64, DEVICE_MAX = 32, RULES_MAX = 256 };
enum { WINDOWS_MAX = 1 << 20, LENGTH_MAX = 1 << 20, BLOCKS_MAX = 4096, TIE_MAX = 32, BITS_MIN = 2, BITS_MAX = 16 };
#define SEED_MAX 9007199254740991.0 /* what every JSON reader keeps exactly */
#define BYTES_MAX 1e18

/* Every spec begins with a struct spec_common. */
#define COMMON_FIELDS(kind_value)                                                                                      \
    {.name = "kind",                                                                                                   \
     .type = FIELD_STRING,                                                                                             \
     .offset = offsetof(struct spec_common, kind),                                                                     \
     .required = true,                                                                                                 \
     .values = (const char *const[]){kind_value, NULL}},                                                               \
        {.name = "label", .type = FIELD_STRING, .offset = offsetof(struct spec_common, label), .max = LABEL_MAX},      \
        {.name = "priority",                                                                                           \
         .type = FIELD_INT,                                                                                            \
         .offset = offsetof(struct spec_common, priority),                                                             \
         .min = -100,                                                                                                  \
         .max = 100},                                                                                                  \
        {.name = "after", .type = FIELD_STRINGS, .offset = offsetof(struct spec_common, after), .max = AFTER_MAX}, {   \
        .name = "device", .type = FIELD_STRING, .offset = offsetof(struct spec_common, device), .min = 1,              \
        .max = DEVICE_MAX                                                                                              \
    }

#define NAME_FIELD(of, member, is_required)                                                                            \
    {                                                                                                                  \
        .name = #member, .type = FIELD_STRING, .offset = offsetof(of, member), .required = (is_required), .min = 1,    \
        .max = NAME_MAX_BYTES                                                                                          \
    }
#define JOB_FIELD(of, member, is_required)                                                                             \
    {                                                                                                                  \
        .name = #member, .type = FIELD_STRING, .offset = offsetof(of, member), .required = (is_required), .min = 1,    \
        .max = ID_MAX                                                                                                  \
    }
#define INT_FIELD(of, member, low, high)                                                                               \
    { .name = #member, .type = FIELD_INT, .offset = offsetof(of, member), .min = (low), .max = (high) }
/* With a has_ member beside it. */
#define OPTIONAL_FIELD(of, member, kind, low, high)                                                                    \
    {                                                                                                                  \
        .name = #member, .type = (kind), .offset = offsetof(of, member), .min = (low), .max = (high),                  \
        .presence = offsetof(of, has_##member) + 1                                                                     \
    }
#define ENUM_FIELD(of, member, names)                                                                                  \
    { .name = #member, .type = FIELD_ENUM, .offset = offsetof(of, member), .values = (names) }

extern const struct schema calibration_schema; /* struct spec_calibration */
extern const struct schema sweep_schema;

/* Whether there is a calibration where one is needed, and none where not; whether an allocation's candidates need
 * one is known when it has run. `refined`: refining scales, which needs one, was asked for. */
void spec_check_calibration(const struct spec_calibration *calibration, const struct candidate *uniform,
                            const char *allocation, bool refined, struct decode *d);

#endif
