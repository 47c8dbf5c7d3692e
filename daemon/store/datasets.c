#include "daemon/store/datasets.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "daemon/store/ids.h"

#define NAME_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

bool dataset_name_valid(const char *name) {
    size_t len = strlen(name);

    return len > 0 && len <= DATASET_NAME_MAX && name[0] != '.' && strspn(name, NAME_CHARS) == len;
}

char *dataset_path(const char *folder, const char *sha256) {
    return xasprintf("%s/%s", folder, sha256);
}

static void read_dataset(sqlite3_stmt *stmt, struct dataset *d) {
    snprintf(d->name, sizeof d->name, "%s", (const char *)sqlite3_column_text(stmt, 0));
    snprintf(d->sha256, sizeof d->sha256, "%s", (const char *)sqlite3_column_text(stmt, 1));
    d->bytes = sqlite3_column_int64(stmt, 2);
    d->created_at = sqlite3_column_int64(stmt, 3);
}

enum rc dataset_get(struct db *db, const char *name, struct dataset *out, struct err *e) {
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e, "SELECT name, sha256, bytes, created_at FROM dataset WHERE name = ?", "t", name));
    TRY(db_step(db, stmt, &row, e));
    if (!row)
        return err_set(e, RC_NOT_FOUND, "there is no dataset \"%.128s\"; GET /v1/datasets lists those there are", name);
    read_dataset(stmt, out);
    sqlite3_reset(stmt);
    return RC_OK;
}

enum rc dataset_list(struct db *db, const char *after, int limit, void (*visit)(void *ctx, const struct dataset *d),
                     void *ctx, struct err *e) {
    struct dataset d;
    sqlite3_stmt *stmt;
    bool row;

    TRY(db_query(db, &stmt, e,
                 "SELECT name, sha256, bytes, created_at FROM dataset WHERE name > ? ORDER BY name LIMIT ?", "ti",
                 after ? after : "", (int64_t)limit));
    for (;;) {
        TRY(db_step(db, stmt, &row, e));
        if (!row) return RC_OK;
        read_dataset(stmt, &d);
        visit(ctx, &d);
    }
}

/* Whether any dataset names this content, or a job that has not ended needs it. */
static enum rc content_needed(struct db *db, const char *sha256, bool *needed, struct err *e) {
    int64_t count;

    TRY(db_query_int(db, &count, e,
                     "SELECT EXISTS (SELECT 1 FROM dataset WHERE sha256 = ?1) OR EXISTS (SELECT 1 FROM job WHERE "
                     "(dataset_sha256 = ?1 OR calibration_sha256 = ?1) AND state IN ('queued', 'running', 'paused'))",
                     "t", sha256));
    *needed = count != 0;
    return RC_OK;
}

static enum rc sync_path(const char *path, int flags, struct err *e) {
    int fd = open(path, flags | O_CLOEXEC);

    if (fd < 0) return err_errno(e, "cannot open %s", path);
    enum rc rc = fsync(fd) == 0 ? RC_OK : err_errno(e, "cannot sync %s", path);
    close(fd);
    return rc;
}

/* Removes content that has lost its last user. It runs on the writer thread, so that it never removes what a put has
 * just brought back, and looks at what is committed alone: a rollback brings users back, but no file. What it cannot
 * remove, the sweep at the next start does. */
struct collect {
    struct write_op op;
    char *folder, sha256[SHA256_HEX_SIZE];
};

static void remove_unneeded(struct db *db, struct write_op *op) {
    struct collect *collect = (struct collect *)op;
    struct err e;
    bool needed;

    if (content_needed(db, collect->sha256, &needed, &e) != RC_OK || needed) return;
    char *path = dataset_path(collect->folder, collect->sha256);
    unlink(path);
    free(path);
}

static void collect_done(struct write_op *op, const struct err *e) {
    struct collect *collect = (struct collect *)op;

    (void)e;
    free(collect->folder);
    free(collect);
}

static void collect_content(struct store *s, const char *sha256) {
    struct collect *collect = xcalloc(1, sizeof *collect);

    collect->op = (struct write_op){.committed = remove_unneeded, .done = collect_done};
    collect->folder = xstrdup(store_datasets(s));
    memcpy(collect->sha256, sha256, sizeof collect->sha256);
    store_submit(s, &collect->op);
}

struct put {
    struct write_op op;
    struct store *store;
    struct dataset dataset, old;
    char *upload;
    bool created;
    dataset_done done;
    void *ctx;
};

