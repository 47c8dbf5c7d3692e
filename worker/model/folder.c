#include "worker/model/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BENEATH_ATTEMPTS = 16 };

static const char blobs_prefix[] = "../../blobs/";

enum rc folder_open(const char *path, int *dir_fd, struct err *e) {
    *dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *dir_fd >= 0 ? RC_OK : err_errno(e, "cannot open the model's folder '%s'", path);
}

/* O_NONBLOCK: a FIFO must not hang us before fstat shows what it is. */
static int open_beneath(int dir_fd, const char *name, uint64_t resolve) {
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, .resolve = resolve};
    int fd = -1;
    /* EAGAIN: a rename elsewhere kept the kernel from proving that ".." stayed inside (openat2(2)). */
    for (int i = 0; i < BENEATH_ATTEMPTS; i++) {
        fd = (int)syscall(SYS_openat2, dir_fd, name, &how, sizeof how);
        if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) break;
    }
    return fd;
}

static bool is_component(const char *name) {
    return name[0] != '\0' && strlen(name) <= NAME_MAX && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

/* Whether `grandparent`/snapshots is the folder that dir_fd lies in. */
static bool in_snapshots(int dir_fd, int grandparent) {
    struct stat parent, snapshots;
    return fstatat(dir_fd, "..", &parent, 0) == 0 &&
           fstatat(grandparent, "snapshots", &snapshots, AT_SYMLINK_NOFOLLOW) == 0 &&
           parent.st_dev == snapshots.st_dev && parent.st_ino == snapshots.st_ino;
}

/* The Hugging Face cache's link, see the header; −1 when this is none. */
static int open_blob(int dir_fd, const char *name) {
    char target[PATH_MAX];
    ssize_t len = readlinkat(dir_fd, name, target, sizeof target - 1);
    if (len < 0) return -1;
    target[len] = '\0';
    if (strncmp(target, blobs_prefix, sizeof blobs_prefix - 1) != 0) return -1;
    if (!is_component(target + sizeof blobs_prefix - 1)) return -1;
    int grandparent = openat(dir_fd, "../..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (grandparent < 0) return -1;
    int fd = -1;
    if (in_snapshots(dir_fd, grandparent))
        fd = open_beneath(grandparent, target + strlen("../../"), RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    close(grandparent);
    return fd;
}

enum rc folder_open_file(int dir_fd, const char *name, int *fd, int64_t *bytes, struct err *e) {
    if (!is_component(name)) return err_set(e, RC_INVALID, "'%.128s' is not the name of a file in the folder", name);
    *fd = open_beneath(dir_fd, name, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS);
    if (*fd < 0 && (errno == EXDEV || errno == ELOOP)) {
        *fd = open_blob(dir_fd, name);
        if (*fd < 0) return err_set(e, RC_INVALID, "%s is a link that leads out of the model's folder", name);
    }
    if (*fd < 0) return err_errno(e, "cannot open %s", name);
    struct stat st;
    enum rc rc = RC_OK;
    if (fstat(*fd, &st) != 0)
        rc = err_errno(e, "cannot examine %s", name);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(e, RC_INVALID, "%s is not a regular file", name);
    if (rc != RC_OK) {
        close(*fd);
        *fd = -1;
        return rc;
    }
    *bytes = st.st_size;
    return RC_OK;
}

static enum rc read_all(int fd, const char *name, char *text, size_t size, size_t *len, struct err *e) {
    *len = 0;
    while (*len < size) {
        ssize_t got = read(fd, text + *len, size - *len);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return err_errno(e, "cannot read %s", name);
        if (got == 0) break;
        *len += (size_t)got;
    }
    text[*len] = '\0';
    return RC_OK;
}

enum rc folder_read(int dir_fd, const char *name, int64_t max_bytes, char **text, size_t *len, struct err *e) {
    int fd;
    int64_t bytes = 0;
    TRY(folder_open_file(dir_fd, name, &fd, &bytes, e));
    enum rc rc = RC_OK;
    *text = NULL;
    if (bytes > max_bytes)
        rc = err_set(e, RC_TOO_LARGE, "%s has %lld bytes; at most %lld are read", name, (long long)bytes,
                     (long long)max_bytes);
    else if ((*text = malloc((size_t)bytes + 1)) == NULL)
        rc = err_set(e, RC_NO_MEMORY, "no memory for the %lld bytes of %s", (long long)bytes, name);
    else
        rc = read_all(fd, name, *text, (size_t)bytes, len, e);
    if (rc != RC_OK) {
        free(*text);
        *text = NULL;
    }
    close(fd);
    return rc;
}
