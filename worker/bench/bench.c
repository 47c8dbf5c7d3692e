#include "worker/bench/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/random.h"
#include "worker/bench/calibration.h"
#include "worker/bench/rates.h"
#include "worker/bench/report.h"
#include "worker/bench/timed_job.h"
#include "worker/bench/work.h"
#include "worker/pipeline/refine.h"
#include "worker/pipeline/walk.h"

enum { WINDOWS = 16, LENGTH = 2048, CANDIDATES = 32, CONFIG_MAX_BYTES = 4 << 20, SEED = 1 };
static const char default_candidates[] = "hqq2g64,hqq3g64,hqq4g64";
static const double gemm_seconds = 0.2, quantize_seconds = 0.05; /* that timing a block takes, if it is that quick */

struct bench {
    const struct worker *worker;
    struct source source;
    struct source warm_up; /* the same with its first block alone */
    struct model first_block;
    struct candidate candidates[CANDIDATES]; /* [candidate_count], and room for one more */
    size_t candidate_count;
    bool wants_gemm;
    double gemm; /* FLOP/s as timed last; NaN: not asked for */
    struct bench_report report;
};

/* --- phases --- */

static int64_t tokens(const struct bench *b) {
    return b->report.windows * b->report.length;
}

static struct bench_phase *add_phase(struct bench *b, const char *name) {
    struct bench_phase *p = &b->report.phases[b->report.phase_count++];
    *p = (struct bench_phase){.tokens = tokens(b), .seconds = NAN, .other = NAN, .load = NAN, .gemm = NAN};
    snprintf(p->name, sizeof p->name, "%s", name);
    return p;
}

/* Of the device that held most. */
static int64_t memory_peak(const struct bench *b) {
    int64_t most = 0;
    for (int i = 0; i < b->worker->device_count; i++) {
        int64_t peak = b->worker->backend->memory_peak(b->worker->devices[i]);
        if (peak > most) most = peak;
    }
    return most;
}

static void end_phase(struct bench *b, struct bench_phase *p) {
    p->memory_peak = b->report.memory_peak = memory_peak(b);
}

/* As many as the walk multiplies with. */
static int64_t tokens_together(const struct bench *b) {
    struct windows w = {.length = b->report.length};
    struct job job = timed_job_bare(b->worker, &b->source);
    return walk_chunk(&job, &w) * w.length;
}

static enum rc time_gemm(struct bench *b, struct rate *rate, struct err *e) {
    struct job job = timed_job_bare(b->worker, &b->source);
    TRY(rate_gemm(&job, b->source.model, tokens_together(b), gemm_seconds, rate, e));
    b->gemm = rate->work / rate->seconds;
    return RC_OK;
}

static enum rc gemm(struct bench *b, struct err *e) {
    struct bench_phase *p = add_phase(b, "gemm");
    struct rate rate;
    TRY(time_gemm(b, &rate, e));
    p->tokens = tokens_together(b);
    p->seconds = rate.seconds;
    p->flops = rate.work;
    end_phase(b, p);
    return RC_OK;
}

struct phase_job {
    pipeline_fn pipeline;
    union spec *spec;
    int64_t *windows; /* the spec's number of them */
    int64_t times;    /* how often its tokens_per_second counts a token */
};

/* Runs a job, over one block and window first, and fills everything of the phase but its FLOPs. */
static enum rc time_job(struct bench *b, const struct phase_job *job, struct bench_phase *p, struct err *e) {
    struct timed_job timed = {.worker = b->worker,
                              .source = &b->warm_up,
                              .pipeline = job->pipeline,
                              .spec = job->spec,
                              .tokens = b->report.length,
                              .name = "warming up"};
    struct job_time time;
    struct rate rate;
    *job->windows = 1;
    TRY(timed_job_run(&timed, &time, e));
    double before = b->gemm;
    *job->windows = b->report.windows;
    timed.source = &b->source;
    timed.tokens = tokens(b) * job->times;
    timed.name = p->name;
    TRY(timed_job_run(&timed, &time, e));
    if (b->wants_gemm) TRY(time_gemm(b, &rate, e));
    p->seconds = time.walk;
    p->other = time.total - time.walk;
    p->load = time.load;
    p->gemm = (before + b->gemm) / 2 * b->worker->device_count;
    end_phase(b, p);
    return RC_OK;
}

static enum rc run_eval(struct bench *b, struct candidate *uniform, struct bench_phase *p, struct err *e) {
    union spec spec = {.eval = {.common.kind = "eval",
                                .model = "synthetic",
                                .dataset = "random",
                                .uniform = uniform,
                                .protocol = PROTOCOL_WINDOWS,
                                .length = b->report.length}};
    struct phase_job job = {pipeline_eval, &spec, &spec.eval.windows, 1};
    const struct model *m = b->source.model;
    int streams = uniform ? 2 : 1;
    p->flops = streams * (work_forward(m, b->report.windows, b->report.length) +
                          work_head(m, b->report.windows, b->report.length));
    return time_job(b, &job, p, e);
}

