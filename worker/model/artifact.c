#include "worker/model/artifact.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/spec.h"
#include "base/strbuf.h"
#include "worker/model/artifact_parts.h"
#include "worker/model/folder.h"
#include "worker/model/hash.h"

/* What goes along unchanged, where the source has it. */
static const char *const copied[] = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
};
enum { COPIED = sizeof copied / sizeof *copied, COPIED_MAX_BYTES = 256 << 20, CONFIG_MAX_BYTES = 4 << 20 };
enum { TEXTS_BYTES = 1 << 20 }; /* what the files that are written anew take at most, beside index and allocation */

/* In the folder while it grows: a hash of all that the artifact follows from. */
static const char key_name[] = ARTIFACT_KEY;
enum { FORMAT_VERSION = 1, LOCK_WAIT_MS = 2000, LOCK_STEP_MS = 20 };

struct artifact {
    struct artifact_contents contents;
    struct artifact_spec spec;
    char *parent, *name, *temporary; /* the folder around it, its name, and the one that it has until then */
    char *allocation, *provenance;   /* as they are written */
    int parent_fd, fd;               /* fd: of the temporary folder, or of the finished one */
    int64_t bytes;
    bool finished;
};

/* --- what is asked for --- */

static enum rc check_ties(const struct artifact_spec *s, int64_t linear, struct err *e) {
    const struct linear *l = &s->model->linears[linear];
    int tie = target_tie(s->target, l->projection);
    struct candidate scheme = target_scheme(&s->candidates[linear], l->cols);
    for (int64_t i = 0; tie >= 0 && i < linear; i++) {
        const struct linear *other = &s->model->linears[i];
        if (other->block != l->block || target_tie(s->target, other->projection) != tie) continue;
        struct candidate theirs = target_scheme(&s->candidates[i], other->cols);
        if (!target_same_scheme(&scheme, &theirs))
            return err_set(e, RC_UNSUPPORTED, "%s computes %s and %s as one: they must have one scheme",
                           target_names[s->target], other->name, l->name);
    }
    return RC_OK;
}

enum rc artifact_check(const struct artifact_spec *s, struct err *e) {
    if (s->model->dir_fd < 0 || s->model->quantization != NULL)
        return err_set(e, RC_INVALID, "model '%.100s' is %s; artifacts are made of unquantized models on disk",
                       s->model->name, s->model->dir_fd < 0 ? "generated" : "quantized already");
    for (int64_t i = 0; i < s->model->linear_count; i++) {
        const struct linear *l = &s->model->linears[i];
        if (target_check(s->target, &s->candidates[i], l->cols, e) != RC_OK) return err_context(e, "%s", l->name);
        TRY(check_ties(s, i, e));
    }
    return RC_OK;
}

static int64_t copied_bytes(const struct model *model) {
    struct stat st;
    int64_t bytes = 0;
    for (size_t i = 0; i < COPIED; i++)
        if (fstatat(model->dir_fd, copied[i], &st, 0) == 0) bytes += st.st_size;
    return bytes;
}

static int64_t shard_bytes(const struct artifact_contents *c, int shard) {
    struct out_shard tensors;
    artifact_shard_tensors(c, shard, &tensors);
    int64_t bytes = shard_file_bytes(&tensors);
    shard_release(&tensors);
    return bytes;
}

static int64_t text_bytes(char *text) {
    int64_t bytes = text != NULL ? (int64_t)strlen(text) : 0;
    free(text);
    return bytes;
}

int64_t artifact_bytes(const struct artifact_spec *spec) {
    const struct artifact_contents contents = {.spec = spec};
    int64_t bytes = copied_bytes(spec->model) + TEXTS_BYTES;
    bytes += text_bytes(artifact_index(spec, 0)) + text_bytes(json_pretty(spec->allocation, true));
    for (int shard = 0; shard < artifact_shards(spec->model); shard++)
        bytes += shard_bytes(&contents, shard);
    return bytes;
}

/* --- the folder --- */

static enum rc source_config(const struct model *m, json_t **config, struct err *e) {
    char *text;
    size_t len;
    TRY(folder_read(m->dir_fd, "config.json", CONFIG_MAX_BYTES, &text, &len, e));
    enum rc rc = json_parse(text, len, config, e);
    free(text);
    return rc;
}

