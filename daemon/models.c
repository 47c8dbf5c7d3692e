#include "daemon/models.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/strbuf.h"

enum { NAME_MAX_BYTES = 255, DEPTH_MAX = 4 };

static const char cache_prefix[] = "models--";

bool model_name_valid(const char *name) {
    size_t len = strlen(name);

    if (len == 0 || len > NAME_MAX_BYTES || name[0] == '/' || name[len - 1] == '/') return false;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] < 32 || name[i] == 127) return false;
    for (const char *part = name; part; part = strchr(part, '/')) {
        if (*part == '/') part++;
        size_t n = strcspn(part, "/");
        if (n == 0 || (n <= 2 && !strncmp(part, "..", n))) return false;
    }
    return true;
}

static int open_beneath(int folder, const char *path, uint64_t flags) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};

    return (int)syscall(SYS_openat2, folder, path, &how, sizeof how);
}

/* Opened from the root, as a model's files may be symlinks to other folders beneath it. */
static int open_file(int root, const char *model, const char *file) {
    char *path = xasprintf("%s/%s", model, file);
    int fd = open_beneath(root, path, O_RDONLY | O_NONBLOCK);

    free(path);
    return fd;
}

static bool is_model(int root, const char *path) {
    int fd = open_file(root, path, "config.json");

    if (fd < 0) return false;
    close(fd);
    return true;
}

/* A Hugging Face cache keeps org/name as models--org--name/snapshots/<commit>, and the commit in refs/main. */
static char *cache_path(int root, const char *name) {
    const char *slash = strchr(name, '/');
    char *folder = slash ? xasprintf("%s%.*s--%s", cache_prefix, (int)(slash - name), name, slash + 1)
                         : xasprintf("%s%s", cache_prefix, name);
    char *ref = xasprintf("%s/refs/main", folder), *path = NULL, commit[65] = "";
    int fd = open_beneath(root, ref, O_RDONLY);

    if (fd >= 0) {
        ssize_t n = read(fd, commit, sizeof commit - 1);
        if (n > 0) commit[strspn(commit, "0123456789abcdef")] = '\0';
        if (n > 0 && commit[0]) path = xasprintf("%s/snapshots/%s", folder, commit);
        close(fd);
    }
    free(ref);
    free(folder);
    return path;
}

/* A root, open, and where beneath it the model lies. */
struct place {
    int root;
    const char *root_path;
    char *below;
};

static void place_release(struct place *p) {
    close(p->root);
    free(p->below);
}

static bool find_in_root(const char *root_path, const char *name, struct place *p) {
    *p = (struct place){.root = open(root_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), .root_path = root_path};
    if (p->root < 0) return false;
    p->below = xstrdup(name);
    if (is_model(p->root, p->below)) return true;
    free(p->below);
    p->below = cache_path(p->root, name);
    if (p->below && is_model(p->root, p->below)) return true;
    place_release(p);
    return false;
}

static enum rc find(const struct models *m, const char *name, struct place *p, struct err *e) {
    struct strbuf roots = STRBUF_INIT;

    if (!model_name_valid(name)) return err_set(e, RC_NOT_FOUND, "\"%.128s\" cannot be the name of a model", name);
    for (size_t i = 0; i < m->count; i++)
        if (find_in_root(m->roots[i], name, p)) return RC_OK;
    for (size_t i = 0; i < m->count; i++)
        strbuf_printf(&roots, "%s%s", i ? ", " : "", m->roots[i]);
    err_set(e, RC_NOT_FOUND, "there is no model \"%s\" (a folder with a config.json) beneath %s", name, roots.data);
    strbuf_release(&roots);
    return RC_NOT_FOUND;
}

enum rc model_find(const struct models *m, const char *name, char **path, struct err *e) {
    struct place p = {.root = -1};

    TRY(find(m, name, &p, e));
    *path = xasprintf("%s/%s", p.root_path, p.below);
    place_release(&p);
    return RC_OK;
}

/* ---- listing ---- */

struct found {
    char *name, *path;
};
struct listing {
    struct found *items;
    size_t count, capacity;
};

static void add_model(struct listing *list, char *name, char *path) {
    GROW(list->items, list->count, list->capacity);
    list->items[list->count++] = (struct found){name, path};
}

/* models--org--name → org/name */
static char *cache_name(const char *folder) {
    char *name = xstrdup(folder + sizeof cache_prefix - 1), *dashes = strstr(name, "--");

    if (dashes) {
        dashes[0] = '/';
        memmove(dashes + 1, dashes + 2, strlen(dashes + 2) + 1);
    }
    return name;
}

