/* What a fuzz target defines: libFuzzer or replay.c calls it with one input after the other. */
#ifndef HSAQ_TESTS_FUZZ_TARGET_H
#define HSAQ_TESTS_FUZZ_TARGET_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
