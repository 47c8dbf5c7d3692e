/* The files of one model's folder, opened so that neither a name nor a symlink leads out of it.
 *
 * A name is a single component ("config.json"). Symlinks are followed inside the folder (openat2 RESOLVE_BENEATH), and
 * to one place besides: a Hugging Face cache keeps DIR/snapshots/REVISION/FILE as a link to DIR/blobs/HASH, so from a
 * folder that lies in one named `snapshots`, a link that reads exactly "../../blobs/HASH" is followed to a regular file
 * there. Everything opened is a regular file. Any thread. */
#ifndef HSAQ_WORKER_MODEL_FOLDER_H
#define HSAQ_WORKER_MODEL_FOLDER_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* RC_NOT_FOUND when there is no such folder. The caller closes *dir_fd. */
enum rc folder_open(const char *path, int *dir_fd, struct err *e);

/* Opens for reading; `*bytes` is the file's size. RC_NOT_FOUND when it is absent, RC_INVALID when it leads out of the
 * folder or is no regular file. The caller closes *fd. */
enum rc folder_open_file(int dir_fd, const char *name, int *fd, int64_t *bytes, struct err *e);

/* Reads a whole file of at most max_bytes (RC_TOO_LARGE beyond). `*text` is malloc'ed and NUL-terminated. */
enum rc folder_read(int dir_fd, const char *name, int64_t max_bytes, char **text, size_t *len, struct err *e);

#endif
