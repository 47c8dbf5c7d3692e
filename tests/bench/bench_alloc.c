/* Allocation at scale: time and gap of every method for 10,000 Linears; and a whole allocation job, frontier and all,
 * of 300 Linears and 21 candidates. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/json.h"
#include "base/random.h"
#include "worker/alloc/alloc.h"
#include "worker/pipeline/job.h"

enum { LINEARS = 10000, OPTIONS = 6 };

static uint64_t random_state = 1;

static uint64_t random_bits(void) {
    return splitmix64(&random_state);
}

static double uniform(void) {
    return (double)(random_bits() >> 11) * 0x1p-53;
}

/* Few shapes, drift falling fourfold a bit with some noise, log-uniform sensitivity: what profiles look like. */
static void fill_model(struct alloc_option *options) {
    static const int bits[OPTIONS] = {2, 3, 4, 5, 6, 8};
    static const int64_t params[] = {4096 * 4096, 4096 * 1024, 4096 * 14336, 4096 * 14336};
    int64_t n = params[random_bits() % 4];
    double sensitivity = exp(6 * uniform());
    for (int o = 0; o < OPTIONS; o++)
        options[o] = (struct alloc_option){n * bits[o] / 8 + n / 16,
                                           sensitivity * pow(4, -bits[o]) * (0.8 + 0.4 * uniform()), bits[o]};
}

/* No structure at all: costs up to 10^9, so that sums hardly ever coincide. */
static void fill_random(struct alloc_option *options) {
    for (int o = 0; o < OPTIONS; o++)
        options[o] = (struct alloc_option){(int64_t)(uniform() * 1e9), uniform(), 2 + o};
}

