/* hsaq-worker: the numerics process. Started by hsaqd on one device, or by hand. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/sizes.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/waiting.h"
#include "worker/bench/bench.h"
#include "worker/control.h"
#include "worker/oneshot.h"
#include "worker/run.h"

static const char usage[] =
    "usage: hsaq-worker serve --fd N [DEVICE OPTIONS]   speak the daemon's protocol on an inherited socket\n"
    "       hsaq-worker run JOB.json [OPTIONS]          run one job by hand; prints its messages as NDJSON\n"
    "       hsaq-worker bench --config FILE [OPTIONS]   time the jobs on an architecture's shapes\n"
    "       hsaq-worker inspect <request.json           describe a model folder\n"
    "       hsaq-worker tokenize <request.json          text to token ids\n"
    "       hsaq-worker devices                         what --device can name here\n"
    "       hsaq-worker --version | --help\n"
    "\n"
    "device options\n"
    "  --device DEVICE    what to compute on: auto, cpu, cuda, cuda:N (auto: a GPU where there is one)\n"
    "  --devices LIST     several of one kind, such as cuda:0,cuda:1: jobs with \"devices\": \"all\" are split over "
    "them\n"
    "  --threads N        compute threads of the cpu (all cores)\n"
    "  --ram-limit SIZE   memory for hidden states and Gram matrices; more spills to disk (none)\n"
    "  --vram-limit SIZE  memory to take of the GPU (all of it)\n"
    "  --precision P      of a GPU: bf16, or fp32, which does what the cpu does (bf16)\n"
    "  --scratch DIR      where spill files go (TMPDIR or /tmp)\n"
    "\n"
    "run: the spec names a model folder and a text file, as paths or beneath these folders\n"
    "  --models DIR       folder beneath which the spec's model lies\n"
    "  --datasets DIR     folder beneath which the spec's dataset lies\n"
    "  --artifacts DIR    folder in which a quantize job makes its artifact, and an eval finds one (the one at hand)\n"
    "  --input NAME=FILE  output of an earlier run, for the spec's member NAME (profile, allocation, sweep, around,\n"
    "                     compare)\n"
    "  --resume FILE      output of an earlier, unfinished run of this job, on a device and in a precision that\n"
    "                     compute alike: its rows are kept\n"
    "\n"
    "bench: a config.json of Hugging Face says which shapes\n"
    "  --config FILE      the config.json\n"
    "  --synthetic        generate the weights; nothing is downloaded\n"
    "  --windows N        windows to walk (16)\n"
    "  --length T         tokens of a window (2048)\n"
    "  --blocks N         blocks of the model (all)\n"
    "  --candidates LIST  of the profile (hqq2g64,hqq3g64,hqq4g64)\n"
    "  --phases LIST      of gemm,eval,paired,profile,quantize (these), fisher,gptq,awq,refine,sweep (minutes on a "
    "CPU)\n"
    "  --json FILE        write the table as JSON too\n"
    "\n"
    "inspect and tokenize read one JSON object: {\"model\": {\"name\", \"path\"}}, and for tokenize also \"text\"\n"
    "and \"special_tokens\"; they write {\"ok\": …} or {\"error\": {\"rc\", \"message\", \"pointer\"}}. devices "
    "writes\n"
    "{\"ok\": {\"devices\": [{\"name\", \"hardware\", \"memory\"}], \"unusable\": [{\"name\", \"reason\"}]}}.\n";

enum option_id {
    OPT_FD = 1,
    OPT_DEVICE,
    OPT_DEVICES,
    OPT_THREADS,
    OPT_RAM_LIMIT,
    OPT_VRAM_LIMIT,
    OPT_PRECISION,
    OPT_SCRATCH,
    OPT_MODELS,
    OPT_DATASETS,
    OPT_ARTIFACTS,
    OPT_INPUT,
    OPT_RESUME,
    OPT_CONFIG,
    OPT_SYNTHETIC,
    OPT_WINDOWS,
    OPT_LENGTH,
    OPT_BLOCKS,
    OPT_CANDIDATES,
    OPT_PHASES,
    OPT_JSON
};
enum { INPUTS_MAX = 8 };

static const struct option long_options[] = {
    {"fd", required_argument, NULL, OPT_FD},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"devices", required_argument, NULL, OPT_DEVICES},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"ram-limit", required_argument, NULL, OPT_RAM_LIMIT},
    {"vram-limit", required_argument, NULL, OPT_VRAM_LIMIT},
    {"precision", required_argument, NULL, OPT_PRECISION},
    {"scratch", required_argument, NULL, OPT_SCRATCH},
    {"models", required_argument, NULL, OPT_MODELS},
    {"datasets", required_argument, NULL, OPT_DATASETS},
    {"artifacts", required_argument, NULL, OPT_ARTIFACTS},
    {"input", required_argument, NULL, OPT_INPUT},
    {"resume", required_argument, NULL, OPT_RESUME},
    {"config", required_argument, NULL, OPT_CONFIG},
    {"synthetic", no_argument, NULL, OPT_SYNTHETIC},
    {"windows", required_argument, NULL, OPT_WINDOWS},
    {"length", required_argument, NULL, OPT_LENGTH},
    {"blocks", required_argument, NULL, OPT_BLOCKS},
    {"candidates", required_argument, NULL, OPT_CANDIDATES},
    {"phases", required_argument, NULL, OPT_PHASES},
    {"json", required_argument, NULL, OPT_JSON},
    {0},
};

struct arguments {
    struct worker_options worker;
    struct run_options run;
    struct bench_options bench;
    const char *inputs[INPUTS_MAX];
    int fd;
};

static enum rc parse_int(const char *text, const char *option, int max, int *out, struct err *e) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < 0 || value > max)
        return err_set(e, RC_INVALID, "--%s takes a whole number from 0 to %d, not \"%s\"", option, max, text);
    *out = (int)value;
    return RC_OK;
}

static enum rc parse_precision(const char *text, bool *precise, struct err *e) {
    *precise = !strcmp(text, "fp32");
    if (*precise || !strcmp(text, "bf16")) return RC_OK;
    return err_set(e, RC_INVALID, "--precision is bf16 or fp32, not \"%s\"", text);
}

static enum rc parse_bench_option(int id, struct bench_options *b, struct err *e) {
    switch (id) {
    case OPT_CONFIG: b->config = optarg; return RC_OK;
    case OPT_SYNTHETIC: b->synthetic = true; return RC_OK;
    case OPT_WINDOWS: return parse_int(optarg, "windows", 1 << 20, &b->windows, e);
    case OPT_LENGTH: return parse_int(optarg, "length", 1 << 20, &b->length, e);
    case OPT_BLOCKS: return parse_int(optarg, "blocks", 1 << 20, &b->blocks, e);
    case OPT_CANDIDATES: b->candidates = optarg; return RC_OK;
    case OPT_PHASES: b->phases = optarg; return RC_OK;
    case OPT_JSON: b->json = optarg; return RC_OK;
    default: return err_set(e, RC_INTERNAL, "option %d is not read", id);
    }
}

static enum rc parse_option(int id, struct arguments *a, struct err *e) {
    switch (id) {
    case OPT_FD: return parse_int(optarg, "fd", 1 << 20, &a->fd, e);
    case OPT_DEVICE:
    case OPT_DEVICES: a->worker.devices = optarg; return RC_OK;
    case OPT_THREADS: return parse_int(optarg, "threads", 1024, &a->worker.threads, e);
    case OPT_RAM_LIMIT: return size_parse(optarg, &a->worker.ram_limit, e);
    case OPT_PRECISION: return parse_precision(optarg, &a->worker.precise, e);
    case OPT_VRAM_LIMIT: return size_parse(optarg, &a->worker.vram_limit, e);
    case OPT_SCRATCH: a->worker.scratch = optarg; return RC_OK;
    case OPT_MODELS: a->run.models = optarg; return RC_OK;
    case OPT_DATASETS: a->run.datasets = optarg; return RC_OK;
    case OPT_ARTIFACTS: a->run.artifacts = optarg; return RC_OK;
    case OPT_RESUME: a->run.resume = optarg; return RC_OK;
    case OPT_INPUT:
        if (a->run.input_count == INPUTS_MAX) return err_set(e, RC_INVALID, "more than %d --input", INPUTS_MAX);
        a->inputs[a->run.input_count++] = optarg;
        return RC_OK;
    default: return parse_bench_option(id, &a->bench, e);
    }
}

/* getopt_long's '?' and ':'. */
static enum rc refuse_option(int id, const char *arg, struct err *e) {
    if (id == ':') return err_set(e, RC_INVALID, "%s takes a value; see hsaq-worker --help", arg);
    if (optopt >= ' ') return err_set(e, RC_INVALID, "there is no option -%c; see hsaq-worker --help", optopt);
    if (optopt) return err_set(e, RC_INVALID, "%s: this option takes no value; see hsaq-worker --help", arg);
    return err_set(e, RC_INVALID, "there is no option %s, or several begin so; see hsaq-worker --help", arg);
}

