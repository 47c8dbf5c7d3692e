#include "worker/pipeline/eval_result.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "worker/pipeline/stats.h"

void eval_table_release(struct eval_table *t) {
    for (int64_t i = 0; t->windows && i < t->count; i++)
        free(t->windows[i].token_kl);
    free(t->windows);
    *t = (struct eval_table){0};
}

json_t *eval_window_encode(const struct eval_table *t, int64_t window) {
    const struct eval_window *w = &t->windows[window];
    json_t *row =
        json_pack("{sI sI sf}", "window", (json_int_t)window, "tokens", (json_int_t)w->tokens, "nll_reference", w->nll);
    if (!t->quantized || !row) return row;
    json_t *more =
        json_pack("{sf sf sf sf}", "nll_quantized", w->nll_q, "kl", w->kl, "top1_agree", w->top1_agree, "dp2", w->dp2);
    if (!more) {
        json_decref(row);
        return NULL;
    }
    json_object_update(row, more);
    json_decref(more);
    return row;
}

enum { HEX_PER_TOKEN = 8 };

json_t *eval_token_kl_encode(const struct eval_table *t, int64_t window) {
    const struct eval_window *w = &t->windows[window];
    char *hex = xcalloc((size_t)w->tokens + 1, HEX_PER_TOKEN);
    for (int64_t i = 0; i < w->tokens; i++) {
        uint32_t bits;
        memcpy(&bits, &w->token_kl[i], sizeof bits);
        snprintf(hex + i * HEX_PER_TOKEN, HEX_PER_TOKEN + 1, "%08x", bits);
    }
    json_t *row = json_pack("{sI ss}", "window", (json_int_t)window, "kl", hex);
    free(hex);
    return row;
}

static enum rc bad_row(int64_t window, struct err *e) {
    return err_set(e, RC_INVALID, "the stored row of window %lld does not fit this eval", (long long)window);
}

static enum rc decode_token_kl(struct eval_window *w, int64_t window, const json_t *row, struct err *e) {
    const json_t *hex = json_object_get(row, "kl");
    if (json_string_length(hex) != (size_t)w->tokens * HEX_PER_TOKEN) return bad_row(window, e);
    w->token_kl = xcalloc((size_t)w->tokens, sizeof *w->token_kl);
    for (int64_t i = 0; i < w->tokens; i++) {
        char digits[HEX_PER_TOKEN + 1] = {0};
        memcpy(digits, json_string_value(hex) + i * HEX_PER_TOKEN, HEX_PER_TOKEN);
        uint32_t bits = (uint32_t)strtoul(digits, NULL, 16);
        memcpy(&w->token_kl[i], &bits, sizeof bits);
    }
    return RC_OK;
}

static enum rc get_sum(const json_t *row, const char *key, double *sum, int64_t window, struct err *e) {
    *sum = NAN;
    TRY(json_get_number(row, key, sum, e));
    return isnan(*sum) ? bad_row(window, e) : RC_OK;
}

enum rc eval_window_decode(struct eval_table *t, int64_t window, const json_t *row, const json_t *token_kl,
                           struct err *e) {
    struct eval_window *w = &t->windows[window];
    int64_t tokens = -1;
    TRY(json_get_int(row, "tokens", 0, INT32_MAX, &tokens, e));
    if (tokens != w->tokens) return bad_row(window, e);
    TRY(get_sum(row, "nll_reference", &w->nll, window, e));
    if (t->quantized) {
        TRY(get_sum(row, "nll_quantized", &w->nll_q, window, e));
        TRY(get_sum(row, "kl", &w->kl, window, e));
        TRY(get_sum(row, "top1_agree", &w->top1_agree, window, e));
        TRY(get_sum(row, "dp2", &w->dp2, window, e));
        TRY(decode_token_kl(w, window, token_kl, e));
    }
    w->known = true;
    return RC_OK;
}

