/* The link between hsaqd and a worker: one JSON object a line (NDJSON) over a byte stream, both ways.
 *
 * One struct per message; this file's .c is the only place that encodes or decodes them. The worker says `hello` first;
 * a daemon that does not speak the same `version` ends it. Lines are at most PROTOCOL_LINE_MAX bytes; a longer one, or
 * one that does not decode, is an error of the sender, and the receiver drops the link.
 *
 * daemon → worker   start, cancel, cached, shutdown
 * worker → daemon   hello, heartbeat, progress, row, lookup, store, result, error, log
 *
 * A row whose phase begins with '_' is the worker's own memory of the job: kept and handed back on resume, not shown.
 * A job ends with exactly one result or error. Order on the link is order of effect: rows before a result are stored
 * before it. `lookup` asks the daemon's content-addressed cache for keys and is answered by one `cached`; `store` puts
 * an entry. A row may carry a cache entry of its own (cache_key), stored in the same transaction as the row. */
#ifndef HSAQ_BASE_PROTOCOL_H
#define HSAQ_BASE_PROTOCOL_H

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"

enum { PROTOCOL_VERSION = 1, PROTOCOL_LINE_MAX = 256 * 1024 * 1024 };

enum message_type {
    MSG_START,
    MSG_CANCEL,
    MSG_CACHED,
    MSG_SHUTDOWN,
    MSG_HELLO,
    MSG_HEARTBEAT,
    MSG_PROGRESS,
    MSG_ROW,
    MSG_LOOKUP,
    MSG_STORE,
    MSG_RESULT,
    MSG_ERROR,
    MSG_LOG,
};
extern const char *const message_names[]; /* indexed by enum message_type; NULL-terminated */

/* Which cache an entry belongs to: drift rows, or tensor fingerprints (path, size, mtime, inode → hashes). */
enum cache_name { CACHE_DRIFT, CACHE_FINGERPRINT };

struct msg_start {
    const char *job;
    int64_t attempt;
    json_t *spec;        /* as the client wrote it */
    json_t *model;       /* {"name", "path"} or NULL */
    json_t *dataset;     /* {"name", "sha256", "path"} or NULL */
    json_t *calibration; /* the same of a second dataset, which the job calibrates on */
    json_t *artifact;    /* {"name", "path"}: the folder that the job makes, or a quantized model that it reads */
    json_t *inputs;      /* {"profile": {"job", "result", "rows"}, …}: the jobs that the spec names */
    json_t *rows;        /* [{"phase", "index", "data"}]: rows of earlier attempts */
};
struct msg_cancel {
    const char *job;
};
struct msg_cached { /* answers the lookup; keys that are not there are absent */
    json_t *entries;
};
struct msg_hello {
    int64_t version, pid;
    const char *build;      /* the worker's version */
    const char *device;     /* "cpu", "cuda:0" */
    const char *arithmetic; /* "cpu/fp32": rows made in another are not gone on from */
    const char *hardware;   /* for people: "AMD EPYC, 2 cores" */
    int64_t memory;         /* bytes */
};
struct msg_progress {
    const char *job, *phase, *unit;
    int64_t done, total;
    double rate;        /* units per second; 0: unknown */
    double eta_seconds; /* < 0: unknown */
};
struct msg_row {
    const char *job, *phase;
    int64_t index;
    json_t *data;
    const char *cache_key; /* NULL: not cached */
};
struct msg_lookup {
    enum cache_name cache;
    json_t *keys;
};
struct msg_store {
    enum cache_name cache;
    const char *key, *model;
    json_t *data;
};
struct msg_result {
    const char *job;
    json_t *result;
};
struct msg_error {
    const char *job;
    struct err err;
};
struct msg_log {
    const char *level, *text;
};

struct message {
    enum message_type type;
    union {
        struct msg_start start;
        struct msg_cancel cancel;
        struct msg_cached cached;
        struct msg_hello hello;
        struct msg_progress progress;
        struct msg_row row;
        struct msg_lookup lookup;
        struct msg_store store;
        struct msg_result result;
        struct msg_error error;
        struct msg_log log;
    };
    json_t *root; /* of a decoded message: owns every borrowed pointer above; NULL on one built by hand */
};

/* Decodes one line (no newline). RC_MALFORMED when it is not JSON, RC_TOO_LARGE when it is longer than
 * PROTOCOL_LINE_MAX, RC_INVALID when it is not a message of this protocol; members it does not know are ignored, for a
 * newer peer. Release with message_release, which a failed decode does not need. */
enum rc message_decode(const char *line, size_t len, struct message *m, struct err *e);
void message_release(struct message *m);
/* One line with its newline; the caller frees. NULL members and numbers that are not finite are left out; text that is
 * not UTF-8 is repaired. */
char *message_encode(const struct message *m);

#endif
