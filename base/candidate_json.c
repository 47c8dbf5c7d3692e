#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/candidate_options.h"
#include "base/json.h"

enum { VALUES_MAX = 32 };

static const char *const range_names[] = {"minmax", "mse", "weighted", "output", "percentile", "ratio", NULL};
static const char *const order_names[] = {"group_aware", "natural", "activation", "static_groups", NULL};
static const char *const per_names[] = {"row", "tensor", NULL};

const struct option_row candidate_options[OPTIONS] = {
    [OPTION_METHOD] = {"method", OPTION_NAME, method_names}, [OPTION_BITS] = {"bits", OPTION_SIZE, NULL},
    [OPTION_GROUP] = {"group", OPTION_SIZE, NULL},           [OPTION_SYMMETRIC] = {"symmetric", OPTION_FLAG, NULL},
    [OPTION_ZERO] = {"zero", OPTION_NAME, zero_type_names},  [OPTION_LAYOUT] = {"layout", OPTION_NAME, layout_names},
    [OPTION_RANGE] = {"range", OPTION_NAME, range_names},    [OPTION_CLIP] = {"clip", OPTION_SHARE, NULL},
    [OPTION_ORDER] = {"order", OPTION_NAME, order_names},    [OPTION_DAMP] = {"damp", OPTION_SHARE, NULL},
    [OPTION_DESCEND] = {"descend", OPTION_COUNT, NULL},      [OPTION_SEQUENTIAL] = {"sequential", OPTION_FLAG, NULL},
    [OPTION_GUIDED] = {"guided", OPTION_FLAG, NULL},         [OPTION_TWO_SIDED] = {"two_sided", OPTION_FLAG, NULL},
    [OPTION_PER] = {"per", OPTION_NAME, per_names},
};

/* The values of one member: several when the candidate is a product. Not given: one value that no one reads. */
struct values {
    int items[VALUES_MAX];
    size_t count;
    bool given, assumed; /* by nobody, but as if */
};

static bool decode_name(enum option option, const json_t *value, int *out, struct decode *d) {
    const char *const *names = candidate_options[option].names;
    if (!json_is_string(value)) {
        problem_here(d, "must be a string, not %s", json_type_name(value));
        return false;
    }
    *out = name_index(names, json_string_value(value));
    if (*out >= 0) return true;
    problem_name(d, json_string_value(value), names, NULL);
    return false;
}

static bool decode_flag(const json_t *value, int *out, struct decode *d) {
    *out = json_is_true(value);
    if (json_is_boolean(value)) return true;
    problem_here(d, "must be true or false, not %s", json_type_name(value));
    return false;
}

static bool decode_size(enum option option, const json_t *value, int *out, struct decode *d) {
    if (!json_is_integer(value)) {
        problem_here(d, "must be an integer, not %s", json_type_name(value));
        return false;
    }
    json_int_t number = json_integer_value(value);
    /* A valid stand-in for the other member: each is judged where it stands, by the one rule there is. */
    struct candidate c = {.method = METHOD_RTN, .bits = bit_widths[0], .group = GROUP_DEFAULT};
    struct err e;
    *out = number < -1 || number > GROUP_MAX ? -1 : (int)number;
    *(option == OPTION_BITS ? &c.bits : &c.group) = *out;
    if (candidate_check(&c, &e) == RC_OK) return true;
    problem_here(d, "%s", e.message);
    return false;
}

static bool decode_share(const json_t *value, int *out, struct decode *d) {
    double parts = json_number_value(value) * PARTS;
    if (json_is_number(value) && parts >= 1 && parts <= PARTS && fabs(parts - rint(parts)) < 1e-6) {
        *out = (int)rint(parts);
        return true;
    }
    problem_here(d, "must be a number above 0 and at most 1, in steps of %g", 1.0 / PARTS);
    return false;
}

static bool decode_count(const json_t *value, int *out, struct decode *d) {
    json_int_t number = json_integer_value(value);
    *out = (int)number;
    if (json_is_integer(value) && number >= 0 && number <= DESCEND_MAX) return true;
    problem_here(d, "must be an integer from 0 to %d", DESCEND_MAX);
    return false;
}

