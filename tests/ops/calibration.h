/* What tests of GPTQ compute with: H of channels that hang together, on the host and on the device. */
#ifndef HSAQ_TESTS_OPS_CALIBRATION_H
#define HSAQ_TESTS_OPS_CALIBRATION_H

#include "tests/ops/harness.h"

/* H = XᵀX of T tokens whose channels hang together and differ in size, [K, K]. */
double *correlated(int64_t tokens, int64_t cols);
void kill_channel(double *h, int64_t cols, int64_t dead);
/* On the device in its gram type, to which the host's values are rounded too. */
struct mat put_gram(double *h, int64_t cols);
struct factor device_factor(int64_t cols); /* buffers; by factor_release */

#endif
