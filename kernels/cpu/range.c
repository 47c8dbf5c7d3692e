#include "kernels/cpu/grid.h"

struct grid grid_fit(const struct fit_args *a, bool *kept_rtn) {
    *kept_rtn = false;
    return rtn_fit(a->w, a->n, a->candidate);
}
