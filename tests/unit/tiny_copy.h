/* Copies of the tiny model in scratch folders, whose weights a test changes. */
#ifndef HSAQ_TESTS_TINY_COPY_H
#define HSAQ_TESTS_TINY_COPY_H

#include "tests/unit/scratch.h"

#include <jansson.h>

#define TINY "tests/fixture/tiny/"

static inline void tiny_copy_file(const struct scratch *s, const char *name) {
    char path[128], chunk[1 << 16];
    snprintf(path, sizeof path, TINY "%s", name);
    int from = open(path, O_RDONLY | O_CLOEXEC), to = openat(s->fd, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(from >= 0 && to >= 0);
    for (ssize_t n; (n = read(from, chunk, sizeof chunk)) > 0;)
        assert_int_equal(write(to, chunk, (size_t)n), n);
    close(from);
    close(to);
}

static inline struct scratch tiny_copy(void) {
    struct scratch s = scratch_open();
    static const char *const files[] = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        tiny_copy_file(&s, files[i]);
    return s;
}

/* Where a tensor's bytes lie in the copy's file, and its shape (cols 1 for a vector). */
struct tiny_place {
    off_t offset;
    int64_t rows, cols;
};

static inline struct tiny_place tiny_find(int fd, const char *tensor) {
    uint64_t length;
    assert_int_equal(pread(fd, &length, sizeof length, 0), sizeof length);
    char *header = malloc(length);
    assert_int_equal(pread(fd, header, length, sizeof length), (ssize_t)length);
    json_t *all = json_loadb(header, length, 0, NULL), *entry = json_object_get(all, tensor);
    if (!entry) fail_msg("the tiny model has no %s", tensor);
    const json_t *shape = json_object_get(entry, "shape");
    json_int_t start = json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
    struct tiny_place place = {(off_t)(sizeof length + length) + start, json_integer_value(json_array_get(shape, 0)),
                               json_array_size(shape) > 1 ? json_integer_value(json_array_get(shape, 1)) : 1};
    json_decref(all);
    free(header);
    return place;
}

/* `edit` changes the bf16 patterns [rows, cols] of one tensor. */
typedef void (*tiny_edit_fn)(uint16_t *w, int64_t rows, int64_t cols);

static inline void tiny_edit(const struct scratch *s, const char *tensor, tiny_edit_fn edit) {
    int fd = openat(s->fd, "model.safetensors", O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    struct tiny_place p = tiny_find(fd, tensor);
    size_t bytes = (size_t)(p.rows * p.cols) * sizeof(uint16_t);
    uint16_t *w = malloc(bytes);
    assert_int_equal(pread(fd, w, bytes, p.offset), (ssize_t)bytes);
    edit(w, p.rows, p.cols);
    assert_int_equal(pwrite(fd, w, bytes, p.offset), (ssize_t)bytes);
    free(w);
    close(fd);
}

#endif
