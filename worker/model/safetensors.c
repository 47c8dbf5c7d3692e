#include "worker/model/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "worker/model/folder.h"

static const char single_name[] = "model.safetensors", index_name[] = "model.safetensors.index.json";
enum { INDEX_MAX_BYTES = 64 * 1024 * 1024 };

struct shard {
    char *file;
    void *map; /* NULL until mapped */
    size_t len;
    struct st_tensor *tensors; /* [count] one block; names live in it */
    int64_t count;
    char *identity;
};

struct safetensors {
    struct shard *shards;
    int shard_count, shard_capacity;
    struct st_tensor *tensors; /* [count] of all shards, sorted by name */
    int64_t count;
};

static enum rc shard_map(struct shard *s, int fd, struct err *e) {
    struct stat st;
    if (fstat(fd, &st) != 0) return err_errno(e, "cannot examine %s", s->file);
    if (st.st_size == 0) return err_set(e, RC_INVALID, "%s is empty", s->file);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return err_errno(e, "cannot map %s", s->file);
    s->map = map;
    s->len = (size_t)st.st_size;
    s->identity = xasprintf("%s %lld %lld.%09ld %llu\n", s->file, (long long)st.st_size, (long long)st.st_mtim.tv_sec,
                            st.st_mtim.tv_nsec, (unsigned long long)st.st_ino);
    return RC_OK;
}

static enum rc shard_open(int dir_fd, struct shard *s, struct err *e) {
    int fd;
    int64_t bytes;
    TRY(folder_open_file(dir_fd, s->file, &fd, &bytes, e));
    enum rc rc = shard_map(s, fd, e);
    close(fd);
    TRY(rc);
    return safetensors_parse(s->map, s->len, s->file, &s->tensors, &s->count, e);
}

static struct shard *shard_find(struct safetensors *st, const char *file) {
    for (int i = 0; i < st->shard_count; i++)
        if (strcmp(st->shards[i].file, file) == 0) return &st->shards[i];
    return NULL;
}

static void shard_add(struct safetensors *st, const char *file) {
    GROW(st->shards, st->shard_count, st->shard_capacity);
    st->shards[st->shard_count++] = (struct shard){.file = xstrdup(file)};
}

