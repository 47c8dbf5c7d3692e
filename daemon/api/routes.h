/* The tables of routes, one per file of this folder; routes.c puts them together (http/router.h). */
#ifndef HSAQ_DAEMON_API_ROUTES_H
#define HSAQ_DAEMON_API_ROUTES_H

#include "daemon/http/router.h"

extern const struct route jobs_routes[];
extern const struct route events_routes[];
extern const struct route datasets_routes[];
extern const struct route models_routes[];
extern const struct route cache_routes[];
extern const struct route devices_routes[];
extern const struct route meta_routes[];

#endif
