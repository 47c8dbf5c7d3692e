/* What a quantize job that is deleted leaves in the folder of artifacts: the folder in which its artifact grew. Writer
 * thread, so that between the look at the queue and the removal no job can come that would go on with it. */
#ifndef HSAQ_DAEMON_JOBS_LEFTOVER_H
#define HSAQ_DAEMON_JOBS_LEFTOVER_H

#include "base/err.h"
#include "daemon/store/db.h"

/* The name of the artifact that the job was making, for whoever deletes it; the caller frees. NULL: it makes none, or
 * has made it. */
enum rc leftover_name(struct db *db, const char *id, char **name, struct err *e);

/* Once the job is gone. Nothing happens where the queue has another job that makes, or may yet make, an artifact of
 * that name, or where a process holds the folder. A kill midway leaves what the next of that name clears away. */
enum rc leftover_remove(struct db *db, const char *artifacts, const char *name, struct err *e);

#endif
