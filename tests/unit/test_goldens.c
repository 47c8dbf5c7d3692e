/* The forward pass is right: per-window NLL of one tiny model of each family and variant, within 1e-4 relative of what
 * transformers computes in float32 (tools/make-goldens). */
#include "tests/unit/cmocka_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "kernels/backend.h"
#include "worker/model/model.h"
#include "worker/model/windows.h"
#include "worker/pipeline/upload.h"
#include "worker/pipeline/walk.h"

enum { LENGTH_MAX = 64, WINDOWS_MAX = 8 };
static const double tolerance = 1e-4;

static struct err err;
static double worst;

static enum rc drop(void *ctx, const struct message *m, struct err *e) {
    (void)ctx, (void)m, (void)e;
    return RC_OK;
}
static const struct job_link nowhere = {.send = drop};

struct scoring {
    const struct walk *walk;
    float *head, *bias; /* [V, D], [V] or NULL */
    double nll[WINDOWS_MAX];
};

static enum rc score_window(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    struct scoring *s = ctx;
    const struct model *m = s->walk->model;
    const struct job *job = s->walk->job;
    int64_t labels = x[0].rows - 1;
    double nll[LENGTH_MAX];
    struct score_args a = {.x = matf(x[0].data, labels, x[0].cols),
                           .head = matf(s->head, m->arch.vocab, m->arch.hidden),
                           .bias = s->bias,
                           .logit_scale = (float)(1 / m->arch.logits_scaling),
                           .labels = s->walk->windows->ids + window * s->walk->windows->length + 1,
                           .nll = nll};
    TRY(job->backend->score(job->device, &a, e));
    s->nll[window] = 0;
    for (int64_t i = 0; i < labels; i++)
        s->nll[window] += nll[i];
    return RC_OK;
}

static void must(enum rc rc) {
    if (rc != RC_OK) fail_msg("%s", err.message);
}

static void walk_windows(const struct model *model, const struct windows *windows, double *nll) {
    struct job job = {.id = "golden", .backend = &backend_cpu, .scratch = "/tmp", .link = &nowhere};
    struct backend_options options = {.threads = 1};
    must(backend_cpu.open(&options, &job.device, &err));
    struct scoring scoring = {0};
    struct walk_hooks hooks = {.ctx = &scoring, .final = score_window};
    struct walk walk = {.job = &job,
                        .model = model,
                        .windows = windows,
                        .count = windows->count,
                        .streams = 1,
                        .last_block = -1,
                        .hooks = &hooks,
                        .phase = "golden",
                        .tokens_total = windows->count * windows->length};
    scoring.walk = &walk;
    must(upload_new(&job, model->head, &scoring.head, &err));
    must(upload_new(&job, model->head_bias, &scoring.bias, &err));
    must(walk_run(&walk, &err));
    backend_cpu.free(job.device, scoring.head);
    if (scoring.bias != NULL) backend_cpu.free(job.device, scoring.bias);
    backend_cpu.close(job.device);
    for (int64_t i = 0; i < windows->count; i++)
        nll[i] = scoring.nll[i];
}

static void check_window(const char *name, const json_t *golden, double nll) {
    double want = json_real_value(json_object_get(golden, "nll32")), error = fabs(nll - want) / want;
    if (!(error <= tolerance)) fail_msg("%s: NLL is %.6f, transformers says %.6f", name, nll, want);
    if (error > worst) worst = error;
}

/* The first two windows, of equal length, go in one walk; the others in walks of their own. */
static void check_model(const json_t *golden) {
    const char *name = json_string_value(json_object_get(golden, "name"));
    const json_t *list = json_object_get(golden, "windows");
    char path[256];
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    struct model *model;
    must(model_open(name, path, &model, &err));
    for (size_t at = 0; at < json_array_size(list);) {
        int64_t count = at == 0 ? 2 : 1;
        int32_t ids[2 * LENGTH_MAX];
        double nll[2] = {0};
        const json_t *first = json_object_get(json_array_get(list, at), "ids");
        struct windows windows = {ids, count, (int64_t)json_array_size(first), 1};
        assert_true(windows.length <= LENGTH_MAX);
        for (int64_t i = 0; i < count * windows.length; i++) {
            const json_t *row = json_array_get(list, at + (size_t)(i / windows.length));
            const json_t *id = json_array_get(json_object_get(row, "ids"), (size_t)(i % windows.length));
            ids[i] = (int32_t)json_integer_value(id);
        }
        walk_windows(model, &windows, nll);
        for (int64_t i = 0; i < count; i++)
            check_window(name, json_array_get(list, at + (size_t)i), nll[i]);
        at += (size_t)count;
    }
    model_close(model);
}

static void nll_is_that_of_transformers(void **state) {
    (void)state;
    json_t *goldens;
    const json_t *golden;
    size_t i;
    must(json_parse_file("tests/golden/goldens.json", 1 << 20, &goldens, &err));
    const json_t *models = json_object_get(goldens, "models");
    assert_true(json_array_size(models) >= 17);
    json_array_foreach(models, i, golden) check_model(golden);
    print_message("%zu models, largest relative difference %.1e\n", i, worst);
    json_decref(goldens);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(nll_is_that_of_transformers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
