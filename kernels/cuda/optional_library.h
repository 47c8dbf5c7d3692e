/* Libraries that make the backend faster and may be missing: loaded when first needed, by any thread. */
#ifndef HSAQ_KERNELS_CUDA_OPTIONAL_LIBRARY_H
#define HSAQ_KERNELS_CUDA_OPTIONAL_LIBRARY_H

#include <stddef.h>

struct library_function {
    const char *name;
    void **function; /* where its address goes */
};

/* Whether the library is there and has them all. It stays loaded: such libraries keep state of their own on the
 * devices.
 */
bool optional_library_load(const char *library, const struct library_function *wanted, size_t count);

#endif
