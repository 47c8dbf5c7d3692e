/* What this worker could compute on, found out without opening any of it. */
#ifndef HSAQ_WORKER_DEVICES_H
#define HSAQ_WORKER_DEVICES_H

#include <jansson.h>

/* {"devices": [{"name", "hardware", "memory"}], "unusable": [{"name", "reason"}]}: a new reference. The cpu comes
 * first, then "cuda:0" and so on; unusable is a single card, or "cuda" as a whole. */
json_t *devices_describe(void);

#endif
