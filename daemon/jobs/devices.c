#include "daemon/jobs/devices.h"

#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "daemon/jobs/probe.h"

/* ---- the question ---- */

/* What a worker has answered: {"devices": [{"name", "hardware", "memory"}], "unusable": [{"name", "reason"}]}. */
struct survey {
    json_t *answer; /* NULL: none */
    struct err err; /* then */
    bool ended, late;
};

static void on_answer(void *ctx, const json_t *answer, const struct err *e) {
    struct survey *s = ctx;

    s->ended = true;
    s->answer = json_incref((json_t *)answer);
    s->err = *e;
}

static void on_late(uv_timer_t *timer) {
    ((struct survey *)timer->data)->late = true;
}

static void on_closed(uv_handle_t *handle) {
    handle->data = NULL;
}

static void wait_for_answer(uv_loop_t *loop, uint64_t timeout_ms, struct survey *s) {
    uv_timer_t timer;

    uv_timer_init(loop, &timer);
    timer.data = s;
    uv_timer_start(&timer, on_late, timeout_ms, 0);
    while (!s->ended && !s->late)
        uv_run(loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&timer, on_closed);
    while (timer.data)
        uv_run(loop, UV_RUN_NOWAIT);
}

static void ask(const struct devices_search *search, struct survey *s) {
    struct probe *probe;

    if (probe_start(search->probes, "devices", json_object(), on_answer, s, &probe, &s->err) != RC_OK) return;
    wait_for_answer(search->loop, search->timeout_ms, s);
    if (s->ended) return;
    probe_cancel(probe);
    err_set(&s->err, RC_UNAVAILABLE, "hsaq-worker devices did not answer in %llu s",
            (unsigned long long)(search->timeout_ms + 999) / 1000);
}

/* ---- the answer ---- */

static enum rc read_device(struct arena *arena, const json_t *json, struct device *out, struct err *e) {
    const char *name = NULL, *hardware = NULL;

    *out = (struct device){0};
    TRY(json_get_string(json, "name", &name, e));
    TRY(json_get_string(json, "hardware", &hardware, e));
    TRY(json_get_int(json, "memory", 0, INT64_MAX, &out->memory, e));
    if (!name) return err_set(e, RC_INTERNAL, "it lists a device without a name");
    out->name = arena_strdup(arena, name);
    out->hardware = hardware ? arena_strdup(arena, hardware) : NULL;
    return RC_OK;
}

static void add(struct devices *d, const struct device *device) {
    struct device *items = arena_alloc(&d->arena, (d->count + 1) * sizeof *items);

    if (d->count) memcpy(items, d->items, d->count * sizeof *items);
    items[d->count++] = *device;
    d->items = items;
}

/* Every card, and the cpu apart. */
static enum rc read_devices(struct devices *d, const json_t *answer, struct err *e) {
    struct device device;
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(answer, "devices"), i, item) {
        TRY(read_device(&d->arena, item, &device, e));
        if (!strcmp(device.name, "cpu"))
            d->cpu = device;
        else
            add(d, &device);
    }
    return RC_OK;
}

/* Why this card, or CUDA as a whole, cannot be used; NULL: nothing is known against it. */
static const char *reason_against(const json_t *answer, const char *name) {
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(answer, "unusable"), i, item) {
        const char *unusable = json_string_value(json_object_get(item, "name"));
        if (unusable && (!strcmp(unusable, name) || !strcmp(unusable, "cuda")))
            return json_string_value(json_object_get(item, "reason"));
    }
    return NULL;
}

static void log_unusable(const json_t *answer) {
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(answer, "unusable"), i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        const char *reason = json_string_value(json_object_get(item, "reason"));
        if (!name || !reason) continue;
        if (!strcmp(name, "cuda")) /* an ordinary machine without a GPU */
            log_info("no GPU is used: %s", reason);
        else
            log_warn("device %s is not used: %s", name, reason);
    }
}

/* ---- the choice ---- */

