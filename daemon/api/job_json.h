/* The job object of the API. */
#ifndef HSAQ_DAEMON_API_JOB_JSON_H
#define HSAQ_DAEMON_API_JOB_JSON_H

#include <jansson.h>

#include "daemon/app.h"
#include "daemon/store/jobs.h"

/* A new reference. */
json_t *job_json(struct app *app, const struct job_record *job);

#endif
