#include "daemon/store/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *fault_file;

/* 0, or the errno that the next write fails with. */
static int current_fault(void) {
    char text[16] = "";
    int fd = open(fault_file, O_RDONLY | O_CLOEXEC);

    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return 0;
    if (!strncmp(text, "ENOSPC", 6)) return ENOSPC;
    return strncmp(text, "EIO", 3) ? 0 : EIO;
}

static ssize_t faulty_write(int fd, const void *bytes, size_t len) {
    errno = current_fault();
    return errno ? -1 : write(fd, bytes, len);
}

static ssize_t faulty_pwrite(int fd, const void *bytes, size_t len, off_t offset) {
    errno = current_fault();
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