static enum rc parse_arguments(int argc, char **argv, struct arguments *a, struct err *e) {
    const char *tmp = getenv("TMPDIR");
    *a = (struct arguments){.worker = {.devices = "auto", .scratch = tmp && *tmp ? tmp : "/tmp"}, .fd = -1};
    a->run.inputs = a->inputs;
    for (int id; (id = getopt_long(argc, argv, ":", long_options, NULL)) != -1;) {
        if (id == '?' || id == ':') return refuse_option(id, argv[optind - 1], e);
        TRY(parse_option(id, a, e));
    }
    return RC_OK;
}

static enum rc serve(const struct arguments *a, const struct worker *worker, struct err *e) {
    return control_serve(worker, worker->name, a->fd, e);
}

static enum rc run(const struct arguments *a, const struct worker *worker, struct err *e) {
    return run_by_hand(worker, &a->run, e);
}

static enum rc bench(const struct arguments *a, const struct worker *worker, struct err *e) {
    return bench_run(worker, &a->bench, stdout, e);
}

static enum rc with_worker(const struct arguments *a,
                           enum rc (*command)(const struct arguments *, const struct worker *, struct err *),
                           struct err *e) {
    struct worker worker = {0};
    enum rc rc = worker_open(&a->worker, &worker, e);
    if (rc == RC_OK) rc = command(a, &worker, e);
    worker_release(&worker);
    return rc;
}

