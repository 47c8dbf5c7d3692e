/* What describes the service itself: health, metrics, version, the API document. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/protocol.h"
#include "daemon/api/routes.h"
#include "daemon/app.h"
#include "daemon/embedded.h"
#include "daemon/http/response.h"
#include "daemon/http/server.h"
#include "daemon/jobs/hub.h"
#include "daemon/jobs/scheduler.h"
#include "daemon/store/ids.h"
#include "daemon/store/jobs.h"
#include "daemon/store/store.h"

enum { READY_TIMEOUT_MS = 5000 };

static enum rc get_health(struct request *r, struct err *e) {
    (void)e;
    respond_json(r, 200, json_pack("{s:s}", "status", "ok"));
    return RC_OK;
}

/* Ready is: the writer commits something in time, and the daemon does not drain. */
struct readiness {
    struct write_op op;
    struct request *request; /* NULL once it was answered without the writer */
    uint64_t asked;          /* uv_hrtime */
};

static void ready_late(struct request *r, void *data) {
    ((struct readiness *)data)->request = NULL;
    struct err e;
    err_set(&e, RC_UNAVAILABLE, "the database has not committed anything for %d ms", READY_TIMEOUT_MS);
    respond_error(r, &e);
}

static void ready_cancel(struct request *r, void *data) {
    (void)r;
    ((struct readiness *)data)->request = NULL;
}

/* Changes nothing, but not for SQLite: a page goes to the disk, which may be full, and is synced. */
static enum rc write_something(struct db *db, struct write_op *op, struct err *e) {
    int64_t version;
    char set_version[64];
    (void)op;
    TRY(db_query_int(db, &version, e, "PRAGMA user_version", ""));
    snprintf(set_version, sizeof set_version, "PRAGMA user_version = %d", (int)version);
    return db_script(db, set_version, e);
}

static void on_committed(struct write_op *op, const struct err *e) {
    struct readiness *ready = (struct readiness *)op;
    struct request *r = ready->request;
    if (r != NULL && e->rc != RC_OK) {
        respond_error(r, e);
    } else if (r != NULL) {
        double seconds = (double)(uv_hrtime() - ready->asked) / 1e9;
        respond_json(r, 200, json_pack("{s:s, s:f}", "status", "ready", "commit_seconds", seconds));
    }
    free(ready);
}

static enum rc get_ready(struct request *r, struct err *e) {
    struct app *app = request_app(r);
    if (app->draining) return err_set(e, RC_UNAVAILABLE, "the service is shutting down");
    struct readiness *ready = xcalloc(1, sizeof *ready);
    *ready =
        (struct readiness){.op = {.run = write_something, .done = on_committed}, .request = r, .asked = uv_hrtime()};
    request_defer(r, &(struct deferral){
                         .timeout = ready_late, .cancel = ready_cancel, .timeout_ms = READY_TIMEOUT_MS, .data = ready});
    store_submit(app->store, &ready->op);
    return RC_OK;
}

static enum rc get_version(struct request *r, struct err *e) {
    (void)e;
    respond_json(r, 200,
                 json_pack("{s:s, s:s, s:i}", "name", "hsaqd", "version", HSAQ_VERSION, "protocol", PROTOCOL_VERSION));
    return RC_OK;
}

static enum rc get_document(struct request *r, struct err *e) {
    for (const struct embedded_file *f = embedded_files; f->path != NULL; f++) {
        if (strcmp(f->path, "api/openapi.yaml") != 0) continue;
        respond_static(r, "application/yaml", f->text, f->size);
        return RC_OK;
    }
    return err_set(e, RC_NOT_FOUND, "this binary was built without its API document");
}

/* ---- metrics ---- */

static void metric(struct strbuf *out, const char *name, const char *type, const char *help, int64_t value) {
    strbuf_printf(out, "# HELP %s %s\n# TYPE %s %s\n%s %" PRId64 "\n", name, help, name, type, name, value);
}

static int64_t resident_bytes(void) {
    long long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL) return 0;
    if (fscanf(f, "%lld %lld", &total, &resident) != 2) resident = 0;
    fclose(f);
    return (int64_t)resident * sysconf(_SC_PAGESIZE);
}