static bool decode_value(enum option option, const json_t *value, int *out, struct decode *d) {
    switch (candidate_options[option].type) {
    case OPTION_NAME: return decode_name(option, value, out, d);
    case OPTION_SIZE: return decode_size(option, value, out, d);
    case OPTION_FLAG: return decode_flag(value, out, d);
    case OPTION_SHARE: return decode_share(value, out, d);
    case OPTION_COUNT: return decode_count(value, out, d);
    }
    return false;
}

static void decode_value_list(enum option option, const json_t *array, struct values *values, struct decode *d) {
    size_t count = json_array_size(array);
    if (count == 0 || count > VALUES_MAX) {
        problem_here(d, "has %zu values; it must have 1 to %d", count, VALUES_MAX);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        size_t mark = decode_enter_index(d, i);
        if (decode_value(option, json_array_get(array, i), &values->items[values->count], d)) values->count++;
        decode_leave(d, mark);
    }
}

static void decode_option(enum option option, const json_t *object, bool lists, struct values *values,
                          struct decode *d) {
    const json_t *value = json_object_get(object, candidate_options[option].name);
    *values = (struct values){.given = value != NULL && !json_is_null(value)};
    if (!values->given) {
        values->count = 1;
        return;
    }
    size_t mark = decode_enter(d, candidate_options[option].name);
    if (json_is_array(value) && lists)
        decode_value_list(option, value, values, d);
    else if (decode_value(option, value, &values->items[0], d))
        values->count = 1;
    decode_leave(d, mark);
}

static bool is_option(const char *name) {
    for (int i = 0; i < OPTIONS; i++)
        if (strcmp(candidate_options[i].name, name) == 0) return true;
    return false;
}

static void refuse_unknown(const json_t *object, struct decode *d) {
    const char *name;
    json_t *ignored;
    json_object_foreach((json_t *)object, name, ignored) {
        if (!is_option(name))
            problem_at(d, name,
                       "unknown member; a candidate takes: method, bits, group, symmetric, zero, layout, range, clip, "
                       "order, damp, descend, sequential, guided, two_sided, per");
    }
}

static bool has_value(const struct values *values, int value) {
    for (size_t i = 0; values->given && i < values->count; i++)
        if (values->items[i] == value) return true;
    return false;
}

/* Every member means something to every method it is multiplied with. */
static void check_taken(const struct values values[OPTIONS], bool lists, struct decode *d) {
    for (int m = METHOD_NONE; m < METHODS; m++) {
        if (!has_value(&values[OPTION_METHOD], m)) continue;
        for (int i = OPTION_BITS; i < OPTIONS; i++)
            if (values[i].given && !candidate_takes((enum method)m, (enum option)i))
                problem_at(d, candidate_options[i].name, "means nothing to %s; leave it out%s", method_names[m],
                           values[OPTION_METHOD].count > 1 ? ", or write a candidate of its own" : "");
        if (candidate_takes((enum method)m, OPTION_BITS) && !values[OPTION_BITS].given)
            problem_at(d, "bits", "is required: 2, 3, 4, 5, 6 or 8%s", lists ? ", or a list of these" : "");
    }
}

/* Who names no method gets the one that does least damage for its bytes; without two sides that is one whose codes
 * descend. */
static void choose_method(struct values values[OPTIONS]) {
    static const int sweeps = 2;
    const struct candidate best = candidate_best(bit_widths[0], GROUP_DEFAULT);
    if (values[OPTION_METHOD].given) return;
    values[OPTION_METHOD] = (struct values){.items = {best.method}, .count = 1, .given = true};
    if (!values[OPTION_GUIDED].given) values[OPTION_GUIDED] = (struct values){{best.guided}, 1, true, true};
    if (!values[OPTION_TWO_SIDED].given) values[OPTION_TWO_SIDED] = (struct values){{best.two_sided}, 1, true, true};
    if (!values[OPTION_DESCEND].given) values[OPTION_DESCEND] = (struct values){{sweeps}, 1, true, true};
}

/* What the members ask of each other before they are multiplied. */
static void check_members(const struct values values[OPTIONS], bool lists, struct decode *d) {
    const struct values *methods = &values[OPTION_METHOD];
    check_taken(values, lists, d);
    if (has_value(methods, METHOD_NONE) && methods->count > 1)
        problem_at(d, "method", "\"none\" must be a candidate of its own");
    if (has_value(&values[OPTION_SYMMETRIC], true) && values[OPTION_ZERO].given)
        problem_at(d, "zero", "a symmetric candidate has no zero point; leave \"zero\" out");
}

