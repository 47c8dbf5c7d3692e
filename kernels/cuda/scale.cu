#include "kernels/cuda/device.cuh"

enum rc cuda_scale(struct backend_state *state, const struct scale_args *a, struct err *e) {
    (void)state;
    TRY(check_scale(a, e));
    return err_set(e, RC_UNSUPPORTED, "scale is not implemented");
}
