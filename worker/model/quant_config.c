#include "worker/model/quant_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/json.h"
#include "base/mem.h"

const char quant_method_ct[] = "compressed-tensors", quant_method_own[] = "hsaqd";

static const char root[] = "/quantization_config", regex_prefix[] = "re:", linear_class[] = "Linear";
enum { GROUPS_MAX = 4096, PATTERNS_MAX = 4096, PATTERN_BYTES_MAX = 4096, MATCH_STEPS_MAX = 100000 };
enum { SECONDS_MAX = 10 }; /* all matching of one model */

struct pattern {
    const char *text; /* borrowed from the JSON: the order of targets is that of their texts */
    pcre2_code *code;
    int group; /* −1: ignored */
};

struct quant_config {
    json_t *json; /* owns the texts */
    bool own;
    struct candidate *groups; /* [count] */
    size_t count;
    json_t *names;            /* {Linear's name: group, or −1: ignored} */
    struct pattern *patterns; /* [pattern_count] by text */
    size_t pattern_count, pattern_capacity;
    int linear_group; /* of the class "Linear"; −1: none, or ignored */
    bool linears_ignored;
    pcre2_match_data *data;
    pcre2_match_context *context;
    clock_t spent;
};

/* --- one scheme --- */

/* A member that must be absent, null, or nothing: {} or "dense" of what was left out. */
static enum rc refuse_present(const json_t *object, const char *pointer, const char *key, struct err *e) {
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value) || (json_is_object(value) && json_object_size(value) == 0)) return RC_OK;
    const char *format = json_string_value(json_object_get(value, "format"));
    if (format != NULL && strcmp(format, "dense") == 0) return RC_OK;
    return err_at(e, pointer, RC_UNSUPPORTED, "config.json: %s/%s is not implemented", pointer, key);
}

static enum rc want_text(const json_t *object, const char *pointer, const char *key, const char *const *allowed,
                         struct err *e) {
    const char *text = NULL;
    if (json_get_string(object, key, &text, e) != RC_OK) return err_context(e, "config.json: %s", pointer);
    for (int i = 0; text != NULL && allowed[i] != NULL; i++)
        if (strcmp(text, allowed[i]) == 0) return RC_OK;
    if (text == NULL) return RC_OK;
    return err_at(e, pointer, RC_UNSUPPORTED, "config.json: %s/%s is \"%.64s\"; what is implemented is \"%s\"", pointer,
                  key, text, allowed[0]);
}

static enum rc read_group_size(const json_t *weights, const char *pointer, int *group, struct err *e) {
    const char *strategy = NULL;
    int64_t size = 0;
    TRY(json_get_string(weights, "strategy", &strategy, e));
    TRY(json_get_int(weights, "group_size", -1, INT32_MAX, &size, e));
    if (strategy == NULL) strategy = size > 0 ? "group" : size == -1 ? "channel" : "tensor";
    bool grouped = strcmp(strategy, "group") == 0;
    if (!grouped && strcmp(strategy, "channel") != 0)
        return err_at(e, pointer, RC_UNSUPPORTED,
                      "config.json: %s/strategy is \"%.64s\"; \"group\" and \"channel\" are implemented", pointer,
                      strategy);
    if (grouped != (size > 0))
        return err_at(e, pointer, RC_INVALID, "config.json: %s: strategy \"%s\" with group_size %lld", pointer,
                      strategy, (long long)size);
    *group = grouped ? (int)size : 0;
    return RC_OK;
}

static enum rc read_name(const json_t *weights, const char *key, const char *const *names, int *out, struct err *e) {
    const char *text = NULL;
    TRY(json_get_string(weights, key, &text, e));
    if (text == NULL) return RC_OK;
    *out = name_index(names, text);
    return *out >= 0 ? RC_OK : err_set(e, RC_UNSUPPORTED, "%s is \"%.64s\"", key, text);
}

/* What only our own dialect says. */
static enum rc read_own(const json_t *weights, const char *pointer, struct candidate *c, struct err *e) {
    int zero = ZERO_INTEGER, layout = LAYOUT_DENSE;
    enum rc rc = read_name(weights, "zero", zero_type_names, &zero, e);
    if (rc == RC_OK) rc = read_name(weights, "layout", layout_names, &layout, e);
    if (rc != RC_OK) return err_context(e, "config.json: %s", pointer);
    if (!c->symmetric) c->zero = (enum zero_type)zero;
    c->layout = (enum layout)layout;
    return RC_OK;
}

