/* Submission: what a job must satisfy before it is accepted, and the one transaction that accepts it. */
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/spec.h"
#include "base/utf8.h"
#include "daemon/jobs/commands.h"
#include "daemon/jobs/scheduler.h"
#include "daemon/store/datasets.h"

enum { REFERENCES_MAX = 2, NEEDS_MAX = AFTER_MAX + REFERENCES_MAX };

struct request {
    struct write_op op;
    struct app *app;
    struct arena arena; /* of the decoded spec */
    union spec spec;
    const struct job_kind *kind;
    char id[ID_SIZE], *text, *key;
    char hash[SHA256_HEX_SIZE];
    struct problems problems;
    struct err no_artifact; /* rc RC_OK: what the job is to read is there, or nothing is */
    const char *needs[NEEDS_MAX];
    size_t n_needs;
    command_done done;
    void *ctx;
};

static void request_free(struct request *r) {
    arena_release(&r->arena);
    free(r->text);
    free(r->key);
    free(r);
}

/* Two bodies that say the same are the same request, whatever their blanks and order. */
static void hash_spec(const json_t *spec, char hash[SHA256_HEX_SIZE]) {
    char *text = json_dumps(spec, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    unsigned char digest[SHA256_DIGEST_SIZE];
    struct sha256_ctx sha;

    sha256_init(&sha);
    if (text) sha256_update(&sha, strlen(text), (const uint8_t *)text);
    sha256_digest(&sha, sizeof digest, digest);
    for (size_t i = 0; i < sizeof digest; i++)
        snprintf(hash + 2 * i, 3, "%02x", digest[i]);
    free(text);
}

/* ---- in the transaction ---- */

static void fault(struct request *r, const char *pointer, const char *detail) {
    struct problems *p = &r->problems;

    if (p->count < PROBLEMS_MAX) {
        snprintf(p->items[p->count].pointer, sizeof p->items[0].pointer, "%.191s", pointer);
        snprintf(p->items[p->count].detail, sizeof p->items[0].detail, "%.255s", detail);
        utf8_repair(p->items[p->count].detail);
    }
    p->count++;
}

/* `kind` NULL: any. */
static enum rc check_job(struct db *db, struct request *r, const char *id, const char *kind, const char *pointer,
                         struct err *e) {
    struct arena arena = {0};
    struct job_record job;
    char detail[256];
    enum rc rc = job_get(db, id, &job, &arena, e);

    if (rc == RC_NOT_FOUND) {
        fault(r, pointer, e->message);
        rc = RC_OK;
    } else if (rc == RC_OK && kind && strcmp(job.kind, kind) != 0) {
        snprintf(detail, sizeof detail, "names a job of kind %s; it must be one of kind %s", job.kind, kind);
        fault(r, pointer, detail);
    } else if (rc == RC_OK && (job.state == JOB_FAILED || job.state == JOB_CANCELLED)) {
        snprintf(detail, sizeof detail, "job %s is %s and will never have a result", id, job_state_names[job.state]);
        fault(r, pointer, detail);
    } else if (rc == RC_OK && r->n_needs < NEEDS_MAX) {
        r->needs[r->n_needs++] = id;
    }
    arena_release(&arena);
    return rc;
}

static enum rc check_references(struct db *db, struct request *r, struct err *e) {
    const struct list *after = &r->spec.common.after;
    char pointer[64];

    for (const struct spec_reference *ref = r->kind->references; ref->member; ref++) {
        const char *id = *(const char *const *)((const char *)&r->spec + ref->offset);
        snprintf(pointer, sizeof pointer, "/%s", ref->member);
        if (id) TRY(check_job(db, r, id, ref->kind, pointer, e));
    }
    for (size_t i = 0; i < after->count; i++) {
        snprintf(pointer, sizeof pointer, "/after/%zu", i);
        TRY(check_job(db, r, ((const char *const *)after->items)[i], NULL, pointer, e));
    }
    return RC_OK;
}

static enum rc check_dataset(struct db *db, struct request *r, struct dataset *dataset, struct err *e) {
    const char *name = spec_dataset(r->kind, &r->spec);
    enum rc rc = name ? dataset_get(db, name, dataset, e) : RC_OK;

    if (rc != RC_NOT_FOUND) return rc;
    fault(r, !strcmp(r->kind->name, "profile") ? "/calibration/dataset" : "/dataset", e->message);
    return RC_OK;
}

/* The spec of a job that another names, of the kind that it must be; false when there is none, which check_references
 * has said. */
static bool read_spec(struct db *db, struct request *r, const char *id, const char *kind, struct job_record *job,
                      union spec *spec) {
    const struct job_kind *found;
    struct err ignored;
    json_t *json = NULL;

    if (job_get(db, id, job, &r->arena, &ignored) != RC_OK || strcmp(job->kind, kind) != 0) return false;
    if (json_parse(job->spec, strlen(job->spec), &json, &ignored) != RC_OK) return false;
    enum rc rc = spec_decode(json, spec, &found, &r->arena, NULL, &ignored);
    json_decref(json);
    return rc == RC_OK;
}

/* An artifact that is not there yet is made by a job that this one comes after. */
static void check_artifact(struct db *db, struct request *r) {
    const struct list *after = &r->spec.common.after;
    const char *name = spec_read_artifact(r->kind, &r->spec);
    struct job_record job;
    union spec maker;

    if (r->no_artifact.rc == RC_OK) return;
    for (size_t i = 0; i < after->count; i++)
        if (read_spec(db, r, ((const char *const *)after->items)[i], "quantize", &job, &maker) &&
            !strcmp(maker.quantize.name, name))
            return;
    fault(r, "/artifact", r->no_artifact.message);
}

static bool any_needs_gram(const struct list *candidates) {
    const struct candidate *items = candidates->items;

    for (size_t i = 0; i < candidates->count; i++)
        if (candidate_needs_gram(&items[i])) return true;
    return false;
}

/* What the profile behind the job's allocation was calibrated on, when a candidate of its may need that again: which
 * ones the allocation chooses is not known yet. */
static enum rc inherit_calibration(struct db *db, struct request *r, struct dataset *dataset, struct err *e) {
    struct job_record job;
    union spec allocation, profile;
    char detail[256];

    const char *id = spec_allocation(r->kind, &r->spec);
    if (!read_spec(db, r, id, "allocation", &job, &allocation)) return RC_OK;
    if (!read_spec(db, r, allocation.allocation.profile, "profile", &job, &profile)) return RC_OK;
    bool needed = any_needs_gram(&profile.profile.candidates) || spec_refines(r->kind, &r->spec);
    if (!needed || !job.dataset) return RC_OK;
    enum rc rc = dataset_get(db, job.dataset, dataset, e);
    if (rc == RC_OK && !strcmp(dataset->sha256, job.dataset_sha256)) return RC_OK;
    if (rc != RC_OK && rc != RC_NOT_FOUND) return rc;
    snprintf(detail, sizeof detail, "is required: dataset \"%.128s\", which the profile was calibrated on, is %s",
             job.dataset, rc == RC_OK ? "another text now" : "not there any more");
    fault(r, "/calibration", detail);
    return RC_OK;
}

static enum rc check_calibration(struct db *db, struct request *r, struct dataset *dataset, struct err *e) {
    const char *name = spec_calibration_dataset(r->kind, &r->spec);
    enum rc rc = name ? dataset_get(db, name, dataset, e) : RC_OK;

    if (rc == RC_NOT_FOUND) {
        fault(r, "/calibration/dataset", e->message);
        return RC_OK;
    }
    if (rc != RC_OK || name || !spec_allocation(r->kind, &r->spec)) return rc;
    return inherit_calibration(db, r, dataset, e);
}

/* What the job asks for; NULL: any device. */
static const char *wanted_device(const struct request *r) {
    if (r->kind->lane == LANE_CPU) return NULL;
    return spec_is_split(&r->spec) ? DEVICES_ALL : devices_pin(r->spec.common.device);
}

struct pinned {
    struct dataset dataset, calibration; /* name "": none */
};

static const char *or_null(const char *text) {
    return text[0] ? text : NULL;
}

static enum rc insert(struct db *db, struct request *r, const struct pinned *pinned, struct err *e) {
    const struct spec_common *common = &r->spec.common;
    struct job_insert insert = {
        .job = {.kind = r->kind->name,
                .label = common->label,
                .spec = r->text,
                .owner = "local",
                .lane = r->kind->lane == LANE_CPU ? "cpu" : "device",
                .device = wanted_device(r),
                .model = spec_model(r->kind, &r->spec),
                .dataset = or_null(pinned->dataset.name),
                .dataset_sha256 = or_null(pinned->dataset.sha256),
                .calibration = or_null(pinned->calibration.name),
                .calibration_sha256 = or_null(pinned->calibration.sha256),
                .priority = common->priority,
                .created_at = time_now_ms()},
        .needs = r->needs,
        .n_needs = r->n_needs,
    };

    memcpy(insert.job.id, r->id, sizeof r->id);
    return job_insert(db, &r->op.events, &insert, e);
}

static enum rc submit_run(struct db *db, struct write_op *op, struct err *e) {
    struct request *r = (struct request *)op;
    struct pinned pinned = {0};
    char existing[ID_SIZE] = "";

    if (r->key) TRY(idempotency_find(db, r->key, r->hash, existing, e));
    if (existing[0]) {
        memcpy(r->id, existing, sizeof r->id);
        return RC_OK;
    }
    TRY(check_dataset(db, r, &pinned.dataset, e));
    TRY(check_references(db, r, e));
    TRY(check_calibration(db, r, &pinned.calibration, e));
    check_artifact(db, r);
    if (r->problems.count)
        return err_at(e, r->problems.items[0].pointer, RC_INVALID, "%s", r->problems.items[0].detail);
    TRY(insert(db, r, &pinned, e));
    return r->key ? idempotency_put(db, r->key, r->hash, r->id, e) : RC_OK;
}

static void submit_done(struct write_op *op, const struct err *e) {
    struct request *r = (struct request *)op;
    struct app *app = r->app;

    r->done(r->ctx, r->id, &r->problems, e);
    request_free(r);
    if (e->rc == RC_OK) scheduler_kick(app->scheduler);
}

/* ---- before it ---- */

/* `name` NULL: the job has none. */
static enum rc find_model(const struct app *app, const char *name, struct err *e) {
    char *path;

    if (!name) return RC_OK;
    TRY(model_find(&app->models, name, &path, e));
    free(path);
    return RC_OK;
}

/* Another job may be about to make it: then the worker refuses the later one. */
static enum rc check_name_is_free(const struct app *app, const char *name, struct err *e) {
    struct err absent;
    char *path;

    if (!name || model_find(&app->models, name, &path, &absent) != RC_OK) return RC_OK;
    free(path);
    return err_at(e, "/name", RC_CONFLICT, "there is a model \"%s\" already: choose another name, or remove its folder",
                  name);
}

static enum rc check_models(const struct app *app, struct request *r, struct err *e) {
    struct err missing;

    if (find_model(app, spec_model(r->kind, &r->spec), &missing) != RC_OK)
        return err_at(e, "/model", RC_INVALID, "%s", missing.message);
    if (find_model(app, spec_read_artifact(r->kind, &r->spec), &missing) != RC_OK) r->no_artifact = missing;
    return check_name_is_free(app, spec_made_artifact(r->kind, &r->spec), e);
}

static enum rc validate(struct app *app, const struct submission *s, struct request *r, struct err *e) {
    TRY(spec_decode(s->spec, &r->spec, &r->kind, &r->arena, s->problems, e));
    TRY(devices_check(&app->devices, r->kind->lane, r->spec.common.device, e));
    TRY(check_models(app, r, e));
    return id_new(r->id, e);
}

static enum rc find_existing(struct app *app, const char *key, const char *hash, char existing[ID_SIZE],
                             struct err *e) {
    existing[0] = '\0';
    return key ? idempotency_find(store_reader(app->store), key, hash, existing, e) : RC_OK;
}

enum rc command_submit(struct app *app, const struct submission *s, char existing[ID_SIZE], command_done done,
                       void *ctx, struct err *e) {
    struct request *r = xcalloc(1, sizeof *r);
    enum rc rc;

    hash_spec(s->spec, r->hash);
    rc = find_existing(app, s->idempotency_key, r->hash, existing, e);
    if (rc == RC_OK && !existing[0]) rc = validate(app, s, r, e);
    if (rc != RC_OK || existing[0]) {
        request_free(r);
        return rc;
    }
    r->op = (struct write_op){.run = submit_run, .done = submit_done};
    r->app = app;
    r->text = json_line(s->spec);
    r->key = s->idempotency_key ? xstrdup(s->idempotency_key) : NULL;
    r->done = done;
    r->ctx = ctx;
    store_submit(app->store, &r->op);
    return RC_OK;
}
