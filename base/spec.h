/* Job specs: what a client may ask for, as structs, and the tables (schema.h) that validate them.
 *
 * One row in the table of kinds per job kind. The daemon validates with it and stores the client's JSON; the worker
 * decodes the same JSON with the same table. Adding a kind: a struct, a schema, a row here, a pipeline file, a page in
 * api/openapi.yaml. */
#ifndef HSAQ_BASE_SPEC_H
#define HSAQ_BASE_SPEC_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"
#include "base/schema.h"
#include "base/target.h"

/* Which queue a kind waits in: numeric kinds in the lane of their device, pure arithmetic in `cpu`. */
enum lane_type { LANE_DEVICE, LANE_CPU };

enum { AFTER_MAX = 64 };

/* Members that every spec may carry. */
struct spec_common {
    const char *kind;
    const char *label;
    int64_t priority;    /* −100…100, higher first */
    struct list after;   /* const char *: at most AFTER_MAX job ids */
    const char *device;  /* NULL: any */
    const char *devices; /* "all": split over every one; NULL: not split. Profile and eval alone */
};

enum sampling { SAMPLING_SEQUENTIAL, SAMPLING_RANDOM };
extern const char *const sampling_names[];

struct spec_calibration {
    const char *dataset;
    int64_t samples, length; /* windows, tokens per window */
    int sampling;
    int64_t seed;
};

struct spec_profile {
    struct spec_common common;
    const char *model;
    struct spec_calibration *calibration;
    struct list candidates; /* struct candidate */
    struct list scores;     /* const char *: of score_names */
    int64_t fisher_windows; /* of the calibration's, that Fisher scores are taken over */
    const char *layers;     /* regex over Linear names; NULL: all */
    bool head;              /* lm_head counts as a Linear too */
    const char *sweep;      /* job id of a sweep that scores are held against, or NULL */
    const char *around;     /* job id of an allocation, around whose quantized model all is measured, or NULL */
};

/* Exactly one of vram, weights, average_bits is given. */
struct spec_budget {
    bool has_vram, has_weights, has_average_bits;
    int64_t vram, context, batch, kv_bits, reserve; /* bytes, tokens, sequences, bits, bytes */
    int64_t weights;                                /* bytes of the profiled Linears */
    double average_bits;                            /* code bits weighted by parameters */
};

/* Which Linears (match and not except, or the first and last blocks), and what holds for them. */
struct spec_rule {
    const char *match, *except;
    bool has_first, has_last, has_min_bits, has_max_bits, has_method;
    int method;          /* enum method: this one alone */
    int64_t first, last; /* blocks from either end */
    int64_t min_bits, max_bits;
    struct candidate *pin;
    struct list tie; /* const char *: projections of one block that must share a candidate */
};

/* What an allocation minimises: the first SCORES_OF_ROWS stand in a profile's rows, the others are a sweep's, scaled to
 * the profile's candidates. From SCORE_FISHER on they are nats a scored token. */
enum score {
    SCORE_DRIFT,
    SCORE_ERROR,
    SCORE_FISHER,
    SCORE_KFAC,
    SCORE_DIAG,
    SCORE_NOISE,
    SCORE_DELTA_KL,
    SCORES,
    SCORES_OF_ROWS = SCORE_NOISE
};
extern const char *const allocation_score_names[]; /* by enum score; NULL-terminated */

enum allocation_method { ALLOCATION_GREEDY, ALLOCATION_UPGRADE, ALLOCATION_OPTIMAL };

struct spec_allocation {
    struct spec_common common;
    const char *profile; /* job id */
    const char *sweep;   /* job id, or NULL */
    int method;          /* enum allocation_method */
    bool has_score;      /* else the best that every row of the profile has */
    int score;           /* enum score */
    struct spec_budget *budget;
    struct list rules; /* struct spec_rule */
    int target;        /* enum target: what is to load the model; the solver chooses what it can carry */
};
extern const char *const score_names[]; /* what a profile can be asked for */

/* Whether the profile asks for a score. */
bool spec_wants(const struct spec_profile *profile, const char *score);
/* Whether it measures drift: asked for it, or for no score of the loss. */
bool spec_wants_drift(const struct spec_profile *profile);
/* Whether it takes gradients: for a score of the loss, for a candidate. */
bool spec_wants_loss(const struct spec_profile *profile);
bool spec_wants_guided(const struct spec_profile *profile);