static enum rc read_numbers(const json_t *weights, const char *pointer, struct candidate *c, struct err *e) {
    int64_t bits = 0;
    bool symmetric = true;
    enum rc rc = json_get_int(weights, "num_bits", 1, 64, &bits, e);
    if (rc == RC_OK) rc = json_get_bool(weights, "symmetric", &symmetric, e);
    if (rc == RC_OK) rc = read_group_size(weights, pointer, &c->group, e);
    if (rc != RC_OK) return err_context(e, "config.json: %s", pointer);
    c->bits = (int)bits;
    c->symmetric = symmetric;
    c->zero = symmetric ? ZERO_FLOAT : ZERO_INTEGER;
    return RC_OK;
}

static enum rc refuse_dynamic(const json_t *weights, const char *pointer, struct err *e) {
    const json_t *dynamic = json_object_get(weights, "dynamic");
    if (dynamic == NULL || json_is_null(dynamic) || json_is_false(dynamic)) return RC_OK;
    return err_at(e, pointer, RC_UNSUPPORTED, "config.json: %s/dynamic: only static scales are implemented", pointer);
}

/* 8-bit floats, e4m3 by definition: a scale a row, or one. */
static enum rc read_fp8(const json_t *weights, const char *pointer, struct candidate *c, struct err *e) {
    static const char *const strategies[] = {"channel", "tensor", NULL};
    int64_t bits = 0;
    bool symmetric = true;
    int scale = FP8_PER_ROW;
    enum rc rc = json_get_int(weights, "num_bits", 1, 64, &bits, e);
    if (rc == RC_OK) rc = json_get_bool(weights, "symmetric", &symmetric, e);
    if (rc == RC_OK) rc = read_name(weights, "strategy", strategies, &scale, e);
    if (rc == RC_OK && (bits != 8 || !symmetric))
        rc = err_set(e, RC_UNSUPPORTED, "of floats those of 8 bits without zeros are implemented");
    if (rc != RC_OK) return err_context(e, "config.json: %s", pointer);
    *c = candidate_default(METHOD_FP8, 8, 0);
    c->fp8_scale = scale == 0 ? FP8_PER_ROW : FP8_PER_TENSOR;
    return RC_OK;
}

static bool is_float(const json_t *weights) {
    const char *type = json_string_value(json_object_get(weights, "type"));
    return type != NULL && strcmp(type, "float") == 0;
}

static enum rc read_weights(const struct quant_config *q, const json_t *weights, const char *pointer,
                            struct candidate *c, struct err *e) {
    static const char *const types[] = {"int", "float", NULL};
    static const char *const orders[] = {"weight", "static", "group", "dynamic", NULL};
    *c = (struct candidate){.method = METHOD_RTN};
    if (!json_is_object(weights))
        return err_at(e, pointer, RC_INVALID, "config.json: %s must be an object, not %s", pointer,
                      json_type_name(weights));
    TRY(want_text(weights, pointer, "type", types, e));
    TRY(refuse_dynamic(weights, pointer, e));
    TRY(refuse_present(weights, pointer, "block_structure", e));
    if (!json_is_false(json_object_get(weights, "actorder"))) TRY(want_text(weights, pointer, "actorder", orders, e));
    if (is_float(weights)) return read_fp8(weights, pointer, c, e);
    TRY(read_numbers(weights, pointer, c, e));
    if (q->own) TRY(read_own(weights, pointer, c, e));
    struct err fault;
    if (candidate_check(c, &fault) == RC_OK) return RC_OK;
    return err_at(e, pointer, RC_UNSUPPORTED, "config.json: %s asks for %d bits in groups of %d, but %s %s", pointer,
                  c->bits, c->group, fault.pointer, fault.message);
}

/* --- which Linears --- */

static enum rc add_pattern(struct quant_config *q, const char *text, int group, const char *pointer, struct err *e) {
    const char *regex = text + sizeof regex_prefix - 1;
    if (q->pattern_count == PATTERNS_MAX || strlen(regex) > PATTERN_BYTES_MAX)
        return err_at(e, pointer, RC_TOO_LARGE, "config.json: %s: at most %d patterns of %d bytes are read", pointer,
                      PATTERNS_MAX, PATTERN_BYTES_MAX);
    int error;
    size_t offset;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED, &error, &offset, NULL);
    if (code == NULL) {
        char reason[128];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
        return err_at(e, pointer, RC_INVALID, "config.json: %s: \"%.64s\", character %zu: %s", pointer, text, offset,
                      reason);
    }
    GROW(q->patterns, q->pattern_count, q->pattern_capacity);
    q->patterns[q->pattern_count++] = (struct pattern){text, code, group};
    return RC_OK;
}

