/* One hsaq-worker process and the link to it: spawned with a socketpair on its descriptor 3, NDJSON both ways
 * (base/protocol.h). Frames, checks the hello, watches the heartbeat, kills, and says how it ended; knows no jobs.
 *
 *     worker_spawn ──hello──► on_hello ──messages──► on_message … ──process gone──► on_end, then it frees itself
 *
 * A worker that breaks the protocol, says nothing for WORKER_SILENCE_MS (WORKER_HELLO_MS before its hello) or does not
 * leave when asked is killed; on_end is always the last call. Loop thread only. */
#ifndef HSAQ_DAEMON_JOBS_WORKER_H
#define HSAQ_DAEMON_JOBS_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/protocol.h"

enum { WORKER_SILENCE_MS = 10000, WORKER_HELLO_MS = 30000, WORKER_LEAVE_MS = 2000 };

struct worker;

struct worker_end {
    int64_t exit_status;
    int signal;              /* 0: it exited by itself */
    const char *cause;       /* for people: "killed by signal 9 (Killed)", "no heartbeat for 10 s" */
    const char *stderr_tail; /* the last lines it wrote there, as UTF-8, "" when none */
};

struct worker_events {
    void (*on_hello)(void *ctx, const struct msg_hello *hello);
    void (*on_message)(void *ctx, const struct message *m); /* borrowed; not hello, not heartbeat */
    void (*on_end)(void *ctx, const struct worker_end *end);
};

struct worker_options {
    const char *path;    /* of the program */
    const char *device;  /* "cpu", "cuda:0"; of several "cuda:0,cuda:1" */
    int64_t ram_limit;   /* bytes; 0: none */
    int64_t vram_limit;  /* the same; for a GPU */
    bool precise;        /* a GPU in fp32 */
    const char *scratch; /* folder for its spill files */
    const struct worker_events *events;
    void *ctx;
};

enum rc worker_spawn(uv_loop_t *loop, const struct worker_options *options, struct worker **out, struct err *e);
void worker_send(struct worker *w, const struct message *m);
/* `cause` is what on_end will say; a literal. */
void worker_kill(struct worker *w, const char *cause);
/* Asks it to leave, and kills it when it has not after WORKER_LEAVE_MS. */
void worker_shutdown(struct worker *w);
int64_t worker_pid(const struct worker *w);

#endif
