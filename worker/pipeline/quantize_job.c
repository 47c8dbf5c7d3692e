/* quantize: the model that a recipe makes, as an artifact (worker/model/artifact.h).
 *
 * The calibration (calibrate.h) hands over block after block, and each becomes a shard before the next is begun: a
 * killed job goes on after its last complete shard, behind what is in it (a guided recipe's blocks come from the last
 * one: with those that are missing), and ends with the same bytes. A row, one for
 * each Linear, goes out before its block's shard is written: a shard without its rows is calibrated again, not written
 * again. Nothing in the folder tells of this run: no job, no time.
 *
 * Where scales are refined (refine.h), that begins when all shards are there, from what they hold: a job that is killed
 * meanwhile begins it anew, and one that is killed while the shards get the scales goes on with that. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "worker/model/artifact.h"
#include "worker/pipeline/calibrate.h"
#include "worker/pipeline/calibration_text.h"
#include "worker/pipeline/prints.h"
#include "worker/pipeline/quantize.h"
#include "worker/pipeline/recipe.h"
#include "worker/pipeline/refine.h"
#include "worker/pipeline/source.h"

static const char row_phase[] = "linear";

struct quantize {
    const struct job *job;
    const struct spec_quantize *spec;
    struct source source;
    struct candidate *recipe; /* [linear_count] */
    struct calibration_plan plan;
    bool refine, needs_calibration;      /* scales are refined; for that or for the plan's sake there are windows */
    struct spec_calibration calibration; /* in force, where there is one */
    struct windows windows;
    json_t *fingerprint, *calibrated; /* `calibrated`: what provenance and result say of it; null without */
    json_t *allocation, *provenance;
    json_t *refined; /* how it went, also in an earlier run; NULL: it did not, or its row was lost */
    json_t **rows;   /* [linear_count] of this run and of earlier ones; NULL: not known */
    const char *name, *path;
    enum target target;
    struct artifact *artifact;
    struct model *made; /* of what earlier runs wrote; NULL: nothing */
};

static const json_t *allocation_result(const struct quantize *q) {
    return json_object_get(json_object_get(q->job->inputs, "allocation"), "result");
}

/* --- what is asked for --- */

static enum rc find_target(struct quantize *q, struct err *e) {
    const char *name = NULL;
    TRY(json_get_string(allocation_result(q), "target", &name, e));
    int index = name ? name_index(target_names, name) : TARGET_NONE;
    if (q->spec->has_target) index = q->spec->target;
    if (index < 0) return err_at(e, "/allocation", RC_INVALID, "was solved for \"%s\", which is no target here", name);
    q->target = (enum target)index;
    return recipe_check_target(q->source.model, q->recipe, q->target, e);
}

static enum rc find_folder(struct quantize *q, struct err *e) {
    TRY(json_get_string(q->job->artifact, "name", &q->name, e));
    TRY(json_get_string(q->job->artifact, "path", &q->path, e));
    return q->name && q->path ? RC_OK : err_set(e, RC_INVALID, "the start message names no artifact");
}

static enum rc open_calibration(struct quantize *q, struct err *e) {
    q->plan = calibration_plan(q->recipe, q->source.model->linear_count);
    q->calibrated = json_null();
    q->refine = refine_wanted(q->spec->has_refine, q->spec->refine, q->recipe, q->source.model);
    q->needs_calibration = q->plan.needed || q->refine;
    if (!q->needs_calibration) return RC_OK;
    if (q->refine) TRY(refine_check(q->job, q->source.model, q->recipe, e));
    TRY(calibration_find(q->job, q->spec->calibration, &q->calibration, e));
    TRY(source_open_tokenizer(&q->source, e));
    TRY(calibration_read(q->job, &q->source, &q->calibration, &q->windows, e));
    q->calibrated = calibration_json(&q->calibration, &q->windows, q->job->calibration);
    json_object_set_new(q->calibrated, "sequential", json_boolean(q->plan.sequential));
    if (q->plan.guided) json_object_set_new(q->calibrated, "guided", json_true());
    json_object_set_new(q->calibrated, "moved", json_integer(q->plan.moved));
    return RC_OK;
}

/* An allocation is for the weights that its profile measured. */
static enum rc open_fingerprint(struct quantize *q, struct err *e) {
    struct fingerprints *prints = NULL;
    const char *measured = NULL;
    enum rc rc = prints_open(q->job, q->source.model, &prints, e);
    if (rc == RC_OK) q->fingerprint = prints_json(prints);
    fingerprints_free(prints);
    if (rc == RC_OK) rc = json_get_string(allocation_result(q), "fingerprint", &measured, e);
    if (rc != RC_OK || !measured || !strcmp(measured, json_string_value(q->fingerprint))) return rc;
    return err_at(e, "/allocation", RC_INVALID,
                  "its profile measured a model with fingerprint %s; %s has %s: profile it anew", measured,
                  q->source.model->name, json_string_value(q->fingerprint));
}

