/* Who of a job's devices measures which Linear of a block. Pure. */
#ifndef HSAQ_WORKER_PIPELINE_DIVIDE_H
#define HSAQ_WORKER_PIPELINE_DIVIDE_H

#include <stdbool.h>

#include "worker/model/model.h"

/* By position the device's number; −1 for a Linear that is not wanted. `wanted`: [model.linear_count]. The same on
 * every device. */
void divide_linears(const struct model *model, const bool *wanted, int block, int devices,
                    int owner[BLOCK_LINEARS_MAX]);

#endif
