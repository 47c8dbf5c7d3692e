/* The cpu as if it were a device whose copies beside the operations (offload, fetch) are made as late as may be: when
 * they are waited for. What is written over or read too early, or freed while it is copied, shows. */
#ifndef HSAQ_TESTS_LATE_COPIES_H
#define HSAQ_TESTS_LATE_COPIES_H

#include "tests/unit/cmocka_main.h"

#include <string.h>

#include "kernels/backend.h"

static struct {
    struct late_copy {
        const void *from;
        void *to;
        size_t bytes;
    } copies[1 << 14];
    int asked, done;
    int fetched, offloaded; /* how many are done when the last of each kind is */
    int beside;             /* fetches that had not been waited for when another slot was done with */
} late;

static inline enum rc late_ask(const void *from, size_t bytes, void *to, int *kind) {
    if (late.done == late.asked) late.done = late.asked = late.fetched = late.offloaded = 0;
    assert_true(late.asked < (int)(sizeof late.copies / sizeof *late.copies));
    late.copies[late.asked++] = (struct late_copy){from, to, bytes};
    *kind = late.asked;
    return RC_OK;
}

static inline enum rc late_wait(int until) {
    for (; late.done < until; late.done++)
        memcpy(late.copies[late.done].to, late.copies[late.done].from, late.copies[late.done].bytes);
    return RC_OK;
}

static enum rc late_offload(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e) {
    (void)state, (void)e;
    late.beside += late.fetched > late.done;
    return late_ask(device, bytes, host, &late.offloaded);
}

static enum rc late_fetch(struct backend_state *state, const void *host, size_t bytes, void *device, struct err *e) {
    (void)state, (void)e;
    return late_ask(host, bytes, device, &late.fetched);
}

static enum rc late_offloaded(struct backend_state *state, struct err *e) {
    (void)state, (void)e;
    return late_wait(late.offloaded);
}

static enum rc late_fetched(struct backend_state *state, struct err *e) {
    (void)state, (void)e;
    return late_wait(late.fetched);
}

static void late_host_free(struct backend_state *state, void *memory) {
    assert_int_equal(late.done, late.asked);
    backend_cpu.host_free(state, memory);
}

static inline struct backend with_late_copies(struct backend b) {
    b.offload = late_offload;
    b.fetch = late_fetch;
    b.offloaded = late_offloaded;
    b.fetched = late_fetched;
    b.host_free = late_host_free;
    return b;
}

#endif
