/* A dataset's text as tokens (windows.h). */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/model/windows.h"

enum rc tokens_encode(const struct tokenizer *t, const char *text, size_t len, int64_t vocab, struct tokens *out,
                      struct err *e) {
    size_t count = 0;
    *out = (struct tokens){0};
    TRY(tokenizer_encode(t, text, len, true, &out->ids, &count, e));
    out->count = (int64_t)count;
    for (int64_t i = 0; i < out->count; i++) {
        int32_t id = out->ids[i];
        if (id >= 0 && id < vocab) continue;
        tokens_release(out);
        return err_set(e, RC_INVALID,
                       "token %lld of the text has id %d, but the model's vocab_size is %lld: tokenizer.json and "
                       "config.json do not belong together",
                       (long long)i, (int)id, (long long)vocab);
    }
    return RC_OK;
}

static enum rc encode_open_file(const struct tokenizer *t, int fd, const char *path, int64_t vocab, struct tokens *out,
                                struct err *e) {
    struct stat st;
    if (fstat(fd, &st) != 0) return err_errno(e, "cannot examine '%s'", path);
    if (!S_ISREG(st.st_mode)) return err_set(e, RC_INVALID, "'%s' is not a regular file", path);
    size_t len = (size_t)st.st_size;
    if (len == 0) return tokens_encode(t, "", 0, vocab, out, e);
    void *text = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
    if (text == MAP_FAILED) return err_errno(e, "cannot map '%s'", path);
    enum rc rc = tokens_encode(t, text, len, vocab, out, e);
    munmap(text, len);
    return rc;
}

enum rc tokens_read(const struct tokenizer *t, const char *path, int64_t vocab, struct tokens *out, struct err *e) {
    *out = (struct tokens){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return err_errno(e, "cannot open '%s'", path);
    enum rc rc = encode_open_file(t, fd, path, vocab, out, e);
    close(fd);
    return rc;
}

void tokens_release(struct tokens *tokens) {
    free(tokens->ids);
    *tokens = (struct tokens){0};
}
