/* The sum over GPUs by NCCL, which is loaded when first needed. Where it is missing, or two states share a card (which
 * NCCL refuses), the parts go to the first device one after the other, are added there, and the sum goes back. */
#include <stdlib.h>
#include <time.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/optional_library.h"

/* --- by copies --- */

static const size_t PIECE_BYTES = 64 << 20; /* of workspace on the first device */

template <typename T> static __global__ void add_part(T *sum, const T *part, int64_t count) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) sum[i] += part[i];
}
template <> __global__ void add_part(__nv_bfloat16 *sum, const __nv_bfloat16 *part, int64_t count) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) sum[i] = __float2bfloat16_rn(__bfloat162float(sum[i]) + __bfloat162float(part[i]));
}

static enum rc wait_for_all(const struct combine_args *a, struct err *e) {
    for (int i = 0; i < a->count; i++)
        CUDA_TRY(cudaStreamSynchronize(a->states[i]->stream));
    return RC_OK;
}

/* sum[at…] += part[at…], on the first device. */
static enum rc add_piece(const struct combine_args *a, int part, size_t at, size_t bytes, void *workspace,
                         struct err *e) {
    struct backend_state *first = a->states[0];
    const struct mat *m = a->parts;
    int64_t count = (int64_t)(bytes / dtype_size(m->type));
    char *sum = (char *)m[0].data + at;
    CUDA_TRY(cudaMemcpyPeerAsync(workspace, first->device, (const char *)m[part].data + at, a->states[part]->device,
                                 bytes, first->stream));
    unsigned blocks = blocks_for(count, BLOCK);
    if (m->type == DTYPE_F64)
        add_part<<<blocks, BLOCK, 0, first->stream>>>((double *)sum, (const double *)workspace, count);
    else if (m->type == DTYPE_BF16)
        add_part<<<blocks, BLOCK, 0, first->stream>>>((__nv_bfloat16 *)sum, (const __nv_bfloat16 *)workspace, count);
    else
        add_part<<<blocks, BLOCK, 0, first->stream>>>((float *)sum, (const float *)workspace, count);
    LAUNCHED();
    return RC_OK;
}

static enum rc add_parts(const struct combine_args *a, size_t bytes, struct err *e) {
    struct backend_state *first = a->states[0];
    void *workspace;
    TRY(cuda_attach(first, e));
    TRY(cuda_scratch(first, bytes < PIECE_BYTES ? bytes : PIECE_BYTES, &workspace, e));
    for (int i = 1; i < a->count; i++)
        for (size_t at = 0; at < bytes; at += PIECE_BYTES)
            TRY(add_piece(a, i, at, bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES, workspace, e));
    for (int i = 1; i < a->count; i++)
        CUDA_TRY(cudaMemcpyPeerAsync(a->parts[i].data, a->states[i]->device, a->parts[0].data, first->device, bytes,
                                     first->stream));
    CUDA_TRY(cudaStreamSynchronize(first->stream));
    return RC_OK;
}

/* The calling thread goes on with its own device afterwards. */
static enum rc combine_by_copies(const struct combine_args *a, size_t bytes, struct err *e) {
    int device;
    CUDA_TRY(cudaGetDevice(&device));
    TRY(wait_for_all(a, e));
    enum rc rc = add_parts(a, bytes, e);
    cudaSetDevice(device);
    return rc;
}

static bool share_a_card(const struct combine_args *a) {
    for (int i = 1; i < a->count; i++)
        for (int k = 0; k < i; k++)
            if (a->states[i]->device == a->states[k]->device) return true;
    return false;
}

/* --- by NCCL --- */

#if !__has_include(<nccl.h>)

static enum rc combine_by_nccl(const struct combine_args *a, bool *done, struct err *e) {
    (void)a, (void)e;
    *done = false;
    return RC_OK;
}

void cuda_collective_close(struct backend_state *state) {
    (void)state;
}

#else
#include <nccl.h>

#define LIBRARY "libnccl.so.2"

