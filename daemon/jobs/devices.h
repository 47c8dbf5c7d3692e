/* What this daemon computes on: --device, resolved once, at start, by asking a worker (`hsaq-worker devices`), which is
 * the one that knows of drivers and cards. Constant afterwards. Loop thread. */
#ifndef HSAQ_DAEMON_JOBS_DEVICES_H
#define HSAQ_DAEMON_JOBS_DEVICES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/spec.h"

/* A driver that wakes up eight cards may take ten seconds. */
enum { DEVICES_TIMEOUT_MS = 20000 };

/* What a job that is split over every device asks for, in place of a device's name (base/spec.h). */
#define DEVICES_ALL "all"

struct device {
    const char *name;     /* "cpu", "cuda:0" */
    const char *hardware; /* for people; NULL: not known before its worker says it */
    int64_t memory;       /* bytes; 0: not known */
};

struct devices {
    struct device *items; /* for numeric jobs: every GPU wanted, or the cpu */
    size_t count;
    struct device cpu; /* for arithmetic */
    struct device all; /* where split jobs run */
    char *list;        /* "cuda:0,cuda:1": for a worker of them all */
    char *names;       /* "cuda:0, cuda:1": for messages */
    char *json;        /* ["cuda:0","cuda:1","all"]: what a numeric job that is in line may ask for */
    struct arena arena;
};

struct probes; /* jobs/probe.h */
struct devices_search {
    uv_loop_t *loop; /* run until the worker has answered */
    struct probes *probes;
    const char *worker; /* its path, for messages */
    const char *wanted; /* as config.h says */
    uint64_t timeout_ms;
};
/* A worker that fails or does not answer leaves "auto" with the cpu, and a warning in the log. RC_NOT_FOUND when what
 * was named is not there, saying what is or why it cannot be used. Release it after a failure as well. */
enum rc devices_find(struct devices *d, const struct devices_search *search, struct err *e);
void devices_release(struct devices *d);

bool devices_have(const struct devices *d, const char *name);
/* What a job may ask for: NULL or "auto" for any, or one of those that its kind runs on. RC_INVALID at /device. */
enum rc devices_check(const struct devices *d, enum lane_type lane, const char *wanted, struct err *e);
/* NULL for any. */
const char *devices_pin(const char *wanted);

#endif