static const struct bench_phase *find_phase(const struct bench *b, const char *name) {
    for (int i = 0; i < b->report.phase_count; i++)
        if (strcmp(b->report.phases[i].name, name) == 0) return &b->report.phases[i];
    return NULL;
}

static enum rc eval(struct bench *b, struct err *e) {
    return run_eval(b, NULL, add_phase(b, "eval"), e);
}

static enum rc paired(struct bench *b, struct err *e) {
    struct candidate uniform;
    struct bench_phase *p = add_phase(b, "paired eval");
    TRY(candidate_from_id("hqq4g64", &uniform, e));
    TRY(run_eval(b, &uniform, p, e));
    const struct bench_phase *alone = find_phase(b, "eval");
    if (alone) b->report.paired_ratio = p->seconds / alone->seconds;
    return RC_OK;
}

static struct bench_phase *add_profile_phase(struct bench *b, const char *what, size_t candidates) {
    char name[BENCH_NAME_SIZE];
    snprintf(name, sizeof name, "%s, %zu candidate%s", what, candidates, candidates == 1 ? "" : "s");
    return add_phase(b, name);
}

static double work_profile(const struct bench *b, size_t candidates) {
    const struct model *m = b->source.model;
    return work_forward(m, b->report.windows, b->report.length) + work_gram(m, tokens(b)) +
           work_drift(m, b->candidates, candidates);
}

static enum rc run_profile(struct bench *b, size_t candidates, struct bench_phase **phase, struct err *e) {
    struct bench_phase *p = *phase = add_profile_phase(b, "profile", candidates);
    struct spec_calibration calibration = {
        .dataset = "random", .length = b->report.length, .sampling = SAMPLING_SEQUENTIAL};
    union spec spec = {.profile = {.common.kind = "profile",
                                   .model = "synthetic",
                                   .calibration = &calibration,
                                   .candidates = {.items = b->candidates, .count = candidates}}};
    struct phase_job job = {pipeline_profile, &spec, &calibration.samples, 1};
    p->flops = work_profile(b, candidates);
    return time_job(b, &job, p, e);
}

/* All of the windows are scored; drift is not asked for. */
static enum rc fisher(struct bench *b, struct err *e) {
    static const char *scores[] = {"fisher"};
    struct bench_phase *p = add_profile_phase(b, "fisher", b->candidate_count);
    struct spec_calibration calibration = {
        .dataset = "random", .length = b->report.length, .sampling = SAMPLING_SEQUENTIAL};
    union spec spec = {.profile = {.common.kind = "profile",
                                   .model = "synthetic",
                                   .calibration = &calibration,
                                   .candidates = {.items = b->candidates, .count = b->candidate_count},
                                   .scores = {.items = scores, .count = 1},
                                   .fisher_windows = b->report.windows}};
    struct phase_job job = {pipeline_profile, &spec, &calibration.samples, 1};
    const struct model *m = b->source.model;
    p->flops = work_forward(m, b->report.windows, b->report.length) +
               work_back(m, b->report.windows, b->report.length) +
               work_fisher(m, tokens(b), b->candidates, b->candidate_count);
    if (candidates_any(b->candidates, b->candidate_count, candidate_needs_gram)) p->flops += work_gram(m, tokens(b));
    TRY(time_job(b, &job, p, e));
    const struct bench_phase *forward = find_phase(b, "eval");
    if (!forward) return RC_OK;
    b->report.fisher_ratio = p->seconds / forward->seconds;
    b->report.fisher_allowed = 4 + (double)b->candidate_count / forward->seconds;
    return RC_OK;
}

static bool has_candidate(const struct bench *b, const char *id) {
    char have[CANDIDATE_ID_SIZE];
    for (size_t i = 0; i < b->candidate_count; i++)
        if (strcmp(candidate_id(&b->candidates[i], have), id) == 0) return true;
    return false;
}

/* The next place of the list gets a candidate that is not in it. */
static enum rc choose_further(struct bench *b, struct err *e) {
    static const char *const further[] = {"hqq5g64", "hqq6g64", "hqq8g64", "hqq4g64", "hqq3g64", "hqq2g64"};
    size_t i = 0;
    while (i + 1 < sizeof further / sizeof *further && has_candidate(b, further[i]))
        i++;
    return candidate_from_id(further[i], &b->candidates[b->candidate_count], e);
}

static enum rc profile(struct bench *b, struct err *e) {
    struct bench_phase *asked, *further;
    TRY(choose_further(b, e));
    TRY(run_profile(b, b->candidate_count, &asked, e));
    TRY(run_profile(b, b->candidate_count + 1, &further, e));
    b->report.candidate_seconds = further->seconds - asked->seconds;
    return RC_OK;
}

