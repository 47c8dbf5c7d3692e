/* A synthetic profile, and allocations over it. */
#ifndef HSAQ_TESTS_ALLOCATION_PROFILE_H
#define HSAQ_TESTS_ALLOCATION_PROFILE_H

#include "tests/unit/cmocka_main.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "worker/pipeline/job.h"

enum { BLOCKS = 4 };

/* Bytes and drift by bits: 2, 3, 4, 8, 16. */
static const int widths[] = {2, 3, 4, 8, 16};
static const char *const ids[] = {"rtn2g64", "rtn3g64", "rtn4g64", "rtn8g64", "none"};
static const struct {
    const char *projection, *path;
    int params;
    double sensitivity;
} projections[] = {
    {"q_proj", "self_attn", 4096, 1},
    {"k_proj", "self_attn", 2048, 2},
    {"v_proj", "self_attn", 2048, 9},
    {"down_proj", "mlp", 12288, 3},
};
enum { PROJECTIONS = 4, WIDTHS = 5 };

static inline void add_row(json_t *rows, int block, int p, int w) {
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.%s", block, projections[p].path, projections[p].projection);
    double drift = widths[w] == 16 ? 0 : projections[p].sensitivity * pow(4, -widths[w]) * (1 + 0.1 * block);
    int64_t bytes = projections[p].params * widths[w] / 8 + (widths[w] == 16 ? 0 : projections[p].params / 16);
    json_t *data =
        json_pack("{s:s, s:i, s:s, s:[i,i], s:i, s:s, s:f, s:f, s:I}", "name", name, "block", block, "projection",
                  projections[p].projection, "shape", projections[p].params / 64, 64, "params", projections[p].params,
                  "candidate", ids[w], "drift", drift, "relative_error", sqrt(drift) / 2, "bytes", (json_int_t)bytes);
    json_array_append_new(
        rows, json_pack("{s:s, s:i, s:o}", "phase", "drift", "index", (int)json_array_size(rows), "data", data));
}

static inline json_t *make_inputs(void) {
    json_t *rows = json_array();
    for (int b = 0; b < BLOCKS; b++)
        for (int p = 0; p < PROJECTIONS; p++)
            for (int w = 0; w < WIDTHS; w++)
                add_row(rows, b, p, w);
    json_array_append_new(rows, json_pack("{s:s, s:i, s:{}}", "phase", "window", "index", 0, "data"));
    json_t *model = json_pack("{s:s, s:s, s:{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i}, s:[i,i,i,i], s:i}", "name",
                              "tiny", "fingerprint", "f00d", "architecture", "family", "llama", "blocks", BLOCKS,
                              "hidden", 64, "intermediate", 192, "heads", 4, "kv_heads", 2, "head_dim", 16, "vocab",
                              1000, "windows", 0, 0, 100, 0, "unquantized_bytes", 130000);
    return json_pack("{s:{s:s, s:{s:o}, s:o}}", "profile", "job", "P1", "result", "model", model, "rows", rows);
}

/* Runs a spec given without its kind and profile, over `inputs`. */
static inline enum rc run_over(json_t *inputs, const char *members, json_t **result, struct err *e) {
    char text[2048];
    json_t *json = NULL;
    union spec spec;
    const struct job_kind *kind;
    struct arena arena = {0};
    atomic_bool cancelled = false;
    *result = NULL;
    *e = (struct err){0};
    snprintf(text, sizeof text, "{\"kind\":\"allocation\",\"profile\":\"P1\",%s}", members);
    assert_int_equal(json_parse(text, strlen(text), &json, e), RC_OK);
    assert_int_equal(spec_decode(json, &spec, &kind, &arena, NULL, e), RC_OK);
    struct job job = {.id = "A1", .kind = kind, .spec = &spec, .inputs = inputs, .cancelled = &cancelled};
    enum rc rc = pipeline_allocation(&job, result, e);
    arena_release(&arena);
    json_decref(json);
    return rc;
}

static inline enum rc run(const char *members, json_t **result, struct err *e) {
    json_t *inputs = make_inputs();
    enum rc rc = run_over(inputs, members, result, e);
    json_decref(inputs);
    return rc;
}

static inline json_t *succeed(const char *members) {
    json_t *result;
    struct err e;
    enum rc rc = run(members, &result, &e);
    if (rc != RC_OK) fail_msg("%s: %s %s", members, e.pointer, e.message);
    return result;
}

static inline int64_t member_int(const json_t *object, const char *key) {
    assert_true(json_is_integer(json_object_get(object, key)));
    return json_integer_value(json_object_get(object, key));
}

static inline double member_number(const json_t *object, const char *key) {
    assert_true(json_is_number(json_object_get(object, key)));
    return json_number_value(json_object_get(object, key));
}

/* The candidate of a Linear. */
static inline const char *candidate_of(const json_t *result, const char *name) {
    size_t i;
    const json_t *entry;
    json_array_foreach(json_object_get(result, "assignment"), i, entry) {
        if (strcmp(json_string_value(json_object_get(entry, "name")), name) == 0)
            return json_string_value(json_object_get(entry, "candidate"));
    }
    fail_msg("%s is not assigned", name);
    return NULL;
}

#endif
