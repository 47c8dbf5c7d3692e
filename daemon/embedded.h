/* Text files compiled into the binary: the migrations and the API document. Made by tools/embed at build time. */
#ifndef HSAQ_DAEMON_EMBEDDED_H
#define HSAQ_DAEMON_EMBEDDED_H

#include <stddef.h>

struct embedded_file {
    const char *path; /* as in the source tree: "migrations/0001_jobs.sql" */
    const char *text; /* NUL-terminated */
    size_t size;
};

extern const struct embedded_file embedded_files[]; /* sorted by path; ends with a NULL path */

#endif