/* The file is durable under its name before the row is. */
static enum rc put_file(const struct put *put, struct err *e) {
    const char *folder = store_datasets(put->store);
    char *path = dataset_path(folder, put->dataset.sha256);
    enum rc rc = sync_path(put->upload, O_RDONLY, e);

    if (rc == RC_OK && rename(put->upload, path) != 0) rc = err_errno(e, "cannot store dataset as %s", path);
    free(path);
    return rc == RC_OK ? sync_path(folder, O_RDONLY | O_DIRECTORY, e) : rc;
}

static enum rc put_run(struct db *db, struct write_op *op, struct err *e) {
    struct put *put = (struct put *)op;
    struct dataset *d = &put->dataset;

    struct err missing = {0};
    put->created = dataset_get(db, d->name, &put->old, &missing) == RC_NOT_FOUND;
    if (!put->created && missing.rc != RC_OK) return *e = missing, missing.rc;
    TRY(put_file(put, e));
    return db_run(db, e, "INSERT OR REPLACE INTO dataset (name, sha256, bytes, created_at) VALUES (?, ?, ?, ?)", "ttii",
                  d->name, d->sha256, d->bytes, d->created_at);
}

static void put_done(struct write_op *op, const struct err *e) {
    struct put *put = (struct put *)op;

    if (e->rc != RC_OK)
        unlink(put->upload);
    else if (!put->created)
        collect_content(put->store, put->old.sha256);
    put->done(put->ctx, &put->dataset, put->created, e);
    free(put->upload);
    free(put);
}

void dataset_put(struct store *s, const struct dataset *d, const char *upload, dataset_done done, void *ctx) {
    struct put *put = xcalloc(1, sizeof *put);

    *put = (struct put){.op = {.run = put_run, .done = put_done}, .store = s, .dataset = *d, .done = done, .ctx = ctx};
    put->upload = xstrdup(upload);
    put->dataset.created_at = time_now_ms();
    store_submit(s, &put->op);
}

struct delete {
    struct write_op op;
    struct store *store;
    struct dataset dataset;
    char *name;
    void (*done)(void *ctx, const struct err *e);
    void *ctx;
};

static enum rc delete_run(struct db *db, struct write_op *op, struct err *e) {
    struct delete *del = (struct delete *)op;
    struct dataset *d = &del->dataset;
    int64_t jobs;

    TRY(dataset_get(db, del->name, d, e));
    TRY(db_query_int(
        db, &jobs, e,
        "SELECT count(*) FROM job WHERE ((dataset_sha256 = ?1 AND dataset = ?2) OR (calibration_sha256 = ?1 AND "
        "calibration = ?2)) AND state IN ('queued', 'running', 'paused')",
        "tt", d->sha256, d->name));
    if (jobs > 0)
        return err_set(e, RC_CONFLICT, "dataset \"%s\" is needed by %d job(s) that have not ended: cancel them first",
                       d->name, (int)jobs);
    return db_run(db, e, "DELETE FROM dataset WHERE name = ?", "t", del->name);
}

static void delete_done(struct write_op *op, const struct err *e) {
    struct delete *del = (struct delete *)op;

    if (e->rc == RC_OK) collect_content(del->store, del->dataset.sha256);
    del->done(del->ctx, e);
    free(del->name);
    free(del);
}

void dataset_delete(struct store *s, const char *name, void (*done)(void *ctx, const struct err *e), void *ctx) {
    struct delete *del = xcalloc(1, sizeof *del);

    *del = (struct delete){.op = {.run = delete_run, .done = delete_done}, .store = s, .done = done, .ctx = ctx};
    del->name = xstrdup(name);
    store_submit(s, &del->op);
}

enum rc datasets_sweep(struct db *db, const char *folder, struct err *e) {
    DIR *dir = opendir(folder);
    enum rc rc = RC_OK;

    if (!dir) return err_errno(e, "cannot read %s", folder);
    for (struct dirent *entry; rc == RC_OK && (entry = readdir(dir));) {
        bool needed = !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..");
        if (!needed) rc = content_needed(db, entry->d_name, &needed, e);
        if (rc == RC_OK && !needed && unlinkat(dirfd(dir), entry->d_name, 0) != 0)
            rc = err_errno(e, "cannot remove %s/%s", folder, entry->d_name);
    }
    closedir(dir);
    return rc;
}
