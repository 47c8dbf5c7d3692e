#include "base/candidate.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"

const char *const method_names[] = {"none", "rtn", "hqq", NULL};
const char *const zero_type_names[] = {"float", "integer", NULL};
const char *const layout_names[] = {"dense", "hqq", NULL};

static const char *const planned_methods[] = {"gptq", "awq", "awq+gptq", "fp8", NULL};
static const int bit_widths[] = {2, 3, 4, 5, 6, 8};

enum { BIT_WIDTHS = sizeof bit_widths / sizeof *bit_widths, GROUP_MIN = 16, GROUP_MAX = 1024, GROUP_DEFAULT = 64 };
enum { UNQUANTIZED_BITS = 16 };

static bool is_bit_width(int bits) {
    for (int i = 0; i < BIT_WIDTHS; i++)
        if (bit_widths[i] == bits) return true;
    return false;
}

static bool is_group(int group) {
    return group == 0 || (group >= GROUP_MIN && group <= GROUP_MAX);
}

enum rc candidate_check(const struct candidate *c, struct err *e) {
    if (c->method == METHOD_NONE) return RC_OK;
    if (!is_bit_width(c->bits)) return err_at(e, "/bits", RC_INVALID, "must be one of 2, 3, 4, 5, 6, 8");
    if (!is_group(c->group))
        return err_at(e, "/group", RC_INVALID, "must be %d to %d, or 0 for the whole row", GROUP_MIN, GROUP_MAX);
    if (c->symmetric && c->method != METHOD_RTN)
        return err_at(e, "/symmetric", RC_INVALID, "%s has no symmetric form; rtn has", method_names[c->method]);
    if (c->symmetric && c->zero != ZERO_FLOAT)
        return err_at(e, "/zero", RC_INVALID, "a symmetric candidate has no zero point; leave \"zero\" out");
    if (c->layout == LAYOUT_HQQ && c->symmetric)
        return err_at(e, "/layout", RC_INVALID, "the hqq layout stores a zero a group; it cannot be symmetric");
    if (c->layout == LAYOUT_HQQ && c->zero != ZERO_FLOAT)
        return err_at(e, "/layout", RC_INVALID, "the hqq layout stores float zeros, not integer ones");
    return RC_OK;
}

/* --- Ids --- */

static const char *const suffixes[] = {"-sym", "-intzero", "-hqqpack"};

const char *candidate_id(const struct candidate *c, char id[CANDIDATE_ID_SIZE]) {
    if (c->method == METHOD_NONE)
        snprintf(id, CANDIDATE_ID_SIZE, "none");
    else
        snprintf(id, CANDIDATE_ID_SIZE, "%s%dg%d%s%s%s", method_names[c->method], c->bits, c->group,
                 c->symmetric ? suffixes[0] : "", c->zero == ZERO_INTEGER ? suffixes[1] : "",
                 c->layout == LAYOUT_HQQ ? suffixes[2] : "");
    return id;
}

static bool take(const char **text, const char *prefix) {
    size_t len = strlen(prefix);
    if (strncmp(*text, prefix, len) != 0) return false;
    *text += len;
    return true;
}

/* Up to four digits; candidate_from_id's comparison refuses leading zeros. */
static int take_number(const char **text) {
    int value = 0;
    for (int i = 0; i < 4 && **text >= '0' && **text <= '9'; i++)
        value = 10 * value + *(*text)++ - '0';
    return value;
}

static void read_id(const char *id, struct candidate *c) {
    *c = (struct candidate){.method = METHOD_NONE, .bits = UNQUANTIZED_BITS};
    for (int m = METHOD_RTN; method_names[m] != NULL; m++)
        if (take(&id, method_names[m])) c->method = (enum method)m;
    if (c->method == METHOD_NONE) return;
    c->bits = take_number(&id);
    c->group = take(&id, "g") ? take_number(&id) : 0;
    c->symmetric = take(&id, suffixes[0]);
    c->zero = take(&id, suffixes[1]) ? ZERO_INTEGER : ZERO_FLOAT;
    c->layout = take(&id, suffixes[2]) ? LAYOUT_HQQ : LAYOUT_DENSE;
}

enum rc candidate_from_id(const char *id, struct candidate *c, struct err *e) {
    /* What was read wrongly or not at all shows when it is written again: one grammar, in candidate_id. */
    char again[CANDIDATE_ID_SIZE];
    read_id(id, c);
    if (candidate_check(c, NULL) != RC_OK || strcmp(candidate_id(c, again), id) != 0)
        return err_set(e, RC_INVALID, "'%.48s' is no candidate id; ids look like hqq4g64, rtn3g128-sym or none", id);
    return RC_OK;
}

/* --- JSON --- */

enum option { OPTION_METHOD, OPTION_BITS, OPTION_GROUP, OPTION_SYMMETRIC, OPTION_ZERO, OPTION_LAYOUT, OPTIONS };
enum { VALUES_MAX = 32 };

/* The values of one member: several when the candidate is a product. */
struct values {
    int items[VALUES_MAX];
    size_t count;
    bool given;
};

static const struct option_row {
    const char *name;
    const char *const *names; /* NULL: not an enumeration */
    int fallback;             /* when the member is absent */
} options[OPTIONS] = {
    [OPTION_METHOD] = {"method", method_names, -1},        [OPTION_BITS] = {"bits", NULL, -1},
    [OPTION_GROUP] = {"group", NULL, GROUP_DEFAULT},       [OPTION_SYMMETRIC] = {"symmetric", NULL, false},
    [OPTION_ZERO] = {"zero", zero_type_names, ZERO_FLOAT}, [OPTION_LAYOUT] = {"layout", layout_names, LAYOUT_DENSE},
};