static enum rc dispatch(int argc, char **argv, struct err *e) {
    struct arguments a;
    const char *command = argc > 1 ? argv[1] : "";
    if (!strcmp(command, "inspect")) return oneshot(ONESHOT_INSPECT, stdin, stdout, e);
    if (!strcmp(command, "tokenize")) return oneshot(ONESHOT_TOKENIZE, stdin, stdout, e);
    insist_on_sleeping_waits(argv);
    blas_insist_on_fast_core(argv);
    if (!strcmp(command, "devices")) return oneshot(ONESHOT_DEVICES, NULL, stdout, e);
    TRY(parse_arguments(argc - 1, argv + 1, &a, e));
    if (!strcmp(command, "serve")) {
        if (a.fd < 0) return err_set(e, RC_INVALID, "serve needs --fd: it is started by hsaqd");
        return with_worker(&a, serve, e);
    }
    if (!strcmp(command, "run")) {
        if (argc - 1 - optind != 1) return err_set(e, RC_INVALID, "run takes one job file; see hsaq-worker --help");
        a.run.spec = argv[1 + optind];
        return with_worker(&a, run, e);
    }
    a.bench.memory_limit = a.worker.vram_limit;
    if (!strcmp(command, "bench")) return with_worker(&a, bench, e);
    return err_set(e, RC_INVALID, "no %s \"%s\"; see hsaq-worker --help", *command == '-' ? "option" : "command",
                   command);
}

int main(int argc, char **argv) {
    log_set_program("hsaq-worker");
    if (argc == 2 && !strcmp(argv[1], "--version")) return puts("hsaq-worker " HSAQ_VERSION) < 0;
    if (argc == 2 && !strcmp(argv[1], "--help")) return fputs(usage, stdout) < 0;
    struct err e = {0};
    enum rc rc = dispatch(argc, argv, &e);
    if (rc != RC_OK) log_error("%s%s%s", e.pointer, *e.pointer ? ": " : "", e.message);
    return rc == RC_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
