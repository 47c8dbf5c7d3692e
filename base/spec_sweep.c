#include "base/spec_fields.h"

#define NOISE_MIN 1e-6
#define NOISE_MAX 10.0

static void sweep_defaults(void *object) {
    struct spec_sweep *sweep = object;
    sweep->length = 2048;
    sweep->windows = 8;
}

static void check_candidate(const struct candidate *c, struct decode *d) {
    if (c->method == METHOD_NONE) problem_at(d, "candidate", "changes nothing: give one that quantizes");
    if (candidate_uses_awq(c))
        problem_at(d, "candidate",
                   "%s changes what computes an input and all that reads it, not one Linear alone; sweep with %s",
                   method_names[c->method], c->method == METHOD_AWQ ? "rtn or hqq" : "gptq");
}

static void sweep_check(void *object, struct decode *d) {
    struct spec_sweep *sweep = object;
    if (sweep->has_noise && sweep->candidate != NULL)
        problem_at(d, "noise", "excludes candidate; give one of them, or neither for hqq3g64");
    if (sweep->has_seed && !sweep->has_noise) problem_at(d, "seed", "is for noise; leave it out");
    if (sweep->candidate != NULL) check_candidate(sweep->candidate, d);
    spec_check_calibration(sweep->calibration, sweep->candidate, NULL, false, d);
    if (sweep->has_noise || sweep->candidate != NULL) return;
    sweep->candidate = arena_alloc(d->arena, sizeof *sweep->candidate);
    *sweep->candidate = candidate_default(METHOD_HQQ, 3, 64);
}

static const struct field sweep_fields[] = {
    COMMON_FIELDS("sweep"),
    NAME_FIELD(struct spec_sweep, model, true),
    NAME_FIELD(struct spec_sweep, dataset, true),
    INT_FIELD(struct spec_sweep, length, 2, LENGTH_MAX),
    INT_FIELD(struct spec_sweep, windows, 1, WINDOWS_MAX),
    {.name = "candidate",
     .type = FIELD_CUSTOM,
     .offset = offsetof(struct spec_sweep, candidate),
     .decode = candidate_decode,
     .describe = candidate_describe},
    OPTIONAL_FIELD(struct spec_sweep, noise, FIELD_NUMBER, NOISE_MIN, NOISE_MAX),
    OPTIONAL_FIELD(struct spec_sweep, seed, FIELD_INT, 0, SEED_MAX),
    {.name = "calibration",
     .type = FIELD_OBJECT,
     .offset = offsetof(struct spec_sweep, calibration),
     .schema = &calibration_schema},
    {.name = "layers", .type = FIELD_REGEX, .offset = offsetof(struct spec_sweep, layers), .min = 1},
    {0},
};
const struct schema sweep_schema = {
    .name = "sweep",
    .fields = sweep_fields,
    .size = sizeof(struct spec_sweep),
    .defaults = sweep_defaults,
    .check = sweep_check,
};