static void describe(struct devices *d) {
    struct strbuf names = STRBUF_INIT, list = STRBUF_INIT, json = STRBUF_INIT;

    for (size_t i = 0; i < d->count; i++) {
        strbuf_printf(&names, "%s%s", i ? ", " : "", d->items[i].name);
        strbuf_printf(&list, "%s%s", i ? "," : "", d->items[i].name);
        strbuf_printf(&json, "%s\"%s\"", i ? "," : "[", d->items[i].name);
    }
    strbuf_puts(&json, d->count ? ",\"" DEVICES_ALL "\"]" : "[]");
    d->names = arena_strdup(&d->arena, names.data ? names.data : "");
    d->list = arena_strdup(&d->arena, list.data ? list.data : "");
    d->json = arena_strdup(&d->arena, json.data);
    strbuf_release(&names);
    strbuf_release(&list);
    strbuf_release(&json);
}

static const struct device *find(const struct devices *d, const char *name, size_t len) {
    for (size_t i = 0; i < d->count; i++)
        if (strlen(d->items[i].name) == len && !strncmp(d->items[i].name, name, len)) return &d->items[i];
    return NULL;
}

static enum rc not_there(const struct devices *there, const json_t *answer, const char *name, struct err *e) {
    const char *reason = reason_against(answer, name);

    if (reason) return err_set(e, RC_NOT_FOUND, "%s cannot be used: %s", name, reason);
    return err_set(e, RC_NOT_FOUND, "there is no device %s; there is cpu%s%s", name, there->count ? ", " : "",
                   there->names);
}

/* Keeps those named, in the order named. */
static enum rc keep_named(struct devices *d, const json_t *answer, const char *list, struct err *e) {
    struct devices there = *d;

    d->count = 0;
    d->items = NULL;
    for (const char *name = list;; name++) {
        size_t len = strcspn(name, ",");
        const struct device *device = find(&there, name, len);
        char *text = arena_strdup(&d->arena, name);
        text[len] = '\0';
        if (!device) return not_there(&there, answer, text, e);
        add(d, device);
        name += len;
        if (!*name) return RC_OK;
    }
}

static enum rc choose(struct devices *d, const json_t *answer, const char *wanted, struct err *e) {
    bool any = !strcmp(wanted, "auto"), every_card = d->count && !strcmp(wanted, "cuda");

    describe(d);
    if (!any && !every_card) return keep_named(d, answer, wanted, e);
    log_unusable(answer);
    return RC_OK;
}

static enum rc use_survey(struct devices *d, const struct devices_search *search, struct err *e) {
    struct survey survey = {0};
    enum rc rc;

    ask(search, &survey);
    if (survey.answer && read_devices(d, survey.answer, &survey.err) == RC_OK)
        rc = choose(d, survey.answer, search->wanted, e);
    else
        rc = err_set(e, survey.err.rc, "%s; run \"%s devices\" to see why", survey.err.message, search->worker);
    json_decref(survey.answer);
    return rc;
}

enum rc devices_find(struct devices *d, const struct devices_search *search, struct err *e) {
    bool cpu = !strcmp(search->wanted, "cpu"), any = !strcmp(search->wanted, "auto");
    struct err found;

    *d = (struct devices){.cpu = {.name = "cpu"}, .all = {.name = DEVICES_ALL}};
    if (!cpu && use_survey(d, search, &found) != RC_OK) {
        if (!any) return err_set(e, found.rc, "--device %s: %s", search->wanted, found.message);
        log_warn("no GPU is used, as it cannot be found out which there are: %s", found.message);
        d->count = 0;
    }
    if (!d->count) add(d, &d->cpu);
    describe(d);
    log_info("computing devices=\"%s\"", d->names);
    return RC_OK;
}

void devices_release(struct devices *d) {
    arena_release(&d->arena);
}

/* ---- what jobs ask for ---- */

bool devices_have(const struct devices *d, const char *name) {
    return find(d, name, strlen(name)) != NULL;
}

const char *devices_pin(const char *wanted) {
    return wanted && strcmp(wanted, "auto") != 0 ? wanted : NULL;
}

enum rc devices_check(const struct devices *d, enum lane_type lane, const char *wanted, struct err *e) {
    const char *pin = devices_pin(wanted);

    if (!pin) return RC_OK;
    if (lane == LANE_CPU && strcmp(pin, "cpu") != 0)
        return err_at(e, "/device", RC_INVALID, "a job of this kind runs on the cpu, not on \"%.64s\"", pin);
    if (lane == LANE_CPU || devices_have(d, pin)) return RC_OK;
    return err_at(e, "/device", RC_INVALID, "there is no device \"%.64s\" here; there is %s, or auto for any", pin,
                  d->names);
}
