#include "base/target.h"

#include <string.h>

const char *const target_names[] = {"none", "compressed-tensors", "vllm", NULL};

struct candidate target_scheme(const struct candidate *c, int64_t cols) {
    if (c->method == METHOD_NONE) return (struct candidate){.method = METHOD_NONE, .bits = c->bits};
    if (c->method == METHOD_FP8) return *c;
    return (struct candidate){.method = METHOD_RTN,
                              .bits = c->bits,
                              .group = c->group < cols ? c->group : 0,
                              .symmetric = c->symmetric,
                              .zero = c->symmetric ? ZERO_FLOAT : c->zero,
                              .layout = c->layout};
}

bool target_same_scheme(const struct candidate *a, const struct candidate *b) {
    char x[CANDIDATE_ID_SIZE], y[CANDIDATE_ID_SIZE];
    return strcmp(candidate_id(a, x), candidate_id(b, y)) == 0;
}

/* Both targets read this one format; no zero of it is a fraction. */
static enum rc check_format(const char *name, const struct candidate *c, int64_t cols, struct err *e) {
    if (candidate_uses_gptq(c) && c->order == ORDER_ACTIVATION)
        return err_at(e, "/order", RC_UNSUPPORTED,
                      "%s reads groups of columns as they lie; use another \"order\", such as \"static-groups\"", name);
    if (c->layout != LAYOUT_DENSE)
        return err_at(e, "/layout", RC_UNSUPPORTED, "%s reads dense codes only; use \"layout\": \"dense\"", name);
    if (!c->symmetric && c->zero != ZERO_INTEGER)
        return err_at(e, "/zero", RC_UNSUPPORTED,
                      "%s has no float zeros; use \"zero\": \"integer\", or \"symmetric\": true", name);
    int group = target_scheme(c, cols).group;
    if (group != 0 && cols % group != 0)
        return err_at(e, "/group", RC_UNSUPPORTED, "%s needs groups that divide the %lld input channels; %d does not",
                      name, (long long)cols, group);
    return RC_OK;
}

static enum rc check_vllm(const struct candidate *c, struct err *e) {
    if (c->symmetric || c->bits == 4 || c->bits == 8) return RC_OK;
    return err_at(e, "/symmetric", RC_UNSUPPORTED,
                  "vllm has asymmetric kernels for 4 and 8 bits only; use \"symmetric\": true for %d bits", c->bits);
}

enum rc target_check(enum target target, const struct candidate *c, int64_t cols, struct err *e) {
    if (target == TARGET_NONE || c->method == METHOD_NONE || c->method == METHOD_FP8) return RC_OK;
    TRY(check_format(target_names[target], c, cols, e));
    return target == TARGET_VLLM ? check_vllm(c, e) : RC_OK;
}

int target_tie(enum target target, const char *projection) {
    static const char *const ties[][3] = {{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj", NULL}};
    for (int tie = 0; target == TARGET_VLLM && tie < 2; tie++)
        for (int i = 0; i < 3 && ties[tie][i] != NULL; i++)
            if (strcmp(projection, ties[tie][i]) == 0) return tie;
    return -1;
}