/* An eval's spec with a calibration: what is timed is the pipeline. */
static enum rc run_calibrated(struct bench *b, const char *id, pipeline_fn pipeline, struct bench_phase *p,
                              struct err *e) {
    struct candidate uniform;
    struct spec_calibration calibration = {
        .dataset = "random", .length = b->report.length, .sampling = SAMPLING_SEQUENTIAL};
    union spec spec = {.eval = {.common.kind = "eval",
                                .model = "synthetic",
                                .dataset = "random",
                                .uniform = &uniform,
                                .calibration = &calibration}};
    struct phase_job job = {pipeline, &spec, &calibration.samples, 1};
    TRY(candidate_from_id(id, &uniform, e));
    return time_job(b, &job, p, e);
}

/* Every Linear quantized from H, block by block. */
static enum rc run_calibration(struct bench *b, const char *id, double flops, struct err *e) {
    struct bench_phase *p = add_phase(b, id);
    const struct model *m = b->source.model;
    p->flops = work_forward(m, b->report.windows, b->report.length) + work_gram(m, tokens(b)) + flops;
    return run_calibrated(b, id, bench_calibrate, p, e);
}

static enum rc gptq(struct bench *b, struct err *e) {
    return run_calibration(b, "gptq4g64", work_gptq(b->source.model), e);
}

static enum rc awq(struct bench *b, struct err *e) {
    return run_calibration(b, "awq4g64", work_awq(b->source.model), e);
}

/* Rounded to nearest, which is quick, and then refined. */
static enum rc refine(struct bench *b, struct err *e) {
    struct bench_phase *p = add_phase(b, "refine");
    p->flops = work_refine(b->source.model, b->report.windows, b->report.length, REFINE_EPOCHS);
    return run_calibrated(b, "rtn3g64", bench_refine, p, e);
}

static enum rc sweep(struct bench *b, struct err *e) {
    struct candidate candidate;
    union spec spec = {.sweep = {.common.kind = "sweep",
                                 .model = "synthetic",
                                 .dataset = "random",
                                 .candidate = &candidate,
                                 .length = b->report.length}};
    const struct model *m = b->source.model;
    struct phase_job job = {pipeline_sweep, &spec, &spec.sweep.windows, m->linear_count - 1};
    struct bench_phase *p = add_phase(b, "sweep");
    TRY(candidate_from_id("hqq3g64", &candidate, e));
    p->flops = work_sweep(m, b->report.windows, b->report.length);
    return time_job(b, &job, p, e);
}

static enum rc quantize(struct bench *b, struct err *e) {
    static const char *const ids[] = {"rtn2g64", "rtn3g64", "rtn4g64", "hqq2g64", "hqq3g64", "hqq4g64"};
    struct job job = timed_job_bare(b->worker, &b->source);
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        struct bench_quantizer *q = &b->report.quantizers[b->report.quantizer_count++];
        struct candidate candidate;
        struct rate rate;
        TRY(candidate_from_id(ids[i], &candidate, e));
        TRY(rate_quantize(&job, b->source.model, &candidate, quantize_seconds, &rate, e));
        candidate_id(&candidate, q->candidate);
        q->weights = rate.work;
        q->seconds = rate.seconds;
    }
    return RC_OK;
}

static const struct {
    const char *name;
    enum rc (*run)(struct bench *b, struct err *e);
} phases[] = {{"gemm", gemm}, {"eval", eval}, {"paired", paired}, {"profile", profile}, {"fisher", fisher},
              {"gptq", gptq}, {"awq", awq},   {"refine", refine}, {"sweep", sweep},     {"quantize", quantize}};
enum { PHASES = sizeof phases / sizeof *phases };

static enum rc run_phases(struct bench *b, const bool wanted[PHASES], struct err *e) {
    b->wants_gemm = wanted[0];
    for (int i = 0; i < PHASES; i++)
        if (wanted[i] && phases[i].run(b, e) != RC_OK) return err_context(e, "%s", phases[i].name);
    b->report.memory_peak = memory_peak(b);
    return RC_OK;
}

/* --- what was asked for --- */

/* Calls `take` for each of the texts between commas. */
static enum rc each_item(const char *list, enum rc (*take)(void *ctx, const char *item, struct err *e), void *ctx,
                         struct err *e) {
    char *copy = xstrdup(list), *rest = copy, *item;
    enum rc rc = RC_OK;
    while (rc == RC_OK && (item = strsep(&rest, ",")))
        rc = take(ctx, item, e);
    free(copy);
    return rc;
}

