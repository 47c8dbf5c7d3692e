#include "worker/model/rope.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

enum { ORIGINAL_CONTEXT_MAX = 1 << 30 };

/* The object that holds the settings, and where it stands. */
struct section {
    const json_t *config, *object; /* object NULL: there is none */
    const char *pointer;
};

enum rc refuse_field(const char *parent, const char *field, const json_t *value, struct err *e) {
    char pointer[192];
    snprintf(pointer, sizeof pointer, "%s", parent);
    json_pointer_push_key(pointer, sizeof pointer, field);
    char *text = json_line(value);
    enum rc rc = err_at(e, pointer, RC_UNSUPPORTED, "config.json: %s = %.160s is not supported", pointer + 1,
                        text != NULL ? text : "?");
    free(text);
    return rc;
}

/* json_get_* speak of the object they were given. */
static enum rc within(const struct section *s, enum rc rc, struct err *e) {
    if (rc == RC_OK || e == NULL) return rc;
    char inner[sizeof e->pointer];
    snprintf(inner, sizeof inner, "%s", e->pointer);
    snprintf(e->pointer, sizeof e->pointer, "%s%.*s", s->pointer, 100, inner);
    return err_context(e, "config.json%s", s->pointer);
}

static enum rc invalid(const struct section *s, const char *field, struct err *e, const char *what) {
    char pointer[192];
    snprintf(pointer, sizeof pointer, "%s", s->pointer);
    json_pointer_push_key(pointer, sizeof pointer, field);
    return err_at(e, pointer, RC_INVALID, "config.json: %s %s", pointer + 1, what);
}

/* A member that is there and not null. */
static const json_t *given(const json_t *object, const char *field) {
    const json_t *value = json_object_get(object, field);
    return json_is_null(value) ? NULL : value;
}

static enum rc positive(const struct section *s, const char *field, double *out, struct err *e) {
    if (given(s->object, field) == NULL) return invalid(s, field, e, "is missing");
    TRY(within(s, json_get_number(s->object, field, out, e), e));
    if (!isfinite(*out) || *out <= 0) return invalid(s, field, e, "must be a positive number");
    return RC_OK;
}

/* rope_scaling is the older name and wins when it holds anything, as in transformers. */
static enum rc find_section(const json_t *config, struct section *s, struct err *e) {
    static const char *const names[] = {"rope_scaling", "rope_parameters"};
    static const char *const pointers[] = {"/rope_scaling", "/rope_parameters"};
    *s = (struct section){config, NULL, ""};
    for (int i = 0; i < 2 && s->object == NULL; i++) {
        const json_t *value = given(config, names[i]);
        if (value == NULL) continue;
        if (!json_is_object(value))
            return err_at(e, pointers[i], RC_INVALID, "config.json: %s must be an object", names[i]);
        if (json_object_size(value) > 0) *s = (struct section){config, value, pointers[i]};
    }
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)s->object, key, value) {
        if (json_is_object(value)) return refuse_field(s->pointer, key, value, e); /* one rope per layer type */
    }
    return RC_OK;
}

/* A setting that may stand in the section or, in older configs, beside it. */
static enum rc either(const struct section *s, const char *field, double *out, struct err *e) {
    struct section top = {s->config, s->config, ""};
    if (given(s->object, field) != NULL) return positive(s, field, out, e);
    return given(s->config, field) != NULL ? positive(&top, field, out, e) : RC_OK;
}

static enum rc parse_rotary(const struct section *s, const struct rope_rules *rules, struct arch *arch, struct err *e) {
    double partial = 1;
    TRY(either(s, "partial_rotary_factor", &partial, e));
    if (partial > 1 || (partial < 1 && !rules->phi))
        return err_at(e, "/partial_rotary_factor", RC_UNSUPPORTED,
                      "config.json: partial_rotary_factor = %g is not supported for %s", partial, arch->family);
    arch->rotary = (int)(arch->head_dim * partial);
    if (arch->rotary < 2 || arch->rotary % 2 != 0 || arch->rotary > 2 * ROTARY_HALF_MAX)
        return err_at(e, "/head_dim", RC_UNSUPPORTED,
                      "config.json: %d rotated channels a head are not supported; it must be an even number up to %d",
                      arch->rotary, 2 * ROTARY_HALF_MAX);
    return RC_OK;
}

/* The config's own field wins over the section's, and so does Phi-3's default (transformers, standardize_rope_params).
 */
static enum rc parse_original(const struct section *s, const struct rope_rules *rules, struct arch *arch,
                              struct err *e) {
    static const char field[] = "original_max_position_embeddings";
    int64_t original = rules->original_context != 0 ? rules->original_context : arch->context;
    if (rules->original_context == 0)
        TRY(within(s, json_get_int(s->object, field, 1, ORIGINAL_CONTEXT_MAX, &original, e), e));
    TRY(json_get_int(s->config, field, 1, ORIGINAL_CONTEXT_MAX, &original, e));
    arch->rope.original_context = original;
    return RC_OK;
}

static enum rc parse_factors(const struct section *s, const char *field, int count, double *out, struct err *e) {
    const json_t *array = json_object_get(s->object, field);
    if (!json_is_array(array)) return invalid(s, field, e, "is missing or no list");
    if (json_array_size(array) != (size_t)count)
        return invalid(s, field, e, "must have one number for each pair of rotated channels");
    for (int i = 0; i < count; i++) {
        out[i] = json_number_value(json_array_get(array, (size_t)i));
        if (!isfinite(out[i]) || out[i] <= 0) return invalid(s, field, e, "must hold positive numbers only");
    }
    return RC_OK;
}