/* Two artifacts of one key are equal to the last byte. */
static enum rc make_key(const struct artifact *a, char key[HASH_TEXT_SIZE], struct err *e) {
    struct strbuf text = STRBUF_INIT;
    json_t *config = NULL;
    char id[CANDIDATE_ID_SIZE], *identity = model_identity(a->spec.model);
    TRY(source_config(a->spec.model, &config, e));
    char *config_text = artifact_config(&a->spec, config);
    json_decref(config);
    strbuf_printf(&text, "%d\n%s\n%s\n%s\n%s\n%s\n%s\n", FORMAT_VERSION, a->spec.model->name, identity,
                  target_names[a->spec.target], config_text, a->allocation, a->provenance);
    for (int64_t i = 0; i < a->spec.model->linear_count; i++)
        strbuf_printf(&text, "%s\n", candidate_id(&a->spec.candidates[i], id));
    struct hash128 hash = hash_bytes(text.data, text.len);
    hash_text(&hash, key);
    strbuf_release(&text);
    free(config_text);
    free(identity);
    return RC_OK;
}

/* Whether a file of the folder reads so. */
static bool file_is(int dir_fd, const char *file, const char *text) {
    char *there = NULL;
    size_t len;
    struct err absent;
    if (folder_read(dir_fd, file, (int64_t)strlen(text), &there, &len, &absent) != RC_OK) return false;
    bool same = len == strlen(text) && memcmp(there, text, len) == 0;
    free(there);
    return same;
}

/* The path is taken: by this artifact, whose writer was killed after it named it, or by something else. */
static enum rc look_at_final(struct artifact *a, struct err *e) {
    int fd = openat(a->parent_fd, a->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return RC_OK;
    a->finished =
        fd >= 0 && file_is(fd, "provenance.json", a->provenance) && file_is(fd, "allocation.json", a->allocation);
    if (a->finished) {
        a->fd = fd;
        return RC_OK;
    }
    if (fd >= 0) close(fd);
    return err_set(e, RC_CONFLICT, "'%s' is there already, and is another artifact or none", a->spec.path);
}

/* Removes what is there, or only what was being written. */
static enum rc sweep_folder(int fd, const char *name, bool all, struct err *e) {
    int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy >= 0 ? fdopendir(copy) : NULL;
    if (dir == NULL) return err_errno(e, "cannot list '%s'", name);
    enum rc rc = RC_OK;
    for (struct dirent *entry; rc == RC_OK && (entry = readdir(dir)) != NULL;) {
        const char *file = entry->d_name;
        bool swept = all ? strcmp(file, ".") != 0 && strcmp(file, "..") != 0 : file_is_temporary(file);
        if (swept && unlinkat(fd, file, 0) != 0) rc = err_errno(e, "cannot remove '%s' from '%s'", file, name);
    }
    closedir(dir);
    return rc;
}

/* A writer that was killed may still be on its way out, in a write to the disk. */
static bool lock(int fd) {
    for (int64_t left = LOCK_WAIT_MS; left >= 0; left -= LOCK_STEP_MS) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return true;
        usleep(LOCK_STEP_MS * 1000);
    }
    return false;
}