static enum rc add_target(struct quant_config *q, const json_t *target, int group, const char *pointer, struct err *e) {
    const char *text = json_string_value(target);
    if (text == NULL)
        return err_at(e, pointer, RC_INVALID, "config.json: %s must hold strings, not %s", pointer,
                      json_type_name(target));
    if (strncmp(text, regex_prefix, sizeof regex_prefix - 1) == 0) return add_pattern(q, text, group, pointer, e);
    if (strcmp(text, linear_class) == 0 && group < 0) q->linears_ignored = true;
    if (strcmp(text, linear_class) == 0 && q->linear_group < 0) q->linear_group = group;
    /* A name that is ignored stays so; else its first group counts. */
    if (group < 0 || json_object_get(q->names, text) == NULL) json_object_set_new(q->names, text, json_integer(group));
    return RC_OK;
}

static enum rc add_targets(struct quant_config *q, const json_t *list, int group, const char *pointer, struct err *e) {
    if (!json_is_array(list))
        return err_at(e, pointer, RC_INVALID, "config.json: %s must be an array, not %s", pointer,
                      json_type_name(list));
    for (size_t i = 0; i < json_array_size(list); i++)
        TRY(add_target(q, json_array_get(list, i), group, pointer, e));
    return RC_OK;
}

static enum rc read_group(struct quant_config *q, const json_t *group, const char *pointer, struct err *e) {
    static const char *const packed[] = {"pack-quantized", NULL}, *const floats[] = {"float-quantized",
                                                                                     "naive-quantized", NULL};
    char member[sizeof((struct err *)0)->pointer];
    if (!json_is_object(group))
        return err_at(e, pointer, RC_UNSUPPORTED, "config.json: %s must be an object, not %s", pointer,
                      json_type_name(group));
    const char *const *formats = is_float(json_object_get(group, "weights")) ? floats : packed;
    if (!q->own) TRY(want_text(group, pointer, "format", formats, e));
    TRY(refuse_present(group, pointer, "input_activations", e));
    TRY(refuse_present(group, pointer, "output_activations", e));
    snprintf(member, sizeof member, "%s/weights", pointer);
    TRY(read_weights(q, json_object_get(group, "weights"), member, &q->groups[q->count], e));
    snprintf(member, sizeof member, "%s/targets", pointer);
    return add_targets(q, json_object_get(group, "targets"), (int)q->count++, member, e);
}

static enum rc read_groups(struct quant_config *q, struct err *e) {
    json_t *groups = json_object_get(q->json, "config_groups");
    if (!json_is_object(groups) || json_object_size(groups) > GROUPS_MAX)
        return err_at(e, root, RC_INVALID, "config.json: %s/config_groups must be an object of at most %d groups", root,
                      GROUPS_MAX);
    q->groups = xcalloc(json_object_size(groups) + 1, sizeof *q->groups);
    const char *name;
    json_t *group;
    json_object_foreach(groups, name, group) {
        char pointer[sizeof((struct err *)0)->pointer - 16];
        snprintf(pointer, sizeof pointer, "%s/config_groups", root);
        json_pointer_push_key(pointer, sizeof pointer, name);
        TRY(read_group(q, group, pointer, e));
    }
    return RC_OK;
}

static int by_text(const void *a, const void *b) {
    return strcmp(((const struct pattern *)a)->text, ((const struct pattern *)b)->text);
}

static enum rc read_method(struct quant_config *q, struct err *e) {
    const char *method = NULL;
    TRY(json_get_string(q->json, "quant_method", &method, e));
    if (method == NULL) return err_at(e, root, RC_INVALID, "config.json: %s names no quant_method", root);
    q->own = strcmp(method, quant_method_own) == 0;
    if (q->own || strcmp(method, quant_method_ct) == 0) return RC_OK;
    return err_at(e, "/quantization_config/quant_method", RC_UNSUPPORTED,
                  "config.json: quantization_config/quant_method is \"%.64s\"; models quantized by compressed-tensors "
                  "(pack-quantized) can be read, and unquantized ones",
                  method);
}

