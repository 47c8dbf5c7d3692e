/* Question: how fast does the host get memory that the GPU copies from at full speed? Hidden states of a large model on
 * a small card are tens of GB.
 *
 *   nvcc -O2 -Xcompiler -fopenmp -o pinned kernels/lab/pinned.cu && ./pinned 8
 *
 * Times, for so many GiB: cudaMallocHost; and an anonymous mapping with huge pages, first touched by all cores, then
 * registered; and a copy from each, which must be as fast.
 *
 * measured (H100, 16 cores, 8 GiB): cudaMallocHost 1.44 GB/s; mapped, touched by all cores, registered 9.3; with huge
 * pages 17.2. Copies from all three run at 52–54 GB/s. kernels/cuda/pinned.cu does the last. */
#include <cuda_runtime.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double copy_rate(void *host, size_t bytes) {
    void *device;
    if (cudaMalloc(&device, bytes) != cudaSuccess) return 0;
    double best = 0;
    for (int i = 0; i < 3; i++) {
        double began = now();
        cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice);
        double rate = (double)bytes / (now() - began);
        best = rate > best ? rate : best;
    }
    cudaFree(device);
    return best;
}

static void touch(char *memory, size_t bytes) {
    const size_t step = 2 << 20;
#pragma omp parallel for schedule(static)
    for (size_t at = 0; at < bytes; at += step)
        memset(memory + at, 0, at + step < bytes ? step : bytes - at);
}

static void report(const char *what, size_t bytes, double seconds, double rate) {
    printf("%-44s %6.2f s  %6.2f GB/s, copies at %5.1f GB/s\n", what, seconds, (double)bytes / seconds / 1e9,
           rate / 1e9);
}

static int allocated(size_t bytes) {
    void *memory;
    double began = now();
    if (cudaMallocHost(&memory, bytes) != cudaSuccess) return 1;
    double seconds = now() - began;
    report("cudaMallocHost", bytes, seconds, copy_rate(memory, bytes));
    cudaFreeHost(memory);
    return 0;
}

static int registered(size_t bytes, bool huge) {
    double began = now();
    char *memory = (char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE);
    touch(memory, bytes);
    double touched = now() - began;
    if (cudaHostRegister(memory, bytes, cudaHostRegisterDefault) != cudaSuccess) return 1;
    double seconds = now() - began;
    printf("touched after %.2f s\n", touched);
    report(huge ? "mapped, huge pages, touched, registered" : "mapped, touched, registered", bytes, seconds,
           copy_rate(memory, bytes));
    cudaHostUnregister(memory);
    munmap(memory, bytes);
    return 0;
}

int main(int argc, char **argv) {
    size_t bytes = (size_t)(argc > 1 ? strtoul(argv[1], NULL, 10) : 8) << 30;
    cudaFree(NULL);
    return allocated(bytes) || registered(bytes, false) || registered(bytes, true);
}
