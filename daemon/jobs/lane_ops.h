/* What a lane writes to the database, as write operations, each answered by a call on the lane. */
#ifndef HSAQ_DAEMON_JOBS_LANE_OPS_H
#define HSAQ_DAEMON_JOBS_LANE_OPS_H

#include "base/protocol.h"
#include "daemon/jobs/lane.h"
#include "daemon/store/jobs.h"

/* lane->job: queued → running; drops its rows when the model's files are not those they were computed from,
 * or when the lane's worker computes in another arithmetic. */
void lane_ops_claim(struct lane *lane);
void lane_claimed(struct lane *lane, const struct err *e);

/* The transition by which the job leaves; kept, so that it can be tried again. */
void lane_ops_settle(struct lane *lane, const struct job_change *change, const json_t *progress);
void lane_ops_settle_again(struct lane *lane);
void lane_settled(struct lane *lane, enum job_action action, const struct err *e);

void lane_ops_row(struct lane *lane, const struct message *m);
void lane_row_done(struct lane *lane, const struct err *e);

void lane_ops_log(struct lane *lane, const struct message *m);
void lane_ops_store(struct lane *lane, const struct message *m);
/* Answered to the worker itself, when all it stored before is durable. */
void lane_ops_lookup(struct lane *lane, const struct msg_lookup *m);

#endif