static enum rc read_all(struct quant_config *q, struct err *e) {
    static const char *const formats[] = {"pack-quantized", "float-quantized", "naive-quantized", "mixed-precision",
                                          NULL};
    static const char *const states[] = {"compressed", "frozen", NULL};
    static const char *const absent[] = {"kv_cache_scheme", "sparsity_config", "transform_config"};
    TRY(read_method(q, e));
    if (!q->own) TRY(want_text(q->json, root, "format", formats, e));
    if (!q->own) TRY(want_text(q->json, root, "quantization_status", states, e));
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        TRY(refuse_present(q->json, root, absent[i], e));
    TRY(read_groups(q, e));
    json_t *ignore = json_object_get(q->json, "ignore");
    if (ignore != NULL && !json_is_null(ignore)) TRY(add_targets(q, ignore, -1, "/quantization_config/ignore", e));
    if (q->pattern_count > 0) qsort(q->patterns, q->pattern_count, sizeof *q->patterns, by_text);
    return RC_OK;
}

static struct quant_config *quant_config_new(json_t *json) {
    struct quant_config *q = xcalloc(1, sizeof *q);
    q->json = json_incref(json);
    q->names = json_object();
    q->linear_group = -1;
    q->data = pcre2_match_data_create(1, NULL);
    q->context = pcre2_match_context_create(NULL);
    if (q->context != NULL) pcre2_set_match_limit(q->context, MATCH_STEPS_MAX);
    return q;
}

enum rc quant_config_read(const json_t *config, struct quant_config **out, struct err *e) {
    json_t *json = json_object_get(config, "quantization_config");
    *out = NULL;
    if (json == NULL || json_is_null(json)) return RC_OK;
    if (!json_is_object(json))
        return err_at(e, root, RC_INVALID, "config.json: %s must be an object, not %s", root, json_type_name(json));
    struct quant_config *q = quant_config_new(json);
    enum rc rc = q->data != NULL && q->context != NULL ? read_all(q, e)
                                                       : err_set(e, RC_NO_MEMORY, "no memory to match patterns");
    if (rc == RC_OK)
        *out = q;
    else
        quant_config_free(q);
    return rc;
}

void quant_config_free(struct quant_config *q) {
    if (q == NULL) return;
    for (size_t i = 0; i < q->pattern_count; i++)
        pcre2_code_free(q->patterns[i].code);
    free(q->patterns);
    free(q->groups);
    pcre2_match_data_free(q->data);
    pcre2_match_context_free(q->context);
    json_decref(q->names);
    json_decref(q->json);
    free(q);
}

const char *quant_config_method(const struct quant_config *q) {
    return q->own ? quant_method_own : quant_method_ct;
}

static enum rc try_pattern(struct quant_config *q, const struct pattern *p, const char *linear, bool *found,
                           struct err *e) {
    clock_t before = clock();
    int rc = pcre2_match(p->code, (PCRE2_SPTR)linear, PCRE2_ZERO_TERMINATED, 0, 0, q->data, q->context);
    q->spent += clock() - before;
    *found = rc >= 0;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        return err_at(e, root, RC_INVALID, "config.json: the target \"%.64s\" takes too long to match", p->text);
    if (q->spent > (clock_t)SECONDS_MAX * CLOCKS_PER_SEC)
        return err_at(e, root, RC_TOO_LARGE, "config.json: the targets of %s take too long to match", root);
    return RC_OK;
}

/* The group of the first pattern that matches, −1 when that of an ignored Linear does, −2: none. */
enum { NO_PATTERN = -2 };
static enum rc match_patterns(struct quant_config *q, const char *linear, int *group, struct err *e) {
    *group = NO_PATTERN;
    for (size_t i = 0; i < q->pattern_count; i++) {
        const struct pattern *p = &q->patterns[i];
        bool found;
        if (*group >= 0 && p->group >= 0) continue;
        TRY(try_pattern(q, p, linear, &found, e));
        if (!found) continue;
        *group = p->group;
        if (p->group < 0) break;
    }
    return RC_OK;
}

enum rc quant_config_match(struct quant_config *q, const char *linear, const struct candidate **out, struct err *e) {
    const json_t *named = json_object_get(q->names, linear);
    int group;
    *out = NULL;
    TRY(match_patterns(q, linear, &group, e));
    if (group == -1 || q->linears_ignored) return RC_OK;
    if (named != NULL) group = (int)json_integer_value(named);
    if (group == NO_PATTERN) group = q->linear_group;
    if (group >= 0) *out = &q->groups[group];
    return RC_OK;
}