json_t *eval_noise_encode(const struct eval_noise *noise) {
    return json_pack("{sI sf}", "tokens", (json_int_t)noise->tokens, "kl_abs", noise->kl_abs);
}

enum rc eval_noise_decode(const json_t *row, struct eval_noise *noise, struct err *e) {
    *noise = (struct eval_noise){.kl_abs = NAN};
    TRY(json_get_int(row, "tokens", 0, INT32_MAX, &noise->tokens, e));
    TRY(json_get_number(row, "kl_abs", &noise->kl_abs, e));
    if (noise->tokens < 1 || isnan(noise->kl_abs))
        return err_set(e, RC_INVALID, "the stored row of the noise floor is not one");
    noise->known = true;
    return RC_OK;
}

/* JSON has no NaN: what cannot be computed (an interval of one window) is null. */
static json_t *real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *mean_ppl(const struct eval_table *t, bool quantized, int64_t *tokens) {
    double nll = 0;
    *tokens = 0;
    for (int64_t i = 0; i < t->count; i++) {
        nll += quantized ? t->windows[i].nll_q : t->windows[i].nll;
        *tokens += t->windows[i].tokens;
    }
    nll /= (double)*tokens;
    return json_pack("{so so}", "ppl", real(exp(nll)), "nll", real(nll));
}

static json_t *delta_json(const struct paired_delta *d) {
    return json_pack("{so so so s[oo] s[oo] so so}", "ppl", real(d->ppl), "percent", real(d->percent), "se",
                     real(d->ppl_se), "ci95", real(d->ppl_ci95.low), real(d->ppl_ci95.high), "percent_ci95",
                     real(d->percent_ci95.low), real(d->percent_ci95.high), "nll", real(d->nll), "nll_se",
                     real(d->nll_se));
}

/* mean ± se over windows of one of their sums. */
static struct mean_se over_windows(const struct eval_table *t, size_t member) {
    double *sums = xcalloc((size_t)t->count, sizeof *sums);
    int64_t *tokens = xcalloc((size_t)t->count, sizeof *tokens);
    for (int64_t i = 0; i < t->count; i++) {
        memcpy(&sums[i], (const char *)&t->windows[i] + member, sizeof *sums);
        tokens[i] = t->windows[i].tokens;
    }
    struct mean_se out = stats_mean_se(sums, tokens, (size_t)t->count);
    free(sums);
    free(tokens);
    return out;
}

static json_t *kl_json(const struct eval_table *t, int64_t tokens) {
    static const struct {
        const char *name;
        double p;
    } percentiles[] = {{"median", .5}, {"p90", .9}, {"p95", .95}, {"p99", .99}, {"p999", .999}, {"max", 1}};
    double *all = xcalloc((size_t)tokens, sizeof *all);
    size_t n = 0;
    for (int64_t i = 0; i < t->count; i++)
        for (int64_t k = 0; k < t->windows[i].tokens; k++)
            all[n++] = t->windows[i].token_kl[k];
    stats_sort(all, n);
    struct mean_se mean = over_windows(t, offsetof(struct eval_window, kl));
    json_t *kl = json_pack("{so so}", "mean", real(mean.mean), "se", real(mean.se));
    for (size_t i = 0; i < sizeof percentiles / sizeof *percentiles; i++)
        json_object_set_new(kl, percentiles[i].name, real(stats_percentile(all, n, percentiles[i].p)));
    json_object_set_new(kl, "noise_floor", real(t->noise.kl_abs / (double)t->noise.tokens));
    free(all);
    return kl;
}

/* The root of a mean over windows; its error to first order. */
static json_t *rms_dp_json(const struct eval_table *t) {
    struct mean_se squares = over_windows(t, offsetof(struct eval_window, dp2));
    double rms = sqrt(squares.mean);
    return json_pack("{so so}", "value", real(rms), "se", real(rms > 0 ? squares.se / (2 * rms) : squares.se));
}