static bool decode_name(enum option option, const json_t *value, int *out, struct decode *d) {
    if (!json_is_string(value)) {
        problem_here(d, "must be a string, not %s", json_type_name(value));
        return false;
    }
    *out = name_index(options[option].names, json_string_value(value));
    if (*out >= 0) return true;
    problem_name(d, json_string_value(value), options[option].names, option == OPTION_METHOD ? planned_methods : NULL);
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

static bool decode_value(enum option option, const json_t *value, int *out, struct decode *d) {
    if (options[option].names != NULL) return decode_name(option, value, out, d);
    return option == OPTION_SYMMETRIC ? decode_flag(value, out, d) : decode_size(option, value, out, d);
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
    const json_t *value = json_object_get(object, options[option].name);
    *values = (struct values){.given = value != NULL && !json_is_null(value)};
    if (!values->given) {
        values->items[values->count++] = options[option].fallback;
        return;
    }
    size_t mark = decode_enter(d, options[option].name);
    if (json_is_array(value) && lists)
        decode_value_list(option, value, values, d);
    else if (decode_value(option, value, &values->items[0], d))
        values->count = 1;
    decode_leave(d, mark);
}

static void refuse_unknown(const json_t *object, struct decode *d) {
    const char *name;
    json_t *ignored;
    json_object_foreach((json_t *)object, name, ignored) {
        bool known = false;
        for (int i = 0; i < OPTIONS; i++)
            known = known || strcmp(options[i].name, name) == 0;
        if (!known)
            problem_at(d, name, "unknown member; a candidate takes: method, bits, group, symmetric, zero, layout");
    }
}

static bool has_value(const struct values *values, int value) {
    for (size_t i = 0; i < values->count; i++)
        if (values->items[i] == value) return true;
    return false;
}

/* What the members ask of each other before they are multiplied. */
static void check_members(const struct values values[OPTIONS], struct decode *d) {
    const struct values *methods = &values[OPTION_METHOD];
    bool none = has_value(methods, METHOD_NONE);
    if (!methods->given) problem_at(d, "method", "is required: none, rtn or hqq");
    if (methods->given && !none && !values[OPTION_BITS].given)
        problem_at(d, "bits", "is required: 2, 3, 4, 5, 6 or 8, or a list of these");
    for (int i = OPTION_BITS; i < OPTIONS && none; i++)
        if (values[i].given) problem_at(d, options[i].name, "\"none\" keeps 16 bits and takes no other member");
    if (none && methods->count > 1) problem_at(d, "method", "\"none\" must be a candidate of its own");
    bool symmetric = has_value(&values[OPTION_SYMMETRIC], true);
    if (symmetric && values[OPTION_ZERO].given)
        problem_at(d, "zero", "a symmetric candidate has no zero point; leave \"zero\" out");
}

/* Element number `n` of the product; the last option varies fastest. */
static struct candidate product_element(const struct values values[OPTIONS], size_t n) {
    int picked[OPTIONS];
    for (int i = OPTIONS - 1; i >= 0; i--) {
        picked[i] = values[i].items[n % values[i].count];
        n /= values[i].count;
    }
    if (picked[OPTION_METHOD] == METHOD_NONE)
        return (struct candidate){.method = METHOD_NONE, .bits = UNQUANTIZED_BITS};
    return (struct candidate){
        .method = (enum method)picked[OPTION_METHOD],
        .bits = picked[OPTION_BITS],
        .group = picked[OPTION_GROUP],
        .symmetric = picked[OPTION_SYMMETRIC],
        .zero = (enum zero_type)picked[OPTION_ZERO],
        .layout = (enum layout)picked[OPTION_LAYOUT],
    };
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
    if (decode_faults(d) == before) check_members(values, d);
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

static json_t *describe_option(enum option option) {
    if (options[option].names != NULL)
        return json_pack("{s:s, s:o}", "type", "string", "enum", name_array(options[option].names));
    if (option == OPTION_SYMMETRIC) return json_pack("{s:s}", "type", "boolean");
    if (option == OPTION_GROUP)
        return json_pack("{s:s, s:[{s:i}, {s:i, s:i}]}", "type", "integer", "anyOf", "const", 0, "minimum", GROUP_MIN,
                         "maximum", GROUP_MAX);
    json_t *widths = json_array();
    for (int i = 0; i < BIT_WIDTHS; i++)
        json_array_append_new(widths, json_integer(bit_widths[i]));
    return json_pack("{s:s, s:o}", "type", "integer", "enum", widths);
}

static json_t *describe_product(bool lists) {
    json_t *properties = json_object();
    for (int i = 0; i < OPTIONS; i++) {
        json_t *one = describe_option((enum option)i);
        if (lists)
            one = json_pack("{s:[O, {s:s, s:o, s:i, s:i}]}", "anyOf", one, "type", "array", "items", one, "minItems", 1,
                            "maxItems", VALUES_MAX);
        json_object_set_new(properties, options[i].name, one);
    }
    return json_pack("{s:s, s:s, s:o, s:[s], s:b}", "title", "candidate", "type", "object", "properties", properties,
                     "required", "method", "additionalProperties", 0);
}

json_t *candidates_describe(void) {
    return json_pack("{s:s, s:o, s:i, s:i}", "type", "array", "items", describe_product(true), "minItems", 1,
                     "maxItems", CANDIDATES_MAX);
}

json_t *candidate_describe(void) {
    return describe_product(false);
}
