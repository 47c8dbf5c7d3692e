#include "base/candidate.h"

#include <stdio.h>
#include <string.h>

#include "base/candidate_options.h"

const char *const method_names[] = {"none", "rtn", "hqq", "gptq", "awq", "awq+gptq", "fp8", NULL};
const char *const zero_type_names[] = {"float", "integer", NULL};
const char *const layout_names[] = {"dense", "hqq", NULL};

const int bit_widths[BIT_WIDTHS] = {2, 3, 4, 5, 6, 8};

#define INTEGER_OPTIONS (TAKES(OPTION_BITS) | TAKES(OPTION_GROUP) | TAKES(OPTION_ZERO) | TAKES(OPTION_RANGE))
#define GPTQ_OPTIONS                                                                                                   \
    (INTEGER_OPTIONS | TAKES(OPTION_SYMMETRIC) | TAKES(OPTION_CLIP) | TAKES(OPTION_ORDER) | TAKES(OPTION_DAMP) |       \
     TAKES(OPTION_DESCEND) | TAKES(OPTION_SEQUENTIAL) | TAKES(OPTION_GUIDED))

static const struct method_row {
    unsigned takes; /* bits: the options that mean something to it */
    enum zero_type zero;
    enum range_choice range;
    int damp;
    bool sequential;
} methods[METHODS] = {
    [METHOD_NONE] = {0},
    [METHOD_RTN] = {.takes = INTEGER_OPTIONS | TAKES(OPTION_SYMMETRIC) | TAKES(OPTION_LAYOUT) | TAKES(OPTION_CLIP)},
    [METHOD_HQQ] = {.takes = INTEGER_OPTIONS | TAKES(OPTION_LAYOUT)},
    /* Measured on a real model: weighted ranges beat every other choice for both, and five times the damping of GPTQ's
     * code was never worse (docs/results.md). */
    [METHOD_GPTQ] = {.takes = GPTQ_OPTIONS | TAKES(OPTION_TWO_SIDED),
                     .zero = ZERO_INTEGER,
                     .range = RANGE_WEIGHTED,
                     .damp = PARTS / 20,
                     .sequential = true},
    [METHOD_AWQ] = {.takes = INTEGER_OPTIONS | TAKES(OPTION_SYMMETRIC) | TAKES(OPTION_CLIP) | TAKES(OPTION_SEQUENTIAL) |
                             TAKES(OPTION_GUIDED),
                    .zero = ZERO_INTEGER,
                    .range = RANGE_WEIGHTED},
    [METHOD_AWQ_GPTQ] =
        {.takes = GPTQ_OPTIONS, .zero = ZERO_INTEGER, .range = RANGE_WEIGHTED, .damp = PARTS / 20, .sequential = true},
    [METHOD_FP8] = {.takes = TAKES(OPTION_PER)},
};

bool candidate_takes(enum method method, enum option option) {
    return methods[method].takes >> option & 1;
}

struct candidate candidate_default(enum method method, int bits, int group) {
    const struct method_row *m = &methods[method];
    struct candidate c = {.method = method,
                          .bits = bits,
                          .group = group,
                          .zero = m->zero,
                          .range = m->range,
                          .damp = m->damp,
                          .sequential = m->sequential};
    if (method == METHOD_NONE) c.bits = 16;
    if (method == METHOD_FP8) c.bits = 8;
    if (!candidate_takes(method, OPTION_GROUP)) c.group = 0;
    return c;
}

struct candidate candidate_best(int bits, int group) {
    struct candidate c = candidate_default(METHOD_GPTQ, bits, group);
    c.guided = true;
    c.sequential = false;
    c.two_sided = true;
    return c;
}

struct candidate candidate_rtn(const struct candidate *c) {
    struct candidate rtn = candidate_default(METHOD_RTN, c->bits, c->group);
    rtn.symmetric = c->symmetric;
    rtn.zero = c->zero;
    rtn.layout = c->layout;
    return rtn;
}