/* Keeps what an earlier writer of the same artifact left, and nothing else. */
static enum rc take_temporary(struct artifact *a, struct err *e) {
    char key[HASH_TEXT_SIZE];
    TRY(make_key(a, key, e));
    if (mkdirat(a->parent_fd, a->temporary, 0755) != 0 && errno != EEXIST)
        return err_errno(e, "cannot make a folder in '%s'", a->parent);
    a->fd = openat(a->parent_fd, a->temporary, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (a->fd < 0) return err_errno(e, "cannot open '%s/%s'", a->parent, a->temporary);
    if (!lock(a->fd)) return err_set(e, RC_CONFLICT, "'%s' is being written by another process", a->spec.path);
    bool same = file_is(a->fd, key_name, key);
    TRY(sweep_folder(a->fd, a->temporary, !same, e));
    return same ? RC_OK : file_write(a->fd, key_name, key, strlen(key), e);
}

/* Refining takes the scales beside the shards, and once more each shard in turn. */
static int64_t missing_bytes(const struct artifact *a) {
    int64_t bytes = a->bytes, largest = 0;
    for (int shard = 0; shard < artifact_shards(a->spec.model); shard++) {
        int64_t size = shard_bytes(&a->contents, shard);
        if (artifact_has(a, shard)) bytes -= size;
        if (size > largest) largest = size;
    }
    return a->spec.refined ? bytes + largest + artifact_scales_bytes(&a->spec) : bytes;
}

static enum rc check_space(const struct artifact *a, struct err *e) {
    struct statvfs fs;
    int64_t missing = missing_bytes(a);
    if (fstatvfs(a->fd, &fs) != 0) return err_errno(e, "cannot examine the file system of '%s'", a->parent);
    double room = (double)fs.f_bavail * (double)fs.f_frsize;
    if ((double)missing <= room) return RC_OK;
    return err_set(e, RC_NO_SPACE,
                   "'%s' has %.0f bytes left where the artifact '%s' takes %lld more; nothing was written", a->parent,
                   room, a->name, (long long)missing);
}

static enum rc split_path(struct artifact *a, struct err *e) {
    size_t len = strlen(a->spec.path);
    while (len > 1 && a->spec.path[len - 1] == '/')
        len--;
    char *path = xstrndup(a->spec.path, len), *slash = strrchr(path, '/');
    a->name = xstrdup(slash != NULL ? slash + 1 : path);
    a->parent = slash == NULL ? xstrdup(".") : xstrndup(path, slash == path ? 1 : (size_t)(slash - path));
    a->temporary = xasprintf(ARTIFACT_PARTIAL, a->name);
    free(path);
    if (a->name[0] == '\0' || strcmp(a->name, ".") == 0 || strcmp(a->name, "..") == 0)
        return err_set(e, RC_INVALID, "'%s' names no folder to make", a->spec.path);
    return RC_OK;
}

static enum rc open_folder(struct artifact *a, struct err *e) {
    TRY(artifact_check(&a->spec, e));
    TRY(split_path(a, e));
    a->parent_fd = open(a->parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (a->parent_fd < 0) return err_errno(e, "cannot open the folder '%s'", a->parent);
    a->allocation = json_pretty(a->spec.allocation, true);
    a->provenance = json_pretty(a->spec.provenance, true);
    if (a->allocation == NULL || a->provenance == NULL)
        return err_set(e, RC_INTERNAL, "an artifact needs an allocation and a provenance");
    TRY(look_at_final(a, e));
    if (a->finished) return RC_OK;
    TRY(take_temporary(a, e));
    a->bytes = artifact_bytes(&a->spec);
    return check_space(a, e);
}

enum rc artifact_open(const struct artifact_spec *spec, struct artifact **artifact, struct err *e) {
    struct artifact *a = xcalloc(1, sizeof *a);
    a->spec = *spec;
    a->contents.spec = &a->spec;
    a->parent_fd = a->fd = -1;
    enum rc rc = open_folder(a, e);
    if (rc == RC_OK) a->contents.packed = xcalloc((size_t)spec->model->linear_count, sizeof *a->contents.packed);
    if (rc != RC_OK) {
        artifact_close(a);
        a = NULL;
    }
    *artifact = a;
    return rc;
}

void artifact_close(struct artifact *a) {
    if (a == NULL) return;
    for (int64_t i = 0; a->contents.packed != NULL && i < a->spec.model->linear_count; i++)
        packed_release(&a->contents.packed[i]);
    for (size_t i = 0; i < a->contents.replacement_count; i++)
        free(a->contents.replacements[i].values);
    free(a->contents.packed);
    free(a->contents.replacements);
    if (a->fd >= 0) close(a->fd);
    if (a->parent_fd >= 0) close(a->parent_fd);
    free(a->allocation);
    free(a->provenance);
    free(a->parent);
    free(a->name);
    free(a->temporary);
    free(a);
}

bool artifact_has(const struct artifact *a, int shard) {
    char name[SHARD_NAME_SIZE];
    artifact_shard_name(a->spec.model, shard, name);
    return a->finished || faccessat(a->fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

int artifact_blocks(const struct artifact *a) {
    int blocks = 0;
    while (blocks < a->spec.model->arch.blocks && artifact_has(a, blocks))
        blocks++;
    return blocks;
}

enum rc artifact_model(const struct artifact *a, int blocks, struct model **model, struct err *e) {
    return artifact_written_model(&a->spec, a->fd, blocks, model, e);
}

/* --- shards --- */

enum rc artifact_put(struct artifact *a, int64_t linear, struct packed *packed, struct err *e) {
    const struct linear *l = &a->spec.model->linears[linear];
    const struct candidate *c = &a->spec.candidates[linear];
    struct packed sizes = packed_sizes(c, l->rows, l->cols), *place = &a->contents.packed[linear], given = *packed;
    *packed = (struct packed){0};
    packed_release(place);
    bool fits = c->method != METHOD_NONE && given.layout == sizes.layout && given.codes_bytes == sizes.codes_bytes &&
                given.scales_bytes == sizes.scales_bytes && given.zeros_bytes == sizes.zeros_bytes &&
                given.group_of_bytes == sizes.group_of_bytes;
    if (fits) {
        *place = given;
        return RC_OK;
    }
    packed_release(&given);
    return err_set(e, RC_INTERNAL, "%s: the packed buffers are not those of its candidate", l->name);
}

enum rc artifact_replace(struct artifact *a, const struct st_tensor *tensor, enum dtype type, const void *values,
                         struct err *e) {
    struct artifact_contents *c = &a->contents;
    size_t bytes = (size_t)tensor->count * dtype_size(type);
    if (type != DTYPE_F32 && type != DTYPE_F16 && type != DTYPE_BF16)
        return err_set(e, RC_INTERNAL, "%s: a weight is stored as F32, F16 or BF16", tensor->name);
    void *copy = malloc(bytes);
    if (copy == NULL) return err_set(e, RC_NO_MEMORY, "no memory for %zu bytes of %s", bytes, tensor->name);
    memcpy(copy, values, bytes);
    c->replacements = xrealloc(c->replacements, (c->replacement_count + 1) * sizeof *c->replacements);
    c->replacements[c->replacement_count++] = (struct replacement){tensor, type, copy};
    return RC_OK;
}

/* Every quantized Linear of the shard has its codes. */
static enum rc check_put(const struct artifact *a, const struct out_shard *tensors, struct err *e) {
    for (size_t i = 0; i < tensors->count; i++)
        if (tensors->tensors[i].data == NULL)
            return err_set(e, RC_INTERNAL, "'%s' was not put into artifact '%s'", tensors->tensors[i].name, a->name);
    return RC_OK;
}

static void forget_shard(struct artifact *a, const struct out_shard *tensors) {
    const struct model *m = a->spec.model;
    struct artifact_contents *c = &a->contents;
    size_t kept = 0;
    for (int64_t i = 0; i < m->linear_count; i++)
        for (size_t t = 0; t < tensors->count; t++)
            if (c->packed[i].codes != NULL && c->packed[i].codes == tensors->tensors[t].data)
                packed_release(&c->packed[i]);
    for (size_t i = 0; i < c->replacement_count; i++) {
        bool written = false;
        for (size_t t = 0; t < tensors->count; t++)
            written = written || c->replacements[i].values == tensors->tensors[t].data;
        if (written)
            free(c->replacements[i].values);
        else
            c->replacements[kept++] = c->replacements[i];
    }
    c->replacement_count = kept;
}

/* A full disk, with what it was for. */
static enum rc in_folder(const struct artifact *a, enum rc rc, struct err *e) {
    if (rc != RC_NO_SPACE) return rc;
    return err_context(e, "artifact '%s' of %lld bytes in '%s'", a->name, (long long)a->bytes, a->parent);
}

enum rc artifact_write(struct artifact *a, int shard, struct err *e) {
    struct out_shard tensors;
    char name[SHARD_NAME_SIZE];
    if (artifact_has(a, shard)) return RC_OK;
    artifact_shard_tensors(&a->contents, shard, &tensors);
    artifact_shard_name(a->spec.model, shard, name);
    enum rc rc = check_put(a, &tensors, e);
    if (rc == RC_OK) rc = in_folder(a, shard_write(&tensors, a->fd, name, e), e);
    if (rc == RC_OK) forget_shard(a, &tensors);
    shard_release(&tensors);
    return rc;
}

enum rc artifact_put_scales(struct artifact *a, const void *const *scales, struct err *e) {
    return in_folder(a, artifact_scales_write(&a->spec, a->fd, scales, e), e);
}

bool artifact_has_scales(const struct artifact *a) {
    return a->finished || faccessat(a->fd, artifact_scales_name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

enum rc artifact_rescale(struct artifact *a, struct err *e) {
    return a->finished ? RC_OK : in_folder(a, artifact_scales_apply(&a->spec, a->fd, e), e);
}

/* --- the end --- */

enum rc artifact_size(const struct artifact *a, int64_t *files, int64_t *bytes, struct err *e) {
    int copy = openat(a->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy >= 0 ? fdopendir(copy) : NULL;
    struct stat st;
    *files = *bytes = 0;
    if (dir == NULL) return err_errno(e, "cannot list '%s'", a->spec.path);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (fstatat(a->fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) continue;
        *files += 1;
        *bytes += st.st_size;
    }
    closedir(dir);
    return RC_OK;
}

/* Of the tensors as they were written. */
static enum rc total_bytes(const struct artifact *a, int64_t *total, struct err *e) {
    *total = 0;
    for (int shard = 0; shard < artifact_shards(a->spec.model); shard++) {
        char name[SHARD_NAME_SIZE];
        uint64_t header;
        int64_t bytes;
        int fd;
        artifact_shard_name(a->spec.model, shard, name);
        TRY(folder_open_file(a->fd, name, &fd, &bytes, e));
        ssize_t got = pread(fd, &header, sizeof header, 0);
        close(fd);
        if (got != sizeof header) return err_errno(e, "cannot read %s", name);
        *total += bytes - (int64_t)(sizeof header + header);
    }
    return RC_OK;
}

static enum rc put_text(struct artifact *a, const char *file, char *text, struct err *e) {
    enum rc rc = text != NULL ? file_write(a->fd, file, text, strlen(text), e)
                              : err_set(e, RC_INTERNAL, "%s cannot be written as JSON", file);
    free(text);
    return rc;
}

static enum rc copy_files(struct artifact *a, struct err *e) {
    for (size_t i = 0; i < COPIED; i++) {
        char *bytes = NULL;
        size_t len;
        enum rc rc = folder_read(a->spec.model->dir_fd, copied[i], COPIED_MAX_BYTES, &bytes, &len, e);
        if (rc == RC_NOT_FOUND) continue;
        if (rc == RC_OK) rc = file_write(a->fd, copied[i], bytes, len, e);
        free(bytes);
        TRY(rc);
    }
    return RC_OK;
}

static enum rc put_files(struct artifact *a, struct err *e) {
    json_t *config;
    int64_t total;
    TRY(total_bytes(a, &total, e));
    TRY(copy_files(a, e));
    TRY(source_config(a->spec.model, &config, e));
    char *config_text = artifact_config(&a->spec, config);
    json_decref(config);
    TRY(put_text(a, "config.json", config_text, e));
    TRY(put_text(a, "model.safetensors.index.json", artifact_index(&a->spec, total), e));
    TRY(put_text(a, "README.md", artifact_readme(&a->spec, total), e));
    TRY(put_text(a, "allocation.json", xstrdup(a->allocation), e));
    return put_text(a, "provenance.json", xstrdup(a->provenance), e);
}

/* What is about to get its name must be a model. */
static enum rc check_opens(const struct artifact *a, struct err *e) {
    char *path = xasprintf("%s/%s", a->parent, a->temporary);
    struct model *model;
    enum rc rc = model_open(a->name, path, &model, e);
    if (rc == RC_OK) model_close(model);
    free(path);
    return rc == RC_OK ? RC_OK : err_context(e, "the artifact, as written");
}

/* Some file systems cannot refuse to replace; a folder that holds something is never replaced anyway. */
static int rename_new(const struct artifact *a) {
    int rc = renameat2(a->parent_fd, a->temporary, a->parent_fd, a->name, RENAME_NOREPLACE);
    if (rc != 0 && (errno == EINVAL || errno == ENOSYS))
        rc = renameat(a->parent_fd, a->temporary, a->parent_fd, a->name);
    return rc;
}

/* Without its key the folder would be begun anew; with it, and without the scales, it would be refined once more. So
 * the key goes first. */
static enum rc remove_own(struct artifact *a, struct err *e) {
    bool removed = unlinkat(a->fd, key_name, 0) == 0 && fsync(a->fd) == 0;
    if (removed && a->spec.refined) removed = unlinkat(a->fd, artifact_scales_name, 0) == 0 && fsync(a->fd) == 0;
    return removed ? RC_OK : err_errno(e, "cannot complete '%s'", a->temporary);
}

static enum rc give_name(struct artifact *a, struct err *e) {
    TRY(remove_own(a, e));
    if (rename_new(a) != 0) return err_errno(e, "cannot name the artifact '%s'", a->spec.path);
    if (fsync(a->parent_fd) != 0) return err_errno(e, "cannot write '%s' to the disk", a->parent);
    a->finished = true;
    return RC_OK;
}

enum rc artifact_finish(struct artifact *a, struct err *e) {
    if (a->finished) return RC_OK;
    for (int shard = 0; shard < artifact_shards(a->spec.model); shard++)
        if (!artifact_has(a, shard))
            return err_set(e, RC_INTERNAL, "shard %d of artifact '%s' was not written", shard, a->name);
    TRY(in_folder(a, put_files(a, e), e));
    TRY(check_opens(a, e));
    return give_name(a, e);
}
