#include "base/spec.h"

#include <string.h>

#include "base/json.h"
#include "base/spec_fields.h"

const char *const score_names[] = {"drift", "error", "fisher", "kfac", "diag", NULL};
static const char *const planned_scores[] = {"noise", "delta_kl", NULL};
const char *const sampling_names[] = {"sequential", "random", NULL};
static const char *const allocation_method_names[] = {"greedy", "upgrade", "optimal", NULL};
static const char *const protocol_names[] = {"windows", "llama.cpp", NULL};

/* Of a kind whose windows can be shared out. */
#define DEVICES_FIELD                                                                                                  \
    {                                                                                                                  \
        .name = "devices", .type = FIELD_STRING, .offset = offsetof(struct spec_common, devices),                      \
        .values = devices_values                                                                                       \
    }
static const char *const devices_values[] = {"all", NULL};

/* A split job has no device of its own. */
static void devices_check(const struct spec_common *common, struct decode *d) {
    if (common->device != NULL && common->devices != NULL)
        problem_at(d, "devices", "excludes device; give one of them, or neither for whichever is free first");
}

/* --- profile --- */

static void calibration_defaults(void *object) {
    struct spec_calibration *calibration = object;
    calibration->samples = 128;
    calibration->length = 2048;
    calibration->sampling = SAMPLING_RANDOM;
}

static const struct field calibration_fields[] = {
    NAME_FIELD(struct spec_calibration, dataset, true),
    INT_FIELD(struct spec_calibration, samples, 1, WINDOWS_MAX),
    INT_FIELD(struct spec_calibration, length, 2, LENGTH_MAX),
    ENUM_FIELD(struct spec_calibration, sampling, sampling_names),
    INT_FIELD(struct spec_calibration, seed, 0, SEED_MAX),
    {0},
};
const struct schema calibration_schema = {
    .name = "calibration",
    .fields = calibration_fields,
    .size = sizeof(struct spec_calibration),
    .defaults = calibration_defaults,
};

static void profile_defaults(void *object) {
    struct spec_profile *profile = object;
    profile->fisher_windows = 16;
}

bool spec_wants(const struct spec_profile *profile, const char *score) {
    const char *const *scores = profile->scores.items;
    for (size_t i = 0; i < profile->scores.count; i++)
        if (strcmp(scores[i], score) == 0) return true;
    return false;
}

bool spec_wants_loss(const struct spec_profile *profile) {
    return spec_wants(profile, "fisher") || spec_wants(profile, "kfac") || spec_wants(profile, "diag");
}

bool spec_wants_drift(const struct spec_profile *profile) {
    return spec_wants(profile, "drift") || !spec_wants_loss(profile);
}

bool spec_wants_guided(const struct spec_profile *profile) {
    const struct candidate *candidates = profile->candidates.items;
    for (size_t i = 0; i < profile->candidates.count; i++)
        if (candidates[i].guided) return true;
    return false;
}

/* Guided candidates have the gradients that Fisher scores need; around a quantized model only these are of interest. */
static void choose_scores(struct spec_profile *profile) {
    static const char *scores[] = {"drift", "fisher"};
    if (profile->scores.count > 0) return;
    profile->scores = (struct list){.items = scores, .count = spec_wants_guided(profile) || profile->around ? 2 : 1};
}

/* The default candidates are guided, and they and `around` bring a score along: what to do goes by what was written. */
static void head_check(const struct spec_profile *profile, struct decode *d) {
    if (profile->around)
        problem_at(d, "head", "is not measured around an allocation; leave it out, or around");
    else if (spec_wants_guided(profile))
        problem_at(d, "head",
                   "has no guided candidate, as the default is; leave it out, or give candidates that are not");
    else if (spec_wants_loss(profile))
        problem_at(d, "head", "has no fisher, kfac or diag score; leave it out, or them");
}

static void profile_check(void *object, struct decode *d) {
    struct spec_profile *profile = object;
    if (profile->candidates.count == 0) profile->candidates = candidates_default(d->arena);
    choose_scores(profile);
    devices_check(&profile->common, d);
    if (profile->around && !spec_wants_loss(profile))
        problem_at(d, "around", "is for fisher, kfac and diag; ask for one of them in scores, or leave scores out");
    if (profile->head) head_check(profile, d);
}