/* --- what the artifact says of itself --- */

static int64_t linear_size(const struct quantize *q, int64_t i) {
    const struct linear *l = &q->source.model->linears[i];
    return q->recipe[i].method == METHOD_NONE ? linear_bytes(l) : candidate_bytes(&q->recipe[i], l->rows, l->cols);
}

/* lm_head counts where the recipe quantizes it. */
static bool counts(const struct quantize *q, int64_t i) {
    return q->source.model->linears[i].block >= 0 || q->recipe[i].method != METHOD_NONE;
}

static json_t *assignment_json(const struct quantize *q) {
    json_t *list = json_array();
    char id[CANDIDATE_ID_SIZE];
    for (int64_t i = 0; i < q->source.model->linear_count; i++)
        if (counts(q, i))
            json_array_append_new(list,
                                  json_pack("{ss ss sI}", "name", q->source.model->linears[i].name, "candidate",
                                            candidate_id(&q->recipe[i], id), "bytes", (json_int_t)linear_size(q, i)));
    return list;
}

/* The result of an allocation names its profile, and others, by ids of jobs. */
static void describe(struct quantize *q) {
    char id[CANDIDATE_ID_SIZE];
    const struct model *m = q->source.model;
    json_t *uniform = q->spec->uniform ? json_string(candidate_id(q->spec->uniform, id)) : json_null();
    q->allocation = json_deep_copy(allocation_result(q));
    if (!q->allocation) q->allocation = json_pack("{sO so}", "uniform", uniform, "assignment", assignment_json(q));
    json_object_del(q->allocation, "profile");
    json_object_del(q->allocation, "sweep");
    json_object_del(q->allocation, "around");
    q->provenance =
        json_pack("{ss ss s{ss ss sO} so ss sO}", "hsaqd", HSAQ_VERSION, "arithmetic", q->job->backend->arithmetic,
                  "model", "name", m->name, "family", m->arch.family, "fingerprint", q->fingerprint, "uniform", uniform,
                  "target", target_names[q->target], "calibration", q->calibrated);
    if (q->refine) json_object_set_new(q->provenance, "refined", refine_settings_json());
}

static enum rc open_artifact(struct quantize *q, struct err *e) {
    describe(q);
    struct artifact_spec spec = {.model = q->source.model,
                                 .path = q->path,
                                 .target = q->target,
                                 .candidates = q->recipe,
                                 .allocation = q->allocation,
                                 .provenance = q->provenance,
                                 .refined = q->refine};
    return artifact_open(&spec, &q->artifact, e);
}

/* --- block by block --- */

static enum rc send_row(struct quantize *q, const struct calibrated_linear *l, struct err *e) {
    json_t *row = calibrated_linear_json(l);
    json_object_set_new(row, "bytes", json_integer(linear_size(q, l->index)));
    json_decref(q->rows[l->index]);
    q->rows[l->index] = row;
    return job_row(q->job, row_phase, l->index) ? RC_OK : emit_row(q->job, row_phase, l->index, row, NULL, e);
}

static enum rc replace(struct quantize *q, const struct st_tensor *tensor, const struct stored *values, struct err *e) {
    return values->values ? artifact_replace(q->artifact, tensor, values->type, values->values, e) : RC_OK;
}

static enum rc put_linear(struct quantize *q, const struct calibrated_linear *l, struct err *e) {
    struct packed packed = {0};
    TRY(replace(q, l->linear->weight, &l->weight, e));
    TRY(replace(q, l->linear->bias, &l->bias, e));
    if (!l->q.codes) return RC_OK;
    if (quantized_pack(q->job, &l->q, &l->candidate, &packed, e) != RC_OK) return err_context(e, "%s", l->linear->name);
    return artifact_put(q->artifact, l->index, &packed, e);
}

static enum rc put_norms(struct quantize *q, const struct calibrated_block *block, struct err *e) {
    const struct model *m = q->source.model;
    if (block->block < 0) return replace(q, m->final_norm, &block->norm[INPUT_HEAD], e);
    TRY(replace(q, m->blocks[block->block].input_norm, &block->norm[INPUT_ATTENTION], e));
    return replace(q, m->blocks[block->block].post_norm, &block->norm[INPUT_MLP], e);
}

