#include "kernels/cpu/cpu.h"

enum rc cpu_gptq(struct backend_state *state, const struct quantize_args *a, struct err *e) {
    (void)state;
    (void)a;
    return err_set(e, RC_UNSUPPORTED, "gptq is not implemented");
}