bool candidate_same_but_bits(const struct candidate *a, const struct candidate *b) {
    char left[CANDIDATE_ID_SIZE], right[CANDIDATE_ID_SIZE];
    struct candidate other = *b;
    other.bits = a->bits;
    return strcmp(candidate_id(a, left), candidate_id(&other, right)) == 0;
}

bool candidates_any(const struct candidate *c, size_t count, bool (*is)(const struct candidate *)) {
    for (size_t i = 0; i < count; i++)
        if (is(&c[i])) return true;
    return false;
}

/* --- Which exist --- */

static bool is_bit_width(int bits) {
    for (int i = 0; i < BIT_WIDTHS; i++)
        if (bit_widths[i] == bits) return true;
    return false;
}

static bool is_group(int group) {
    return group == 0 || (group >= GROUP_MIN && group <= GROUP_MAX);
}

/* An option that the method does not take is as its default is. */
static enum rc check_untaken(const struct candidate *c, struct err *e) {
    const struct candidate plain = candidate_default(c->method, c->bits, c->group);
    const struct {
        enum option option;
        bool set;
    } rows[] = {
        {OPTION_SYMMETRIC, c->symmetric != plain.symmetric},
        {OPTION_ZERO, c->zero != plain.zero && !c->symmetric},
        {OPTION_LAYOUT, c->layout != plain.layout},
        {OPTION_RANGE, c->range != plain.range},
        {OPTION_CLIP, c->clip != plain.clip},
        {OPTION_ORDER, c->order != plain.order},
        {OPTION_DAMP, c->damp != plain.damp},
        {OPTION_DESCEND, c->descend != 0},
        {OPTION_SEQUENTIAL, c->sequential != plain.sequential},
        {OPTION_GUIDED, c->guided},
        {OPTION_TWO_SIDED, c->two_sided},
        {OPTION_PER, c->fp8_scale != plain.fp8_scale},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char pointer[24];
        if (!rows[i].set || candidate_takes(c->method, rows[i].option)) continue;
        snprintf(pointer, sizeof pointer, "/%s", candidate_options[rows[i].option].name);
        return err_at(e, pointer, RC_INVALID, "means nothing to %s; leave it out", method_names[c->method]);
    }
    return RC_OK;
}

static enum rc check_grid(const struct candidate *c, struct err *e) {
    if (!is_bit_width(c->bits)) return err_at(e, "/bits", RC_INVALID, "must be one of 2, 3, 4, 5, 6, 8");
    if (!is_group(c->group))
        return err_at(e, "/group", RC_INVALID, "must be %d to %d, or 0 for the whole row", GROUP_MIN, GROUP_MAX);
    if (c->symmetric && c->zero != ZERO_FLOAT)
        return err_at(e, "/zero", RC_INVALID, "a symmetric candidate has no zero point; leave \"zero\" out");
    if (c->layout == LAYOUT_HQQ && c->symmetric)
        return err_at(e, "/layout", RC_INVALID, "the hqq layout stores a zero a group; it cannot be symmetric");
    if (c->layout == LAYOUT_HQQ && c->zero != ZERO_FLOAT)
        return err_at(e, "/layout", RC_INVALID, "the hqq layout stores float zeros, not integer ones");
    return RC_OK;
}

