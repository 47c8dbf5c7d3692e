/* What a worker is told when a job starts: the spec, where the model and the dataset lie, the results and rows of the
 * jobs that it names, and its own rows of earlier attempts. Loop thread. */
#ifndef HSAQ_DAEMON_JOBS_START_H
#define HSAQ_DAEMON_JOBS_START_H

#include "base/protocol.h"
#include "daemon/app.h"
#include "daemon/store/jobs.h"

/* RC_NOT_FOUND when the model, the dataset's file or a job it names has gone. Release with start_release. */
enum rc start_build(struct app *app, const struct job_record *job, struct msg_start *start, struct err *e);
void start_release(struct msg_start *start);

#endif