struct nccl_functions {
    decltype(&ncclCommInitAll) init_all;
    decltype(&ncclCommDestroy) destroy;
    decltype(&ncclCommAbort) abort;
    decltype(&ncclCommGetAsyncError) async_error;
    decltype(&ncclGroupStart) group_start;
    decltype(&ncclGroupEnd) group_end;
    decltype(&ncclAllReduce) all_reduce;
    decltype(&ncclGetErrorString) error_string;
};

/* The communicators of a set of devices; kept by the first of them. */
struct collective {
    struct nccl_functions call;
    bool there; /* the library */
    int count;
    int *devices;      /* [count] */
    ncclComm_t *comms; /* [count] */
};

static enum rc nccl_failure(const struct collective *c, ncclResult_t result, const char *call, struct err *e) {
    return err_set(
        e, RC_UNAVAILABLE,
        "NCCL, which sums over GPUs, failed in %s: %s; NCCL_DEBUG=WARN in the worker's environment says more", call,
        c->call.error_string(result));
}

#define NCCL_TRY(c, function, ...)                                                                                     \
    do {                                                                                                               \
        ncclResult_t nccl_try_ = (c)->call.function(__VA_ARGS__);                                                      \
        if (nccl_try_ != ncclSuccess) return nccl_failure((c), nccl_try_, #function, e);                               \
    } while (0)

static bool load_library(struct nccl_functions *call) {
    const struct library_function wanted[] = {
        {"ncclCommInitAll", (void **)&call->init_all},   {"ncclCommDestroy", (void **)&call->destroy},
        {"ncclCommAbort", (void **)&call->abort},        {"ncclCommGetAsyncError", (void **)&call->async_error},
        {"ncclGroupStart", (void **)&call->group_start}, {"ncclGroupEnd", (void **)&call->group_end},
        {"ncclAllReduce", (void **)&call->all_reduce},   {"ncclGetErrorString", (void **)&call->error_string},
    };
    return optional_library_load(LIBRARY, wanted, sizeof wanted / sizeof *wanted);
}

/* `failed`: something may be under way that will not end. */
static void leave(struct collective *c, bool failed) {
    for (int i = 0; i < c->count; i++)
        (failed ? c->call.abort : c->call.destroy)(c->comms[i]);
    free(c->devices);
    free(c->comms);
    c->devices = NULL;
    c->comms = NULL;
    c->count = 0;
}

void cuda_collective_close(struct backend_state *state) {
    if (state->collective == NULL) return;
    leave(state->collective, false);
    free(state->collective);
    state->collective = NULL;
}

/* Within a process NCCL reads and writes its callers' memory from other cards, which that from a pool has to allow. */
static enum rc open_memory_to(const struct backend_state *owner, const struct backend_state *peer, struct err *e) {
    cudaMemPool_t pool;
    cudaMemAccessDesc access = {};
    int reachable = 0;
    CUDA_TRY(cudaDeviceCanAccessPeer(&reachable, peer->device, owner->device));
    if (!reachable) return RC_OK; /* then NCCL goes by way of the host */
    access.location.type = cudaMemLocationTypeDevice;
    access.location.id = peer->device;
    access.flags = cudaMemAccessFlagsProtReadWrite;
    CUDA_TRY(cudaDeviceGetDefaultMemPool(&pool, owner->device));
    CUDA_TRY(cudaMemPoolSetAccess(pool, &access, 1));
    return RC_OK;
}

static enum rc open_memory(const struct combine_args *a, struct err *e) {
    for (int i = 0; i < a->count; i++)
        for (int k = 0; k < a->count; k++)
            if (i != k) TRY(open_memory_to(a->states[i], a->states[k], e));
    return RC_OK;
}

static enum rc join(struct collective *c, const struct combine_args *a, struct err *e) {
    c->devices = (int *)calloc((size_t)a->count, sizeof *c->devices);
    c->comms = (ncclComm_t *)calloc((size_t)a->count, sizeof *c->comms);
    if (c->devices == NULL || c->comms == NULL) return err_set(e, RC_NO_MEMORY, "no memory to join %d GPUs", a->count);
    for (int i = 0; i < a->count; i++)
        c->devices[i] = a->states[i]->device;
    TRY(open_memory(a, e));
    NCCL_TRY(c, init_all, c->comms, a->count, c->devices);
    c->count = a->count;
    return RC_OK;
}

static bool same_devices(const struct collective *c, const struct combine_args *a) {
    bool same = c->count == a->count;
    for (int i = 0; same && i < a->count; i++)
        same = c->devices[i] == a->states[i]->device;
    return same;
}

/* Joined once for the devices of a worker. */
static enum rc collective_of(const struct combine_args *a, struct collective **out, struct err *e) {
    struct collective **kept = &a->states[0]->collective;
    if (*kept == NULL) {
        *kept = (struct collective *)calloc(1, sizeof **kept);
        if (*kept == NULL) return err_set(e, RC_NO_MEMORY, "no memory to join %d GPUs", a->count);
        (*kept)->there = load_library(&(*kept)->call);
    }
    *out = *kept;
    if (!(*kept)->there || same_devices(*kept, a)) return RC_OK;
    leave(*kept, false);
    enum rc rc = join(*kept, a, e);
    if (rc != RC_OK) leave(*kept, true);
    return rc;
}

static enum rc all_reduce(struct collective *c, const struct combine_args *a, struct err *e) {
    size_t count = (size_t)(a->parts[0].rows * a->parts[0].cols);
    ncclDataType_t type = a->parts[0].type == DTYPE_F64    ? ncclFloat64
                          : a->parts[0].type == DTYPE_BF16 ? ncclBfloat16
                                                           : ncclFloat32;
    for (int i = 0; i < a->count; i++)
        NCCL_TRY(c, all_reduce, a->parts[i].data, a->parts[i].data, count, type, ncclSum, c->comms[i],
                 a->states[i]->stream);
    return RC_OK;
}

static enum rc start_sum(struct collective *c, const struct combine_args *a, struct err *e) {
    NCCL_TRY(c, group_start);
    enum rc rc = all_reduce(c, a, e);
    ncclResult_t ended = c->call.group_end();
    TRY(rc);
    return ended == ncclSuccess ? RC_OK : nccl_failure(c, ended, "group_end", e);
}

static enum rc ask_device(struct collective *c, const struct backend_state *state, ncclComm_t comm, bool *done,
                          struct err *e) {
    ncclResult_t result = ncclSuccess;
    cudaError_t error = cudaStreamQuery(state->stream);
    *done = error == cudaSuccess;
    if (error == cudaErrorNotReady)
        cudaGetLastError(); /* no failure, but remembered as one */
    else if (error != cudaSuccess)
        return cuda_failure(error, "cudaStreamQuery", e);
    NCCL_TRY(c, async_error, comm, &result);
    return result == ncclSuccess || result == ncclInProgress ? RC_OK : nccl_failure(c, result, "all_reduce", e);
}

/* Here, and not where each device next waits: one whose partner has failed would wait for ever. */
static enum rc wait_for_sum(struct collective *c, const struct combine_args *a, struct err *e) {
    static const struct timespec moment = {0, 20000};
    for (bool all = false; !all;) {
        all = true;
        for (int i = 0; i < a->count; i++) {
            bool done;
            TRY(ask_device(c, a->states[i], c->comms[i], &done, e));
            all = all && done;
        }
        if (!all) nanosleep(&moment, NULL);
    }
    return RC_OK;
}

/* `done`: whether NCCL is there. */
static enum rc combine_by_nccl(const struct combine_args *a, bool *done, struct err *e) {
    struct collective *c = NULL;
    *done = false;
    TRY(collective_of(a, &c, e));
    if (!c->there) return RC_OK;
    enum rc rc = start_sum(c, a, e);
    if (rc == RC_OK) rc = wait_for_sum(c, a, e);
    if (rc != RC_OK) leave(c, true);
    *done = rc == RC_OK;
    return rc;
}

#endif

enum rc cuda_combine(const struct combine_args *a, struct err *e) {
    bool done = false;
    TRY(check_combine(a, e));
    size_t bytes = (size_t)(a->parts[0].rows * a->parts[0].cols) * dtype_size(a->parts[0].type);
    if (a->count == 1 || bytes == 0) return RC_OK;
    if (!share_a_card(a)) TRY(combine_by_nccl(a, &done, e));
    return done ? RC_OK : combine_by_copies(a, bytes, e);
}
