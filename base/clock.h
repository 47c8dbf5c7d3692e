/* Time that only moves forward, for durations. Any thread. */
#ifndef HSAQ_BASE_CLOCK_H
#define HSAQ_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline double monotonic_seconds(void) {
    return (double)monotonic_ns() * 1e-9;
}

#endif
