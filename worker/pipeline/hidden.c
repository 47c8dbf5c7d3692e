#include "worker/pipeline/hidden.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sizes.h"

struct hidden {
    const struct job *job;
    const char *scratch;
    struct hidden_places places; /* slots come in this order */
    int64_t slot_floats, slot_bytes;
    int64_t working; /* slots' worth of device memory for those that live elsewhere: 0, 1 or 2 */
    int64_t coming;  /* the slot that is on its way there; < 0: none */
    float *device;   /* [places.device + working] */
    float *ram;      /* [places.ram] */
    float *staging;  /* one slot on its way from or to the file */
    int fd;
};

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t fitting(int64_t slots, int64_t limit, int64_t slot_bytes) {
    return limit < 0 ? slots : least(slots, limit / slot_bytes);
}

/* As soon as not all slots fit, two are worked on by turns; one where there is no room for two. */
static int64_t choose_working(const struct hidden_args *a, int64_t slot_bytes) {
    int64_t fits = fitting(a->slots, a->device_limit, slot_bytes);
    return fits == a->slots ? 0 : fits < 2 ? 1 : 2;
}

static struct hidden_places choose_places(const struct hidden_args *a, int64_t slot_bytes) {
    int64_t fits = fitting(a->slots, a->device_limit, slot_bytes), working = choose_working(a, slot_bytes);
    struct hidden_places p = {.device = fits > working ? fits - working : 0};
    p.ram = fitting(a->slots - p.device, a->ram_limit, slot_bytes);
    p.file = a->slots - p.device - p.ram;
    return p;
}

static enum rc memory_error(int64_t bytes, struct err *e) {
    char size[24];
    return err_set(e, RC_NO_MEMORY, "cannot allocate %s for hidden states: lower --ram-limit or use fewer windows",
                   size_format(bytes, size, sizeof size));
}

/* Reserved in full at once, so that a full disk shows at the start of a walk and not hours into it. */
static enum rc open_spill(struct hidden *h, struct err *e) {
    int64_t bytes = h->places.file * h->slot_bytes;
    char size[24];
    size_format(bytes, size, sizeof size);
    char *path = xasprintf("%s/hsaq-hidden-XXXXXX", h->scratch);
    h->fd = mkostemp(path, O_CLOEXEC);
    if (h->fd >= 0) unlink(path);
    free(path);
    if (h->fd < 0) return err_errno(e, "cannot create a spill file for hidden states in %s", h->scratch);
    errno = posix_fallocate(h->fd, 0, bytes);
    if (errno)
        return err_errno(e,
                         "cannot reserve %s for hidden states in scratch folder %s: free space there, raise "
                         "--ram-limit or use fewer windows",
                         size, h->scratch);
    h->staging = malloc((size_t)h->slot_bytes);
    return h->staging ? RC_OK : memory_error(h->slot_bytes, e);
}

static enum rc allocate(struct hidden *h, struct err *e) {
    void *memory;
    TRY(h->job->backend->alloc(h->job->device, (size_t)((h->places.device + h->working) * h->slot_bytes), &memory, e));
    h->device = memory;
    if (h->places.ram > 0) {
        int64_t bytes = h->places.ram * h->slot_bytes;
        if (h->job->backend->host_alloc(h->job->device, (size_t)bytes, &memory, e) != RC_OK)
            return memory_error(bytes, e);
        h->ram = memory;
    }
    return h->places.file > 0 ? open_spill(h, e) : RC_OK;
}

enum rc hidden_open(const struct hidden_args *a, struct hidden **hidden, struct err *e) {
    int64_t slot_bytes, total;
    if (__builtin_mul_overflow(a->slot_floats, (int64_t)sizeof(float), &slot_bytes) ||
        __builtin_mul_overflow(a->slots + 2, slot_bytes, &total))
        return err_set(e, RC_TOO_LARGE, "%lld windows of hidden states exceed the address space: use fewer windows",
                       (long long)a->slots);
    struct hidden *h = xcalloc(1, sizeof *h);
    *h = (struct hidden){.job = a->job,
                         .scratch = a->job->scratch ? a->job->scratch : "/tmp",
                         .places = choose_places(a, slot_bytes),
                         .working = choose_working(a, slot_bytes),
                         .coming = -1,
                         .slot_floats = a->slot_floats,
                         .slot_bytes = slot_bytes,
                         .fd = -1};
    enum rc rc = allocate(h, e);
    if (rc != RC_OK) {
        hidden_close(h);
        return rc;
    }
    *hidden = h;
    return RC_OK;
}

/* Nothing is on its way to or from the working memory any more. */
static enum rc clear_way(struct hidden *h, struct err *e) {
    h->coming = -1;
    TRY(h->job->backend->fetched(h->job->device, e));
    return h->job->backend->offloaded(h->job->device, e);
}