static struct paired_delta paired(const struct eval_table *t, const double *other) {
    struct window_pair *pairs = xcalloc((size_t)t->count, sizeof *pairs);
    for (int64_t i = 0; i < t->count; i++) {
        const struct eval_window *w = &t->windows[i];
        double ours = t->quantized ? w->nll_q : w->nll;
        pairs[i] = (struct window_pair){w->tokens, other ? other[i] : w->nll, ours};
    }
    struct paired_delta d = stats_paired(pairs, (size_t)t->count);
    free(pairs);
    return d;
}

json_t *eval_result_json(const struct eval_table *t) {
    int64_t tokens;
    json_t *result = json_object();
    json_object_set_new(result, "reference", mean_ppl(t, false, &tokens));
    json_t *windows = json_pack("{sI}", "n", (json_int_t)t->count);
    if (t->quantized) {
        struct paired_delta d = paired(t, NULL);
        struct mean_se top1 = over_windows(t, offsetof(struct eval_window, top1_agree));
        json_object_set_new(result, "quantized", mean_ppl(t, true, &tokens));
        json_object_set_new(result, "delta", delta_json(&d));
        json_object_set_new(windows, "helped", json_integer(d.helped));
        json_object_set_new(windows, "hurt", json_integer(d.hurt));
        json_object_set_new(result, "kl", kl_json(t, tokens));
        json_object_set_new(result, "top1", json_pack("{so so}", "agreement", real(top1.mean), "se", real(top1.se)));
        json_object_set_new(result, "rms_dp", rms_dp_json(t));
    }
    json_object_set_new(windows, "dropped_tokens", json_integer(t->dropped_tokens));
    json_object_set_new(result, "windows", windows);
    json_object_set_new(result, "tokens", json_integer(tokens));
    return result;
}

static enum rc other_nll(const struct eval_table *t, const json_t *rows, double *nll, struct err *e) {
    for (int64_t i = 0; i < t->count; i++)
        nll[i] = NAN;
    size_t k;
    const json_t *row;
    json_array_foreach(rows, k, row) {
        const json_t *data = json_object_get(row, "data");
        const char *phase = json_string_value(json_object_get(row, "phase"));
        if (!phase || strcmp(phase, "window") != 0) continue;
        int64_t window = -1, tokens = -1;
        double value = NAN;
        TRY(json_get_int(data, "window", 0, INT32_MAX, &window, e));
        TRY(json_get_int(data, "tokens", 0, INT32_MAX, &tokens, e));
        TRY(json_get_number(data, "nll_reference", &value, e));
        TRY(json_get_number(data, "nll_quantized", &value, e)); /* instead, where there is one */
        if (window >= 0 && window < t->count && tokens == t->windows[window].tokens) nll[window] = value;
    }
    for (int64_t i = 0; i < t->count; i++)
        if (isnan(nll[i]))
            return err_at(e, "/compare", RC_INVALID,
                          "the other eval did not score as many tokens of window %lld: use the same protocol",
                          (long long)i);
    return RC_OK;
}

enum rc eval_compare_check(const struct eval_table *t, const json_t *rows, struct err *e) {
    double *nll = xcalloc((size_t)t->count, sizeof *nll);
    enum rc rc = other_nll(t, rows, nll, e);
    free(nll);
    return rc;
}

enum rc eval_compare_json(const struct eval_table *t, const json_t *rows, json_t **out, struct err *e) {
    double *nll = xcalloc((size_t)t->count, sizeof *nll);
    enum rc rc = other_nll(t, rows, nll, e);
    if (rc == RC_OK) {
        struct paired_delta d = paired(t, nll);
        *out = delta_json(&d);
        json_object_set_new(*out, "helped", json_integer(d.helped));
        json_object_set_new(*out, "hurt", json_integer(d.hurt));
    }
    free(nll);
    return rc;
}
