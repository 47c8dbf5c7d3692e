/* One SQLite connection with its prepared statements, and the few verbs that the table files are written in.
 *
 * A struct db belongs to one thread: the writer thread has one that may write, the loop thread one that may not. Only
 * the writer ever checkpoints the WAL (SQLite 3.40.1 can lose a reset when two connections commit and checkpoint). */
#ifndef HSAQ_DAEMON_STORE_DB_H
#define HSAQ_DAEMON_STORE_DB_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct db {
    sqlite3 *handle;
    struct db_statement {
        const char *sql;
        sqlite3_stmt *stmt;
    } * statements;
    size_t count, capacity;
};

enum db_mode { DB_WRITER, DB_READER };

enum rc db_open(struct db *db, const char *path, enum db_mode mode, struct err *e);
void db_close(struct db *db);

/* Binds `types`, one letter a parameter: t const char * (NULL: null), i int64_t, d double. `sql` must be a string
 * literal: its address is the key of the statement cache. db_run executes a statement that yields no rows. db_query
 * leaves it ready for db_step, which resets it after the last row; a caller that stops earlier calls sqlite3_reset at
 * once: an open statement holds the connection's snapshot, and later reads would not see later commits. Bound text must
 * live until then. */
enum rc db_run(struct db *db, struct err *e, const char *sql, const char *types, ...);
enum rc db_query(struct db *db, sqlite3_stmt **stmt, struct err *e, const char *sql, const char *types, ...);
enum rc db_step(struct db *db, sqlite3_stmt *stmt, bool *row, struct err *e);

/* The first column of the first row; RC_NOT_FOUND (without a message worth showing) when there is no row. */
enum rc db_query_int(struct db *db, int64_t *value, struct err *e, const char *sql, const char *types, ...);

/* SQLite's last error as ours: SQLITE_FULL → RC_NO_SPACE, SQLITE_CONSTRAINT → RC_CONFLICT, else RC_IO. */
enum rc db_err(struct db *db, struct err *e, const char *what);

/* Statements without parameters that need no cache: PRAGMAs, BEGIN, a migration's text. */
enum rc db_script(struct db *db, const char *sql, struct err *e);

#endif