/* Of two that exclude each other what was asked for stands; two sides need guidance. */
static void choose_sides(struct candidate *c, const struct values values[OPTIONS]) {
    bool descends = c->descend > 0 && !values[OPTION_DESCEND].assumed;
    if (values[OPTION_TWO_SIDED].assumed && (descends || !c->guided)) c->two_sided = false;
    if (values[OPTION_DESCEND].assumed && c->two_sided) c->descend = 0;
}

static void set_options(struct candidate *c, const struct values values[OPTIONS], const int picked[OPTIONS]) {
    if (values[OPTION_SYMMETRIC].given) c->symmetric = picked[OPTION_SYMMETRIC];
    if (values[OPTION_ZERO].given) c->zero = (enum zero_type)picked[OPTION_ZERO];
    if (values[OPTION_LAYOUT].given) c->layout = (enum layout)picked[OPTION_LAYOUT];
    if (values[OPTION_RANGE].given) c->range = (enum range_choice)picked[OPTION_RANGE];
    if (values[OPTION_CLIP].given) c->clip = picked[OPTION_CLIP];
    if (values[OPTION_ORDER].given) c->order = (enum column_order)picked[OPTION_ORDER];
    if (values[OPTION_DAMP].given) c->damp = picked[OPTION_DAMP];
    if (values[OPTION_DESCEND].given) c->descend = picked[OPTION_DESCEND];
    if (values[OPTION_GUIDED].given) c->guided = picked[OPTION_GUIDED];
    if (values[OPTION_TWO_SIDED].given) c->two_sided = picked[OPTION_TWO_SIDED];
    choose_sides(c, values);
    if (c->guided) c->sequential = false;
    if (values[OPTION_SEQUENTIAL].given) c->sequential = picked[OPTION_SEQUENTIAL];
    if (values[OPTION_PER].given) c->fp8_scale = (enum fp8_scale)picked[OPTION_PER];
    if (c->symmetric) c->zero = ZERO_FLOAT;
}

/* Element number `n` of the product; the last option varies fastest. */
static struct candidate product_element(const struct values values[OPTIONS], size_t n) {
    int picked[OPTIONS];
    for (int i = OPTIONS - 1; i >= 0; i--) {
        picked[i] = values[i].items[n % values[i].count];
        n /= values[i].count;
    }
    int group = values[OPTION_GROUP].given ? picked[OPTION_GROUP] : GROUP_DEFAULT;
    struct candidate c = candidate_default((enum method)picked[OPTION_METHOD], picked[OPTION_BITS], group);
    set_options(&c, values, picked);
    return c;
}

static bool same(const struct candidate *a, const struct candidate *b) {
    char left[CANDIDATE_ID_SIZE], right[CANDIDATE_ID_SIZE];
    return strcmp(candidate_id(a, left), candidate_id(b, right)) == 0;
}

static void add_unique(struct list *list, const struct candidate *c) {
    struct candidate *items = list->items;
    for (size_t i = 0; i < list->count; i++)
        if (same(&items[i], c)) return;
    items[list->count++] = *c;
}

static size_t product_size(const struct values values[OPTIONS]) {
    size_t size = 1;
    for (int i = 0; i < OPTIONS && size <= CANDIDATES_MAX; i++)
        size *= values[i].count;
    return size;
}

/* `list` has room for CANDIDATES_MAX. */
static void decode_product(const json_t *object, bool lists, struct list *list, struct decode *d) {
    struct values values[OPTIONS];
    size_t before = decode_faults(d);
    if (!json_is_object(object)) {
        problem_here(d, "must be an object such as {\"method\": \"hqq\", \"bits\": 4}, not %s", json_type_name(object));
        return;
    }
    for (int i = 0; i < OPTIONS; i++)
        decode_option((enum option)i, object, lists, &values[i], d);
    refuse_unknown(object, d);
    choose_method(values);
    if (decode_faults(d) == before) check_members(values, lists, d);
    if (decode_faults(d) != before) return;
    size_t size = product_size(values);
    if (list->count + size > CANDIDATES_MAX) {
        problem_here(d, "the lists multiply to more than %d candidates in all; ask for fewer", CANDIDATES_MAX);
        return;
    }
    for (size_t n = 0; n < size; n++) {
        struct candidate c = product_element(values, n);
        struct err e;
        if (candidate_check(&c, &e) != RC_OK) {
            problem_at(d, e.pointer + 1, "%s", e.message);
            return;
        }
        add_unique(list, &c);
    }
}

