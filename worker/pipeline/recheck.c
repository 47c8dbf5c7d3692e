#include "worker/pipeline/recheck.h"

#include <stdlib.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "worker/pipeline/gradwalk.h"
#include "worker/pipeline/inversion.h"

static const char row_phase[] = "_inversion";

/* One inverted pair of the table. */
struct pair {
    size_t linear, low, high;
    struct inversion inversion;
    bool known;
};

struct recheck {
    const struct recheck_args *args;
    struct pair *pairs; /* [count] */
    size_t count, capacity;
};

static void find_pairs(struct recheck *r) {
    const struct drift_table *t = r->args->table;
    for (size_t l = 0; l < t->linear_count; l++)
        for (size_t c = 0; c < t->candidate_count; c++) {
            if (!drift_inverted(t, l, c)) continue;
            GROW(r->pairs, r->count, r->capacity);
            r->pairs[r->count++] = (struct pair){.linear = l, .low = c, .high = (size_t)drift_next_bits(t, c)};
        }
}

static int64_t row_index(const struct recheck *r, const struct pair *p) {
    return (int64_t)(p->linear * r->args->table->candidate_count + p->low);
}

static bool is_guided(const struct recheck *r, const struct pair *p) {
    return r->args->table->candidates[p->low].guided;
}

/* What was recomputed depends on what the two drifts depend on, and on nothing else. */
static const char *cache_key(const struct recheck *r, const struct pair *p, char key[HASH_TEXT_SIZE]) {
    const struct profiled_model *m = r->args->profiled;
    char low[CANDIDATE_ID_SIZE], high[CANDIDATE_ID_SIZE];
    struct strbuf text = STRBUF_INIT;
    candidate_id(&r->args->table->candidates[p->low], low);
    candidate_id(&r->args->table->candidates[p->high], high);
    strbuf_printf(&text, "inversion %s %s", low, high);
    if (candidate_uses_awq(&r->args->table->candidates[p->low]))
        profiled_fold_key(m, r->args->table->linears[p->linear], &text);
    if (is_guided(r, p)) gradients_key(m->model, m->prints, r->args->seed, &text);
    fingerprints_drift_key(m->prints, m->place[p->linear], text.data, r->args->job->backend->arithmetic, key);
    strbuf_release(&text);
    return key;
}

static enum rc take_earlier(struct recheck *r, struct err *e) {
    for (size_t i = 0; i < r->count; i++) {
        struct pair *p = &r->pairs[i];
        const json_t *data = job_row(r->args->job, row_phase, row_index(r, p));
        if (!data) continue;
        TRY(inversion_decode(data, &p->inversion, e));
        p->known = true;
    }
    return RC_OK;
}

static enum rc take_cached(struct recheck *r, const json_t *found, struct err *e) {
    char key[HASH_TEXT_SIZE];
    for (size_t i = 0; i < r->count; i++) {
        struct pair *p = &r->pairs[i];
        const json_t *data = p->known ? NULL : json_object_get(found, cache_key(r, p, key));
        if (!data) continue;
        TRY(inversion_decode(data, &p->inversion, e));
        p->known = true;
    }
    return RC_OK;
}

static enum rc ask_cache(struct recheck *r, struct err *e) {
    const struct job_link *link = r->args->job->link;
    json_t *keys = json_array(), *found = NULL;
    char key[HASH_TEXT_SIZE];
    for (size_t i = 0; i < r->count; i++)
        if (!r->pairs[i].known) json_array_append_new(keys, json_string(cache_key(r, &r->pairs[i], key)));
    enum rc rc = json_array_size(keys) ? link->lookup(link->ctx, CACHE_DRIFT, keys, &found, e) : RC_OK;
    if (rc == RC_OK && found) rc = take_cached(r, found, e);
    json_decref(keys);
    json_decref(found);
    return rc;
}

static enum rc send_row(const struct recheck *r, const struct job *job, const struct pair *p, struct err *e) {
    char key[HASH_TEXT_SIZE];
    json_t *data = inversion_encode(&p->inversion);
    if (!data) return err_set(e, RC_INTERNAL, "an inversion's drift is not a finite number");
    enum rc rc = emit_row(job, row_phase, row_index(r, p), data, r->args->around ? NULL : cache_key(r, p, key), e);
    json_decref(data);
    return rc;
}

