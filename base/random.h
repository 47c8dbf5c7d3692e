/* SplitMix64 (Steele, Lea, Flood 2014): a seeded stream of 64-bit numbers that is the same on every machine, for draws
 * that a result must be able to repeat. Pure functions over the caller's state; any thread. */
#ifndef HSAQ_BASE_RANDOM_H
#define HSAQ_BASE_RANDOM_H

#include <stdint.h>

uint64_t splitmix64(uint64_t *state);

/* Uniform in [0, n), by the high half of a 64 × 64 bit product (Lemire 2019, without rejection: bias < n / 2^64). */
uint64_t random_below(uint64_t *state, uint64_t n);

#endif