static enum rc check_calibration(const struct candidate *c, struct err *e) {
    bool clips = c->range == RANGE_PERCENTILE || c->range == RANGE_RATIO;
    if (clips && !candidate_takes(c->method, OPTION_CLIP))
        return err_at(e, "/range", RC_INVALID, "%s searches its range; it takes minmax, mse, weighted or output",
                      method_names[c->method]);
    if (clips && (c->clip < 1 || c->clip > PARTS))
        return err_at(e, "/clip", RC_INVALID, "must be given with this range: the share kept, above 0 and at most 1");
    if (!clips && c->clip != 0)
        return err_at(e, "/clip", RC_INVALID, "goes with \"range\": \"percentile\" or \"ratio\" alone");
    if (candidate_uses_gptq(c) && (c->damp < 1 || c->damp > PARTS))
        return err_at(e, "/damp", RC_INVALID, "must be a share of H's mean diagonal: 0.0001 to 1");
    if (c->descend < 0 || c->descend > DESCEND_MAX)
        return err_at(e, "/descend", RC_INVALID, "must be 0 to %d sweeps", DESCEND_MAX);
    if (c->guided && c->sequential)
        return err_at(e, "/sequential", RC_INVALID,
                      "a guided candidate goes by the reference's gradients; leave \"sequential\" out");
    if (c->two_sided && !c->guided)
        return err_at(e, "/two_sided", RC_INVALID, "goes by the loss's gradients: it takes \"guided\": true");
    if (c->two_sided && c->descend != 0)
        return err_at(e, "/descend", RC_INVALID, "goes by the columns alone: 0 for a two-sided candidate");
    if (candidate_uses_gptq(c) && (c->range == RANGE_OUTPUT))
        return err_at(e, "/range", RC_INVALID, "\"output\" looks at rounding to nearest; gptq takes \"weighted\"");
    return RC_OK;
}

enum rc candidate_check(const struct candidate *c, struct err *e) {
    TRY(check_untaken(c, e));
    if (c->method == METHOD_NONE || c->method == METHOD_FP8) return RC_OK;
    TRY(check_grid(c, e));
    return check_calibration(c, e);
}

/* --- Ids --- */

static const char *const range_suffixes[] = {
    [RANGE_FULL] = "-minmax",   [RANGE_MSE] = "-mse",        [RANGE_WEIGHTED] = "-weighted",
    [RANGE_OUTPUT] = "-output", [RANGE_PERCENTILE] = "-pct", [RANGE_RATIO] = "-ratio",
};
static const char *const order_suffixes[] = {
    [ORDER_GROUP_AWARE] = "-groupaware",
    [ORDER_NATURAL] = "-natural",
    [ORDER_ACTIVATION] = "-actorder",
    [ORDER_STATIC_GROUPS] = "-staticgroups",
};
enum {
    RANGES = sizeof range_suffixes / sizeof *range_suffixes,
    ORDERS = sizeof order_suffixes / sizeof *order_suffixes
};
static const char *const zero_suffixes[] = {[ZERO_FLOAT] = "-floatzero", [ZERO_INTEGER] = "-intzero"};
static const char *const sequential_suffixes[] = {"-static", "-sequential"};

/* What differs from the method's default. */
static void write_options(const struct candidate *c, char *id, size_t room) {
    const struct candidate plain = candidate_default(c->method, c->bits, c->group);
    bool clips = c->range == RANGE_PERCENTILE || c->range == RANGE_RATIO;
    bool sequential = plain.sequential && !c->guided;
    char clip[16] = "", damp[24] = "", descend[24] = "";
    if (clips) snprintf(clip, sizeof clip, "%g", (double)c->clip / PARTS);
    if (c->damp != plain.damp) snprintf(damp, sizeof damp, "-damp%g", (double)c->damp / PARTS);
    if (c->descend != 0) snprintf(descend, sizeof descend, "-descend%d", c->descend);
    snprintf(id, room, "%s%s%s%s%s%s%s%s%s%s%s", c->symmetric ? "-sym" : "",
             !c->symmetric && c->zero != plain.zero ? zero_suffixes[c->zero] : "",
             c->layout == LAYOUT_HQQ ? "-hqqpack" : "", c->range != plain.range ? range_suffixes[c->range] : "", clip,
             c->order != plain.order ? order_suffixes[c->order] : "", damp, descend,
             c->sequential != sequential ? sequential_suffixes[c->sequential] : "", c->guided ? "-guided" : "",
             c->two_sided ? "-twosided" : "");
}

