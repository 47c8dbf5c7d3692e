#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.cuh"

/* One thread copies from the page cache at a fraction of what the bus takes. Each has two pieces of pinned memory: one
 * fills while the other is on its way. */
static const int THREADS = 4, SLOTS = 2;
static const size_t SLOT_BYTES = 8 << 20;

struct slot {
    void *host;       /* pinned */
    void *device;     /* what is converted on the device passes here; NULL until needed */
    cudaEvent_t free; /* the device no longer reads it */
};

/* As much of a tensor as fits a slot: elements [at, at + count). */
struct part {
    struct load_item item;
    int64_t at, count;
};

struct copier {
    struct loader *loader;
    pthread_t thread;
    struct slot slots[SLOTS];
    unsigned next;
    bool started;
};

struct loader {
    struct copier copiers[THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Under the mutex: */
    struct part *parts; /* [count] of the load at hand */
    size_t count, room, taken, left;
    bool stop;
    enum rc rc; /* of the first part that failed */
    struct err err;

    int device;
    cudaStream_t stream;
    cudaEvent_t may_begin, done; /* earlier operations no longer use the memory; everything has arrived */
};

static __global__ void widen(const void *stored, enum dtype type, int64_t count, float *out) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) out[i] = load_stored(stored, type, i);
}

static enum rc copy_part(struct copier *c, const struct part *p, struct err *e) {
    struct slot *slot = &c->slots[c->next++ % SLOTS];
    cudaStream_t stream = c->loader->stream;
    size_t size = dtype_size(p->item.type), bytes = (size_t)p->count * size;
    bool converts = p->item.out_type != p->item.type;
    char *out = (char *)p->item.out + (size_t)p->at * dtype_size(p->item.out_type);
    CUDA_TRY(cudaEventSynchronize(slot->free));
    memcpy(slot->host, (const char *)p->item.host + (size_t)p->at * size, bytes);
    CUDA_TRY(cudaMemcpyAsync(converts ? slot->device : (void *)out, slot->host, bytes, cudaMemcpyHostToDevice, stream));
    if (converts) {
        widen<<<blocks_for(p->count, BLOCK), BLOCK, 0, stream>>>(slot->device, p->item.type, p->count, (float *)out);
        LAUNCHED();
    }
    CUDA_TRY(cudaEventRecord(slot->free, stream));
    return RC_OK;
}

/* After a failure the parts that nobody has taken yet are left out. The last part of all tells when all have arrived.
 */
static void finish_part(struct loader *l, enum rc rc, const struct err *failure) {
    if (rc != RC_OK && l->rc == RC_OK) {
        l->rc = rc;
        l->err = *failure;
    }
    if (l->rc != RC_OK) {
        l->left -= l->count - l->taken;
        l->taken = l->count;
    }
    if (--l->left > 0) return;
    if (l->rc == RC_OK && cudaEventRecord(l->done, l->stream) != cudaSuccess)
        l->rc = cuda_failure(cudaGetLastError(), "cudaEventRecord", &l->err);
    pthread_cond_broadcast(&l->changed);
}

static void *copy_parts(void *ctx) {
    struct copier *c = (struct copier *)ctx;
    struct loader *l = c->loader;
    cudaSetDevice(l->device);
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (l->taken == l->count && !l->stop)
            pthread_cond_wait(&l->changed, &l->mutex);
        if (l->taken == l->count) break;
        struct part part = l->parts[l->taken++];
        struct err failure = {};
        pthread_mutex_unlock(&l->mutex);
        enum rc rc = copy_part(c, &part, &failure);
        pthread_mutex_lock(&l->mutex);
        finish_part(l, rc, &failure);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

static enum rc open_slots(struct copier *c, struct err *e) {
    for (int i = 0; i < SLOTS; i++) {
        CUDA_TRY(cudaMallocHost(&c->slots[i].host, SLOT_BYTES));
        CUDA_TRY(cudaEventCreateWithFlags(&c->slots[i].free, cudaEventDisableTiming));
    }
    return RC_OK;
}

static enum rc open_loader(struct loader *l, struct err *e) {
    CUDA_TRY(cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaEventCreateWithFlags(&l->may_begin, cudaEventDisableTiming));
    CUDA_TRY(cudaEventCreateWithFlags(&l->done, cudaEventDisableTiming));
    for (int i = 0; i < THREADS; i++) {
        struct copier *c = &l->copiers[i];
        c->loader = l;
        TRY(open_slots(c, e));
        if (pthread_create(&c->thread, NULL, copy_parts, c) != 0)
            return err_set(e, RC_UNAVAILABLE, "cannot start threads that load weights: the system has no more of them");
        c->started = true;
    }
    return RC_OK;
}

static void stop_copiers(struct loader *l) {
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    for (int i = 0; i < THREADS; i++)
        if (l->copiers[i].started) pthread_join(l->copiers[i].thread, NULL);
}

static void close_slots(struct backend_state *state, struct copier *c) {
    for (int i = 0; i < SLOTS; i++) {
        cudaFreeHost(c->slots[i].host);
        cuda_free(state, c->slots[i].device);
        if (c->slots[i].free) cudaEventDestroy(c->slots[i].free);
    }
}

static void close_loader(struct backend_state *state, struct loader *l) {
    stop_copiers(l);
    if (l->stream) cudaStreamSynchronize(l->stream);
    for (int i = 0; i < THREADS; i++)
        close_slots(state, &l->copiers[i]);
    if (l->may_begin) cudaEventDestroy(l->may_begin);
    if (l->done) cudaEventDestroy(l->done);
    if (l->stream) cudaStreamDestroy(l->stream);
    free(l->parts);
    free(l);
}

static enum rc start_loader(struct backend_state *state, struct err *e) {
    struct loader *l = (struct loader *)calloc(1, sizeof *l);
    if (l == NULL) return err_set(e, RC_NO_MEMORY, "no memory for the threads that load weights");
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->changed, NULL);
    l->device = state->device;
    enum rc rc = open_loader(l, e);
    if (rc == RC_OK)
        state->loader = l;
    else
        close_loader(state, l);
    return rc;
}

