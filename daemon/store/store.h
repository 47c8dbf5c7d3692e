/* The data folder: DATA/hsaqd.db (SQLite, WAL), DATA/datasets/<sha256>, DATA/lock.
 *
 * Loop thread. Reads go to store_reader's connection at once; writes are operations (writer.h) that answer later. The
 * files beside this one hold one table each: functions that take a struct db read on either connection or, where they
 * say so, write on the writer's. */
#ifndef HSAQ_DAEMON_STORE_STORE_H
#define HSAQ_DAEMON_STORE_STORE_H

#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "daemon/store/db.h"
#include "daemon/store/writer.h"

struct store;

/* Takes the lock (a second daemon is refused), applies the migrations that are missing (after a backup copy), refuses a
 * database newer than this binary. `publish` gets every committed event. */
enum rc store_open(const char *folder, uv_loop_t *loop, publish_fn publish, void *ctx, struct store **out,
                   struct err *e);
void store_close(struct store *s); /* see writer_stop */

struct db *store_reader(struct store *s);
void store_submit(struct store *s, struct write_op *op);

const char *store_folder(const struct store *s);   /* absolute */
const char *store_datasets(const struct store *s); /* DATA/datasets: uploads go to a ".upload-*" file in there */
int64_t store_bytes(const struct store *s);        /* of the database and its WAL */

#endif