static enum rc write_block(void *ctx, const struct job *job, struct calibrated_block *block, struct err *e) {
    (void)job;
    struct quantize *q = ctx;
    int rest = q->source.model->arch.blocks, shard = block->block < 0 ? rest : block->block;
    for (int i = 0; i < block->count; i++)
        TRY(send_row(q, &block->linears[i], e));
    if (artifact_has(q->artifact, shard)) return RC_OK;
    for (int i = 0; i < block->count; i++)
        TRY(put_linear(q, &block->linears[i], e));
    TRY(put_norms(q, block, e));
    return shard < rest ? artifact_write(q->artifact, shard, e) : RC_OK;
}

static void take_earlier_rows(struct quantize *q) {
    q->rows = xcalloc((size_t)q->source.model->linear_count, sizeof *q->rows);
    for (int64_t i = 0; i < q->source.model->linear_count; i++)
        q->rows[i] = json_incref((json_t *)job_row(q->job, row_phase, i));
}

static bool block_is_done(const struct quantize *q, int block) {
    for (int64_t i = 0; i < q->source.model->linear_count; i++)
        if (q->source.model->linears[i].block == block && counts(q, i) && !q->rows[i]) return false;
    return true;
}

/* Blocks from the first on that are written and told of. */
static int blocks_done(const struct quantize *q) {
    int written = artifact_blocks(q->artifact), done = 0;
    while (done < written && block_is_done(q, done))
        done++;
    return done;
}

static struct calibrate_args calibration_of(const struct quantize *q, const struct calibration_sink *sink) {
    return (struct calibrate_args){
        .job = q->job, .model = q->source.model, .windows = &q->windows, .recipe = q->recipe, .sink = sink};
}

/* Whichever blocks are not there: they come from the last one. */
static enum rc calibrate_guided(struct quantize *q, struct err *e) {
    int blocks = q->source.model->arch.blocks;
    bool *done = xcalloc((size_t)blocks, sizeof *done);
    for (int block = 0; block < blocks; block++)
        done[block] = artifact_has(q->artifact, block) && block_is_done(q, block);
    struct calibration_sink sink = {q, write_block};
    struct calibrate_args a = calibration_of(q, &sink);
    a.done = done;
    a.seed = q->calibration.seed;
    enum rc rc = calibrate(&a, e);
    free(done);
    return rc;
}

static enum rc calibrate_rest(struct quantize *q, struct err *e) {
    int blocks = q->source.model->arch.blocks, done = blocks_done(q);
    if (done == blocks && artifact_has(q->artifact, blocks) && block_is_done(q, -1)) return RC_OK;
    if (q->plan.guided) return calibrate_guided(q, e);
    if (done > 0) TRY(artifact_model(q->artifact, done, &q->made, e));
    struct calibration_sink sink = {q, write_block};
    struct calibrate_args a = calibration_of(q, &sink);
    a.first = done;
    a.made = q->made;
    return calibrate(&a, e);
}

/* --- all of it together --- */

static enum rc put_scales(struct quantize *q, const struct packed_store *store, struct err *e) {
    const struct model *m = q->source.model;
    const void **scales = xcalloc((size_t)m->linear_count, sizeof *scales);
    struct candidate by;
    for (int block = 0; block < m->arch.blocks; block++)
        for (int position = 0; block_linear(m, block, position); position++) {
            const struct packed *p = packed_store_codes(store, block, position, &by);
            if (p && by.method != METHOD_FP8) scales[m->blocks[block].linears[position]] = p->scales;
        }
    enum rc rc = artifact_put_scales(q->artifact, scales, e);
    free(scales);
    return rc;
}

static enum rc refine_store(struct quantize *q, struct packed_store *store, struct err *e) {
    struct refined refined;
    struct refine_args a = {.job = q->job,
                            .model = q->source.model,
                            .windows = &q->windows,
                            .recipe = q->recipe,
                            .store = store,
                            .seed = q->calibration.seed};
    TRY(refine_run(&a, &refined, e));
    q->refined = refined_json(&refined, q->spec->has_refine);
    TRY(refined_send(q->job, q->refined, e)); /* before there is no need to refine any more */
    return put_scales(q, store, e);
}

/* What the shards hold, in memory; they themselves are not held, as each is to be replaced. */
static enum rc read_shards(struct quantize *q, struct packed_store *store, struct err *e) {
    artifact_model_close(q->made);
    q->made = NULL;
    TRY(artifact_model(q->artifact, artifact_shards(q->source.model), &q->made, e));
    TRY(packed_store_read(store, q->made, q->recipe, e));
    artifact_model_close(q->made);
    q->made = NULL;
    return RC_OK;
}

