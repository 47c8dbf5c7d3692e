/* Memory of the host that the device copies from and to at full speed.
 *
 * cudaMallocHost touches and locks page by page, on one core: 1.4 GB/s, and hidden states can be tens of GB. A mapping
 * of huge pages that all cores touch first, and that is registered then, is there at 17 GB/s and copies as fast
 * (kernels/lab/pinned.cu). */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda/device.cuh"

static const size_t huge_page = (size_t)2 << 20;

/* In front of what the caller gets, in a page of its own. */
struct mapping {
    size_t bytes; /* with the page */
};
static const size_t front = 4096;

/* Touching more than there is would end the process, not the allocation. 0: the system does not say. */
static size_t available() {
    char line[128];
    unsigned long long kilobytes = 0;
    FILE *info = fopen("/proc/meminfo", "re");
    if (!info) return 0;
    while (fgets(line, sizeof line, info))
        if (sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1) break;
    fclose(info);
    return (size_t)kilobytes * 1024;
}

static void touch(char *memory, size_t bytes) {
#pragma omp parallel for schedule(static)
    for (size_t at = 0; at < bytes; at += huge_page)
        memset(memory + at, 0, bytes - at < huge_page ? bytes - at : huge_page);
}

/* NULL: there is not as much. */
static char *map(size_t bytes) {
    size_t there = available();
    if (there > 0 && bytes > there) return NULL;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    madvise(memory, bytes, MADV_HUGEPAGE); /* where the system has none, small ones do */
    touch((char *)memory, bytes);
    if (cudaHostRegister(memory, bytes, cudaHostRegisterPortable) == cudaSuccess) return (char *)memory;
    cudaGetLastError(); /* the host's want of memory is no failure of the device */
    munmap(memory, bytes);
    return NULL;
}

enum rc cuda_host_alloc(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    (void)state;
    size_t all = bytes + front;
    char *mapped = map(all);
    *memory = NULL;
    if (!mapped)
        return err_set(e, RC_NO_MEMORY, "the host has no %zu bytes left that can be pinned for the GPU", bytes);
    ((struct mapping *)mapped)->bytes = all;
    *memory = mapped + front;
    return RC_OK;
}

void cuda_host_free(struct backend_state *state, void *memory) {
    if (!memory) return;
    cudaStreamSynchronize(state->stream);
    cudaStreamSynchronize(state->copies.stream);
    char *mapped = (char *)memory - front;
    cudaHostUnregister(mapped);
    munmap(mapped, ((struct mapping *)mapped)->bytes);
}
