/* hsaqd: puts the parts together (app.h), runs the loop, and takes them apart in the reverse order.
 *
 * SIGTERM or SIGINT drains: no job starts any more, the running one stops and is queued again (its rows are its
 * checkpoint), streams end with an event, and the process leaves within ten seconds. A second signal changes nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/api/routes.h"
#include "daemon/app.h"
#include "daemon/http/server.h"
#include "daemon/jobs/hub.h"
#include "daemon/jobs/probe.h"
#include "daemon/jobs/scheduler.h"
#include "daemon/store/ids.h"
#include "daemon/store/store.h"

enum { STREAM_GRACE_MS = 3000, DRAIN_MS = 8000 };

/* What only main.c needs to know of the running daemon. */
struct process {
    struct app app;
    uv_signal_t terminate, interrupt;
    uv_timer_t deadline; /* of the drain */
    bool ended;
};

static void end(struct process *p) {
    if (p->ended) return;
    p->ended = true;
    uv_close((uv_handle_t *)&p->terminate, NULL);
    uv_close((uv_handle_t *)&p->interrupt, NULL);
    uv_close((uv_handle_t *)&p->deadline, NULL);
    uv_stop(&p->app.loop);
}

static void on_served(void *data) {
    end(data);
}

static void on_jobs_drained(struct app *app) {
    hub_shutdown(app->hub);
    server_drain(app->server, STREAM_GRACE_MS, on_served, app);
}

/* Whatever hangs, the process leaves in time: the database needs no goodbye. */
static void on_deadline(uv_timer_t *timer) {
    (void)timer;
    log_warn("could not drain in time");
    _Exit(EXIT_FAILURE);
}

static void on_signal(uv_signal_t *handle, int signal) {
    struct process *p = handle->data;

    if (p->app.draining) return;
    log_info("draining signal=%d", signal);
    p->app.draining = true;
    uv_timer_start(&p->deadline, on_deadline, DRAIN_MS, 0);
    scheduler_drain(p->app.scheduler, on_jobs_drained);
}

static void listen_to_signals(struct process *p) {
    uv_signal_init(&p->app.loop, &p->terminate);
    uv_signal_init(&p->app.loop, &p->interrupt);
    uv_timer_init(&p->app.loop, &p->deadline);
    p->terminate.data = p->interrupt.data = p->deadline.data = p;
    uv_signal_start(&p->terminate, on_signal, SIGTERM);
    uv_signal_start(&p->interrupt, on_signal, SIGINT);
    signal(SIGHUP, SIG_IGN);
}

static enum rc open_server(struct app *app, struct err *e) {
    struct server_options options = {.host = app->config.host,
                                     .port = app->config.port,
                                     .routes = api_routes,
                                     .app = app,
                                     .max_json = app->config.max_body};

    return server_open(&app->server, &app->loop, &options, e);
}

/* DATA/address holds where this daemon serves, for scripts that let it choose the port. */
static enum rc publish_address(const struct app *app, struct err *e) {
    bool six = strchr(app->config.host, ':') != NULL;
    char *path = xasprintf("%s/address", store_folder(app->store));
    FILE *file = fopen(path, "w");
    enum rc rc = RC_OK;

    if (!file || fprintf(file, "http://%s%s%s:%d\n", six ? "[" : "", app->config.host, six ? "]" : "",
                         server_port(app->server)) < 0)
        rc = err_errno(e, "cannot write %s", path);
    if (file && fclose(file) != 0 && rc == RC_OK) rc = err_errno(e, "cannot write %s", path);
    free(path);
    log_info("listening address=%s port=%d data=%s", app->config.host, server_port(app->server),
             store_folder(app->store));
    return rc;
}

static enum rc find_devices(struct app *app, struct err *e) {
    struct devices_search search = {.loop = &app->loop,
                                    .probes = app->probes,
                                    .worker = app->config.worker,
                                    .wanted = app->config.device,
                                    .timeout_ms = DEVICES_TIMEOUT_MS};