static enum rc refine_shards(struct quantize *q, struct err *e) {
    if (!q->refine) return RC_OK;
    q->refined = refined_earlier(q->job);
    if (!artifact_has_scales(q->artifact)) {
        json_decref(q->refined);
        q->refined = NULL;
        struct packed_store *store = packed_store_new(q->source.model);
        enum rc rc = read_shards(q, store, e);
        if (rc == RC_OK) rc = refine_store(q, store, e);
        packed_store_free(store);
        TRY(rc);
    }
    return artifact_rescale(q->artifact, e);
}

static enum rc write_rest(struct quantize *q, struct err *e) {
    enum { STEPS = 2 };
    TRY(emit_progress(q->job, "write", 0, STEPS, "steps", e));
    TRY(artifact_write(q->artifact, q->source.model->arch.blocks, e));
    TRY(refine_shards(q, e));
    TRY(emit_progress(q->job, "write", 1, STEPS, "steps", e));
    TRY(artifact_finish(q->artifact, e));
    return emit_progress(q->job, "write", STEPS, STEPS, "steps", e);
}

static enum rc run(struct quantize *q, struct err *e) {
    TRY(find_folder(q, e));
    TRY(source_open_model(q->job, &q->source, e));
    TRY(recipe_read(q->job, q->source.model, q->spec->uniform, q->spec->allocation, &q->recipe, e));
    TRY(find_target(q, e));
    TRY(open_calibration(q, e));
    TRY(open_fingerprint(q, e));
    TRY(open_artifact(q, e));
    take_earlier_rows(q);
    TRY(calibrate_rest(q, e));
    return write_rest(q, e);
}

/* --- the result --- */

static json_t *counts_json(const struct quantize *q) {
    json_t *json = json_object();
    for (int bits = 1; bits <= 16; bits++) {
        char key[12];
        int count = 0;
        for (int64_t i = 0; i < q->source.model->linear_count; i++)
            count += counts(q, i) && q->recipe[i].bits == bits;
        snprintf(key, sizeof key, "%d", bits);
        if (count) json_object_set_new(json, key, json_integer(count));
    }
    return json;
}

/* As an eval says it: of the rows what is of the calibration. */
static json_t *notes_json(const struct quantize *q) {
    json_t *notes = json_array();
    for (int64_t i = 0; i < q->source.model->linear_count; i++) {
        bool kept = q->recipe[i].method == METHOD_NONE && !json_object_get(q->rows[i], "awq");
        if (!q->rows[i] || kept) continue;
        json_t *note = json_copy(q->rows[i]);
        json_object_del(note, "bytes");
        json_array_append_new(notes, note);
    }
    return notes;
}

static enum rc make_result(const struct quantize *q, json_t **result, struct err *e) {
    int64_t files, total, bytes = 0, params = 0;
    double bits = 0;
    TRY(artifact_size(q->artifact, &files, &total, e));
    for (int64_t i = 0; i < q->source.model->linear_count; i++) {
        const struct linear *l = &q->source.model->linears[i];
        if (!counts(q, i)) continue;
        params += l->rows * l->cols;
        bits += (double)(l->rows * l->cols) * q->recipe[i].bits;
        bytes += linear_size(q, i);
    }
    *result = json_pack("{ss ss ss ss sO sI sI sI sI sf sf so}", "name", q->name, "path", q->path, "target",
                        target_names[q->target], "model", q->source.model->name, "fingerprint", q->fingerprint, "bytes",
                        (json_int_t)total, "files", (json_int_t)files, "weights", (json_int_t)bytes, "parameters",
                        (json_int_t)params, "average_bits", bits / (double)params, "bits_per_weight",
                        8 * (double)bytes / (double)params, "counts", counts_json(q));
    if (!*result) return err_set(e, RC_INTERNAL, "the result cannot be encoded");
    if (q->refine) json_object_set(*result, "refined", q->refined ? q->refined : json_null());
    if (!q->needs_calibration) return RC_OK;
    json_t *calibration = json_copy(q->calibrated);
    json_object_set_new(calibration, "linears", notes_json(q));
    json_object_set_new(*result, "calibration", calibration);
    return RC_OK;
}

static void release(struct quantize *q) {
    artifact_model_close(q->made);
    artifact_close(q->artifact);
    for (int64_t i = 0; q->rows && i < q->source.model->linear_count; i++)
        json_decref(q->rows[i]);
    free(q->rows);
    json_decref(q->allocation);
    json_decref(q->provenance);
    json_decref(q->calibrated);
    json_decref(q->refined);
    json_decref(q->fingerprint);
    free(q->recipe);
    windows_release(&q->windows);
    source_release(&q->source);
}

enum rc pipeline_quantize(const struct job *job, json_t **result, struct err *e) {
    struct quantize q = {.job = job, .spec = &job->spec->quantize};
    enum rc rc = run(&q, e);
    if (rc == RC_OK) rc = make_result(&q, result, e);
    release(&q);
    return rc;
}
