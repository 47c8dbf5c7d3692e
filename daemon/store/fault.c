#include "daemon/store/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *fault_file;

/* Whether the file that fd is open on has a name that ends so. */
static bool ends_with(int fd, const char *ending) {
    char link[32], path[PATH_MAX];
    size_t len = strlen(ending);

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);
    return n >= (ssize_t)len && !memcmp(path + (size_t)n - len, ending, len);
}

/* 0, or the errno that the next write to this file fails with. */
static int current_fault(int target) {
    char text[32] = "";
    int fd = open(fault_file, O_RDONLY | O_CLOEXEC);

    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return 0;
    char *ending = strchr(text, ' ');
    if (ending && !ends_with(target, ending + 1)) return 0;
    if (!strncmp(text, "ENOSPC", 6)) return ENOSPC;
    return strncmp(text, "EIO", 3) ? 0 : EIO;
}

static ssize_t faulty_write(int fd, const void *bytes, size_t len) {
    errno = current_fault(fd);
    return errno ? -1 : write(fd, bytes, len);
}

static ssize_t faulty_pwrite(int fd, const void *bytes, size_t len, off_t offset) {
    errno = current_fault(fd);
    return errno ? -1 : pwrite(fd, bytes, len, offset);
}

void fault_install(void) {
    sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);

    fault_file = getenv("HSAQD_TEST_FAULT");
    if (!fault_file || !vfs || !vfs->xSetSystemCall) return;
    vfs->xSetSystemCall(vfs, "write", (sqlite3_syscall_ptr)faulty_write);
    vfs->xSetSystemCall(vfs, "pwrite", (sqlite3_syscall_ptr)faulty_pwrite);
    vfs->xSetSystemCall(vfs, "pwrite64", (sqlite3_syscall_ptr)faulty_pwrite);
}