void hidden_close(struct hidden *h) {
    struct err ignored; /* whoever closes knows of a worse one, or needs the values no more */
    if (!h) return;
    if (h->ram) (void)clear_way(h, &ignored);
    if (h->fd >= 0) close(h->fd);
    if (h->device) h->job->backend->free(h->job->device, h->device);
    if (h->ram) h->job->backend->host_free(h->job->device, h->ram);
    free(h->staging);
    free(h);
}

struct hidden_places hidden_places(const struct hidden *h) {
    return h->places;
}

float *hidden_at(struct hidden *h, int64_t slot) {
    int64_t other = slot - h->places.device;
    return h->device + (other < 0 ? slot : h->places.device + other % h->working) * h->slot_floats;
}

static bool in_file(const struct hidden *h, int64_t slot) {
    return slot >= h->places.device + h->places.ram;
}

/* Where the host holds or stages a slot's values. */
static float *host_memory(struct hidden *h, int64_t slot) {
    return in_file(h, slot) ? h->staging : h->ram + (slot - h->places.device) * h->slot_floats;
}

static off_t file_offset(const struct hidden *h, int64_t slot) {
    return (slot - h->places.device - h->places.ram) * h->slot_bytes;
}

static enum rc read_slot(struct hidden *h, int64_t slot, struct err *e) {
    for (int64_t done = 0; done < h->slot_bytes;) {
        ssize_t n =
            pread(h->fd, (char *)h->staging + done, (size_t)(h->slot_bytes - done), file_offset(h, slot) + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, "cannot read hidden states back from %s", h->scratch);
        if (n == 0) return err_set(e, RC_IO, "the spill file of hidden states in %s ended early", h->scratch);
        done += n;
    }
    return RC_OK;
}

static enum rc write_slot(struct hidden *h, int64_t slot, struct err *e) {
    for (int64_t done = 0; done < h->slot_bytes;) {
        ssize_t n =
            pwrite(h->fd, (const char *)h->staging + done, (size_t)(h->slot_bytes - done), file_offset(h, slot) + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, "cannot write hidden states to scratch folder %s", h->scratch);
        done += n;
    }
    return RC_OK;
}

static enum rc begin_fetch(struct hidden *h, int64_t slot, struct err *e) {
    h->coming = slot;
    return h->job->backend->fetch(h->job->device, host_memory(h, slot), (size_t)h->slot_bytes, hidden_at(h, slot), e);
}

static enum rc bring(struct hidden *h, int64_t slot, struct err *e) {
    const struct backend *b = h->job->backend;
    if (slot < h->places.device) return RC_OK;
    if (in_file(h, slot)) {
        TRY(read_slot(h, slot, e));
        TRY(clear_way(h, e));
        return b->upload(h->job->device, h->staging, DTYPE_F32, h->slot_floats, hidden_at(h, slot), e);
    }
    if (h->coming != slot) TRY(begin_fetch(h, slot, e));
    h->coming = -1;
    return b->fetched(h->job->device, e);
}

/* The next slot comes where the one before has been worked on; what has not left yet, leaves first. */
enum rc hidden_recall(struct hidden *h, int64_t slot, int64_t next, struct err *e) {
    TRY(bring(h, slot, e));
    bool comes = next >= h->places.device && !in_file(h, next) && hidden_at(h, next) != hidden_at(h, slot);
    return comes ? begin_fetch(h, next, e) : RC_OK;
}

enum rc hidden_claim(struct hidden *h, int64_t slot, struct err *e) {
    return slot < h->places.device ? RC_OK : clear_way(h, e);
}

enum rc hidden_keep(struct hidden *h, int64_t slot, struct err *e) {
    if (slot < h->places.device) return RC_OK;
    const struct backend *b = h->job->backend;
    size_t bytes = (size_t)h->slot_bytes;
    if (!in_file(h, slot)) return b->offload(h->job->device, hidden_at(h, slot), bytes, host_memory(h, slot), e);
    TRY(b->download(h->job->device, hidden_at(h, slot), bytes, h->staging, e));
    return write_slot(h, slot, e);
}

/* Working memory that both share holds the values already. */
enum rc hidden_copy(struct hidden *h, int64_t from, int64_t to, struct err *e) {
    struct mat source = matf(hidden_at(h, from), 1, h->slot_floats), target = matf(hidden_at(h, to), 1, h->slot_floats);
    TRY(hidden_claim(h, to, e));
    if (target.data != source.data)
        TRY(h->job->backend->scale(h->job->device, &(struct scale_args){.m = source, .out = target}, e));
    return hidden_keep(h, to, e);
}