static const struct field profile_fields[] = {
    COMMON_FIELDS("profile"),
    DEVICES_FIELD,
    NAME_FIELD(struct spec_profile, model, true),
    {.name = "calibration",
     .type = FIELD_OBJECT,
     .offset = offsetof(struct spec_profile, calibration),
     .required = true,
     .schema = &calibration_schema},
    {.name = "candidates",
     .type = FIELD_CUSTOM,
     .offset = offsetof(struct spec_profile, candidates),
     .decode = candidates_decode,
     .describe = candidates_describe},
    {.name = "scores",
     .type = FIELD_STRINGS,
     .offset = offsetof(struct spec_profile, scores),
     .min = 1,
     .max = 8,
     .values = score_names,
     .planned = planned_scores,
     .planned_is = "a score of an allocation alone: run a sweep, and name it in the allocation"},
    INT_FIELD(struct spec_profile, fisher_windows, 1, WINDOWS_MAX),
    {.name = "layers", .type = FIELD_REGEX, .offset = offsetof(struct spec_profile, layers), .min = 1},
    {.name = "head", .type = FIELD_BOOL, .offset = offsetof(struct spec_profile, head)},
    JOB_FIELD(struct spec_profile, sweep, false),
    JOB_FIELD(struct spec_profile, around, false),
    {0},
};
static const struct schema profile_schema = {
    .name = "profile",
    .fields = profile_fields,
    .size = sizeof(struct spec_profile),
    .defaults = profile_defaults,
    .check = profile_check,
};
static const struct spec_reference profile_references[] = {
    {.member = "sweep", .kind = "sweep", .offset = offsetof(struct spec_profile, sweep), .rows = true},
    {.member = "around", .kind = "allocation", .offset = offsetof(struct spec_profile, around)},
    {0},
};

/* --- allocation --- */

static void budget_defaults(void *object) {
    struct spec_budget *budget = object;
    budget->context = 4096;
    budget->batch = 1;
    budget->kv_bits = 16;
}

static void budget_check(void *object, struct decode *d) {
    const struct spec_budget *budget = object;
    int given = budget->has_vram + budget->has_weights + budget->has_average_bits;
    if (given != 1) problem_here(d, "needs exactly one of vram, weights and average_bits; it has %d", given);
}

static const struct field budget_fields[] = {
    OPTIONAL_FIELD(struct spec_budget, vram, FIELD_BYTES, 1, BYTES_MAX),
    OPTIONAL_FIELD(struct spec_budget, weights, FIELD_BYTES, 1, BYTES_MAX),
    OPTIONAL_FIELD(struct spec_budget, average_bits, FIELD_NUMBER, 1, BITS_MAX),
    INT_FIELD(struct spec_budget, context, 1, LENGTH_MAX),
    INT_FIELD(struct spec_budget, batch, 1, 65536),
    INT_FIELD(struct spec_budget, kv_bits, 1, 32),
    {.name = "reserve", .type = FIELD_BYTES, .offset = offsetof(struct spec_budget, reserve), .max = BYTES_MAX},
    {0},
};
static const struct schema budget_schema = {
    .name = "budget",
    .fields = budget_fields,
    .size = sizeof(struct spec_budget),
    .defaults = budget_defaults,
    .check = budget_check,
};

static void rule_check(void *object, struct decode *d) {
    const struct spec_rule *rule = object;
    bool bounded = rule->has_min_bits || rule->has_max_bits || rule->has_method;
    bool selects =
        rule->match != NULL || rule->except != NULL || rule->has_first || rule->has_last || rule->tie.count > 0;
    bool acts = bounded || rule->pin != NULL || rule->tie.count > 0;
    if (!selects) problem_here(d, "says not which Linears it is for; give match, except, first, last or tie");
    if (!acts) problem_here(d, "says not what holds for them; give min_bits, max_bits, method, pin or tie");
    if (rule->has_min_bits && rule->has_max_bits && rule->min_bits > rule->max_bits)
        problem_at(d, "min_bits", "is above max_bits; no candidate could satisfy both");
    if (bounded && rule->pin != NULL)
        problem_at(d, "pin", "already settles the candidate; leave min_bits, max_bits and method out, or the pin");
}

