/* Table `dataset`, and the files DATA/datasets/<sha256>. A job pins the sha256 when it is submitted, so putting other
 * text under the same name does not change what a waiting job will read. */
#ifndef HSAQ_DAEMON_STORE_DATASETS_H
#define HSAQ_DAEMON_STORE_DATASETS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/store/store.h"

enum { SHA256_HEX_SIZE = 65, DATASET_NAME_MAX = 128 };

struct dataset {
    char name[DATASET_NAME_MAX + 1]; /* dataset_name_valid */
    char sha256[SHA256_HEX_SIZE];
    int64_t bytes, created_at; /* ms */
};

/* 1 to DATASET_NAME_MAX of [A-Za-z0-9._-], not starting with a dot. */
bool dataset_name_valid(const char *name);

/* RC_NOT_FOUND names it. */
enum rc dataset_get(struct db *db, const char *name, struct dataset *out, struct err *e);
/* Up to `limit` whose name sorts after `after` (NULL: from the start), by name. */
enum rc dataset_list(struct db *db, const char *after, int limit, void (*visit)(void *ctx, const struct dataset *d),
                     void *ctx, struct err *e);

/* `upload` is a complete file in store_datasets(); it is synced, renamed to its sha256 and registered, or removed when
 * that fails. `done` on the loop thread. */
typedef void (*dataset_done)(void *ctx, const struct dataset *d, bool created, const struct err *e);
void dataset_put(struct store *s, const struct dataset *d, const char *upload, dataset_done done, void *ctx);

/* DATA/datasets/<sha256>; the caller frees. */
char *dataset_path(const char *folder, const char *sha256);

/* At start: removes uploads that were cut short and files that no dataset and no unfinished job names. */
enum rc datasets_sweep(struct db *db, const char *folder, struct err *e);

/* RC_CONFLICT while a job that has not ended needs it. */
void dataset_delete(struct store *s, const char *name, void (*done)(void *ctx, const struct err *e), void *ctx);

#endif