enum protocol_type { PROTOCOL_WINDOWS, PROTOCOL_LLAMA_CPP };

struct spec_eval {
    struct spec_common common;
    const char *model, *dataset;
    const char *allocation;    /* job id, or NULL */
    struct candidate *uniform; /* or NULL */
    const char *artifact;      /* name of a quantized model, or NULL; none of the three: the reference alone */
    int protocol;              /* enum protocol_type */
    int64_t length;            /* tokens per window; default 2048, 512 for llama.cpp */
    int64_t windows;           /* 0: all */
    const char *compare;       /* job id of an eval over the same windows, or NULL */
    struct spec_calibration *calibration; /* NULL: none needed, or that of the allocation's profile */
    bool has_refine, refine; /* the scales of what the recipe quantizes; default: where a candidate is guided */
};

/* Exactly one of allocation and uniform is given. */
struct spec_quantize {
    struct spec_common common;
    const char *model;
    const char *name; /* of the artifact: a folder, and then a model */
    const char *allocation;
    struct candidate *uniform;
    struct spec_calibration *calibration; /* as of an eval, as is the next */
    bool has_refine, refine;
    bool has_target; /* else what the allocation was solved for */
    int target;      /* enum target */
};

/* Not both of candidate and noise are given; with neither, the candidate is hqq3g64. */
struct spec_sweep {
    struct spec_common common;
    const char *model, *dataset;
    int64_t length, windows;
    struct candidate *candidate; /* NULL: noise */
    bool has_noise, has_seed;
    double noise;                         /* ‖ŵ − w‖ / ‖w‖ */
    int64_t seed;                         /* of the noise */
    struct spec_calibration *calibration; /* NULL: none needed */
    const char *layers;                   /* regex over names of the blocks' Linears; NULL: all */
};

union spec {
    struct spec_common common;
    struct spec_profile profile;
    struct spec_allocation allocation;
    struct spec_eval eval;
    struct spec_quantize quantize;
    struct spec_sweep sweep;
};

/* A member of the spec that names another job: the daemon waits for it and hands over its result and rows. */
struct spec_reference {
    const char *member; /* "profile" */
    const char *kind;   /* the kind it must be */
    size_t offset;      /* of the const char * in the spec */
    bool rows;          /* the worker needs its rows too */
};

struct job_kind {
    const char *name;
    enum lane_type lane;
    const struct schema *schema;
    const struct spec_reference *references; /* ends with a NULL member */
};

extern const struct job_kind job_kinds[]; /* ends with a NULL name */
const struct job_kind *job_kind_find(const char *name);

/* Reads "kind", then decodes by that kind's schema. RC_INVALID with every fault in `problems`. */
enum rc spec_decode(const json_t *json, union spec *spec, const struct job_kind **kind, struct arena *arena,
                    struct problems *problems, struct err *e);

/* NULL for kinds without one. */
const char *spec_model(const struct job_kind *kind, const union spec *spec);
const char *spec_dataset(const struct job_kind *kind, const union spec *spec);
/* A second dataset, to calibrate on; NULL: the kind has none, or the spec leaves it to the job's allocation. */
const char *spec_calibration_dataset(const struct job_kind *kind, const union spec *spec);
/* The allocation whose recipe the job runs. */
const char *spec_allocation(const struct job_kind *kind, const union spec *spec);
/* Whether the job was asked to refine scales: it needs a calibration then, whatever its candidates look at. */
bool spec_refines(const struct job_kind *kind, const union spec *spec);
/* The artifact that the job makes, and the one that it reads. */
const char *spec_made_artifact(const struct job_kind *kind, const union spec *spec);
const char *spec_read_artifact(const struct job_kind *kind, const union spec *spec);
/* What an artifact's folder is called until it is whole, by its name; whoever is at work in it holds a flock on it. It
 * has no folders in it. With the key's file gone, the next to make an artifact of that name begins anew. */
#define ARTIFACT_PARTIAL ".%s.partial"
#define ARTIFACT_KEY ".key"

/* Whether the job is to be split over all devices that there are. */
bool spec_is_split(const union spec *spec);

#endif