static const struct field rule_fields[] = {
    {.name = "match", .type = FIELD_REGEX, .offset = offsetof(struct spec_rule, match), .min = 1},
    {.name = "except", .type = FIELD_REGEX, .offset = offsetof(struct spec_rule, except), .min = 1},
    OPTIONAL_FIELD(struct spec_rule, first, FIELD_INT, 0, BLOCKS_MAX),
    OPTIONAL_FIELD(struct spec_rule, last, FIELD_INT, 0, BLOCKS_MAX),
    OPTIONAL_FIELD(struct spec_rule, min_bits, FIELD_INT, BITS_MIN, BITS_MAX),
    OPTIONAL_FIELD(struct spec_rule, max_bits, FIELD_INT, BITS_MIN, BITS_MAX),
    {.name = "method",
     .type = FIELD_ENUM,
     .offset = offsetof(struct spec_rule, method),
     .presence = offsetof(struct spec_rule, has_method) + 1,
     .values = method_names},
    {.name = "pin",
     .type = FIELD_CUSTOM,
     .offset = offsetof(struct spec_rule, pin),
     .decode = candidate_decode,
     .describe = candidate_describe},
    {.name = "tie", .type = FIELD_STRINGS, .offset = offsetof(struct spec_rule, tie), .min = 2, .max = TIE_MAX},
    {0},
};
static const struct schema rule_schema = {
    .name = "rule",
    .fields = rule_fields,
    .size = sizeof(struct spec_rule),
    .check = rule_check,
};

const char *const allocation_score_names[] = {"drift", "error", "fisher", "kfac", "diag", "noise", "delta_kl", NULL};

static void allocation_defaults(void *object) {
    struct spec_allocation *allocation = object;
    allocation->method = ALLOCATION_OPTIMAL;
}

static void allocation_check(void *object, struct decode *d) {
    const struct spec_allocation *allocation = object;
    if (allocation->score >= SCORES_OF_ROWS && allocation->sweep == NULL)
        problem_at(d, "sweep", "is required: score %s is scaled from a sweep's rows",
                   allocation_score_names[allocation->score]);
}

static const struct field allocation_fields[] = {
    COMMON_FIELDS("allocation"),
    JOB_FIELD(struct spec_allocation, profile, true),
    JOB_FIELD(struct spec_allocation, sweep, false),
    ENUM_FIELD(struct spec_allocation, method, allocation_method_names),
    {.name = "score",
     .type = FIELD_ENUM,
     .offset = offsetof(struct spec_allocation, score),
     .presence = offsetof(struct spec_allocation, has_score) + 1,
     .values = allocation_score_names},
    {.name = "budget",
     .type = FIELD_OBJECT,
     .offset = offsetof(struct spec_allocation, budget),
     .required = true,
     .schema = &budget_schema},
    {.name = "rules",
     .type = FIELD_OBJECTS,
     .offset = offsetof(struct spec_allocation, rules),
     .max = RULES_MAX,
     .schema = &rule_schema},
    ENUM_FIELD(struct spec_allocation, target, target_names),
    {0},
};
static const struct schema allocation_schema = {
    .name = "allocation",
    .fields = allocation_fields,
    .size = sizeof(struct spec_allocation),
    .defaults = allocation_defaults,
    .check = allocation_check,
};
static const struct spec_reference allocation_references[] = {
    {.member = "profile", .kind = "profile", .offset = offsetof(struct spec_allocation, profile), .rows = true},
    {.member = "sweep", .kind = "sweep", .offset = offsetof(struct spec_allocation, sweep), .rows = true},
    {0},
};

/* --- eval --- */

void spec_check_calibration(const struct spec_calibration *calibration, const struct candidate *uniform,
                            const char *allocation, bool refined, struct decode *d) {
    bool looks = uniform != NULL && candidate_needs_gram(uniform), needed = looks || (uniform != NULL && refined);
    if (needed && calibration == NULL)
        problem_at(d, "calibration",
                   looks ? "is required: %s looks at what flows through the model"
                         : "is required: the scales of %s are refined on it",
                   method_names[uniform->method]);
    if (calibration != NULL && !needed && allocation == NULL)
        problem_at(d, "calibration",
                   "is for candidates that look at what flows through the model, and to refine on; leave it out");
}

static void refine_check(const struct candidate *uniform, const char *allocation, struct decode *d) {
    if (uniform == NULL && allocation == NULL)
        problem_at(d, "refine", "is for what a recipe quantizes; leave it out, or give allocation or uniform");
    if (uniform != NULL && (uniform->method == METHOD_NONE || uniform->method == METHOD_FP8))
        problem_at(d, "refine", "tunes the scales of groups, which %s has none of; leave it out",
                   method_names[uniform->method]);
}

static void eval_check(void *object, struct decode *d) {
    struct spec_eval *eval = object;
    if (eval->length == 0) eval->length = eval->protocol == PROTOCOL_LLAMA_CPP ? 512 : 2048;
    if (eval->allocation != NULL && eval->uniform != NULL)
        problem_at(d, "uniform", "excludes allocation; give one of them, or neither for the reference alone");
    if (eval->artifact != NULL && (eval->allocation != NULL || eval->uniform != NULL))
        problem_at(d, "artifact", "excludes allocation and uniform; it is quantized already");
    spec_check_calibration(eval->calibration, eval->uniform, eval->allocation, eval->refine, d);
    if (eval->refine) refine_check(eval->uniform, eval->allocation, d);
    devices_check(&eval->common, d);
}

