#include "daemon/config.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/sizes.h"
#include "base/strbuf.h"

enum { CONFIG_FILE_MAX = 1 << 20, DEFAULT_PORT = 8080, MAX_BODY_MIN = 1024 };

static const char help[] =
    "usage: hsaqd --data DIR --models DIR [options]\n"
    "\n"
    "  --listen HOST:PORT   where to serve HTTP; a loopback address, port 0 for any free one (127.0.0.1:8080)\n"
    "  --data DIR           database and datasets; made when missing (./hsaqd-data)\n"
    "  --models DIR         where models lie, in folders of their own; may be given several times\n"
    "  --artifacts DIR      where quantized models are written, and found again as models; made when missing\n"
    "                       (DATA/artifacts)\n"
    "  --device DEVICES     what to compute on: auto, cpu, cuda (every GPU), or some, such as cuda:0,cuda:1\n"
    "                       (auto: every GPU, or the cpu where there is none)\n"
    "  --ram-limit SIZE     memory for a worker's hidden states, such as 12GiB (no limit)\n"
    "  --vram-limit SIZE    memory that a worker takes of its GPU (no limit)\n"
    "  --precision P        of GPUs: bf16, or fp32, slower, to check a result with (bf16)\n"
    "  --worker PATH        the hsaq-worker program (beside hsaqd, else ../libexec/hsaq-worker)\n"
    "  --worker-idle SEC    a worker without work leaves after this many seconds (60)\n"
    "  --max-body SIZE      largest JSON body accepted (1MiB)\n"
    "  --config FILE        the same options as a JSON object: {\"models\": [\"DIR\"], \"vram-limit\": \"12GiB\", …}\n"
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

    if (!colon || colon == value)
        return err_set(e, RC_INVALID, "\"%s\" is not HOST:PORT, such as 127.0.0.1:8080", value);
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

static enum rc apply_artifacts(struct config *c, const char *value, struct err *e) {
    (void)e;
    c->artifacts = arena_strdup(&c->arena, value);
    return RC_OK;
}

/* What people give by mistake: a file, or a model in place of the folder around it. */
static enum rc check_models_root(const char *path, struct err *e) {
    int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (root < 0) return err_errno(e, "cannot use %s as a folder of models", path);
    bool is_model = faccessat(root, "config.json", F_OK, 0) == 0;
    close(root);
    if (!is_model) return RC_OK;
    return err_set(e, RC_INVALID, "%s is a model itself, with a config.json: give the folder that it lies in", path);
}

static enum rc apply_models(struct config *c, const char *value, struct err *e) {
    char resolved[PATH_MAX];
    char **roots;

    if (!realpath(value, resolved)) return err_errno(e, "cannot use %s as a folder of models", value);
    TRY(check_models_root(resolved, e));
    roots = arena_alloc(&c->arena, (c->n_models + 1) * sizeof *roots);
    if (c->n_models) memcpy(roots, c->models, c->n_models * sizeof *roots);
    roots[c->n_models++] = arena_strdup(&c->arena, resolved);
    c->models = roots;
    return RC_OK;
}

/* "cuda:0" to "cuda:999", written one way only, so that names can be compared. */
static bool is_card(const char *name, size_t len) {
    size_t digits = len - strlen("cuda:");

    if (len <= strlen("cuda:") || digits > 3 || strncmp(name, "cuda:", strlen("cuda:")) != 0) return false;
    name += strlen("cuda:");
    return strspn(name, "0123456789") >= digits && (digits == 1 || name[0] != '0');
}

static bool is_named_before(const char *list, const char *name, size_t len) {
    for (const char *at = list; at < name; at += strcspn(at, ",") + 1)
        if (strcspn(at, ",") == len && !strncmp(at, name, len)) return true;
    return false;
}

static enum rc check_card_list(const char *list, struct err *e) {
    for (const char *name = list;; name++) {
        size_t len = strcspn(name, ",");
        if (!is_card(name, len))
            return err_set(e, RC_INVALID,
                           "\"%.*s\" is no device: say auto, cpu, cuda, or GPUs separated by commas, such as "
                           "cuda:0,cuda:1",
                           (int)len, name);
        if (is_named_before(list, name, len)) return err_set(e, RC_INVALID, "%.*s is named twice", (int)len, name);
        name += len;
        if (!*name) return RC_OK;
    }
}

/* Whether the GPUs are there is found out by asking a worker, at start. */
static enum rc apply_device(struct config *c, const char *value, struct err *e) {
    static const char *const words[] = {"auto", "cpu", "cuda", NULL};
    bool word = false;

    for (size_t i = 0; words[i]; i++)
        word = word || !strcmp(words[i], value);
    if (!word) TRY(check_card_list(value, e));
    c->device = arena_strdup(&c->arena, value);
    return RC_OK;
}