    return devices_find(&app->devices, &search, e);
}

/* What quantize jobs write is found again as a model. */
static enum rc open_artifacts(struct app *app, struct err *e) {
    struct config *c = &app->config;
    char *path = c->artifacts ? xstrdup(c->artifacts) : xasprintf("%s/artifacts", store_folder(app->store));
    char resolved[PATH_MAX];
    enum rc rc = RC_OK;

    if ((mkdir(path, 0777) != 0 && errno != EEXIST) || !realpath(path, resolved) || access(resolved, W_OK | X_OK) != 0)
        rc = err_errno(e, "cannot use %s as the folder of artifacts", path);
    free(path);
    TRY(rc);
    char **roots = arena_alloc(&c->arena, (c->n_models + 1) * sizeof *roots);
    if (c->n_models) memcpy(roots, c->models, c->n_models * sizeof *roots);
    roots[c->n_models] = arena_strdup(&c->arena, resolved);
    app->artifacts = roots[c->n_models];
    app->models = (struct models){roots, c->n_models + 1};
    if (!c->n_models) log_warn("no --models were given: what lies in %s is all that is found", app->artifacts);
    return RC_OK;
}

/* Each step needs those before it; `close_app` undoes those that were done. */
static enum rc open_app(struct app *app, struct err *e) {
    app->started_ms = time_now_ms();
    app->hub = hub_new();
    app->probes = probes_new(&app->loop, app->config.worker);
    TRY(find_devices(app, e));
    TRY(store_open(app->config.data, &app->loop, hub_publish, app->hub, &app->store, e));
    TRY(open_artifacts(app, e));
    TRY(hub_set_store(app->hub, app->store, e));
    TRY(scheduler_new(app, &app->scheduler, e));
    TRY(open_server(app, e));
    return publish_address(app, e);
}

static void close_app(struct app *app) {
    app->draining = true; /* what the last commits make runnable does not start */
    if (app->server) server_close(app->server);
    probes_free(app->probes);
    if (app->store) store_close(app->store);
    if (app->scheduler) scheduler_free(app->scheduler);
    uv_run(&app->loop, UV_RUN_DEFAULT);
    hub_free(app->hub);
    devices_release(&app->devices);
}

/* The descriptor of one that is closed would go to the next file, and libuv aborts when it is to close such a one. */
static void open_missing_streams(void) {
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

static enum rc serve(struct process *p, struct err *e) {
    open_missing_streams();
    signal(SIGPIPE, SIG_IGN); /* before the first pipe */
    signal(SIGXFSZ, SIG_IGN); /* a file at the limit of its size is an error of the write */
    uv_loop_init(&p->app.loop);
    enum rc rc = open_app(&p->app, e);
    if (rc == RC_OK) {
        listen_to_signals(p);
        uv_run(&p->app.loop, UV_RUN_DEFAULT);
    }
    close_app(&p->app);
    uv_loop_close(&p->app.loop);
    return rc;
}

static int describe(void) {
    json_t *routes = router_describe(api_routes);
    char *line = json_line(routes);
    int failed = !line || puts(line) < 0;

    free(line);
    json_decref(routes);
    return failed;
}

static int fail(const struct err *e) {
    fprintf(stderr, "hsaqd: %s\n", e->message);
    return EXIT_FAILURE;
}

int main(int argc, char **argv) {
    static struct process process;
    struct config *config = &process.app.config;
    struct err e = {0};

    log_set_program("hsaqd");
    if (config_load(config, argc, argv, &e) != RC_OK) return fail(&e);
    if (config->show_help) return fputs(config_help(), stdout) < 0;
    if (config->show_version) return puts("hsaqd " HSAQ_VERSION) < 0;
    if (config->show_routes) return describe();
    log_set_level(config->log_level);
    if (serve(&process, &e) != RC_OK) return fail(&e);
    config_release(config);
    log_info("stopped");
    return EXIT_SUCCESS;
}
