#include "worker/pipeline/sweep_input.h"

#include <math.h>
#include <string.h>

#include "base/json.h"

static enum rc invalid(const char *what, struct err *e) {
    return err_at(e, "/sweep", RC_INVALID, "names a sweep that has %s; run it anew", what);
}

static enum rc read_result(struct sweep_input *s, const json_t *result, struct err *e) {
    TRY(json_get_string(json_object_get(result, "model"), "fingerprint", &s->fingerprint, e));
    TRY(json_get_string(result, "candidate", &s->candidate, e));
    TRY(json_get_number(result, "noise", &s->noise, e));
    if (!s->fingerprint) return invalid("no fingerprint of its model", e);
    bool noisy = isfinite(s->noise) && s->noise > 0;
    if ((s->candidate != NULL) == noisy) return invalid("not either a candidate or noise", e);
    return RC_OK;
}

/* KL is never negative, but what is measured of a tiny one may round to that. */
static enum rc read_row(struct sweep_input *s, const json_t *data, struct err *e) {
    const char *name = NULL;
    double delta_kl = NAN;
    TRY(json_get_string(data, "name", &name, e));
    TRY(json_get_number(data, "delta_kl", &delta_kl, e));
    if (!name || !isfinite(delta_kl)) return invalid("a row without a name or a delta_kl", e);
    if (json_object_get(s->delta_kl, name)) return invalid("two rows of one Linear", e);
    json_object_set_new(s->delta_kl, name, json_real(fmax(delta_kl, 0)));
    return RC_OK;
}

static enum rc read_rows(struct sweep_input *s, const json_t *rows, struct err *e) {
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row) {
        const char *phase = json_string_value(json_object_get(row, "phase"));
        if (phase && strcmp(phase, "sweep") == 0) TRY(read_row(s, json_object_get(row, "data"), e));
    }
    return json_object_size(s->delta_kl) ? RC_OK : invalid("no rows", e);
}

enum rc sweep_input_init(struct sweep_input *s, const json_t *sweep, struct err *e) {
    *s = (struct sweep_input){.delta_kl = json_object()};
    enum rc rc = read_result(s, json_object_get(sweep, "result"), e);
    if (rc == RC_OK) rc = read_rows(s, json_object_get(sweep, "rows"), e);
    if (rc != RC_OK) sweep_input_release(s);
    return rc;
}

void sweep_input_release(struct sweep_input *s) {
    json_decref(s->delta_kl);
    *s = (struct sweep_input){0};
}

enum rc sweep_input_check_model(const struct sweep_input *s, const char *fingerprint, struct err *e) {
    if (fingerprint && strcmp(s->fingerprint, fingerprint) == 0) return RC_OK;
    return err_at(
        e, "/sweep", RC_INVALID,
        "names a sweep of other weights (fingerprint %.40s, the profile's is %.40s): sweep the model that was "
        "profiled",
        s->fingerprint, fingerprint ? fingerprint : "not known");
}

double sweep_input_delta_kl(const struct sweep_input *s, const char *name) {
    const json_t *value = json_object_get(s->delta_kl, name);
    return value ? json_real_value(value) : -1;
}
