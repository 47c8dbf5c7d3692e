/* The members of a candidate in JSON. Internal to candidate.c and candidate_json.c. */
#ifndef HSAQ_BASE_CANDIDATE_OPTIONS_H
#define HSAQ_BASE_CANDIDATE_OPTIONS_H

#include "base/candidate.h"

enum option {
    OPTION_METHOD,
    OPTION_BITS,
    OPTION_GROUP,
    OPTION_SYMMETRIC,
    OPTION_ZERO,
    OPTION_LAYOUT,
    OPTION_RANGE,
    OPTION_CLIP,
    OPTION_ORDER,
    OPTION_DAMP,
    OPTION_DESCEND,
    OPTION_SEQUENTIAL,
    OPTION_GUIDED,
    OPTION_TWO_SIDED,
    OPTION_PER,
    OPTIONS
};
#define TAKES(option) (1u << (option))

enum option_type { OPTION_NAME, OPTION_SIZE, OPTION_FLAG, OPTION_SHARE, OPTION_COUNT };

struct option_row {
    const char *name;
    enum option_type type;
    const char *const *names; /* of OPTION_NAME, NULL-terminated */
};
extern const struct option_row candidate_options[OPTIONS];

enum { BIT_WIDTHS = 6, GROUP_MIN = 16, GROUP_MAX = 1024, GROUP_DEFAULT = 64 };
extern const int bit_widths[BIT_WIDTHS];

bool candidate_takes(enum method method, enum option option);

#endif
