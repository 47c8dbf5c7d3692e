#include "daemon/api/routes.h"

#include <stddef.h>

const struct route *const api_routes[] = {
    jobs_routes, events_routes, datasets_routes, models_routes, cache_routes, devices_routes, meta_routes, NULL,
};
