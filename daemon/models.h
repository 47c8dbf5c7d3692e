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

/* A descriptor of the model's folder (the caller closes it) and, when path is not NULL, its absolute path (the caller
 * frees it). RC_NOT_FOUND names the model and the roots. */
enum rc model_open(const struct models *m, const char *name, int *folder, char **path, struct err *e);

/* A file of the model, by its name within the folder, read-only. */
enum rc model_open_file(int folder, const char *file, int *fd, struct err *e);

/* Every model, sorted by name; folders nest at most four deep. */
enum rc model_list(const struct models *m, void (*visit)(void *ctx, const char *name, const char *path), void *ctx,
                   struct err *e);

#endif
