/* Finding models by name beneath the --models roots: a model is a folder with a config.json (or a Hugging Face cache
 * entry, "models--org--name", found as "org/name"), named by its path below its root. Every file is opened with
 * openat2(RESOLVE_BENEATH), so that no name and no symlink reaches out of the roots. Stateless; any thread. */
#ifndef HSAQ_DAEMON_MODELS_H
#define HSAQ_DAEMON_MODELS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct models {
    char *const *roots; /* absolute paths; the first that has the name wins */
    size_t count;
};

/* Not empty, relative, no empty, "." or ".." component, no NUL or control character, at most 255 bytes. */
bool model_name_valid(const char *name);

/* The model's absolute path; the caller frees it. RC_NOT_FOUND names the model and the roots. */
enum rc model_find(const struct models *m, const char *name, char **path, struct err *e);

/* What tells that files of the model were replaced: a digest of the names, sizes, mtimes and inodes in its folder. */
enum { MODEL_STAMP_SIZE = 65 };
enum rc model_stamp(const char *path, char stamp[MODEL_STAMP_SIZE], struct err *e);

/* Every model, sorted by name; folders nest at most four deep. */
enum rc model_list(const struct models *m, void (*visit)(void *ctx, const char *name, const char *path), void *ctx,
                   struct err *e);

#endif
