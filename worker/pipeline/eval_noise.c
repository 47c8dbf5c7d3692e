#include "worker/pipeline/eval_noise.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/walk.h"

/* Enough to see any noise, and little beside the windows of a real eval. */
enum { TOKENS_MAX = 256 };

struct noise_walk {
    const struct noise_args *args;
    struct windows windows; /* one; borrows its ids */
    struct eval_noise *out;
};

static enum rc score_both(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    struct noise_walk *k = ctx;
    const struct noise_args *n = k->args;
    int64_t scored = k->windows.length - 1;
    double *nll = xcalloc(3 * (size_t)scored, sizeof *nll), *kl = nll + 2 * scored;
    uint8_t *agree = xcalloc((size_t)scored, 1);
    struct score_args a = {.x = mat_rows(x[0], 0, scored),
                           .x_q = mat_rows(x[1], 0, scored),
                           .head = n->head,
                           .bias = n->head_bias,
                           .logit_scale = (float)(1 / n->model->arch.logits_scaling),
                           .labels = k->windows.ids + window * k->windows.length + 1,
                           .nll = nll,
                           .nll_q = nll + scored,
                           .kl = kl,
                           .top1_agree = agree};
    enum rc rc = n->job->backend->score(n->job->device, &a, e);
    *k->out = (struct eval_noise){.tokens = scored, .known = true};
    for (int64_t i = 0; rc == RC_OK && i < scored; i++)
        k->out->kl_abs += fabs(kl[i]);
    free(nll);
    free(agree);
    return rc;
}

enum rc eval_noise_measure(const struct noise_args *a, struct eval_noise *out, struct err *e) {
    struct noise_walk k = {.args = a, .out = out, .windows = *a->windows};
    k.windows.count = 1;
    if (k.windows.length > TOKENS_MAX) k.windows.length = TOKENS_MAX;
    struct walk_hooks hooks = {.ctx = &k, .final = score_both};
    struct walk walk = {.job = a->job,
                        .model = a->model,
                        .windows = &k.windows,
                        .count = 1,
                        .streams = 2,
                        .last_block = -1,
                        .hooks = &hooks,
                        .head = &a->head,
                        .phase = "noise floor",
                        .tokens_total = k.windows.length};
    return walk_run(&walk, e);
}
