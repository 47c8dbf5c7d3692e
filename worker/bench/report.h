/* What a bench measured: one row a phase, as an aligned table for people and as one JSON document. Pure but for the
 * stream that it prints to. */
#ifndef HSAQ_WORKER_BENCH_REPORT_H
#define HSAQ_WORKER_BENCH_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "base/candidate.h"
#include "worker/model/model.h"

enum { BENCH_NAME_SIZE = 32, BENCH_PHASES_MAX = 10, BENCH_QUANTIZERS_MAX = 8 };

/* Seconds that were not measured are NaN: "-" in the table and null in JSON. */
struct bench_phase {
    char name[BENCH_NAME_SIZE];
    int64_t tokens;
    double seconds;      /* of the walk; the gemm phase: of one product with each Linear of a block */
    double other;        /* s of the job outside it: hashing, the head, the noise floor, recomputed inversions */
    double load;         /* s of the walk spent waiting for weights */
    double flops;        /* work.h */
    double gemm;         /* FLOP/s of the products timed right before and right after, on the first device, times the
                            devices: what the floor is counted with */
    int64_t memory_peak; /* bytes that the arena of a device held at most, up to the end of this phase */
};

struct bench_quantizer {
    char candidate[CANDIDATE_ID_SIZE];
    double weights, seconds;
};

struct bench_report {
    const char *config, *device, *hardware, *arithmetic;
    const struct model *model;
    int64_t windows, length;
    double generate_seconds; /* the weights */
    struct bench_phase phases[BENCH_PHASES_MAX];
    struct bench_quantizer quantizers[BENCH_QUANTIZERS_MAX];
    int phase_count, quantizer_count;
    double paired_ratio;               /* seconds of the paired eval in those of the eval */
    double candidate_seconds;          /* that one further candidate adds to the profile */
    double fisher_ratio;               /* seconds of the profile with Fisher scores in those of the eval, */
    double fisher_allowed;             /* and what it aims at: four, and a second a candidate */
    int64_t memory_peak, memory_limit; /* bytes; limit 0: none */
};

double bench_floor(const struct bench_phase *p); /* s */

void bench_report_print(const struct bench_report *r, FILE *out);
json_t *bench_report_json(const struct bench_report *r); /* a new reference */

#endif
