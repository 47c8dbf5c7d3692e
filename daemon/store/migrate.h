/* Brings a database to the schema of this binary: migrations/NNNN_name.sql, embedded, in order, one transaction each.
 * PRAGMA user_version holds the number of the last one applied. */
#ifndef HSAQ_DAEMON_STORE_MIGRATE_H
#define HSAQ_DAEMON_STORE_MIGRATE_H

#include "base/err.h"
#include "daemon/embedded.h"
#include "daemon/store/db.h"

/* `files` is embedded_files, or a test's own. A database that has content is first copied to "<path>.before-NNNN".
 * RC_CONFLICT for a database newer than the last migration. At start, before any thread. */
enum rc migrate(struct db *db, const char *path, const struct embedded_file *files, struct err *e);

#endif
