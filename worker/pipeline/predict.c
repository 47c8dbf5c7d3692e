#include "worker/pipeline/predict.h"

#include <math.h>

/* The correction goes from one value to the other between the two sums, linearly in the sum's logarithm, and stays as
 * it is beyond them. */
struct correction {
    double small, at_small; /* nats, factor */
    double large, at_large;
    const char *calibrated_on; /* NULL: not measured */
};

static const struct correction corrections[SCORES] = {
    /* Guided GPTQ, uniform and allocated at eight budgets (docs/results.md): joint KLs of 1.32 to 1.51 times sums from
     * 0.036 to 0.31. */
    [SCORE_FISHER] = {1, 1.41, 1, 1.41, "SmolLM2-135M-Instruct, guided GPTQ, WikiText-2"},
    /* Of the same form as fisher, and not measured for themselves. */
    [SCORE_KFAC] = {1, 1.41, 1, 1.41, "fisher's correction; not measured for kfac itself"},
    [SCORE_DIAG] = {1, 1.41, 1, 1.41, "fisher's correction; not measured for diag itself"},
    [SCORE_NOISE] = {1, 1.41, 1, 1.41, "fisher's correction; not measured for noise itself"},
    /* One Linear at a time, HQQ and RTN: the joint KL is 1.2 times the sum at 4 bits, where that is some 0.37, and 1.7
     * times at 3 bits, where it is some 1.5. */
    [SCORE_DELTA_KL] = {0.37, 1.2, 1.5, 1.7, "SmolLM2-135M-Instruct, HQQ and RTN at 3 and 4 bits, WikiText-2"},
};

/* Of a model whose scales are refined. Eight allocations (docs/results.md): 1.10 to 1.15 times a sum of 0.18 to 0.19,
 * 1.30 to 1.34 times one of 0.034 to 0.036. */
static const struct correction refined_corrections[SCORES] = {
    [SCORE_FISHER] = {0.035, 1.32, 0.19, 1.13, "SmolLM2-135M-Instruct, guided GPTQ, refined, WikiText-2"},
};

static double correction_at(const struct correction *c, double sum) {
    if (sum <= c->small) return c->at_small;
    if (sum >= c->large) return c->at_large;
    return c->at_small + (c->at_large - c->at_small) * log(sum / c->small) / log(c->large / c->small);
}

bool predict_kl(enum score score, bool refined, double sum, struct prediction *out) {
    const struct correction *c = refined ? &refined_corrections[score] : &corrections[score];
    *out = (struct prediction){0};
    if (!c->calibrated_on) return false;
    double correction = correction_at(c, sum), kl = correction * sum;
    *out = (struct prediction){.sum = sum,
                               .correction = correction,
                               .kl = kl,
                               .low = kl * (1 - PREDICTION_MARGIN),
                               .high = kl * (1 + PREDICTION_MARGIN),
                               .calibrated_on = c->calibrated_on};
    return true;
}

static json_t *corrected_json(enum score score, bool refined, double sum) {
    struct prediction p;
    if (!predict_kl(score, refined, sum, &p)) return json_null();
    return json_pack("{sf sf sf sf ss}", "correction", p.correction, "kl", p.kl, "low", p.low, "high", p.high,
                     "calibrated_on", p.calibrated_on);
}

json_t *prediction_json(enum score score, double sum) {
    json_t *out = corrected_json(score, false, sum);
    if (!json_is_object(out)) return out;
    json_object_set_new(out, "score", json_string(allocation_score_names[score]));
    json_object_set_new(out, "sum", json_real(sum));
    json_object_set_new(out, "refined", corrected_json(score, true, sum));
    return out;
}

json_t *predicted_kl_json(enum score score, double sum) {
    struct prediction p;
    return predict_kl(score, false, sum, &p) ? json_real(p.kl) : json_null();
}

json_t *prediction_beside(const json_t *prediction, bool refined, const json_t *measured) {
    if (refined) prediction = json_object_get(prediction, "refined");
    json_t *kl = json_object_get(prediction, "kl"), *low = json_object_get(prediction, "low");
    json_t *high = json_object_get(prediction, "high");
    if (!json_is_number(kl) || !json_is_number(low) || !json_is_number(high)) return NULL;
    bool defined = json_is_number(measured) && json_number_value(kl) > 0;
    json_t *ratio = defined ? json_real(json_number_value(measured) / json_number_value(kl)) : json_null();
    return json_pack("{sO sO sO so so}", "kl", kl, "low", low, "high", high, "measured",
                     json_is_number(measured) ? json_real(json_number_value(measured)) : json_null(), "ratio",
                     ratio ? ratio : json_null());
}
