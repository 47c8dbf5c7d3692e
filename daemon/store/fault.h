/* The one seam through which tests make the disk fail: SQLite's own table of system calls.
 *
 * When the environment names a file in HSAQD_TEST_FAULT, every write of SQLite's first looks at it: while it holds
 * "ENOSPC" or "EIO", the write fails with that errno; "ENOSPC -wal" fails those to files whose name ends so. So the
 * paths taken are those of a disk that is really full. */
#ifndef HSAQ_DAEMON_STORE_FAULT_H
#define HSAQ_DAEMON_STORE_FAULT_H

/* Before the first database is opened; does nothing without HSAQD_TEST_FAULT. */
void fault_install(void);

#endif