static const struct field eval_fields[] = {
    COMMON_FIELDS("eval"),
    DEVICES_FIELD,
    NAME_FIELD(struct spec_eval, model, true),
    NAME_FIELD(struct spec_eval, dataset, true),
    JOB_FIELD(struct spec_eval, allocation, false),
    {.name = "uniform",
     .type = FIELD_CUSTOM,
     .offset = offsetof(struct spec_eval, uniform),
     .decode = candidate_decode,
     .describe = candidate_describe},
    NAME_FIELD(struct spec_eval, artifact, false),
    ENUM_FIELD(struct spec_eval, protocol, protocol_names),
    INT_FIELD(struct spec_eval, length, 2, LENGTH_MAX),
    INT_FIELD(struct spec_eval, windows, 1, WINDOWS_MAX),
    JOB_FIELD(struct spec_eval, compare, false),
    {.name = "calibration",
     .type = FIELD_OBJECT,
     .offset = offsetof(struct spec_eval, calibration),
     .schema = &calibration_schema},
    OPTIONAL_FIELD(struct spec_eval, refine, FIELD_BOOL, 0, 0),
    {0},
};
static const struct schema eval_schema = {
    .name = "eval",
    .fields = eval_fields,
    .size = sizeof(struct spec_eval),
    .check = eval_check,
};
static const struct spec_reference eval_references[] = {
    {.member = "allocation", .kind = "allocation", .offset = offsetof(struct spec_eval, allocation)},
    {.member = "compare", .kind = "eval", .offset = offsetof(struct spec_eval, compare), .rows = true},
    {0},
};

/* --- quantize --- */

/* One component of a path that needs no quoting anywhere, and is not hidden. */
static void artifact_name_decode(const json_t *value, void *member, struct decode *d) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    const char *name = json_string_value(value);
    if (name == NULL) {
        problem_here(d, "must be a string");
        return;
    }
    size_t len = json_string_length(value);
    if (len == 0 || len > ARTIFACT_NAME_MAX || strspn(name, allowed) != len || name[0] == '.')
        problem_here(d, "names a folder: 1 to %d letters, digits, '.', '_' and '-', not beginning with '.'",
                     ARTIFACT_NAME_MAX);
    else
        *(const char **)member = arena_strdup(d->arena, name);
}

static json_t *artifact_name_describe(void) {
    return json_pack("{ss si ss}", "type", "string", "maxLength", ARTIFACT_NAME_MAX, "pattern",
                     "^[A-Za-z0-9_-][A-Za-z0-9._-]*$");
}

static void quantize_check(void *object, struct decode *d) {
    const struct spec_quantize *quantize = object;
    if (quantize->allocation == NULL && quantize->uniform == NULL)
        problem_here(d, "needs a recipe: give allocation or uniform");
    if (quantize->allocation != NULL && quantize->uniform != NULL)
        problem_at(d, "uniform", "excludes allocation; give one of them");
    spec_check_calibration(quantize->calibration, quantize->uniform, quantize->allocation, quantize->refine, d);
    if (quantize->refine) refine_check(quantize->uniform, quantize->allocation, d);
}

static const struct field quantize_fields[] = {
    COMMON_FIELDS("quantize"),
    NAME_FIELD(struct spec_quantize, model, true),
    {.name = "name",
     .type = FIELD_CUSTOM,
     .offset = offsetof(struct spec_quantize, name),
     .required = true,
     .decode = artifact_name_decode,
     .describe = artifact_name_describe},
    JOB_FIELD(struct spec_quantize, allocation, false),
    {.name = "uniform",
     .type = FIELD_CUSTOM,
     .offset = offsetof(struct spec_quantize, uniform),
     .decode = candidate_decode,
     .describe = candidate_describe},
    {.name = "calibration",
     .type = FIELD_OBJECT,
     .offset = offsetof(struct spec_quantize, calibration),
     .schema = &calibration_schema},
    OPTIONAL_FIELD(struct spec_quantize, refine, FIELD_BOOL, 0, 0),
    {.name = "target",
     .type = FIELD_ENUM,
     .offset = offsetof(struct spec_quantize, target),
     .presence = offsetof(struct spec_quantize, has_target) + 1,
     .values = target_names},
    {0},
};
static const struct schema quantize_schema = {
    .name = "quantize",
    .fields = quantize_fields,
    .size = sizeof(struct spec_quantize),
    .check = quantize_check,
};
static const struct spec_reference quantize_references[] = {
    {.member = "allocation", .kind = "allocation", .offset = offsetof(struct spec_quantize, allocation)},
    {0},
};