static enum rc recompute_linear(struct recheck *r, struct input_group *group, const struct gram_input *in, int n,
                                struct err *e) {
    const struct candidate *candidates = r->args->table->candidates;
    for (size_t i = 0; i < r->count; i++) {
        struct pair *p = &r->pairs[i];
        if (p->known || r->args->profiled->place[p->linear] != in->index[n]) continue;
        const struct linear *linear = r->args->table->linears[p->linear];
        struct inversion_args a = {
            .group = group, .index = n, .linear = linear, .pair = {&candidates[p->low], &candidates[p->high]}};
        if (inversion_recompute(&a, &p->inversion, e) != RC_OK) return err_context(e, "%s", linear->name);
        p->known = true;
        TRY(send_row(r, group->job, p, e));
    }
    return RC_OK;
}

static enum rc recompute(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    struct recheck *r = ctx;
    struct input_group group = gram_input_group(job, r->args->profiled->model, in);
    group.foldable = group.foldable && profiled_can_fold(r->args->profiled, in->block, in->input);
    enum rc rc = RC_OK;
    for (int n = 0; rc == RC_OK && n < in->count; n++)
        if (in->mine[n]) rc = recompute_linear(r, &group, in, n, e);
    input_group_release(&group);
    return rc;
}

static bool any_pair(const struct recheck *r, bool (*is)(const struct candidate *)) {
    for (size_t i = 0; i < r->count; i++)
        if (is(&r->args->table->candidates[r->pairs[i].low])) return true;
    return false;
}

/* A quantized model is walked in no other way. */
static bool walks_back(const struct recheck *r) {
    if (r->args->around) return true;
    for (size_t i = 0; i < r->count; i++)
        if (!r->pairs[i].known && is_guided(r, &r->pairs[i])) return true;
    return false;
}

static enum rc walk_rest(struct recheck *r, struct err *e) {
    const struct recheck_args *a = r->args;
    bool *wanted = xcalloc((size_t)a->profiled->model->linear_count, sizeof *wanted);
    bool two_sided = any_pair(r, candidate_is_two_sided), gram = any_pair(r, candidate_needs_gram);
    for (size_t i = 0; i < r->count; i++)
        if (!r->pairs[i].known) wanted[a->profiled->place[r->pairs[i].linear]] = true;
    struct gram_walk g = {.job = a->job,
                          .model = a->profiled->model,
                          .windows = a->windows,
                          .phase = "recheck inversions",
                          .wanted = wanted,
                          .stats = any_pair(r, candidate_uses_awq),
                          .device_reserved = gram ? input_group_bytes(a->profiled->model, two_sided) : 0,
                          .input = recompute,
                          .ctx = r};
    struct grad_walk back = {.gram = g,
                             .unweighed = true,
                             .guided = true,
                             .outer = two_sided,
                             .seed = (uint64_t)a->seed,
                             .around = a->around};
    enum rc rc = walks_back(r) ? grad_walk_run(&back, e) : gram_walk_run(&g, e);
    free(wanted);
    return rc;
}

static json_t *pair_json(const struct recheck *r, const struct pair *p) {
    const struct drift_table *t = r->args->table;
    char low[CANDIDATE_ID_SIZE], high[CANDIDATE_ID_SIZE];
    json_t *out = json_pack("{ss s[ss] s[ff] ss}", "name", t->linears[p->linear]->name, "candidates",
                            candidate_id(&t->candidates[p->low], low), candidate_id(&t->candidates[p->high], high),
                            "drift", drift_at(t, p->linear, p->low)->drift, drift_at(t, p->linear, p->high)->drift,
                            "verdict", inversion_verdict(&p->inversion));
    json_t *recomputed = inversion_encode(&p->inversion);
    json_object_update(out, recomputed);
    json_decref(recomputed);
    return out;
}

enum rc recheck_inversions(const struct recheck_args *a, json_t **list, struct err *e) {
    struct recheck r = {.args = a};
    find_pairs(&r);
    enum rc rc = take_earlier(&r, e);
    if (rc == RC_OK && !a->around) rc = ask_cache(&r, e);
    if (rc == RC_OK) rc = walk_rest(&r, e);
    *list = json_array();
    for (size_t i = 0; rc == RC_OK && i < r.count; i++)
        json_array_append_new(*list, pair_json(&r, &r.pairs[i]));
    free(r.pairs);
    return rc;
}
