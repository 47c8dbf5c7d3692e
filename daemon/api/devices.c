/* /v1/devices: the lanes in which jobs run, and the worker of each. */
#include "daemon/api/routes.h"
#include "daemon/app.h"
#include "daemon/http/response.h"
#include "daemon/jobs/scheduler.h"

/* 0 stands for what is not known or not there. */
static json_t *known(int64_t value) {
    return value > 0 ? json_integer(value) : json_null();
}

static json_t *device_json(const struct device_status *d) {
    return json_pack("{s:s, s:s, s:s, s:s, s:s?, s:o, s:o, s:s?, s:I, s:s?}", "name", d->name, "lane", d->lane, "state",
                     d->state, "worker", d->worker, "hardware", d->hardware, "memory", known(d->memory), "pid",
                     known(d->pid), "job", d->job, "workers_lost", (json_int_t)d->workers_lost, "last_error",
                     d->last_error);
}

static enum rc list_devices(struct request *r, struct err *e) {
    const struct scheduler *s = request_app(r)->scheduler;
    json_t *items = json_array();
    (void)e;
    for (size_t i = 0; i < scheduler_devices(s); i++) {
        struct device_status status;
        scheduler_device(s, i, &status);
        json_array_append_new(items, device_json(&status));
    }
    respond_json(r, 200, json_pack("{s:o, s:n}", "items", items, "next"));
    return RC_OK;
}

const struct route devices_routes[] = {
    {.method = "GET", .pattern = "/v1/devices", .id = "listDevices", .handler = list_devices},
    {0},
};
