#include "worker/pipeline/divide.h"

#include <stdlib.h>

#include "base/mem.h"
#include "worker/pipeline/block.h"

/* What quantizing a weight costs, in products of its error's N·K·K with H: about that of HQQ on a GPU. Only the balance
 * between devices depends on it. */
static const double quantizing = 2048;

/* Of a candidate: quantizing, and the output error. 0: not wanted. */
static double cost_of(const struct model *model, const bool *wanted, int block, int position) {
    const struct linear *linear = block_linear(model, block, position);
    if (!linear || !wanted[linear - model->linears]) return 0;
    return (double)linear->rows * (double)linear->cols * ((double)linear->cols + quantizing);
}

static int costliest(const double cost[BLOCK_LINEARS_MAX], const int owner[BLOCK_LINEARS_MAX]) {
    int most = -1;
    for (int position = 0; position < BLOCK_LINEARS_MAX; position++)
        if (owner[position] < 0 && cost[position] > 0 && (most < 0 || cost[position] > cost[most])) most = position;
    return most;
}

static int least_busy(const double *load, int devices) {
    int least = 0;
    for (int i = 1; i < devices; i++)
        if (load[i] < load[least]) least = i;
    return least;
}

/* The costliest first, each to the device that has least. */
void divide_linears(const struct model *model, const bool *wanted, int block, int devices,
                    int owner[BLOCK_LINEARS_MAX]) {
    double *load = xcalloc((size_t)devices, sizeof *load), cost[BLOCK_LINEARS_MAX];
    for (int position = 0; position < BLOCK_LINEARS_MAX; position++) {
        owner[position] = -1;
        cost[position] = cost_of(model, wanted, block, position);
    }
    for (int position; (position = costliest(cost, owner)) >= 0;) {
        owner[position] = least_busy(load, devices);
        load[owner[position]] += cost[position];
    }
    free(load);
}
