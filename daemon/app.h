/* The running daemon: what main.c puts together and handlers are given.
 *
 * Threads: the loop thread runs everything here (HTTP, scheduler, worker links, reads of the database); the store's
 * writer thread runs write operations only. So nothing in this struct is locked. */
#ifndef HSAQ_DAEMON_APP_H
#define HSAQ_DAEMON_APP_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/config.h"
#include "daemon/jobs/devices.h"
#include "daemon/models.h"

struct store;     /* store/store.h */
struct hub;       /* jobs/hub.h */
struct scheduler; /* jobs/scheduler.h */
struct server;    /* http/server.h */
struct probes;    /* jobs/probe.h */

struct app {
    struct config config;
    uv_loop_t loop;
    struct devices devices;
    struct models models;  /* the roots given, then the artifacts */
    const char *artifacts; /* absolute path of the folder of quantized models */
    struct store *store;
    struct hub *hub;
    struct scheduler *scheduler;
    struct server *server;
    struct probes *probes;
    int64_t started_ms;
    bool draining; /* SIGTERM came: /readyz says no, POSTs that make work answer 503 */
};

#endif
