#include "daemon/config.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/sizes.h"

enum { CONFIG_FILE_MAX = 1 << 20, DEFAULT_PORT = 8080 };

static const char help[] =
    "usage: hsaqd --data DIR --models DIR [options]\n"
    "\n"
    "  --listen HOST:PORT   where to serve HTTP; a loopback address, port 0 for any free one (127.0.0.1:8080)\n"
    "  --data DIR           database and datasets; made when missing (./hsaqd-data)\n"
    "  --models DIR         where models lie, in folders of their own; may be given several times\n"
    "  --device DEVICE      what to compute on: auto, cpu (auto)\n"
    "  --ram-limit SIZE     memory for a worker's hidden states, such as 12GiB (no limit)\n"
    "  --vram-limit SIZE    GPU memory for a worker (no limit)\n"
    "  --worker PATH        the hsaq-worker program (beside hsaqd, else ../libexec/hsaq-worker)\n"
    "  --worker-idle SEC    a worker without work leaves after this many seconds (60)\n"
    "  --max-body SIZE      largest JSON body accepted (1MiB)\n"
    "  --config FILE        JSON object with the same keys without dashes: {\"listen\": …, \"models\": [\"DIR\"], …}\n"
    "  --log-level LEVEL    error, warn, info, debug (info)\n"
    "  --describe           print the routes as JSON and leave\n"
    "  --version, --help    print and leave\n";

const char *config_help(void) {
    return help;
}

/* ---- one option's value, from wherever it came ---- */

typedef enum rc (*apply_fn)(struct config *c, const char *value, struct err *e);

static enum rc apply_listen(struct config *c, const char *value, struct err *e) {
    const char *colon = strrchr(value, ':');
    char *end, *host;

    if (!colon || colon == value) return err_set(e, RC_INVALID, "\"%s\" is not HOST:PORT", value);
    long port = strtol(colon + 1, &end, 10);
    if (!colon[1] || *end || port < 0 || port > 65535) return err_set(e, RC_INVALID, "\"%s\" is no port", colon + 1);
    host = arena_strdup(&c->arena, value);
    host[colon - value] = '\0';
    if (!strcmp(host, "[::1]")) host = arena_strdup(&c->arena, "::1");
    if (!strcmp(host, "localhost")) host = arena_strdup(&c->arena, "127.0.0.1");
    if (strcmp(host, "127.0.0.1") != 0 && strcmp(host, "::1") != 0)
        return err_set(e, RC_UNSUPPORTED,
                       "hsaqd has no access control yet, so it listens on loopback only (127.0.0.1 or [::1]), not on "
                       "%s; use an SSH tunnel to reach it from elsewhere",
                       host);
    c->host = host;
    c->port = (int)port;
    return RC_OK;
}

static enum rc apply_data(struct config *c, const char *value, struct err *e) {
    (void)e;
    c->data = arena_strdup(&c->arena, value);
    return RC_OK;
}

static enum rc apply_models(struct config *c, const char *value, struct err *e) {
    char resolved[PATH_MAX];
    char **roots;

    if (!realpath(value, resolved)) return err_errno(e, "cannot use %s as a folder of models", value);
    roots = arena_alloc(&c->arena, (c->n_models + 1) * sizeof *roots);
    if (c->n_models) memcpy(roots, c->models, c->n_models * sizeof *roots);
    roots[c->n_models++] = arena_strdup(&c->arena, resolved);
    c->models = roots;
    return RC_OK;
}

static enum rc apply_device(struct config *c, const char *value, struct err *e) {
    if (strcmp(value, "auto") != 0 && strcmp(value, "cpu") != 0)
        return err_set(e, RC_UNSUPPORTED, "there is no device \"%s\"; this hsaqd has auto and cpu", value);
    c->device = arena_strdup(&c->arena, "cpu");
    return RC_OK;
}

static enum rc apply_ram_limit(struct config *c, const char *value, struct err *e) {
    return size_parse(value, &c->ram_limit, e);
}

static enum rc apply_vram_limit(struct config *c, const char *value, struct err *e) {
    return size_parse(value, &c->vram_limit, e);
}

static enum rc apply_worker(struct config *c, const char *value, struct err *e) {
    if (access(value, X_OK) != 0) return err_errno(e, "cannot run %s", value);
    c->worker = arena_strdup(&c->arena, value);
    return RC_OK;
}

static enum rc apply_worker_idle(struct config *c, const char *value, struct err *e) {
    char *end;

    c->worker_idle = strtol(value, &end, 10);
    if (!*value || *end || c->worker_idle < 0 || c->worker_idle > 86400)
        return err_set(e, RC_INVALID, "takes seconds from 0 to 86400, not \"%s\"", value);
    return RC_OK;
}

static enum rc apply_max_body(struct config *c, const char *value, struct err *e) {
    return size_parse(value, &c->max_body, e);
}

static enum rc apply_log_level(struct config *c, const char *value, struct err *e) {
    int level = log_level_from_name(value);

    if (level < 0) return err_set(e, RC_INVALID, "takes error, warn, info or debug, not \"%s\"", value);
    c->log_level = (enum log_level)level;
    return RC_OK;
}

static const struct option {
    const char *name;
    apply_fn apply;
} options[] = {
    {"listen", apply_listen},
    {"data", apply_data},
    {"models", apply_models},
    {"device", apply_device},
    {"ram-limit", apply_ram_limit},
    {"vram-limit", apply_vram_limit},
    {"worker", apply_worker},
    {"worker-idle", apply_worker_idle},
    {"max-body", apply_max_body},
    {"log-level", apply_log_level},
    {NULL, NULL},
};

