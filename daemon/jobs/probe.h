/* Questions that only the worker's code can answer (a model's Linears, the tokens of a text, the machine's GPUs): each
 * is asked of a short-lived subprocess, `hsaq-worker inspect`, `tokenize` or `devices`, with one JSON object on stdin
 * and one on stdout. A hostile model folder or a broken driver can at worst end that process; a slow or talkative one
 * is killed. Loop thread only. */
#ifndef HSAQ_DAEMON_JOBS_PROBE_H
#define HSAQ_DAEMON_JOBS_PROBE_H

#include <jansson.h>
#include <uv.h>

#include "base/err.h"

enum { PROBES_MAX = 4, PROBE_TIMEOUT_MS = 30000, PROBE_OUTPUT_MAX = 64 * 1024 * 1024 };

struct probes;
struct probe;

struct probes *probes_new(uv_loop_t *loop, const char *worker); /* path of hsaq-worker, kept by reference */
/* Kills what runs (without an answer); the loop must still run until the processes are reaped. */
void probes_free(struct probes *p);

/* `answer` is the reply's "ok" member (borrowed), or NULL with e. */
typedef void (*probe_done)(void *ctx, const json_t *answer, const struct err *e);

/* Takes the reference of `question`; `command` is a literal. RC_UNAVAILABLE when PROBES_MAX run already. */
enum rc probe_start(struct probes *p, const char *command, json_t *question, probe_done done, void *ctx,
                    struct probe **out, struct err *e);
void probe_cancel(struct probe *probe); /* `done` will not be called */

/* Answers worth keeping, by a key that changes with the model's files; the oldest makes room. NULL: not there. */
const char *probes_recall(const struct probes *p, const char *key);
void probes_keep(struct probes *p, const char *key, const char *answer);

#endif
