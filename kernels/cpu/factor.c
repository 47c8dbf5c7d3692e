#include "kernels/check.h"
#include "kernels/cpu/cpu.h"

enum rc cpu_factor(struct backend_state *state, const struct factor_args *a, struct err *e) {
    (void)state;
    TRY(check_factor(a, e));
    return err_set(e, RC_UNSUPPORTED, "factor is not implemented");
}
