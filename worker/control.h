/* `hsaq-worker serve`: the worker's end of the link to the daemon (base/protocol.h).
 *
 * Two threads. The caller's is the GPU thread: it runs one job at a time. The control thread reads messages, sends a
 * heartbeat every second, hands over start and cached, and sets the cancel flag. Writes are serialised by a lock; a
 * heartbeat is skipped while another message is under way, since that shows life as well.
 *
 * The process ends inside this function when the link does: at once and with status 0 at its end (the daemon is gone)
 * and on `shutdown` (rows are durable where they were sent; nothing here is worth waiting for), with status 1 after a
 * line that is not the protocol or when the device has failed (RC_UNAVAILABLE), whose job thus ends without an error.
 */
#ifndef HSAQ_WORKER_CONTROL_H
#define HSAQ_WORKER_CONTROL_H

#include "worker/execute.h"

/* Says hello on `fd`, then serves. Returns only when the control thread cannot be started or hello cannot be sent. */
enum rc control_serve(const struct worker *worker, const char *device, int fd, struct err *e);

#endif