/* Where the listing is: a folder beneath a root. `below` is "" for the root itself. */
struct position {
    int root;
    const char *root_path, *below;
    int depth;
};

static void visit_folder(struct listing *list, const struct position *at);

static void visit_cache_entry(struct listing *list, const struct position *at, const char *entry) {
    char *name = cache_name(entry), *below = cache_path(at->root, name);

    if (below && is_model(at->root, below))
        add_model(list, name, xasprintf("%s/%s", at->root_path, below));
    else
        free(name);
    free(below);
}

static void visit_entry(struct listing *list, const struct position *at, const char *entry) {
    char *below;

    if (at->depth == 0 && !strncmp(entry, cache_prefix, sizeof cache_prefix - 1)) {
        visit_cache_entry(list, at, entry);
        return;
    }
    below = at->depth ? xasprintf("%s/%s", at->below, entry) : xstrdup(entry);
    if (is_model(at->root, below)) {
        add_model(list, below, xasprintf("%s/%s", at->root_path, below));
        return;
    }
    visit_folder(list, &(struct position){at->root, at->root_path, below, at->depth + 1});
    free(below);
}

static void visit_folder(struct listing *list, const struct position *at) {
    int folder;
    DIR *dir;

    if (at->depth == DEPTH_MAX) return;
    folder = open_beneath(at->root, at->depth ? at->below : ".", O_RDONLY | O_DIRECTORY | O_NONBLOCK);
    if (folder < 0) return;
    dir = fdopendir(folder);
    if (!dir) {
        close(folder);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.' && entry->d_type != DT_REG) visit_entry(list, at, entry->d_name);
    closedir(dir);
}

static enum rc visit_root(struct listing *list, const char *path, struct err *e) {
    int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (root < 0) return err_errno(e, "cannot read the models root %s", path);
    visit_folder(list, &(struct position){root, path, "", 0});
    close(root);
    return RC_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct found *)a)->name, ((const struct found *)b)->name);
}

enum rc model_list(const struct models *m, void (*visit)(void *ctx, const char *name, const char *path), void *ctx,
                   struct err *e) {
    struct listing list = {0};
    enum rc rc = RC_OK;

    for (size_t i = 0; i < m->count && rc == RC_OK; i++)
        rc = visit_root(&list, m->roots[i], e);
    if (list.count) qsort(list.items, list.count, sizeof *list.items, by_name);
    for (size_t i = 0; i < list.count; i++) {
        bool again = i > 0 && !strcmp(list.items[i].name, list.items[i - 1].name);
        if (rc == RC_OK && !again) visit(ctx, list.items[i].name, list.items[i].path);
    }
    for (size_t i = 0; i < list.count; i++) {
        free(list.items[i].name);
        free(list.items[i].path);
    }
    free(list.items);
    return rc;
}

/* ---- stamp ---- */

/* The order of a folder's entries is its file system's affair, so the sum over files must not depend on it: digests of
 * the single files are added as little-endian numbers, byte by byte. */
static void add_stamp(int folder, const char *name, unsigned char sum[SHA256_DIGEST_SIZE]) {
    struct sha256_ctx sha;
    unsigned char digest[SHA256_DIGEST_SIZE];
    struct stat st;
    char line[512];

    if (fstatat(folder, name, &st, 0) != 0 || !S_ISREG(st.st_mode)) return;
    int n = snprintf(line, sizeof line, "%s %lld %lld.%09ld %llu", name, (long long)st.st_size,
                     (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (unsigned long long)st.st_ino);
    sha256_init(&sha);
    sha256_update(&sha, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1, (const uint8_t *)line);
    sha256_digest(&sha, sizeof digest, digest);
    for (size_t i = 0; i < sizeof digest; i++)
        sum[i] = (unsigned char)(sum[i] + digest[i]);
}

enum rc model_stamp(const char *path, char stamp[MODEL_STAMP_SIZE], struct err *e) {
    unsigned char sum[SHA256_DIGEST_SIZE] = {0};
    DIR *dir = opendir(path);

    if (!dir) return err_errno(e, "cannot read the model's folder %s", path);
    for (struct dirent *entry; (entry = readdir(dir));)
        add_stamp(dirfd(dir), entry->d_name, sum);
    closedir(dir);
    for (size_t i = 0; i < sizeof sum; i++)
        snprintf(stamp + 2 * i, 3, "%02x", sum[i]);
    return RC_OK;
}
