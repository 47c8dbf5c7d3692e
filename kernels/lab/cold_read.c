/* Question: how fast can a checkpoint be read that is not in the page cache, and by which calls?
 *
 *     build/kernels/lab/cold_read FILE [GIB]
 *
 * The loader (kernels/cuda/load.cu) copies weights out of a mapping with four threads, which is fast when the page
 * cache holds the file, and asks for the next block's pages ahead (prefetch_tensor). Here threads take pieces of 8 MiB
 * in turn, as the loader's do, by pread, out of a mapping, and by pread that goes past the page cache (O_DIRECT).
 * Before each cold run the file's pages are dropped (fsync, then POSIX_FADV_DONTNEED), and mincore says what is left of
 * them: a run is cold when that is 0. A disk's or a host's own cache cannot be dropped: FILE should be larger than
 * that. FILE is made, of GIB (4), when it is not there, and is never written to when it is. io_uring is left out: it
 * needs liburing, which the build does not ask for.
 *
 * measured (a virtual machine with an H100, 8 GiB): cold 1.6–2.2 GB/s in every way, one thread of pread the fastest and
 * O_DIRECT never (1.7–1.8): the disk is the limit, not the calls. Warm: 18.9 GB/s by pread, 25.2 out of the mapping. So
 * the loader stays as it is. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 8 << 20, THREADS_MAX = 8, AHEAD = 8 /* pieces */, ALIGNMENT = 4096 };

enum way { BY_PREAD, BY_MAPPING, PAST_THE_CACHE };

struct file {
    const char *path;
    int64_t bytes, pieces;
    const unsigned char *mapping;
};

struct run {
    const struct file *file;
    const char *name;
    enum way way;
    int threads;
    bool cold, ahead; /* ahead: the kernel is asked for pieces before they are needed */
    int fd;
    atomic_llong next, read;
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- the file --- */

/* What no file system compresses or leaves out. */
static void make(const char *path, int64_t bytes) {
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    uint64_t *piece = malloc(PIECE), state = 88172645463325252u;
    if (fd < 0 || !piece) die(path);
    for (int64_t at = 0; at < bytes; at += PIECE) {
        for (size_t i = 0; i < PIECE / sizeof *piece; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece[i] = state;
        }
        if (write(fd, piece, PIECE) != PIECE) die(path);
    }
    if (fsync(fd)) die(path);
    free(piece);
    close(fd);
}

/* What does not fill a piece is left out. */
static struct file open_file(const char *path, int64_t bytes) {
    struct stat s;
    if (stat(path, &s) != 0) make(path, bytes);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &s) != 0) die(path);
    struct file f = {.path = path, .pieces = s.st_size / PIECE};
    f.bytes = f.pieces * PIECE;
    f.mapping = mmap(NULL, (size_t)f.bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (f.mapping == MAP_FAILED) die(path);
    close(fd);
    return f;
}

/* Pages that are mapped stay: the mapping lets go of them first. */
static void drop(const struct file *f) {
    int fd = open(f->path, O_RDONLY);
    if (fd < 0 || fsync(fd) || madvise((void *)f->mapping, (size_t)f->bytes, MADV_DONTNEED) ||
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
        die(f->path);
    close(fd);
}

static double share_in_cache(const struct file *f) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (size_t)f->bytes / page;
    unsigned char *there = malloc(pages);
    size_t count = 0;
    if (!there || mincore((void *)f->mapping, (size_t)f->bytes, there)) die("mincore");
    for (size_t i = 0; i < pages; i++)
        count += there[i] & 1;
    free(there);
    return (double)count / (double)pages;
}

/* --- reading --- */

static void read_piece(const struct run *r, int64_t at, void *out) {
    if (r->way == BY_MAPPING) {
        memcpy(out, r->file->mapping + at, PIECE);
        return;
    }
    for (int64_t done = 0; done < PIECE;) {
        ssize_t n = pread(r->fd, (char *)out + done, (size_t)(PIECE - done), at + done);
        if (n <= 0) die(r->file->path);
        done += n;
    }
}

static void *read_pieces(void *ctx) {
    struct run *r = ctx;
    void *out = aligned_alloc(ALIGNMENT, PIECE);
    if (!out) die("memory");
    memset(out, 0, PIECE);
    for (int64_t i; (i = atomic_fetch_add(&r->next, 1)) < r->file->pieces;) {
        if (r->ahead) posix_fadvise(r->fd, (i + AHEAD) * PIECE, PIECE, POSIX_FADV_WILLNEED);
        read_piece(r, i * PIECE, out);
        atomic_fetch_add(&r->read, PIECE);
    }
    free(out);
    return NULL;
}

static double read_all(struct run *r) {
    pthread_t threads[THREADS_MAX];
    double began = now();
    for (int i = 0; i < r->threads; i++)
        if (pthread_create(&threads[i], NULL, read_pieces, r)) die("threads");
    for (int i = 0; i < r->threads; i++)
        pthread_join(threads[i], NULL);
    return now() - began;
}

/* Some file systems know no O_DIRECT. */
static void measure(struct run r) {
    if (r.cold) drop(r.file);
    double cached = share_in_cache(r.file);
    r.fd = open(r.file->path, O_RDONLY | (r.way == PAST_THE_CACHE ? O_DIRECT : 0));
    if (r.fd < 0) {
        printf("%-34s %7d  cannot be opened so\n", r.name, r.threads);
        return;
    }
    double seconds = read_all(&r);
    close(r.fd);
    printf("%-34s %7d %9.1f%% %9.2f %7.2f\n", r.name, r.threads, 100 * cached, seconds,
           (double)r.read / seconds * 1e-9);
    fflush(stdout);
}

int main(int argc, char **argv) {
    int64_t gib = argc > 2 ? strtoll(argv[2], NULL, 10) : 4;
    if (argc < 2 || gib < 1) {
        fprintf(stderr, "usage: cold_read FILE [GIB]\n");
        return 1;
    }
    struct file f = open_file(argv[1], gib << 30);
    const struct run runs[] = {
        {.name = "page cache, cold", .way = BY_PREAD, .threads = 1, .cold = true},
        {.name = "page cache, cold", .way = BY_PREAD, .threads = 4, .cold = true},
        {.name = "page cache, cold, asked ahead", .way = BY_PREAD, .threads = 4, .cold = true, .ahead = true},
        {.name = "mapping, cold", .way = BY_MAPPING, .threads = 4, .cold = true},
        {.name = "mapping, cold, asked ahead", .way = BY_MAPPING, .threads = 4, .cold = true, .ahead = true},
        {.name = "O_DIRECT", .way = PAST_THE_CACHE, .threads = 1, .cold = true},
        {.name = "O_DIRECT", .way = PAST_THE_CACHE, .threads = 4, .cold = true},
        {.name = "O_DIRECT", .way = PAST_THE_CACHE, .threads = 8, .cold = true},
        {.name = "to warm it", .way = BY_PREAD, .threads = 4},
        {.name = "page cache, warm", .way = BY_PREAD, .threads = 4},
        {.name = "mapping, warm", .way = BY_MAPPING, .threads = 4},
    };
    printf("%s, %.2f GB\n%-34s %7s %10s %9s %7s\n", f.path, (double)f.bytes * 1e-9, "", "threads", "in cache",
           "seconds", "GB/s");
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct run r = {.file = &f,
                        .name = runs[i].name,
                        .way = runs[i].way,
                        .threads = runs[i].threads,
                        .cold = runs[i].cold,
                        .ahead = runs[i].ahead};
        measure(r);
    }
    return 0;
}
