/* GET /v1/jobs/{id}/rows: the per-Linear or per-window table of a job. */
#ifndef HSAQ_DAEMON_API_ROWS_H
#define HSAQ_DAEMON_API_ROWS_H

#include "base/err.h"
#include "base/schema.h"
#include "daemon/http/request.h"

extern const struct schema rows_query_schema;
enum rc get_rows(struct request *r, struct err *e);

#endif
