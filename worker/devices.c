#include "worker/devices.h"

#include <stdio.h>

#include "kernels/backend.h"

struct found {
    json_t *devices, *unusable;
};

static void add_unusable(struct found *found, const char *name, const struct err *why) {
    json_array_append_new(found->unusable, json_pack("{ss ss}", "name", name, "reason", why->message));
}

static void add_device(struct found *found, const struct backend *backend, int ordinal, const char *name) {
    struct device_description d;
    struct err e;
    if (backend->describe(ordinal, &d, &e) != RC_OK)
        add_unusable(found, name, &e);
    else
        json_array_append_new(found->devices, json_pack("{ss ss sI}", "name", name, "hardware", d.hardware, "memory",
                                                        (json_int_t)d.memory));
}

static void add_cards(struct found *found) {
    const struct backend *cuda;
    struct err e;
    int count;
    if (backend_cuda_load(DTYPE_BF16, &cuda, &e) != RC_OK || cuda->count(&count, &e) != RC_OK) {
        add_unusable(found, "cuda", &e);
        return;
    }
    for (int i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "cuda:%d", i);
        add_device(found, cuda, i, name);
    }
}

json_t *devices_describe(void) {
    struct found found = {json_array(), json_array()};
    add_device(&found, &backend_cpu, 0, "cpu");
    add_cards(&found);
    return json_pack("{so so}", "devices", found.devices, "unusable", found.unusable);
}
