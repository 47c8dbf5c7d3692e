/* What the tests of refused arguments share. */
#ifndef HSAQ_TESTS_OPS_REFUSALS_H
#define HSAQ_TESTS_OPS_REFUSALS_H

#include "tests/ops/harness.h"

/* The valid arguments of an operation, one thing changed, must be refused with `part` in the message. */
#define REFUSED_CALL(call, operation, rc, part, change)                                                                \
    do {                                                                                                               \
        struct operation##_args a = operation##_arguments();                                                           \
        change;                                                                                                        \
        assert_refused(call, rc, part);                                                                                \
    } while (0)
#define REFUSED(operation, rc, part, change)                                                                           \
    REFUSED_CALL(dev.b->operation(dev.s, &a, &err), operation, rc, part, change)
#define ACCEPTED(operation)                                                                                            \
    do {                                                                                                               \
        struct operation##_args a = operation##_arguments();                                                           \
        assert_ok(dev.b->operation(dev.s, &a, &err));                                                                  \
    } while (0)

enum { T = 3, K = 8, N = 4 };

static inline struct mat zeros(int64_t rows, int64_t cols) {
    return put_activation(host_zeros(rows * cols), rows, cols, 0);
}

static inline struct mat fp32_zeros(int64_t rows, int64_t cols) {
    return put_matrix(host_zeros(rows * cols), rows, cols, 0);
}

#endif
