#include "daemon/store/db.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>

#include "base/mem.h"

enum { BUSY_TIMEOUT_MS = 10000 };

/* I/O errors come with an errno that says which; a full disk is one of them outside of writes to tables. */
static enum rc io_err(struct db *db, struct err *e, const char *what) {
    int code = sqlite3_system_errno(db->handle);

    if (!code) return err_set(e, RC_IO, "%s: %s", what, sqlite3_errmsg(db->handle));
    errno = code;
    err_errno(e, "%s: %s", what, sqlite3_errmsg(db->handle));
    if (e->rc != RC_NO_SPACE) e->rc = RC_IO;
    return e->rc;
}

enum rc db_err(struct db *db, struct err *e, const char *what) {
    switch (sqlite3_errcode(db->handle)) {
    case SQLITE_FULL: return err_set(e, RC_NO_SPACE, "%s: %s", what, sqlite3_errmsg(db->handle));
    case SQLITE_CONSTRAINT: return err_set(e, RC_CONFLICT, "%s: %s", what, sqlite3_errmsg(db->handle));
    case SQLITE_NOMEM: return err_set(e, RC_NO_MEMORY, "%s: %s", what, sqlite3_errmsg(db->handle));
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN: return io_err(db, e, what);
    default: return err_set(e, RC_IO, "%s: %s", what, sqlite3_errmsg(db->handle));
    }
}

enum rc db_script(struct db *db, const char *sql, struct err *e) {
    if (sqlite3_exec(db->handle, sql, NULL, NULL, NULL) != SQLITE_OK) return db_err(db, e, "database");
    return RC_OK;
}

/* A large cache of statements is not needed: there are some fifty in all. */
static enum rc prepare(struct db *db, const char *sql, sqlite3_stmt **stmt, struct err *e) {
    for (size_t i = 0; i < db->count; i++)
        if (db->statements[i].sql == sql) {
            *stmt = db->statements[i].stmt;
            return RC_OK;
        }
    if (sqlite3_prepare_v3(db->handle, sql, -1, SQLITE_PREPARE_PERSISTENT, stmt, NULL) != SQLITE_OK)
        return db_err(db, e, "database");
    GROW(db->statements, db->count, db->capacity);
    db->statements[db->count++] = (struct db_statement){.sql = sql, .stmt = *stmt};
    return RC_OK;
}

static int bind_one(sqlite3_stmt *stmt, int position, char type, va_list *args) {
    switch (type) {
    case 't': return sqlite3_bind_text(stmt, position, va_arg(*args, const char *), -1, SQLITE_STATIC);
    case 'i': return sqlite3_bind_int64(stmt, position, va_arg(*args, int64_t));
    case 'd': return sqlite3_bind_double(stmt, position, va_arg(*args, double));
    default: return SQLITE_MISUSE;
    }
}

static enum rc query(struct db *db, sqlite3_stmt **stmt, struct err *e, const char *sql, const char *types,
                     va_list *args) {
    TRY(prepare(db, sql, stmt, e));
    for (int i = 0; types[i]; i++)
        if (bind_one(*stmt, i + 1, types[i], args) != SQLITE_OK) return db_err(db, e, "database");
    return RC_OK;
}

enum rc db_query(struct db *db, sqlite3_stmt **stmt, struct err *e, const char *sql, const char *types, ...) {
    va_list args;

    va_start(args, types);
    enum rc rc = query(db, stmt, e, sql, types, &args);
    va_end(args);
    return rc;
}

enum rc db_step(struct db *db, sqlite3_stmt *stmt, bool *row, struct err *e) {
    int code = sqlite3_step(stmt);

    *row = code == SQLITE_ROW;
    if (*row) return RC_OK;
    enum rc rc = code == SQLITE_DONE ? RC_OK : db_err(db, e, "database");
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    return rc;
}

enum rc db_run(struct db *db, struct err *e, const char *sql, const char *types, ...) {
    sqlite3_stmt *stmt;
    va_list args;
    bool row;

    va_start(args, types);
    enum rc rc = query(db, &stmt, e, sql, types, &args);
    va_end(args);
    if (rc != RC_OK) return rc;
    return db_step(db, stmt, &row, e);
}

enum rc db_query_int(struct db *db, int64_t *value, struct err *e, const char *sql, const char *types, ...) {
    sqlite3_stmt *stmt;
    va_list args;
    bool row;

    va_start(args, types);
    enum rc rc = query(db, &stmt, e, sql, types, &args);
    va_end(args);
    if (rc != RC_OK) return rc;
    TRY(db_step(db, stmt, &row, e));
    if (!row) return err_set(e, RC_NOT_FOUND, "no such row");
    *value = sqlite3_column_int64(stmt, 0);
    sqlite3_reset(stmt);
    return RC_OK;
}

static enum rc configure(struct db *db, enum db_mode mode, struct err *e) {
    sqlite3_busy_timeout(db->handle, BUSY_TIMEOUT_MS);
    sqlite3_extended_result_codes(db->handle, 0);
    if (mode == DB_READER) return db_script(db, "PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0;", e);
    return db_script(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;", e);
}

enum rc db_open(struct db *db, const char *path, enum db_mode mode, struct err *e) {
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (mode == DB_WRITER ? SQLITE_OPEN_CREATE : 0);

    *db = (struct db){0};
    if (sqlite3_open_v2(path, &db->handle, flags, NULL) != SQLITE_OK || configure(db, mode, e) != RC_OK) {
        enum rc rc = db_err(db, e, path);
        err_context(e, "cannot open the database");
        db_close(db);
        return rc;
    }
    return RC_OK;
}

void db_close(struct db *db) {
    for (size_t i = 0; i < db->count; i++)
        sqlite3_finalize(db->statements[i].stmt);
    free(db->statements);
    sqlite3_close(db->handle);
    *db = (struct db){0};
}
