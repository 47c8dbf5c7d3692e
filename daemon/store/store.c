#include "daemon/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "daemon/embedded.h"
#include "daemon/store/datasets.h"
#include "daemon/store/fault.h"
#include "daemon/store/migrate.h"

struct store {
    char *folder, *path, *datasets;
    int lock;
    struct db reader;
    struct writer *writer;
};

static enum rc make_folder(const char *path, struct err *e) {
    if (mkdir(path, 0700) == 0 || errno == EEXIST) return RC_OK;
    return err_errno(e, "cannot make the data folder %s", path);
}

/* The lock goes with the process, however it ends. */
static enum rc take_lock(struct store *s, struct err *e) {
    char *path = xasprintf("%s/lock", s->folder);
    enum rc rc = RC_OK;

    s->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock < 0)
        rc = err_errno(e, "cannot write to the data folder %s: hsaqd needs to own it", s->folder);
    else if (flock(s->lock, LOCK_EX | LOCK_NB) != 0)
        rc = errno == EWOULDBLOCK
                 ? err_set(e, RC_CONFLICT,
                           "another hsaqd is using the data folder %s: stop it, or choose another --data", s->folder)
                 : err_errno(e, "cannot lock %s", path);
    free(path);
    return rc;
}

static enum rc prepare_schema(const char *path, struct err *e) {
    struct db db;

    TRY(db_open(&db, path, DB_WRITER, e));
    enum rc rc = migrate(&db, path, embedded_files, e);
    db_close(&db);
    return rc;
}

static enum rc open_folder(struct store *s, const char *folder, struct err *e) {
    char resolved[PATH_MAX];

    TRY(make_folder(folder, e));
    if (!realpath(folder, resolved)) return err_errno(e, "cannot resolve the data folder %s", folder);
    s->folder = xstrdup(resolved);
    s->path = xasprintf("%s/hsaqd.db", resolved);
    s->datasets = xasprintf("%s/datasets", resolved);
    TRY(take_lock(s, e));
    return make_folder(s->datasets, e);
}

static void release(struct store *s) {
    if (s->reader.handle) db_close(&s->reader);
    if (s->lock >= 0) close(s->lock);
    free(s->folder);
    free(s->path);
    free(s->datasets);
    free(s);
}

enum rc store_open(const char *folder, uv_loop_t *loop, publish_fn publish, void *ctx, struct store **out,
                   struct err *e) {
    struct store *s = xcalloc(1, sizeof *s);

    s->lock = -1;
    fault_install();
    if (open_folder(s, folder, e) != RC_OK || prepare_schema(s->path, e) != RC_OK ||
        db_open(&s->reader, s->path, DB_READER, e) != RC_OK || datasets_sweep(&s->reader, s->datasets, e) != RC_OK ||
        writer_start(loop, s->path, publish, ctx, &s->writer, e) != RC_OK) {
        release(s);
        return e->rc;
    }
    *out = s;
    return RC_OK;
}

/* The reader goes first, so that the writer's is the last connection and its close checkpoints. */
void store_close(struct store *s) {
    db_close(&s->reader);
    writer_stop(s->writer);
    release(s);
}

struct db *store_reader(struct store *s) {
    return &s->reader;
}

void store_submit(struct store *s, struct write_op *op) {
    writer_submit(s->writer, op);
}

const char *store_folder(const struct store *s) {
    return s->folder;
}

const char *store_datasets(const struct store *s) {
    return s->datasets;
}

static int64_t file_bytes(const char *path) {
    struct stat st;

    return stat(path, &st) == 0 ? (int64_t)st.st_size : 0;
}

int64_t store_bytes(const struct store *s) {
    char *wal = xasprintf("%s-wal", s->path);
    int64_t bytes = file_bytes(s->path) + file_bytes(wal);

    free(wal);
    return bytes;
}
