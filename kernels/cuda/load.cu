#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.cuh"

/* Pinned memory through which tensors pass: one slot fills while another is copied. */
static const int SLOTS = 4;
static const size_t SLOT_BYTES = 16 << 20;

struct slot {
    void *host;       /* pinned */
    void *device;     /* what is converted on the device passes here; NULL until needed */
    cudaEvent_t free; /* the device no longer reads it */
};

struct loader {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool busy, stop; /* under the mutex, as is the result while busy */
    enum rc rc;
    struct err err;
    struct load_item *items; /* [count] of the load at hand */
    size_t count, room;
    int device;
    cudaStream_t stream;
    cudaEvent_t may_begin, done; /* earlier operations no longer use the memory; everything has arrived */
    struct slot slots[SLOTS];
    unsigned next;
};

static __global__ void widen(const void *stored, enum dtype type, int64_t count, float *out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) out[i] = load_stored(stored, type, i);
}

/* Elements [at, at + count) of an item. */
static enum rc load_part(struct loader *l, const struct load_item *item, int64_t at, int64_t count, struct err *e) {
    struct slot *slot = &l->slots[l->next++ % SLOTS];
    size_t size = dtype_size(item->type), bytes = (size_t)count * size;
    bool converts = item->out_type != item->type;
    char *out = (char *)item->out + (size_t)at * dtype_size(item->out_type);
    CUDA_TRY(cudaEventSynchronize(slot->free));
    memcpy(slot->host, (const char *)item->host + (size_t)at * size, bytes);
    CUDA_TRY(
        cudaMemcpyAsync(converts ? slot->device : (void *)out, slot->host, bytes, cudaMemcpyHostToDevice, l->stream));
    if (converts) {
        widen<<<blocks_for(count, BLOCK), BLOCK, 0, l->stream>>>(slot->device, item->type, count, (float *)out);
        LAUNCHED();
    }
    CUDA_TRY(cudaEventRecord(slot->free, l->stream));
    return RC_OK;
}

static enum rc load_items(struct loader *l, struct err *e) {
    CUDA_TRY(cudaSetDevice(l->device));
    CUDA_TRY(cudaStreamWaitEvent(l->stream, l->may_begin));
    for (size_t i = 0; i < l->count; i++) {
        const struct load_item *item = &l->items[i];
        int64_t most = (int64_t)(SLOT_BYTES / dtype_size(item->type));
        for (int64_t at = 0; at < item->count; at += most)
            TRY(load_part(l, item, at, item->count - at < most ? item->count - at : most, e));
    }
    CUDA_TRY(cudaEventRecord(l->done, l->stream));
    return RC_OK;
}

static void *run(void *ctx) {
    struct loader *l = (struct loader *)ctx;
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (!l->busy && !l->stop)
            pthread_cond_wait(&l->changed, &l->mutex);
        if (!l->busy) break;
        pthread_mutex_unlock(&l->mutex);
        enum rc rc = load_items(l, &l->err);
        pthread_mutex_lock(&l->mutex);
        l->rc = rc;
        l->busy = false;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

static enum rc open_loader(struct backend_state *state, struct loader *l, struct err *e) {
    l->device = state->device;
    CUDA_TRY(cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaEventCreateWithFlags(&l->may_begin, cudaEventDisableTiming));
    CUDA_TRY(cudaEventCreateWithFlags(&l->done, cudaEventDisableTiming));
    for (int i = 0; i < SLOTS; i++) {
        CUDA_TRY(cudaMallocHost(&l->slots[i].host, SLOT_BYTES));
        CUDA_TRY(cudaEventCreateWithFlags(&l->slots[i].free, cudaEventDisableTiming));
    }
    return RC_OK;
}

static void close_loader(struct backend_state *state, struct loader *l) {
    for (int i = 0; i < SLOTS; i++) {
        cudaFreeHost(l->slots[i].host);
        cuda_free(state, l->slots[i].device);
        if (l->slots[i].free) cudaEventDestroy(l->slots[i].free);
    }
    if (l->may_begin) cudaEventDestroy(l->may_begin);
    if (l->done) cudaEventDestroy(l->done);
    if (l->stream) cudaStreamDestroy(l->stream);
    free(l->items);
    free(l);
}

static enum rc start_loader(struct backend_state *state, struct err *e) {
    struct loader *l = (struct loader *)calloc(1, sizeof *l);
    if (l == NULL) return err_set(e, RC_NO_MEMORY, "no memory for the thread that loads weights");
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->changed, NULL);
    enum rc rc = open_loader(state, l, e);
    if (rc == RC_OK && pthread_create(&l->thread, NULL, run, l) != 0)
        rc = err_set(e, RC_UNAVAILABLE, "cannot start the thread that loads weights: the system has no more threads");
    if (rc == RC_OK)
        state->loader = l;
    else
        close_loader(state, l);
    return rc;
}

void cuda_load_end(struct backend_state *state) {
    struct loader *l = state->loader;
    if (l == NULL) return;
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    pthread_join(l->thread, NULL);
    cudaStreamSynchronize(l->stream);
    close_loader(state, l);
    state->loader = NULL;
}

/* The result of the load at hand, once it has all been asked for. */
static enum rc wait_for_thread(struct loader *l, struct err *e) {
    pthread_mutex_lock(&l->mutex);
    while (l->busy)
        pthread_cond_wait(&l->changed, &l->mutex);
    enum rc rc = l->rc;
    if (rc != RC_OK) *e = l->err;
    l->rc = RC_OK;
    pthread_mutex_unlock(&l->mutex);
    return rc;
}

static enum rc take_items(struct loader *l, const struct load_item *items, size_t count, struct err *e) {
    if (count > l->room) {
        struct load_item *room = (struct load_item *)realloc(l->items, count * sizeof *room);
        if (room == NULL) return err_set(e, RC_NO_MEMORY, "no memory for a list of %zu tensors", count);
        l->items = room;
        l->room = count;
    }
    memcpy(l->items, items, count * sizeof *items);
    l->count = count;
    return RC_OK;
}

static enum rc need_device_slots(struct backend_state *state, struct loader *l, struct err *e) {
    for (size_t i = 0; i < l->count; i++) {
        if (l->items[i].type == l->items[i].out_type) continue;
        for (int s = 0; s < SLOTS; s++)
            if (l->slots[s].device == NULL) TRY(cuda_alloc(state, SLOT_BYTES, &l->slots[s].device, e));
        return RC_OK;
    }
    return RC_OK;
}

enum rc cuda_load(struct backend_state *state, const struct load_item *items, size_t count, struct err *e) {
    TRY(check_load(items, count, e));
    if (state->loader == NULL) TRY(start_loader(state, e));
    struct loader *l = state->loader;
    TRY(wait_for_thread(l, e));
    TRY(take_items(l, items, count, e));
    TRY(need_device_slots(state, l, e));
    CUDA_TRY(cudaEventRecord(l->may_begin, state->stream)); /* also after the allocations, which the stream orders */
    pthread_mutex_lock(&l->mutex);
    l->busy = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    return RC_OK;
}

enum rc cuda_loaded(struct backend_state *state, struct err *e) {
    struct loader *l = state->loader;
    if (l == NULL) return RC_OK;
    TRY(wait_for_thread(l, e));
    CUDA_TRY(cudaStreamWaitEvent(state->stream, l->done));
    return RC_OK;
}
