/* Why a job waits, in words and for machines. Loop thread. */
#ifndef HSAQ_DAEMON_JOBS_EXPLAIN_H
#define HSAQ_DAEMON_JOBS_EXPLAIN_H

#include <jansson.h>

#include "daemon/app.h"
#include "daemon/store/jobs.h"

/* {"job", "state", "waiting": bool, "position": n or null, "reasons": [{"code", "detail", "job"?}]}: a new reference.
 */
enum rc explain_job(struct app *app, const struct job_record *job, json_t **out, struct err *e);

#endif