void candidates_decode(const json_t *array, void *member, struct decode *d) {
    struct list *list = member;
    *list = (struct list){0};
    if (!json_is_array(array) || json_array_size(array) == 0 || json_array_size(array) > CANDIDATES_MAX) {
        problem_here(d, "must be an array of 1 to %d candidates", CANDIDATES_MAX);
        return;
    }
    list->items = arena_alloc(d->arena, CANDIDATES_MAX * sizeof(struct candidate));
    for (size_t i = 0; i < json_array_size(array); i++) {
        size_t mark = decode_enter_index(d, i);
        decode_product(json_array_get(array, i), true, list, d);
        decode_leave(d, mark);
    }
}

struct list candidates_default(struct arena *arena) {
    static const int groups[] = {32, 64, 128};
    enum { GROUPS = sizeof groups / sizeof *groups };
    struct candidate *items = arena_alloc(arena, BIT_WIDTHS * GROUPS * sizeof *items);
    for (int i = 0; i < BIT_WIDTHS * GROUPS; i++)
        items[i] = candidate_best(bit_widths[i / GROUPS], groups[i % GROUPS]);
    return (struct list){.items = items, .count = BIT_WIDTHS * GROUPS};
}

void candidate_decode(const json_t *object, void *member, struct decode *d) {
    struct list list = {.items = arena_alloc(d->arena, CANDIDATES_MAX * sizeof(struct candidate))};
    decode_product(object, false, &list, d);
    *(struct candidate **)member = list.count > 0 ? list.items : NULL;
}

/* --- JSON Schema --- */

static json_t *name_array(const char *const *names) {
    json_t *array = json_array();
    for (int i = 0; names[i] != NULL; i++)
        json_array_append_new(array, json_string(names[i]));
    return array;
}

static json_t *describe_size(enum option option) {
    if (option == OPTION_GROUP)
        return json_pack("{s:s, s:[{s:i}, {s:i, s:i}]}", "type", "integer", "anyOf", "const", 0, "minimum", GROUP_MIN,
                         "maximum", GROUP_MAX);
    json_t *widths = json_array();
    for (int i = 0; i < BIT_WIDTHS; i++)
        json_array_append_new(widths, json_integer(bit_widths[i]));
    return json_pack("{s:s, s:o}", "type", "integer", "enum", widths);
}

static json_t *describe_option(enum option option) {
    switch (candidate_options[option].type) {
    case OPTION_NAME:
        return json_pack("{s:s, s:o}", "type", "string", "enum", name_array(candidate_options[option].names));
    case OPTION_SIZE: return describe_size(option);
    case OPTION_FLAG: return json_pack("{s:s}", "type", "boolean");
    case OPTION_SHARE: return json_pack("{s:s, s:f, s:i}", "type", "number", "minimum", 1.0 / PARTS, "maximum", 1);
    case OPTION_COUNT: return json_pack("{s:s, s:i, s:i}", "type", "integer", "minimum", 0, "maximum", DESCEND_MAX);
    }
    return NULL;
}

static json_t *describe_product(bool lists) {
    json_t *properties = json_object();
    for (int i = 0; i < OPTIONS; i++) {
        json_t *one = describe_option((enum option)i);
        if (lists)
            one = json_pack("{s:[O, {s:s, s:o, s:i, s:i}]}", "anyOf", one, "type", "array", "items", one, "minItems", 1,
                            "maxItems", VALUES_MAX);
        json_object_set_new(properties, candidate_options[i].name, one);
    }
    return json_pack("{s:s, s:s, s:o, s:b}", "title", "candidate", "type", "object", "properties", properties,
                     "additionalProperties", 0);
}

json_t *candidates_describe(void) {
    return json_pack("{s:s, s:o, s:i, s:i}", "type", "array", "items", describe_product(true), "minItems", 1,
                     "maxItems", CANDIDATES_MAX);
}

json_t *candidate_describe(void) {
    return describe_product(false);
}
