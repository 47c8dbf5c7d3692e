/* Tables `drift` (the sensitivity cache: key → the data of a row) and `fingerprint` (path, size, mtime, inode → hashes
 * of a tensor file). Both are content-addressed by keys that the worker makes; the first entry under a key stays. */
#ifndef HSAQ_DAEMON_STORE_DRIFT_H
#define HSAQ_DAEMON_STORE_DRIFT_H

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"
#include "base/protocol.h"
#include "daemon/store/store.h"

struct cache_entry {
    enum cache_name cache;
    const char *key, *model;
    const json_t *data; /* of a drift entry: {"name", "candidate", …} */
};
/* Writer thread. */
enum rc cache_put(struct db *db, const struct cache_entry *entry, struct err *e);

/* `*entries` gets a new reference: {key: data} of those keys of the JSON array that are there. */
enum rc cache_lookup(struct db *db, enum cache_name cache, const json_t *keys, json_t **entries, struct err *e);

/* What the drift cache holds, by model; sorted by model name. */
struct cache_usage {
    const char *model;
    int64_t entries, linears, candidates, bytes;
    int64_t oldest, newest; /* ms */
};
enum rc cache_usage(struct db *db, void (*visit)(void *ctx, const struct cache_usage *u), void *ctx, struct err *e);

/* Removes the drift entries and fingerprints of a model, or all (NULL). */
void cache_delete(struct store *s, const char *model, void (*done)(void *ctx, int64_t removed, const struct err *e),
                  void *ctx);

#endif
