#include "kernels/cpu/waiting.h"

#include <stdlib.h>
#include <unistd.h>

void insist_on_sleeping_waits(char **argv) {
    if (getenv(WAIT_POLICY_VARIABLE) || getenv("GOMP_SPINCOUNT")) return;
    if (setenv(WAIT_POLICY_VARIABLE, "passive", 1) == 0) execv("/proc/self/exe", argv);
}
