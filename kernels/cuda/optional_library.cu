#include "kernels/cuda/optional_library.h"

#include <dlfcn.h>

bool optional_library_load(const char *library, const struct library_function *wanted, size_t count) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; i < count; i++)
        if (handle == NULL || (*wanted[i].function = dlsym(handle, wanted[i].name)) == NULL) return false;
    return true;
}