static enum rc list_shards(struct safetensors *st, const json_t *weight_map, struct err *e) {
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        return err_set(e, RC_INVALID, "%s: weight_map is missing, empty or no object", index_name);
    const char *tensor;
    const json_t *value;
    json_object_foreach((json_t *)weight_map, tensor, value) {
        const char *file = json_string_value(value);
        if (file == NULL) return err_set(e, RC_INVALID, "%s: tensor '%.128s' names no file", index_name, tensor);
        if (shard_find(st, file) != NULL) continue;
        if (st->shard_count == SHARDS_MAX)
            return err_set(e, RC_INVALID, "%s names more than %d shards", index_name, SHARDS_MAX);
        shard_add(st, file);
    }
    return RC_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static const struct st_tensor *find(const struct st_tensor *tensors, int64_t count, const char *name) {
    struct st_tensor key = {.name = name};
    return count ? bsearch(&key, tensors, (size_t)count, sizeof *tensors, by_name) : NULL;
}

/* What the index promises must be where it says. */
static enum rc check_index(struct safetensors *st, const json_t *weight_map, struct err *e) {
    const char *tensor;
    const json_t *value;
    json_object_foreach((json_t *)weight_map, tensor, value) {
        const struct shard *s = shard_find(st, json_string_value(value));
        if (find(s->tensors, s->count, tensor) == NULL)
            return err_set(e, RC_INVALID, "%s puts tensor '%.128s' into %s, which lacks it", index_name, tensor,
                           s->file);
    }
    return RC_OK;
}

static enum rc merge(struct safetensors *st, struct err *e) {
    for (int i = 0; i < st->shard_count; i++)
        st->count += st->shards[i].count;
    st->tensors = calloc((size_t)st->count + 1, sizeof *st->tensors);
    if (st->tensors == NULL) return err_set(e, RC_NO_MEMORY, "no memory for %lld tensors", (long long)st->count);
    struct st_tensor *out = st->tensors;
    for (int i = 0; i < st->shard_count; i++) {
        memcpy(out, st->shards[i].tensors, (size_t)st->shards[i].count * sizeof *out);
        out += st->shards[i].count;
    }
    qsort(st->tensors, (size_t)st->count, sizeof *st->tensors, by_name);
    for (int64_t i = 1; i < st->count; i++)
        if (strcmp(st->tensors[i - 1].name, st->tensors[i].name) == 0)
            return err_set(e, RC_INVALID, "tensor '%.128s' is in both %s and %s", st->tensors[i].name,
                           st->tensors[i - 1].file, st->tensors[i].file);
    return RC_OK;
}

static enum rc open_shards(int dir_fd, struct safetensors *st, struct err *e) {
    for (int i = 0; i < st->shard_count; i++)
        TRY(shard_open(dir_fd, &st->shards[i], e));
    return RC_OK;
}

static enum rc open_sharded(int dir_fd, struct safetensors *st, const char *text, size_t len, struct err *e) {
    json_t *index;
    if (json_parse(text, len, &index, e) != RC_OK) return err_context(e, "%s", index_name);
    const json_t *weight_map = json_object_get(index, "weight_map");
    enum rc rc = list_shards(st, weight_map, e);
    if (rc == RC_OK) rc = open_shards(dir_fd, st, e);
    if (rc == RC_OK) rc = check_index(st, weight_map, e);
    json_decref(index);
    return rc;
}

/* As transformers does: the single file wins over an index beside it. */
static enum rc open_any(int dir_fd, struct safetensors *st, struct err *e) {
    shard_add(st, single_name);
    enum rc rc = open_shards(dir_fd, st, e);
    if (rc != RC_NOT_FOUND) return rc;
    free(st->shards[--st->shard_count].file);
    char *text;
    size_t len;
    rc = folder_read(dir_fd, index_name, INDEX_MAX_BYTES, &text, &len, e);
    if (rc == RC_NOT_FOUND)
        return err_set(e, RC_NOT_FOUND, "the folder holds neither %s nor %s", single_name, index_name);
    TRY(rc);
    rc = open_sharded(dir_fd, st, text, len, e);
    free(text);
    return rc;
}

/* Of files that were opened, or not. */
static enum rc complete(struct safetensors *opened, enum rc rc, struct safetensors **st, struct err *e) {
    if (rc == RC_OK) rc = merge(opened, e);
    if (rc != RC_OK) {
        safetensors_close(opened);
        opened = NULL;
    }
    *st = opened;
    return rc;
}

enum rc safetensors_open(int dir_fd, struct safetensors **st, struct err *e) {
    struct safetensors *opened = xcalloc(1, sizeof *opened);
    return complete(opened, open_any(dir_fd, opened, e), st, e);
}

enum rc safetensors_open_files(int dir_fd, const char *const *files, int count, struct safetensors **st,
                               struct err *e) {
    struct safetensors *opened = xcalloc(1, sizeof *opened);
    for (int i = 0; i < count; i++)
        shard_add(opened, files[i]);
    return complete(opened, open_shards(dir_fd, opened, e), st, e);
}

void safetensors_close(struct safetensors *st) {
    if (st == NULL) return;
    for (int i = 0; i < st->shard_count; i++) {
        struct shard *s = &st->shards[i];
        if (s->map != NULL) munmap(s->map, s->len);
        free(s->tensors);
        free(s->identity);
        free(s->file);
    }
    free(st->shards);
    free(st->tensors);
    free(st);
}

const struct st_tensor *safetensors_find(const struct safetensors *st, const char *name) {
    return find(st->tensors, st->count, name);
}

const struct st_tensor *safetensors_all(const struct safetensors *st, int64_t *count) {
    *count = st->count;
    return st->tensors;
}

char *safetensors_identity(const struct safetensors *st) {
    struct strbuf text = STRBUF_INIT;
    for (int i = 0; i < st->shard_count; i++)
        strbuf_puts(&text, st->shards[i].identity);
    return strbuf_detach(&text);
}
