#include "kernels/check.h"
#include "kernels/cpu/cpu.h"

enum rc cpu_column_share(struct backend_state *state, const struct column_share_args *a, struct err *e) {
    (void)state;
    TRY(check_column_share(a, e));
    return err_set(e, RC_UNSUPPORTED, "column_share is not implemented");
}