static enum rc apply_ram_limit(struct config *c, const char *value, struct err *e) {
    return size_parse(value, &c->ram_limit, e);
}

static enum rc apply_precision(struct config *c, const char *value, struct err *e) {
    c->precise = !strcmp(value, "fp32");
    if (c->precise || !strcmp(value, "bf16")) return RC_OK;
    return err_set(e, RC_INVALID, "takes bf16 or fp32, not \"%s\"", value);
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
    TRY(size_parse(value, &c->max_body, e));
    if (c->max_body >= MAX_BODY_MIN) return RC_OK;
    return err_set(e, RC_INVALID, "takes 1KiB or more, not \"%s\": below that no job could be submitted", value);
}

static enum rc apply_log_level(struct config *c, const char *value, struct err *e) {
    int level = log_level_from_name(value);

    if (level < 0) return err_set(e, RC_INVALID, "takes error, warn, info or debug, not \"%s\"", value);
    c->log_level = (enum log_level)level;
    return RC_OK;
}

/* What an array in the file is: refused, one value after another, or one value with commas. */
enum array_use { ARRAY_REFUSED, ARRAY_EACH, ARRAY_JOINED };

static const struct option {
    const char *name;
    apply_fn apply;
    enum array_use array;
} options[] = {
    {"listen", apply_listen, ARRAY_REFUSED},
    {"data", apply_data, ARRAY_REFUSED},
    {"models", apply_models, ARRAY_EACH},
    {"artifacts", apply_artifacts, ARRAY_REFUSED},
    {"device", apply_device, ARRAY_JOINED},
    {"ram-limit", apply_ram_limit, ARRAY_REFUSED},
    {"vram-limit", apply_vram_limit, ARRAY_REFUSED},
    {"precision", apply_precision, ARRAY_REFUSED},
    {"worker", apply_worker, ARRAY_REFUSED},
    {"worker-idle", apply_worker_idle, ARRAY_REFUSED},
    {"max-body", apply_max_body, ARRAY_REFUSED},
    {"log-level", apply_log_level, ARRAY_REFUSED},
    {0},
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

    if (json_is_string(value)) return apply(c, o, json_string_value(value), source, e);
    if (json_is_integer(value)) {
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
        return apply(c, o, number, source, e);
    }
    return err_set(e, RC_INVALID, "%s%s: takes a string or a whole number", source, o->name);
}

/* ["cuda:0", "cuda:1"] as "cuda:0,cuda:1". */
static enum rc apply_joined(struct config *c, const struct option *o, const json_t *array, const char *source,
                            struct err *e) {
    struct strbuf list = STRBUF_INIT;
    const json_t *item;
    size_t i;

    json_array_foreach(array, i, item) {
        const char *text = json_string_value(item);
        strbuf_printf(&list, "%s%s", i ? "," : "", text ? text : json_type_name(item));
    }
    enum rc rc = apply(c, o, list.data ? list.data : "", source, e);
    strbuf_release(&list);
    return rc;
}

static enum rc apply_member(struct config *c, const struct option *o, const json_t *value, const char *source,
                            struct err *e) {
    const json_t *item;
    size_t i;

    if (!json_is_array(value) || o->array == ARRAY_REFUSED) return apply_json(c, o, value, source, e);
    if (o->array == ARRAY_JOINED) return apply_joined(c, o, value, source, e);
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
        TRY(apply_member(c, o, value, source, e));
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

/* Splits "--name=value" or "--name value", of an option there is; `*i` moves past what was taken. */
static enum rc next_argument(int argc, char **argv, int *i, char name[32], const char **value, struct err *e) {
    const char *arg = argv[*i], *equals = strchr(arg, '=');
    size_t len = equals ? (size_t)(equals - arg) : strlen(arg);

    if (strncmp(arg, "--", 2) != 0 || len < 3 || len >= 32)
        return err_set(e, RC_INVALID, "\"%s\" is no option; see hsaqd --help", arg);
    memcpy(name, arg + 2, len - 2);
    name[len - 2] = '\0';
    if (strcmp(name, "config") != 0 && !find_option(name))
        return err_set(e, RC_INVALID, "there is no option --%s; see hsaqd --help", name);
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
        if (!file) TRY(apply(c, find_option(name), value, "--", e));
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
    c->device = arena_strdup(&c->arena, "auto");
    TRY(walk_arguments(c, argc, argv, true, e));
    TRY(walk_arguments(c, argc, argv, false, e));
    if (c->show_help || c->show_version || c->show_routes) return RC_OK;
    return find_worker(c, e);
}

void config_release(struct config *c) {
    arena_release(&c->arena);
}
