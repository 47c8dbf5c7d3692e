#include "worker/model/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/strbuf.h"

enum { ALIGNMENT = 8 };

/* A file on its way: under a temporary name until it is whole. */
struct out_file {
    int dir_fd, fd;
    const char *name;
    char *temporary;
};

static const char suffix[] = ".writing";

bool file_is_temporary(const char *name) {
    size_t len = strlen(name);
    return name[0] == '.' && len > sizeof suffix && strcmp(name + len - (sizeof suffix - 1), suffix) == 0;
}

static enum rc out_open(int dir_fd, const char *name, struct out_file *f, struct err *e) {
    *f = (struct out_file){.dir_fd = dir_fd, .name = name, .temporary = xasprintf(".%s%s", name, suffix)};
    f->fd = openat(dir_fd, f->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (f->fd >= 0) return RC_OK;
    free(f->temporary);
    return err_errno(e, "cannot create %s", name);
}

static enum rc out_put(struct out_file *f, const void *bytes, size_t len, struct err *e) {
    while (len > 0) {
        ssize_t put = write(f->fd, bytes, len);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return err_errno(e, "cannot write %s", f->name);
        bytes = (const char *)bytes + put;
        len -= (size_t)put;
    }
    return RC_OK;
}

static enum rc out_sync(struct out_file *f, struct err *e) {
    if (fsync(f->fd) != 0) return err_errno(e, "cannot write %s to the disk", f->name);
    if (renameat(f->dir_fd, f->temporary, f->dir_fd, f->name) != 0) return err_errno(e, "cannot name %s", f->name);
    return fsync(f->dir_fd) == 0 ? RC_OK : err_errno(e, "cannot write the folder of %s to the disk", f->name);
}

/* Ends the file, whatever became of it. */
static enum rc out_close(struct out_file *f, enum rc rc, struct err *e) {
    if (rc == RC_OK) rc = out_sync(f, e);
    if (rc != RC_OK) (void)unlinkat(f->dir_fd, f->temporary, 0);
    close(f->fd);
    free(f->temporary);
    return rc;
}

enum rc file_write(int dir_fd, const char *file, const void *bytes, size_t len, struct err *e) {
    struct out_file f;
    TRY(out_open(dir_fd, file, &f, e));
    return out_close(&f, out_put(&f, bytes, len, e), e);
}

/* --- safetensors --- */

void shard_add(struct out_shard *s, const char *name, struct out_tensor tensor) {
    tensor.name = xstrdup(name);
    GROW(s->tensors, s->count, s->capacity);
    s->tensors[s->count++] = tensor;
}

void shard_release(struct out_shard *s) {
    for (size_t i = 0; i < s->count; i++)
        free(s->tensors[i].name);
    free(s->tensors);
    *s = (struct out_shard){0};
}

static int64_t element_bytes(const struct out_tensor *t) {
    int64_t count = 1;
    for (int i = 0; i < t->dims; i++)
        count *= t->shape[i];
    return count > 0 ? t->bytes / count : 0;
}

static int by_width_and_name(const void *a, const void *b) {
    int64_t x = element_bytes(a), y = element_bytes(b);
    if (x != y) return x > y ? -1 : 1;
    return strcmp(((const struct out_tensor *)a)->name, ((const struct out_tensor *)b)->name);
}

int64_t shard_data_bytes(const struct out_shard *s) {
    int64_t bytes = 0;
    for (size_t i = 0; i < s->count; i++)
        bytes += s->tensors[i].bytes;
    return bytes;
}

/* Names are those of model files: letters, digits, dots and underscores, nothing to escape. */
static void put_entry(struct strbuf *header, const struct out_tensor *t, int64_t at) {
    strbuf_printf(header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, t->type);
    for (int i = 0; i < t->dims; i++)
        strbuf_printf(header, "%s%lld", i > 0 ? "," : "", (long long)t->shape[i]);
    strbuf_printf(header, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + t->bytes));
}

/* The length and the JSON, padded with spaces so that the data begins aligned. */
static void put_header(struct out_shard *s, struct strbuf *header) {
    static const char length[sizeof(uint64_t)];
    int64_t at = 0;
    if (s->count > 0) qsort(s->tensors, s->count, sizeof *s->tensors, by_width_and_name);
    strbuf_append(header, length, sizeof length);
    strbuf_puts(header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < s->count; i++) {
        put_entry(header, &s->tensors[i], at);
        at += s->tensors[i].bytes;
    }
    strbuf_puts(header, "}");
    while (header->len % ALIGNMENT != 0)
        strbuf_puts(header, " ");
    for (size_t i = 0; i < sizeof length; i++)
        header->data[i] = (char)((header->len - sizeof length) >> 8 * i & 0xff);
}

int64_t shard_file_bytes(struct out_shard *s) {
    struct strbuf header = STRBUF_INIT;
    put_header(s, &header);
    int64_t bytes = (int64_t)header.len + shard_data_bytes(s);
    strbuf_release(&header);
    return bytes;
}

enum rc shard_write(struct out_shard *s, int dir_fd, const char *file, struct err *e) {
    struct out_file f;
    struct strbuf header = STRBUF_INIT;
    TRY(out_open(dir_fd, file, &f, e));
    put_header(s, &header);
    enum rc rc = out_put(&f, header.data, header.len, e);
    strbuf_release(&header);
    for (size_t i = 0; rc == RC_OK && i < s->count; i++)
        rc = out_put(&f, s->tensors[i].data, (size_t)s->tensors[i].bytes, e);
    return out_close(&f, rc, e);
}