static enum rc write_jobs(struct app *app, struct strbuf *out, struct err *e) {
    int64_t counts[JOB_STATES] = {0};
    TRY(job_counts(store_reader(app->store), counts, e));
    strbuf_puts(out, "# HELP hsaqd_jobs Jobs by state.\n# TYPE hsaqd_jobs gauge\n");
    for (int i = 0; i < JOB_STATES; i++)
        strbuf_printf(out, "hsaqd_jobs{state=\"%s\"} %" PRId64 "\n", job_state_names[i], counts[i]);
    return RC_OK;
}

static int64_t is_up(const struct device_status *d) {
    return strcmp(d->worker, "ready") == 0;
}

static int64_t is_busy(const struct device_status *d) {
    return strcmp(d->state, "busy") == 0;
}

static int64_t is_down(const struct device_status *d) {
    return strcmp(d->state, "down") == 0;
}

static int64_t memory_of(const struct device_status *d) {
    return d->memory;
}

static int64_t workers_lost(const struct device_status *d) {
    return d->workers_lost;
}

static const struct device_metric {
    const char *name, *type, *help;
    int64_t (*value)(const struct device_status *d);
} device_metrics[] = {
    {"hsaqd_worker_up", "gauge", "Whether the lane's worker is ready.", is_up},
    {"hsaqd_device_busy", "gauge", "Whether the device runs a job.", is_busy},
    {"hsaqd_device_down", "gauge", "Whether the device's last worker failed, and no other is up yet.", is_down},
    {"hsaqd_device_memory_bytes", "gauge", "Memory of the device; 0 while it is not known.", memory_of},
    {"hsaqd_workers_lost_total", "counter", "Workers that ended unasked.", workers_lost},
    {0},
};

static void write_device_metric(struct app *app, const struct device_metric *m, struct strbuf *out) {
    struct device_status d;
    strbuf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", m->name, m->help, m->name, m->type);
    for (size_t i = 0; i < scheduler_devices(app->scheduler); i++) {
        scheduler_device(app->scheduler, i, &d);
        strbuf_printf(out, "%s{device=\"%s\",lane=\"%s\"} %" PRId64 "\n", m->name, d.name, d.lane, m->value(&d));
    }
}

static enum rc get_metrics(struct request *r, struct err *e) {
    struct app *app = request_app(r);
    struct strbuf out = STRBUF_INIT;
    enum rc rc = write_jobs(app, &out, e);
    if (rc != RC_OK) {
        strbuf_release(&out);
        return rc;
    }
    for (const struct device_metric *m = device_metrics; m->name; m++)
        write_device_metric(app, m, &out);
    metric(&out, "hsaqd_event_subscribers", "gauge", "Event streams.", (int64_t)hub_subscribers(app->hub));
    metric(&out, "hsaqd_database_bytes", "gauge", "Size of the database and its WAL.", store_bytes(app->store));
    metric(&out, "hsaqd_start_time_seconds", "gauge", "When the daemon started, Unix time.", app->started_ms / 1000);
    metric(&out, "process_resident_memory_bytes", "gauge", "Resident memory.", resident_bytes());
    server_metrics(app->server, &out);
    size_t len = out.len;
    respond_text(r, 200, "text/plain; version=0.0.4; charset=utf-8", strbuf_detach(&out), len);
    return RC_OK;
}

const struct route meta_routes[] = {
    {.method = "GET", .pattern = "/healthz", .id = "getHealth", .handler = get_health},
    {.method = "GET", .pattern = "/readyz", .id = "getReadiness", .handler = get_ready},
    {.method = "GET", .pattern = "/metrics", .id = "getMetrics", .handler = get_metrics, .produces = "text/plain"},
    {.method = "GET",
     .pattern = "/openapi.yaml",
     .id = "getDocument",
     .handler = get_document,
     .produces = "application/yaml"},
    {.method = "GET", .pattern = "/v1/version", .id = "getVersion", .handler = get_version},
    {0},
};
