#include "daemon/store/migrate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

static const char prefix[] = "migrations/";

/* The NNNN of "migrations/NNNN_name.sql"; 0 for other files. */
static int64_t number_of(const struct embedded_file *file) {
    if (strncmp(file->path, prefix, sizeof prefix - 1) != 0) return 0;
    return strtol(file->path + sizeof prefix - 1, NULL, 10);
}

static int64_t newest(const struct embedded_file *files) {
    int64_t number = 0;

    for (; files->path; files++)
        if (number_of(files) > number) number = number_of(files);
    return number;
}

static enum rc apply(struct db *db, const struct embedded_file *file, struct err *e) {
    char set_version[64];
    struct err ignored;

    snprintf(set_version, sizeof set_version, "PRAGMA user_version = %d", (int)number_of(file));
    if (db_script(db, "BEGIN IMMEDIATE", e) == RC_OK && db_script(db, file->text, e) == RC_OK &&
        db_script(db, set_version, e) == RC_OK && db_script(db, "COMMIT", e) == RC_OK)
        return RC_OK;
    if (!sqlite3_get_autocommit(db->handle)) db_script(db, "ROLLBACK", &ignored);
    return err_context(e, "%s", file->path);
}

/* VACUUM INTO refuses a file that exists, so a copy that was cut short is removed first. */
static enum rc backup(struct db *db, const char *path, int64_t version, struct err *e) {
    char *copy = xasprintf("%s.before-%04d", path, (int)version);
    enum rc rc;

    if (unlink(copy) != 0 && errno != ENOENT)
        rc = err_errno(e, "cannot replace %s", copy);
    else
        rc = db_run(db, e, "VACUUM INTO ?", "t", copy);
    if (rc != RC_OK) err_context(e, "cannot keep a copy of the database before changing its schema");
    free(copy);
    return rc;
}

enum rc migrate(struct db *db, const char *path, const struct embedded_file *files, struct err *e) {
    int64_t version, last = newest(files);

    TRY(db_query_int(db, &version, e, "PRAGMA user_version", ""));
    if (version > last)
        return err_set(e, RC_CONFLICT,
                       "%s has schema %d, but this hsaqd knows schemas up to %d: run the newer hsaqd that wrote it",
                       path, (int)version, (int)last);
    if (version > 0 && version < last) TRY(backup(db, path, version + 1, e));
    for (; files->path; files++)
        if (number_of(files) > version) TRY(apply(db, files, e));
    return RC_OK;
}