static enum rc want_phase(void *ctx, const char *item, struct err *e) {
    bool *wanted = ctx;
    for (int i = 0; i < PHASES; i++)
        if (strcmp(phases[i].name, item) == 0) {
            wanted[i] = true;
            return RC_OK;
        }
    return err_set(
        e, RC_INVALID,
        "--phases takes gemm, eval, paired, profile, fisher, gptq, awq, refine, sweep and quantize, not \"%s\"", item);
}

static enum rc add_candidate(void *ctx, const char *item, struct err *e) {
    struct bench *b = ctx;
    if (b->candidate_count == CANDIDATES - 1)
        return err_set(e, RC_INVALID, "--candidates takes at most %d", CANDIDATES - 1);
    if (candidate_from_id(item, &b->candidates[b->candidate_count++], e) != RC_OK)
        return err_context(e, "--candidates");
    return RC_OK;
}

static enum rc generate_model(struct bench *b, const struct bench_options *o, struct err *e) {
    json_t *config;
    TRY(json_parse_file(o->config, CONFIG_MAX_BYTES, &config, e));
    double begin = monotonic_seconds();
    enum rc rc = model_generate(config, o->blocks, SEED, &b->source.model, e);
    b->report.generate_seconds = monotonic_seconds() - begin;
    json_decref(config);
    return rc == RC_OK ? RC_OK : err_context(e, "%s", o->config);
}

static enum rc generate_tokens(struct bench *b, struct err *e) {
    uint64_t state = SEED;
    struct tokens *t = &b->source.tokens;
    t->ids = calloc((size_t)tokens(b), sizeof *t->ids);
    if (!t->ids) return err_set(e, RC_NO_MEMORY, "no memory for %lld tokens", (long long)tokens(b));
    t->count = tokens(b);
    for (int64_t i = 0; i < t->count; i++)
        t->ids[i] = (int32_t)random_below(&state, (uint64_t)b->source.model->arch.vocab);
    return RC_OK;
}

/* A model that ends after its first block, on the same tensors. */
static void view_first_block(struct bench *b) {
    const struct model *whole = b->source.model;
    int n = 0;
    while (n < BLOCK_LINEARS_MAX && whole->blocks[0].linears[n] >= 0)
        n++;
    b->first_block = *whole;
    b->first_block.arch.blocks = 1;
    b->first_block.linears = xcalloc((size_t)n + 1, sizeof *whole->linears);
    b->first_block.linear_count = n + 1;
    memcpy(b->first_block.linears, whole->linears, (size_t)n * sizeof *whole->linears);
    b->first_block.linears[n] = whole->linears[whole->linear_count - 1];
    b->warm_up = b->source;
    b->warm_up.model = &b->first_block;
}

static enum rc prepare(struct bench *b, const struct bench_options *o, bool wanted[PHASES], struct err *e) {
    if (!o->config || !o->synthetic)
        return err_set(e, RC_INVALID, "bench takes --config FILE and --synthetic: it measures on generated weights");
    TRY(each_item(o->phases ? o->phases : "gemm,eval,paired,profile,quantize", want_phase, wanted, e));
    TRY(each_item(o->candidates ? o->candidates : default_candidates, add_candidate, b, e));
    TRY(generate_model(b, o, e));
    view_first_block(b);
    TRY(generate_tokens(b, e));
    b->warm_up.tokens = b->source.tokens;
    return RC_OK;
}

static void describe(struct bench *b, const struct bench_options *o) {
    const struct worker *w = b->worker;
    struct bench_report *r = &b->report;
    r->config = o->config;
    r->device = w->name;
    r->hardware = w->backend->hardware(w->device);
    r->arithmetic = w->backend->arithmetic;
    r->windows = o->windows ? o->windows : WINDOWS;
    r->length = o->length ? o->length : LENGTH;
    r->memory_limit = o->memory_limit;
    r->paired_ratio = r->candidate_seconds = r->fisher_ratio = r->fisher_allowed = b->gemm = NAN;
}

static enum rc write_json(const struct bench_report *r, const char *path, struct err *e) {
    json_t *document = bench_report_json(r);
    int failed = json_dump_file(document, path, JSON_INDENT(2));
    json_decref(document);
    return failed ? err_errno(e, "cannot write %s", path) : RC_OK;
}

enum rc bench_run(const struct worker *worker, const struct bench_options *options, FILE *out, struct err *e) {
    struct bench b = {.worker = worker};
    bool wanted[PHASES] = {false};
    describe(&b, options);
    enum rc rc = prepare(&b, options, wanted, e);
    if (rc == RC_OK) rc = run_phases(&b, wanted, e);
    if (rc == RC_OK) {
        b.report.model = b.source.model;
        bench_report_print(&b.report, out);
        if (fflush(out) != 0) rc = err_errno(e, "cannot print the table");
        if (rc == RC_OK && options->json) rc = write_json(&b.report, options->json, e);
    }
    free(b.first_block.linears);
    source_release(&b.source);
    return rc;
}