/* --- kinds --- */

static const struct spec_reference no_references[] = {{0}};

const struct job_kind job_kinds[] = {
    {"profile", LANE_DEVICE, &profile_schema, profile_references},
    {"allocation", LANE_CPU, &allocation_schema, allocation_references},
    {"eval", LANE_DEVICE, &eval_schema, eval_references},
    {"quantize", LANE_DEVICE, &quantize_schema, quantize_references},
    {"sweep", LANE_DEVICE, &sweep_schema, no_references},
    {0},
};

const struct job_kind *job_kind_find(const char *name) {
    for (const struct job_kind *kind = job_kinds; kind->name != NULL; kind++)
        if (strcmp(kind->name, name) == 0) return kind;
    return NULL;
}

static enum rc find_kind(const json_t *json, const struct job_kind **kind, struct decode *d) {
    static const char *const planned[] = {"divergence",  "sanity",   "inversion", "compare",
                                          "calibration", "diagnose", "study",     NULL};
    const char *names[sizeof job_kinds / sizeof *job_kinds];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        names[i] = job_kinds[i].name;
    const json_t *value = json_object_get(json, "kind");
    *kind = json_is_string(value) ? job_kind_find(json_string_value(value)) : NULL;
    if (*kind != NULL) return RC_OK;
    if (!json_is_object(json)) {
        problem_here(d, "a job is a JSON object, not %s", json_type_name(json));
    } else if (value == NULL) {
        problem_at(d, "kind", "is required: profile, allocation, eval, quantize or sweep");
    } else if (!json_is_string(value)) {
        problem_at(d, "kind", "must be a string, not %s", json_type_name(value));
    } else {
        size_t mark = decode_enter(d, "kind");
        problem_name(d, json_string_value(value), names, planned);
        decode_leave(d, mark);
    }
    return RC_INVALID;
}

enum rc spec_decode(const json_t *json, union spec *spec, const struct job_kind **kind, struct arena *arena,
                    struct problems *problems, struct err *e) {
    struct problems own = {0};
    struct decode d = {.arena = arena, .problems = problems != NULL ? problems : &own};
    memset(spec, 0, sizeof *spec);
    if (find_kind(json, kind, &d) != RC_OK) {
        const struct problem *first = &d.problems->items[0];
        return err_at(e, first->pointer, RC_INVALID, "%s", first->detail);
    }
    return schema_decode((*kind)->schema, json, spec, arena, d.problems, e);
}

const char *spec_model(const struct job_kind *kind, const union spec *spec) {
    if (kind->schema == &profile_schema) return spec->profile.model;
    if (kind->schema == &quantize_schema) return spec->quantize.model;
    if (kind->schema == &sweep_schema) return spec->sweep.model;
    return kind->schema == &eval_schema ? spec->eval.model : NULL;
}

const char *spec_dataset(const struct job_kind *kind, const union spec *spec) {
    if (kind->schema == &profile_schema) return spec->profile.calibration->dataset;
    if (kind->schema == &sweep_schema) return spec->sweep.dataset;
    return kind->schema == &eval_schema ? spec->eval.dataset : NULL;
}

const char *spec_calibration_dataset(const struct job_kind *kind, const union spec *spec) {
    const struct spec_calibration *calibration = NULL;
    if (kind->schema == &eval_schema) calibration = spec->eval.calibration;
    if (kind->schema == &quantize_schema) calibration = spec->quantize.calibration;
    if (kind->schema == &sweep_schema) calibration = spec->sweep.calibration;
    return calibration != NULL ? calibration->dataset : NULL;
}

const char *spec_allocation(const struct job_kind *kind, const union spec *spec) {
    if (kind->schema == &eval_schema) return spec->eval.allocation;
    return kind->schema == &quantize_schema ? spec->quantize.allocation : NULL;
}

bool spec_refines(const struct job_kind *kind, const union spec *spec) {
    if (kind->schema == &eval_schema) return spec->eval.refine;
    return kind->schema == &quantize_schema && spec->quantize.refine;
}

const char *spec_made_artifact(const struct job_kind *kind, const union spec *spec) {
    return kind->schema == &quantize_schema ? spec->quantize.name : NULL;
}

const char *spec_read_artifact(const struct job_kind *kind, const union spec *spec) {
    return kind->schema == &eval_schema ? spec->eval.artifact : NULL;
}

bool spec_is_split(const union spec *spec) {
    return spec->common.devices != NULL;
}