void cuda_load_end(struct backend_state *state) {
    if (state->loader) close_loader(state, state->loader);
    state->loader = NULL;
}

/* The result of the load at hand, once all of it has been asked for. */
static enum rc wait_for_copiers(struct loader *l, struct err *e) {
    pthread_mutex_lock(&l->mutex);
    while (l->left > 0)
        pthread_cond_wait(&l->changed, &l->mutex);
    enum rc rc = l->rc;
    if (rc != RC_OK) *e = l->err;
    l->rc = RC_OK;
    pthread_mutex_unlock(&l->mutex);
    return rc;
}

static int64_t elements_of_slot(const struct load_item *item) {
    return (int64_t)(SLOT_BYTES / dtype_size(item->type));
}

static enum rc need_parts(struct loader *l, const struct load_item *items, size_t count, struct err *e) {
    size_t needed = 0;
    for (size_t i = 0; i < count; i++)
        needed += (size_t)blocks_for(items[i].count, elements_of_slot(&items[i]));
    if (needed <= l->room) return RC_OK;
    struct part *parts = (struct part *)realloc(l->parts, needed * sizeof *parts);
    if (parts == NULL) return err_set(e, RC_NO_MEMORY, "no memory to load %zu tensors", count);
    l->parts = parts;
    l->room = needed;
    return RC_OK;
}

static enum rc need_device_slots(struct backend_state *state, struct loader *l, struct err *e) {
    for (int i = 0; i < THREADS; i++)
        for (int s = 0; s < SLOTS; s++) {
            struct slot *slot = &l->copiers[i].slots[s];
            if (slot->device == NULL) TRY(cuda_alloc(state, SLOT_BYTES, &slot->device, e));
        }
    return RC_OK;
}

static void hand_over(struct loader *l, const struct load_item *items, size_t count) {
    pthread_mutex_lock(&l->mutex);
    l->count = l->taken = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t most = elements_of_slot(&items[i]);
        for (int64_t at = 0; at < items[i].count; at += most)
            l->parts[l->count++] = {items[i], at, items[i].count - at < most ? items[i].count - at : most};
    }
    l->left = l->count;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
}

enum rc cuda_load(struct backend_state *state, const struct load_item *items, size_t count, struct err *e) {
    TRY(check_load(items, count, e));
    if (state->loader == NULL) TRY(start_loader(state, e));
    struct loader *l = state->loader;
    TRY(wait_for_copiers(l, e));
    TRY(need_parts(l, items, count, e));
    for (size_t i = 0; i < count; i++)
        if (items[i].type != items[i].out_type) TRY(need_device_slots(state, l, e));
    CUDA_TRY(cudaEventRecord(l->may_begin, state->stream)); /* also after the allocations, which the stream orders */
    CUDA_TRY(cudaStreamWaitEvent(l->stream, l->may_begin));
    hand_over(l, items, count);
    return RC_OK;
}

enum rc cuda_loaded(struct backend_state *state, struct err *e) {
    struct loader *l = state->loader;
    if (l == NULL) return RC_OK;
    TRY(wait_for_copiers(l, e));
    CUDA_TRY(cudaStreamWaitEvent(state->stream, l->done));
    return RC_OK;
}