/* Score and cost nearly proportional: the hard kind. */
static void fill_correlated(struct alloc_option *options) {
    for (int o = 0; o < OPTIONS; o++) {
        double cost = 1e6 * (o + uniform());
        options[o] = (struct alloc_option){(int64_t)cost, 7e6 - cost + 1e4 * uniform(), 2 + o};
    }
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static enum rc upgrade(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e) {
    return alloc_upgrade(p, 4, r, smallest, e);
}

struct solver {
    const char *name;
    enum rc (*solve)(const struct alloc_problem *p, struct alloc_result *r, int64_t *smallest, struct err *e);
};

static int run(const char *name, const struct solver *method, const struct alloc_problem *p, double share,
               int *choice) {
    struct alloc_result r = {.choice = choice};
    struct err e = {0};
    double began = now_ms();
    enum rc rc = method->solve(p, &r, NULL, &e);
    double took = now_ms() - began;
    if (rc == RC_OK)
        printf("%-12s %-9s %6.0f%% %9.1f ms  %-10.3g %.9g\n", name, method->name, 100 * share, took, r.gap,
               r.objective);
    else if (rc == RC_INFEASIBLE)
        printf("%-12s %-9s %6.0f%%   infeasible\n", name, method->name, 100 * share);
    else
        fprintf(stderr, "%s %s: %s\n", name, method->name, e.message);
    return rc == RC_OK || rc == RC_INFEASIBLE ? 0 : 1;
}

static const struct {
    const char *name;
    void (*fill)(struct alloc_option *options);
} kinds[] = {{"model", fill_model}, {"random", fill_random}, {"correlated", fill_correlated}};
static const struct solver methods[] = {{"greedy", alloc_greedy}, {"upgrade", upgrade}, {"optimal", alloc_optimal}};
static const double shares[] = {0.1, 0.3, 0.5, 0.9}; /* of the way from the cheapest to the dearest */

/* --- a whole job --- */

enum { JOB_LINEARS = 300, JOB_CANDIDATES = 21 };

static const char *const projections[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

/* Guided GPTQ of 2 to 8 bits in groups of 32, 64 and 128, and three more; scored in nats, which bytes buy off. */
static void add_rows(json_t *rows, int l) {
    static const int bits[] = {2, 3, 4, 5, 6, 8}, groups[] = {32, 64, 128};
    const char *projection = projections[l % 7];
    int n = 1024 << (l % 3), k = 4096;
    double sensitivity = exp(6 * uniform()) * 1e-4;
    char name[64], id[64];
    snprintf(name, sizeof name, "model.layers.%d.%s", l / 7, projection);
    for (int c = 0; c < JOB_CANDIDATES; c++) {
        int width = c < 18 ? bits[c / 3] : c - 15, group = groups[c % 3];
        snprintf(id, sizeof id, c < 18 ? "gptq%dg%d-guided" : "rtn%dg64", width, group);
        double score = sensitivity * pow(4, -width) * (c < 18 ? 1 : 3) * (1 + group / 256.0) * (0.9 + 0.2 * uniform());
        int64_t bytes = (int64_t)n * k * width / 8 + (int64_t)n * k / group * (16 + width) / 8;
        json_t *data = json_pack("{s:s, s:i, s:s, s:[i,i], s:i, s:s, s:f, s:f, s:f, s:I}", "name", name, "block", l / 7,
                                 "projection", projection, "shape", n, k, "params", n * k, "candidate", id, "drift",
                                 score, "relative_error", sqrt(score), "fisher", score, "bytes", (json_int_t)bytes);
        json_array_append_new(
            rows, json_pack("{s:s, s:i, s:o}", "phase", "drift", "index", l * JOB_CANDIDATES + c, "data", data));
    }
}

static json_t *job_inputs(void) {
    json_t *rows = json_array(), *model;
    for (int l = 0; l < JOB_LINEARS; l++)
        add_rows(rows, l);
    model = json_pack("{s:s, s:s, s:{s:i, s:i, s:i, s:i, s:i, s:i, s:i}, s:[], s:i}", "name", "M", "fingerprint", "f",
                      "architecture", "blocks", 43, "hidden", 4096, "intermediate", 14336, "heads", 32, "kv_heads", 8,
                      "head_dim", 128, "vocab", 32000, "windows", "unquantized_bytes", 1 << 28);
    return json_pack("{s:{s:s, s:{s:o}, s:o}}", "profile", "job", "P", "result", "model", model, "rows", rows);
}

static int run_job(json_t *inputs, const char *members) {
    char text[512];
    json_t *json = NULL, *result = NULL;
    union spec spec;
    const struct job_kind *kind;
    struct arena arena = {0};
    struct err e = {0};
    snprintf(text, sizeof text, "{\"kind\":\"allocation\",\"profile\":\"P\",%s}", members);
    enum rc rc = json_parse(text, strlen(text), &json, &e);
    if (rc == RC_OK) rc = spec_decode(json, &spec, &kind, &arena, NULL, &e);
    struct job job = {.id = "A", .kind = kind, .spec = &spec, .inputs = inputs};
    double began = now_ms();
    if (rc == RC_OK) rc = pipeline_allocation(&job, &result, &e);
    double took = now_ms() - began;
    if (rc == RC_OK)
        printf("%9.1f ms  gap %-9.3g %2zu points  %s\n", took, json_number_value(json_object_get(result, "gap")),
               json_array_size(json_object_get(result, "frontier")), members);
    else
        fprintf(stderr, "%s: %s\n", members, e.message);
    json_decref(result);
    json_decref(json);
    arena_release(&arena);
    return rc != RC_OK || took > 1000; /* the promise is below a second */
}

static int run_jobs(void) {
    static const char *const jobs[] = {
        "\"budget\":{\"average_bits\":3.3}",
        "\"budget\":{\"weights\":\"1GiB\"}",
        "\"budget\":{\"weights\":1400000000}",
        "\"budget\":{\"weights\":1400000000},\"rules\":[{\"tie\":[\"q_proj\",\"k_proj\",\"v_proj\"]}]",
        "\"budget\":{\"weights\":1400000000},\"score\":\"drift\",\"method\":\"greedy\"",
    };
    int failed = 0;
    json_t *inputs = job_inputs();
    printf("\nwhole jobs of %d Linears and %d candidates\n", JOB_LINEARS, JOB_CANDIDATES);
    for (size_t j = 0; j < sizeof jobs / sizeof *jobs; j++)
        failed |= run_job(inputs, jobs[j]);
    json_decref(inputs);
    return failed;
}

int main(void) {
    static struct alloc_option options[LINEARS][OPTIONS];
    static struct alloc_item items[LINEARS];
    static int choice[LINEARS];
    int failed = 0;
    printf("%d items of %d options\n%-12s %-9s %7s %12s  %-10s %s\n", LINEARS, OPTIONS, "instance", "method", "budget",
           "time", "gap", "objective");
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct frontier_point ends[2];
        struct frontier f = {.points = ends, .max_points = 2};
        struct err e = {0};
        for (int i = 0; i < LINEARS; i++) {
            kinds[k].fill(options[i]);
            items[i] = (struct alloc_item){options[i], OPTIONS};
        }
        struct alloc_problem p = {items, LINEARS, 0};
        if (alloc_frontier(&p, &f, &e) != RC_OK || f.count != 2) return 1;
        for (size_t s = 0; s < sizeof shares / sizeof *shares; s++) {
            p.budget = ends[0].cost + (int64_t)(shares[s] * (double)(ends[1].cost - ends[0].cost));
            for (size_t m = 0; m < sizeof methods / sizeof *methods; m++)
                failed |= run(kinds[k].name, &methods[m], &p, shares[s], choice);
        }
    }
    return failed | run_jobs();
}
