#include "daemon/jobs/leftover.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/spec.h"
#include "daemon/store/jobs.h"

/* Decoded anew: what comes of it names a folder to remove. */
static char *made_by(const struct job_record *job, struct arena *arena) {
    const struct job_kind *kind;
    struct err ignored;
    union spec spec;
    json_t *json;

    if (json_parse(job->spec, strlen(job->spec), &json, &ignored) != RC_OK) return NULL;
    enum rc rc = spec_decode(json, &spec, &kind, arena, NULL, &ignored);
    json_decref(json);
    const char *name = rc == RC_OK ? spec_made_artifact(kind, &spec) : NULL;
    return name ? xstrdup(name) : NULL;
}

enum rc leftover_name(struct db *db, const char *id, char **name, struct err *e) {
    struct arena arena = {0};
    struct job_record job;
    enum rc rc = job_get(db, id, &job, &arena, e);

    *name = rc == RC_OK && job.state != JOB_SUCCEEDED ? made_by(&job, &arena) : NULL;
    arena_release(&arena);
    return rc;
}

static bool absent(void) {
    return errno == ENOENT;
}

/* The key first: without it, nothing of what a kill leaves is taken for a part of anything. */
static enum rc empty(int folder, const char *name, struct err *e) {
    if (unlinkat(folder, ARTIFACT_KEY, 0) != 0 && !absent())
        return err_errno(e, "cannot remove " ARTIFACT_KEY " from %s", name);
    int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy >= 0 ? fdopendir(copy) : NULL;
    enum rc rc = RC_OK;

    if (!dir) {
        rc = err_errno(e, "cannot list %s", name);
        if (copy >= 0) close(copy);
        return rc;
    }
    for (struct dirent *entry; rc == RC_OK && (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (unlinkat(folder, entry->d_name, 0) != 0) rc = err_errno(e, "cannot remove %s from %s", entry->d_name, name);
    }
    closedir(dir);
    return rc;
}

static enum rc remove_folder(const char *path, struct err *e) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    if (folder < 0) return absent() ? RC_OK : err_errno(e, "cannot open %s", path);
    enum rc rc = RC_OK;
    if (flock(folder, LOCK_EX | LOCK_NB) != 0)
        rc = err_set(e, RC_CONFLICT, "%s is being written", path);
    else
        rc = empty(folder, path, e);
    if (rc == RC_OK && rmdir(path) != 0) rc = err_errno(e, "cannot remove %s", path);
    close(folder);
    return rc;
}

enum rc leftover_remove(struct db *db, const char *artifacts, const char *name, struct err *e) {
    int64_t others;

    TRY(db_query_int(db, &others, e,
                     "SELECT count(*) FROM job WHERE kind = 'quantize' AND state <> 'succeeded' AND json_extract(spec, "
                     "'$.name') = ?",
                     "t", name));
    if (others) return RC_OK;
    char *path = xasprintf("%s/" ARTIFACT_PARTIAL, artifacts, name);
    enum rc rc = remove_folder(path, e);
    free(path);
    return rc;
}