static const struct option *find_option(const char *name) {
    for (const struct option *o = options; o->name; o++)
        if (!strcmp(o->name, name)) return o;
    return NULL;
}

static enum rc apply(struct config *c, const struct option *o, const char *value, const char *source, struct err *e) {
    if (o->apply(c, value, e) == RC_OK) return RC_OK;
    return err_context(e, "%s%s", source, o->name);
}

/* ---- the file ---- */

static enum rc apply_json(struct config *c, const struct option *o, const json_t *value, const char *source,
                          struct err *e) {
    char number[32];
    const json_t *item;
    size_t i;

    if (json_is_string(value)) return apply(c, o, json_string_value(value), source, e);
    if (json_is_integer(value)) {
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
        return apply(c, o, number, source, e);
    }
    if (!json_is_array(value) || o->apply != apply_models)
        return err_set(e, RC_INVALID, "%s%s: takes a string or a whole number", source, o->name);
    json_array_foreach(value, i, item) TRY(apply_json(c, o, item, source, e));
    return RC_OK;
}

static enum rc apply_members(struct config *c, json_t *file, const char *source, struct err *e) {
    const char *key;
    json_t *value;

    if (!json_is_object(file)) return err_set(e, RC_INVALID, "%sit must hold a JSON object", source);
    json_object_foreach(file, key, value) {
        const struct option *o = find_option(key);
        if (!o) return err_set(e, RC_INVALID, "%sthere is no option \"%s\"", source, key);
        TRY(apply_json(c, o, value, source, e));
    }
    return RC_OK;
}

static enum rc load_file(struct config *c, const char *path, struct err *e) {
    json_t *file;

    if (json_parse_file(path, CONFIG_FILE_MAX, &file, e) != RC_OK) return err_context(e, "--config %s", path);
    char *source = xasprintf("%s: ", path);
    enum rc rc = apply_members(c, file, source, e);
    free(source);
    json_decref(file);
    return rc;
}

/* ---- the command line ---- */

static bool apply_flag(struct config *c, const char *arg) {
    if (!strcmp(arg, "--help")) return c->show_help = true;
    if (!strcmp(arg, "--version")) return c->show_version = true;
    if (!strcmp(arg, "--describe")) return c->show_routes = true;
    return false;
}

/* Splits "--name=value" or "--name value"; `*i` moves past what was taken. */
static enum rc next_argument(int argc, char **argv, int *i, char name[32], const char **value, struct err *e) {
    const char *arg = argv[*i], *equals = strchr(arg, '=');
    size_t len = equals ? (size_t)(equals - arg) : strlen(arg);

    if (strncmp(arg, "--", 2) != 0 || len < 3 || len >= 32)
        return err_set(e, RC_INVALID, "\"%s\" is no option; see hsaqd --help", arg);
    memcpy(name, arg + 2, len - 2);
    name[len - 2] = '\0';
    if (!equals && *i + 1 >= argc) return err_set(e, RC_INVALID, "%s takes a value; see hsaqd --help", arg);
    *value = equals ? equals + 1 : argv[++*i];
    return RC_OK;
}

/* The file is read in one pass over the arguments, the rest applied in another, so that the command line wins. */
static enum rc walk_arguments(struct config *c, int argc, char **argv, bool file, struct err *e) {
    char name[32];
    const char *value = NULL;

    for (int i = 1; i < argc; i++) {
        if (apply_flag(c, argv[i])) continue;
        TRY(next_argument(argc, argv, &i, name, &value, e));
        if (!strcmp(name, "config")) {
            if (file) TRY(load_file(c, value, e));
            continue;
        }
        const struct option *o = find_option(name);
        if (!o) return err_set(e, RC_INVALID, "there is no option --%s; see hsaqd --help", name);
        if (!file) TRY(apply(c, o, value, "--", e));
    }
    return RC_OK;
}

static enum rc find_worker(struct config *c, struct err *e) {
    static const char *const places[] = {"hsaq-worker", "../libexec/hsaq-worker", NULL};
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

    if (c->worker) return RC_OK;
    if (n <= 0) return err_errno(e, "cannot find out where hsaqd lies; give --worker");
    self[n] = '\0';
    *(strrchr(self, '/') + 1) = '\0';
    for (size_t i = 0; places[i]; i++) {
        char *path = xasprintf("%s%s", self, places[i]);
        if (access(path, X_OK) == 0) c->worker = arena_strdup(&c->arena, path);
        free(path);
        if (c->worker) return RC_OK;
    }
    return err_set(e, RC_NOT_FOUND, "there is no hsaq-worker beside hsaqd in %s; give --worker", self);
}

enum rc config_load(struct config *c, int argc, char **argv, struct err *e) {
    *c = (struct config){.port = DEFAULT_PORT, .worker_idle = 60, .max_body = 1 << 20, .log_level = LOG_INFO};
    c->host = arena_strdup(&c->arena, "127.0.0.1");
    c->data = arena_strdup(&c->arena, "hsaqd-data");
    c->device = arena_strdup(&c->arena, "cpu");
    TRY(walk_arguments(c, argc, argv, true, e));
    TRY(walk_arguments(c, argc, argv, false, e));
    if (c->show_help || c->show_version || c->show_routes) return RC_OK;
    return find_worker(c, e);
}

void config_release(struct config *c) {
    arena_release(&c->arena);
}
