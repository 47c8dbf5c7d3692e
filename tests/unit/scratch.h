/* A scratch folder for tests that read files: made by scratch_open, removed with all it holds by scratch_close. */
#ifndef HSAQ_TESTS_SCRATCH_H
#define HSAQ_TESTS_SCRATCH_H

#include "tests/unit/cmocka_main.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct scratch {
    char path[64];
    int fd;
};

static inline struct scratch scratch_open(void) {
    struct scratch s = {.path = "/tmp/hsaq-test-XXXXXX"};
    assert_non_null(mkdtemp(s.path));
    s.fd = open(s.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(s.fd >= 0);
    return s;
}

static inline int scratch_remove(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static inline void scratch_close(struct scratch *s) {
    close(s->fd);
    assert_int_equal(nftw(s->path, scratch_remove, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static inline void scratch_write(const struct scratch *s, const char *name, const void *bytes, size_t len) {
    int fd = openat(s->fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, len), (ssize_t)len);
    close(fd);
}

/* A safetensors file: the header's length, the header, `data_len` bytes counting 0, 1, 2, … */
static inline void scratch_tensors(const struct scratch *s, const char *name, const char *header, size_t data_len) {
    size_t header_len = strlen(header), len = 8 + header_len + data_len;
    unsigned char *bytes = calloc(1, len);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(header_len >> 8 * i);
    memcpy(bytes + 8, header, header_len);
    for (size_t i = 0; i < data_len; i++)
        bytes[8 + header_len + i] = (unsigned char)i;
    scratch_write(s, name, bytes, len);
    free(bytes);
}

/* The whole of a file, NUL-terminated; the caller frees. */
static inline char *scratch_load(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("cannot open %s", path);
    char *bytes = calloc(1, 1 << 20);
    assert_non_null(bytes);
    *len = fread(bytes, 1, (1 << 20) - 1, file);
    fclose(file);
    return bytes;
}

static inline void scratch_copy(const struct scratch *s, const char *from, const char *name) {
    size_t len;
    char *bytes = scratch_load(from, &len);
    scratch_write(s, name, bytes, len);
    free(bytes);
}

#endif