const char *candidate_id(const struct candidate *c, char id[CANDIDATE_ID_SIZE]) {
    if (c->method == METHOD_NONE || c->method == METHOD_FP8) {
        snprintf(id, CANDIDATE_ID_SIZE, "%s%s", method_names[c->method],
                 c->fp8_scale == FP8_PER_TENSOR ? "-tensor" : "");
        return id;
    }
    int used = snprintf(id, CANDIDATE_ID_SIZE, "%s%dg%d", method_names[c->method], c->bits, c->group);
    write_options(c, id + used, CANDIDATE_ID_SIZE - (size_t)used);
    return id;
}

static bool take(const char **text, const char *prefix) {
    size_t len = strlen(prefix);
    if (strncmp(*text, prefix, len) != 0) return false;
    *text += len;
    return true;
}

/* Which of the texts comes next, or `fallback`. */
static int take_one(const char **text, const char *const *texts, int count, int fallback) {
    for (int i = 0; i < count; i++)
        if (take(text, texts[i])) return i;
    return fallback;
}

/* Up to four digits; candidate_from_id's comparison refuses leading zeros. */
static int take_number(const char **text) {
    int value = 0;
    for (int i = 0; i < 4 && **text >= '0' && **text <= '9'; i++)
        value = 10 * value + *(*text)++ - '0';
    return value;
}

/* "1", "0.95": in 1/PARTS. */
static int take_share(const char **text) {
    int parts = PARTS * take_number(text);
    if (!take(text, ".")) return parts;
    for (int digit = PARTS / 10; digit > 0 && **text >= '0' && **text <= '9'; digit /= 10)
        parts += digit * (*(*text)++ - '0');
    return parts;
}

/* The longest name that the id begins with. */
static enum method take_method(const char **id) {
    enum method found = METHOD_NONE;
    size_t longest = 0;
    for (int m = METHOD_NONE; m < METHODS; m++) {
        size_t length = strlen(method_names[m]);
        if (length <= longest || strncmp(*id, method_names[m], length) != 0) continue;
        longest = length;
        found = (enum method)m;
    }
    *id += longest;
    return found;
}

static void read_options(const char *id, struct candidate *c) {
    if (take(&id, "-sym")) {
        c->symmetric = true;
        c->zero = ZERO_FLOAT;
    }
    c->zero = (enum zero_type)take_one(&id, zero_suffixes, 2, c->zero);
    c->layout = take(&id, "-hqqpack") ? LAYOUT_HQQ : LAYOUT_DENSE;
    c->range = (enum range_choice)take_one(&id, range_suffixes, RANGES, c->range);
    if (c->range == RANGE_PERCENTILE || c->range == RANGE_RATIO) c->clip = take_share(&id);
    c->order = (enum column_order)take_one(&id, order_suffixes, ORDERS, c->order);
    if (take(&id, "-damp")) c->damp = take_share(&id);
    if (take(&id, "-descend")) c->descend = take_number(&id);
    int sequential = take_one(&id, sequential_suffixes, 2, -1);
    c->guided = take(&id, "-guided");
    c->two_sided = take(&id, "-twosided");
    if (sequential >= 0 || c->guided) c->sequential = sequential > 0;
}

static void read_id(const char *id, struct candidate *c) {
    enum method method = take_method(&id);
    *c = candidate_default(method, 0, 0);
    if (method == METHOD_FP8 && take(&id, "-tensor")) c->fp8_scale = FP8_PER_TENSOR;
    if (!candidate_takes(method, OPTION_BITS)) return;
    c->bits = take_number(&id);
    c->group = take(&id, "g") ? take_number(&id) : 0;
    read_options(id, c);
}

enum rc candidate_from_id(const char *id, struct candidate *c, struct err *e) {
    /* What was read wrongly or not at all shows when it is written again: one grammar, in candidate_id. */
    char again[CANDIDATE_ID_SIZE];
    read_id(id, c);
    if (candidate_check(c, NULL) != RC_OK || strcmp(candidate_id(c, again), id) != 0)
        return err_set(e, RC_INVALID, "'%.96s' is no candidate id; ids look like hqq4g64, rtn3g128-sym or none", id);
    return RC_OK;
}
