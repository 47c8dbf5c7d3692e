#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/backend.h"

#define LIBRARY "libhsaq_cuda.so"
#define LIBRARY_VARIABLE "HSAQ_CUDA_LIBRARY" /* a path: instead of the places below */
#define ORDER_VARIABLE "CUDA_DEVICE_ORDER"   /* CUDA's own */

/* Where the build and `make install` put it, seen from the program's folder. */
static const char *const places[] = {"", "../lib/hsaqd/"};

static bool find_library(char path[PATH_MAX]) {
    const char *chosen = getenv(LIBRARY_VARIABLE);
    if (chosen) return snprintf(path, PATH_MAX, "%s", chosen) < PATH_MAX;
    char program[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n < 0) return false;
    program[n] = 0;
    *strrchr(program, '/') = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int length = snprintf(path, PATH_MAX, "%s/%s" LIBRARY, program, places[i]);
        if (length < PATH_MAX && access(path, R_OK) == 0) return true;
    }
    return false;
}

enum rc backend_cuda_load(enum dtype activation, const struct backend **backend, struct err *e) {
    char path[PATH_MAX];
    if (!find_library(path))
        return err_set(e, RC_NOT_FOUND, "this is a build without CUDA: there is no " LIBRARY " beside the program");
    /* CUDA counts the fastest card first unless told otherwise: cuda:1 shall be the card that nvidia-smi calls 1. */
    setenv(ORDER_VARIABLE, "PCI_BUS_ID", 0);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return err_set(e, RC_NOT_FOUND,
                       "the CUDA backend cannot be loaded, install CUDA's runtime, cuBLAS and cuSOLVER: %s", dlerror());
    const char *interface = dlsym(library, "backend_cuda_interface");
    if (interface == NULL || strcmp(interface, HSAQ_INTERFACE) != 0)
        return err_set(e, RC_NOT_FOUND, "%s is not of this program's build: build and install both together", path);
    *backend = dlsym(library, activation == DTYPE_BF16 ? "backend_cuda_bf16" : "backend_cuda_fp32");
    return *backend ? RC_OK : err_set(e, RC_NOT_FOUND, "%s holds no backend", path);
}
