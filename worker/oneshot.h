/* `hsaq-worker inspect` and `tokenize`: one JSON request on stdin, one JSON reply on stdout. The daemon runs them as
 * subprocesses, so that a hostile model folder can at worst end a process that holds nothing. `devices` likewise, which
 * reads no request: a driver that hangs holds up nothing else. */
#ifndef HSAQ_WORKER_ONESHOT_H
#define HSAQ_WORKER_ONESHOT_H

#include <stdio.h>

#include "base/err.h"

enum oneshot_command { ONESHOT_INSPECT, ONESHOT_TOKENIZE, ONESHOT_DEVICES };

/* Replies {"ok": …}, or {"error": {"rc", "message", "pointer"}} and is RC_OK as well: the answer was given. Fails only
 * when it cannot read or reply. */
enum rc oneshot(enum oneshot_command command, FILE *in, FILE *out, struct err *e);

#endif