static enum rc parse_default(const struct section *s, const struct rope_rules *rules, struct arch *arch,
                             struct err *e) {
    (void)s, (void)rules, (void)arch, (void)e;
    return RC_OK;
}

static enum rc parse_linear(const struct section *s, const struct rope_rules *rules, struct arch *arch, struct err *e) {
    (void)rules;
    return positive(s, "factor", &arch->rope.factor, e);
}

static enum rc parse_llama3(const struct section *s, const struct rope_rules *rules, struct arch *arch, struct err *e) {
    struct rope_config *rope = &arch->rope;
    TRY(positive(s, "factor", &rope->factor, e));
    TRY(positive(s, "low_freq_factor", &rope->low_freq_factor, e));
    TRY(positive(s, "high_freq_factor", &rope->high_freq_factor, e));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return invalid(s, "high_freq_factor", e, "must be greater than low_freq_factor");
    return parse_original(s, rules, arch, e);
}

static enum rc parse_longrope(const struct section *s, const struct rope_rules *rules, struct arch *arch,
                              struct err *e) {
    static const char *const refused[] = {"short_mscale", "long_mscale"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (given(s->object, refused[i]) != NULL)
            return refuse_field(s->pointer, refused[i], given(s->object, refused[i]), e);
    struct rope_config *rope = &arch->rope;
    TRY(parse_original(s, rules, arch, e));
    TRY(parse_factors(s, "short_factor", arch->rotary / 2, rope->short_factor, e));
    TRY(parse_factors(s, "long_factor", arch->rotary / 2, rope->long_factor, e));
    rope->factor = (double)arch->context / (double)rope->original_context;
    if (given(s->object, "factor") != NULL) TRY(positive(s, "factor", &rope->factor, e));
    if (given(s->object, "attention_factor") != NULL)
        return positive(s, "attention_factor", &rope->attention_factor, e);
    if (rope->factor <= 1) return RC_OK;
    if (rope->original_context < 2)
        return invalid(s, "original_max_position_embeddings", e, "must be at least 2 for longrope");
    rope->attention_factor = sqrt(1 + log(rope->factor) / log((double)rope->original_context));
    return RC_OK;
}

static const struct {
    const char *name;
    enum rope_type type;
    bool phi, others; /* which families know it */
    enum rc (*parse)(const struct section *s, const struct rope_rules *rules, struct arch *arch, struct err *e);
} rope_types[] = {
    {"default", ROPE_DEFAULT, true, true, parse_default}, {"linear", ROPE_LINEAR, false, true, parse_linear},
    {"llama3", ROPE_LLAMA3, false, true, parse_llama3},   {"longrope", ROPE_LONGROPE, true, true, parse_longrope},
    {"su", ROPE_LONGROPE, true, false, parse_longrope}, /* what Phi-3 called longrope first */
};

enum rc rope_from_config(const json_t *config, const struct rope_rules *rules, struct arch *arch, struct err *e) {
    struct section s;
    TRY(find_section(config, &s, e));
    arch->rope = (struct rope_config){.theta = 10000, .factor = 1, .attention_factor = 1};
    TRY(either(&s, "rope_theta", &arch->rope.theta, e));
    TRY(parse_rotary(&s, rules, arch, e));
    if (given(s.object, "mrope_section") != NULL)
        return refuse_field(s.pointer, "mrope_section", given(s.object, "mrope_section"), e);
    const char *type = NULL, *field = "rope_type";
    if (s.object != NULL) TRY(within(&s, json_get_string(s.object, field, &type, e), e));
    if (type == NULL && s.object != NULL) TRY(within(&s, json_get_string(s.object, field = "type", &type, e), e));
    if (type == NULL) type = "default";
    for (size_t i = 0; i < sizeof rope_types / sizeof *rope_types; i++) {
        if (strcmp(type, rope_types[i].name) != 0) continue;
        if (!(rules->phi ? rope_types[i].phi : rope_types[i].others)) break;
        arch->rope.type = rope_types[i].type;
        return rope_types[i].parse(&s, rules, arch, e);
    }
    return refuse_field(s.pointer, field, json_object_get(s.object, field), e);
}

/* Three bands by wavelength: kept, blended, interpolated (transformers, _compute_llama3_parameters). */
static double llama3_frequency(const struct rope_config *rope, double frequency) {
    double wavelength = 2 * M_PI / frequency, original = (double)rope->original_context;
    if (wavelength < original / rope->high_freq_factor) return frequency;
    if (wavelength > original / rope->low_freq_factor) return frequency / rope->factor;
    double smooth = (original / wavelength - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * frequency / rope->factor + smooth * frequency;
}

/* Radians per position of the i-th pair of channels, in a window of `length` tokens. */
static double frequency(const struct arch *arch, int i, int64_t length) {
    const struct rope_config *rope = &arch->rope;
    double plain = pow(rope->theta, -2.0 * i / arch->rotary);
    switch (rope->type) {
    case ROPE_DEFAULT: break;
    case ROPE_LINEAR: return plain / rope->factor;
    case ROPE_LLAMA3: return llama3_frequency(rope, plain);
    case ROPE_LONGROPE: return plain / (length > rope->original_context ? rope->long_factor : rope->short_factor)[i];
    }
    return plain;
}

void arch_rope_tables(const struct arch *arch, int64_t length, float *cos_out, float *sin_out) {
    int half = arch->rotary / 2;
    for (int i = 0; i < half; i++) {
        double step = frequency(arch, i, length);
        for (int64_t t = 0; t < length; t++) {
            double angle = (double)t * step;
            cos_out[t * half + i] = (float)(cos(angle) * arch->rope.attention_factor);
            sin_out[t * half + i] = (float)(sin(angle) * arch->rope.attention_factor);
        }
    }
}
