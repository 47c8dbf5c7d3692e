#include "worker/pipeline/hidden.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sizes.h"

struct hidden {
    int64_t slots, slot_bytes, resident; /* resident: slots in memory */
    float *memory;                       /* [resident, slot] */
    float *staging;                      /* [slot]; NULL when nothing spills */
    int fd;
    char *scratch;
};

static enum rc memory_error(int64_t bytes, struct err *e) {
    char size[24];
    return err_set(e, RC_NO_MEMORY, "cannot allocate %s for hidden states: lower --ram-limit or use fewer windows",
                   size_format(bytes, size, sizeof size));
}

/* Reserved in full at once, so that a full disk shows at the start of a walk and not hours into it. */
static enum rc open_spill(struct hidden *h, struct err *e) {
    int64_t bytes = (h->slots - h->resident) * h->slot_bytes;
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
    if (h->resident > 0) {
        h->memory = malloc((size_t)(h->resident * h->slot_bytes));
        if (!h->memory) return memory_error(h->resident * h->slot_bytes, e);
    }
    return h->resident < h->slots ? open_spill(h, e) : RC_OK;
}

enum rc hidden_open(int64_t slots, int64_t slot_floats, int64_t limit, const char *scratch, struct hidden **hidden,
                    struct err *e) {
    int64_t slot_bytes, total;
    if (__builtin_mul_overflow(slot_floats, (int64_t)sizeof(float), &slot_bytes) ||
        __builtin_mul_overflow(slots, slot_bytes, &total))
        return err_set(e, RC_TOO_LARGE, "%lld windows of hidden states exceed the address space: use fewer windows",
                       (long long)slots);
    struct hidden *h = xcalloc(1, sizeof *h);
    int64_t fit = limit < 0 ? slots : limit / slot_bytes;
    *h = (struct hidden){.slots = slots,
                         .slot_bytes = slot_bytes,
                         .resident = fit < slots ? fit : slots,
                         .fd = -1,
                         .scratch = xstrdup(scratch ? scratch : "/tmp")};
    enum rc rc = allocate(h, e);
    if (rc != RC_OK) {
        hidden_close(h);
        return rc;
    }
    *hidden = h;
    return RC_OK;
}

void hidden_close(struct hidden *h) {
    if (!h) return;
    if (h->fd >= 0) close(h->fd);
    free(h->memory);
    free(h->staging);
    free(h->scratch);
    free(h);
}

int64_t hidden_spilled(const struct hidden *h) {
    return h->slots - h->resident;
}

float *hidden_buffer(struct hidden *h, int64_t slot) {
    return slot < h->resident ? h->memory + slot * (h->slot_bytes / (int64_t)sizeof(float)) : h->staging;
}

enum rc hidden_get(struct hidden *h, int64_t slot, float **values, struct err *e) {
    *values = hidden_buffer(h, slot);
    if (slot < h->resident) return RC_OK;
    off_t base = (slot - h->resident) * h->slot_bytes;
    for (int64_t done = 0; done < h->slot_bytes;) {
        ssize_t n = pread(h->fd, (char *)h->staging + done, (size_t)(h->slot_bytes - done), base + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, "cannot read hidden states back from %s", h->scratch);
        if (n == 0) return err_set(e, RC_IO, "the spill file of hidden states in %s ended early", h->scratch);
        done += n;
    }
    return RC_OK;
}

enum rc hidden_put(struct hidden *h, int64_t slot, struct err *e) {
    if (slot < h->resident) return RC_OK;
    off_t base = (slot - h->resident) * h->slot_bytes;
    for (int64_t done = 0; done < h->slot_bytes;) {
        ssize_t n = pwrite(h->fd, (const char *)h->staging + done, (size_t)(h->slot_bytes - done), base + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, "cannot write hidden states to scratch folder %s", h->scratch);
        done += n;
    }
    return RC_OK;
}
