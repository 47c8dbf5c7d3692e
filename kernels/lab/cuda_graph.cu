/* Question: how much of a small model's walk is the launching of its kernels, and would a CUDA graph save it?
 *
 *     build/kernels/lab/cuda_graph [KERNELS [BLOCKS]]
 *
 * A walk launches some 20 kernels a block one after the other on a stream; SmolLM2-135M has 30 blocks. Kernels that do
 * nothing but last so long stand for them: with the arguments and the grid of real ones (some 150 bytes, one block a
 * multiprocessor). Each duration is run as 20 · 30 launches and as one graph of them, captured once; the time is the
 * card's, from before the first to after the last, so a host that cannot keep up shows in it: what is not the kernels'
 * own is `lost`, and what a graph gets back of the whole is `saved`. The host's own time for a launch, and what it
 * costs to make a graph, stand beside: a walk has one graph for each of its two buffers of weights and each shape, and
 * makes it anew when memory moves.
 *
 * The row to look at is SmolLM2's own: an eval at 747,551 tokens/s (docs/performance.md) is 18 µs a kernel at chunks of
 * 8192 tokens, all the gaps between them included.
 *
 * measured (H100): a launch takes 2.7 µs of the host; between kernels on a stream 1.9 µs are lost, in a graph 0.9. Of
 * kernels of 18 µs a graph saves 5.7%, of 50 µs 2.2%, of 100 µs 1.1%. Not worth a graph for each shape and buffer: what
 * SmolLM2 loses, its small products lose. */
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include <cuda_runtime.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) {                                                                                   \
            fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error_));                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static const int REPEATS = 11;

struct arguments { /* as much as an operation's */
    long long cycles;
    long long others[18];
};

static __global__ void spin(struct arguments a) {
    long long begin = clock64();
    while (clock64() - begin < a.cycles) {
    }
}

struct bench {
    cudaStream_t stream;
    cudaEvent_t before, after;
    int grid, count;
    double cycles_per_us;
};

struct timing {
    double device_us, host_us; /* a kernel; of the whole run's median */
};

static double now_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void launch_all(const struct bench *b, double us) {
    struct arguments a = {};
    a.cycles = (long long)(us * b->cycles_per_us);
    for (int i = 0; i < b->count; i++)
        spin<<<b->grid, 256, 0, b->stream>>>(a);
    CHECK(cudaGetLastError());
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A run is launches of `us` each, or a graph. The first one warms up. */
static struct timing time_run(const struct bench *b, double us, cudaGraphExec_t graph) {
    double device[REPEATS], host[REPEATS];
    for (int i = -1; i < REPEATS; i++) {
        CHECK(cudaEventRecord(b->before, b->stream));
        double began = now_us();
        if (graph)
            CHECK(cudaGraphLaunch(graph, b->stream));
        else
            launch_all(b, us);
        double asked = now_us() - began;
        CHECK(cudaEventRecord(b->after, b->stream));
        CHECK(cudaEventSynchronize(b->after));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, b->before, b->after));
        if (i < 0) continue;
        device[i] = 1e3 * ms / b->count;
        host[i] = asked / b->count;
    }
    qsort(device, REPEATS, sizeof *device, by_value);
    qsort(host, REPEATS, sizeof *host, by_value);
    return {device[REPEATS / 2], host[REPEATS / 2]};
}

static cudaGraphExec_t capture(const struct bench *b, double us, double *made_us) {
    cudaGraph_t graph;
    cudaGraphExec_t out;
    double began = now_us();
    CHECK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    launch_all(b, us);
    CHECK(cudaStreamEndCapture(b->stream, &graph));
    CHECK(cudaGraphInstantiate(&out, graph, 0));
    CHECK(cudaGraphUpload(out, b->stream));
    CHECK(cudaStreamSynchronize(b->stream));
    *made_us = now_us() - began;
    CHECK(cudaGraphDestroy(graph));
    return out;
}

/* Of kernels so long that their launches do not count. */
static void calibrate(struct bench *b) {
    int count = b->count;
    b->count = 10;
    b->cycles_per_us = 1000;
    for (int i = 0; i < 3; i++)
        b->cycles_per_us *= 1000 / time_run(b, 1000, NULL).device_us;
    b->count = count;
}

static struct bench open_bench(int count) {
    struct bench b = {};
    cudaDeviceProp card;
    CHECK(cudaGetDeviceProperties(&card, 0));
    CHECK(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&b.before));
    CHECK(cudaEventCreate(&b.after));
    b.grid = card.multiProcessorCount;
    b.count = count;
    printf("%s, %d kernels a run, µs a kernel (medians of %d)\n\n", card.name, count, REPEATS);
    calibrate(&b);
    return b;
}

/* How much of the stream's time the graph saves. */
static double measure(const struct bench *b, double us) {
    double made_us;
    cudaGraphExec_t graph = capture(b, us, &made_us);
    struct timing stream = time_run(b, us, NULL), whole = time_run(b, us, graph);
    double saved = 1 - whole.device_us / stream.device_us;
    printf("%8.1f | %8.2f %8.2f %6.1f%% | %8.2f %8.3f | %6.1f%% | %8.2f\n", us, stream.device_us, stream.host_us,
           100 * (1 - us / stream.device_us), whole.device_us, whole.host_us, 100 * saved, made_us * 1e-3);
    CHECK(cudaGraphExecDestroy(graph));
    return saved;
}

int main(int argc, char **argv) {
    static const double durations[] = {0, 1, 2, 3, 4, 5, 6, 8, 10, 14, 18, 25, 35, 50, 100, 200};
    static const double shares[] = {0.01, 0.02, 0.05, 0.10};
    double longest[4] = {-1, -1, -1, -1};
    int kernels = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 20,
        blocks = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 30;
    struct bench b = open_bench(kernels * blocks);
    printf("%8s | %8s %8s %7s | %8s %8s | %7s | %8s\n", "kernel", "stream", "host", "lost", "graph", "host", "saved",
           "made, ms");
    for (double us : durations) {
        double saved = measure(&b, us);
        for (int i = 0; i < 4; i++)
            if (saved >= shares[i]) longest[i] = us;
    }
    printf("\n");
    for (int i = 0; i < 4; i++)
        printf("a graph saves %2.0f%% of kernels of up to %g µs\n", 100 * shares[i], longest[i]);
    return 0;
}
