/* How fast the service is: durable POSTs, conditional GETs, and the fan-out of events to 1,000 streams, measured from a
 * client of one thread on the same machine. Starts a daemon of its own from $HSAQ_BUILD (build) and prints a table.
 *
 *     bench_http [SECONDS]     length of each load, 3 by default */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"

enum { CONNECTIONS = 128, STREAMS = 1000, ROUNDS = 40, SAMPLES_MAX = 4000000, BUFFER = 8192 };

static struct {
    pid_t pid;
    int port;
    char folder[64];
} service;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static _Noreturn void die(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\n");
    if (service.pid > 0) kill(service.pid, SIGKILL);
    exit(EXIT_FAILURE);
}

/* ---- the daemon ---- */

static int free_port(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&address, size) != 0 || getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        die("no free port: %s", strerror(errno));
    close(fd);
    return ntohs(address.sin_port);
}

static int try_dial(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)service.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}

static int dial(void) {
    int fd = try_dial();
    if (fd < 0) die("cannot connect: %s", strerror(errno));
    return fd;
}

static void make_model(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/models", service.folder);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/models/m", service.folder);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/models/m/config.json", service.folder);
    FILE *f = fopen(path, "w");
    if (f == NULL || fputs("{}\n", f) < 0 || fclose(f) != 0) die("cannot write %s", path);
}

static void start_service(void) {
    const char *build = getenv("HSAQ_BUILD");
    char *program = xasprintf("%s/hsaqd", build == NULL ? "build" : build);
    strcpy(service.folder, "/tmp/hsaq-bench-XXXXXX");
    if (mkdtemp(service.folder) == NULL) die("no temporary folder: %s", strerror(errno));
    make_model();
    service.port = free_port();
    char *listen = xasprintf("127.0.0.1:%d", service.port), *data = xasprintf("%s/data", service.folder);
    char *models = xasprintf("%s/models", service.folder), *log = xasprintf("%s/log", service.folder);
    service.pid = fork();
    if (service.pid == 0) {
        if (freopen(log, "w", stderr) == NULL || freopen(log, "a", stdout) == NULL) _exit(126);
        execl(program, program, "--listen", listen, "--data", data, "--models", models, NULL);
        _exit(127);
    }
    int fd = -1;
    for (int i = 0; i < 200 && (fd = try_dial()) < 0; i++)
        usleep(25000);
    if (fd < 0) die("%s does not start; see %s", program, log);
    close(fd);
    free(program), free(listen), free(data), free(models), free(log);
}

static void stop_service(void) {
    int status;
    kill(service.pid, SIGTERM);
    waitpid(service.pid, &status, 0);
    char *command = xasprintf("rm -rf %s", service.folder);
    if (status != 0 || system(command) != 0) fprintf(stderr, "the daemon ended with status %d\n", status);
    free(command);
}

static double resident_mb(void) {
    char path[64];
    long total = 0, resident = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", service.pid);
    FILE *f = fopen(path, "r");
    if (f == NULL || fscanf(f, "%ld %ld", &total, &resident) != 2) die("cannot read %s", path);
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

/* ---- requests ---- */

static char *request(const char *method, const char *target, const char *headers, const char *body) {
    return xasprintf("%s %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %zu\r\n\r\n%s", method, target, headers,
                     strlen(body), body);
}

/* Length of the answer that `text` begins with; 0 when it is not whole yet. */
static size_t answer_length(const char *text, size_t len) {
    const char *end = memmem(text, len, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    size_t head = (size_t)(end - text) + 4, body = 0;
    const char *length = memmem(text, head, "\r\nContent-Length: ", 18);
    if (length != NULL && strncmp(text + 9, "304", 3) != 0) body = strtoul(length + 18, NULL, 10);
    return len >= head + body ? head + body : 0;
}

/* One request on a connection of its own; the answer, NUL-terminated, is the caller's. */
static char *ask(const char *method, const char *target, const char *body) {
    int fd = dial();
    char *text = request(method, target, "", body), *answer = xcalloc(1, BUFFER + 1);
    size_t len = 0;
    if (send(fd, text, strlen(text), 0) < 0) die("cannot send");
    while (answer_length(answer, len) == 0) {
        ssize_t n = recv(fd, answer + len, BUFFER - len, 0);
        if (n <= 0) die("no answer to %s %s", method, target);
        len += (size_t)n;
    }
    close(fd);
    free(text);
    if (answer[9] != '2') die("%s %s: %s", method, target, answer);
    return answer;
}

static char *member(const char *json, const char *name) {
    char key[64];
    snprintf(key, sizeof key, "\"%s\":\"", name);
    const char *value = strstr(json, key);
    if (value == NULL) die("no %s in %s", name, json);
    value += strlen(key);
    return xstrndup(value, strcspn(value, "\""));
}

/* ---- samples ---- */

static double *samples;
static size_t n_samples;

static void sample(double seconds) {
    if (n_samples < SAMPLES_MAX) samples[n_samples++] = seconds;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile_ms(double p) {
    if (n_samples == 0) return 0;
    qsort(samples, n_samples, sizeof *samples, ascending);
    return samples[(size_t)(p * (double)(n_samples - 1))] * 1000;
}

/* ---- load: keep-alive connections, one request under way on each ---- */

struct client {
    int fd;
    double sent;
    size_t len;
    char buffer[BUFFER];
};

static void send_one(struct client *c, const char *text, size_t len) {
    c->sent = now();
    c->len = 0;
    if (send(c->fd, text, len, 0) != (ssize_t)len) die("cannot send: %s", strerror(errno));
}

static bool receive(struct client *c, const char *status) {
    ssize_t n = recv(c->fd, c->buffer + c->len, sizeof c->buffer - c->len, 0);
    if (n <= 0) die("the daemon closed a connection");
    c->len += (size_t)n;
    if (answer_length(c->buffer, c->len) == 0) return false;
    if (strncmp(c->buffer + 9, status, 3) != 0) die("expected %s: %.*s", status, (int)c->len, c->buffer);
    return true;
}

static double load(const char *text, const char *status, double seconds) {
    struct client *clients = xcalloc(CONNECTIONS, sizeof *clients);
    struct epoll_event events[CONNECTIONS];
    size_t len = strlen(text);
    int epoll = epoll_create1(0);
    n_samples = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        clients[i].fd = dial();
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, clients[i].fd, &event);
        send_one(&clients[i], text, len);
    }
    double start = now(), end = start;
    while (end - start < seconds) {
        int n = epoll_wait(epoll, events, CONNECTIONS, 1000);
        end = now();
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (!receive(c, status)) continue;
            sample(end - c->sent);
            send_one(c, text, len);
        }
    }
    for (int i = 0; i < CONNECTIONS; i++)
        close(clients[i].fd);
    close(epoll);
    free(clients);
    return (double)n_samples / (end - start);
}

/* ---- streams ---- */

static int streams[STREAMS];

static void open_streams(int epoll) {
    static const char text[] = "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    char buffer[BUFFER];
    for (int i = 0; i < STREAMS; i++) {
        streams[i] = dial();
        if (send(streams[i], text, sizeof text - 1, 0) < 0) die("cannot send");
        if (recv(streams[i], buffer, sizeof buffer, 0) < 12 || strncmp(buffer + 9, "200", 3) != 0)
            die("no stream: %.100s", buffer);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = streams[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, streams[i], &event);
    }
}

/* Drops what has come so far; true when nothing more came for `patience` ms. */
static void drop_pending(int epoll, int patience) {
    struct epoll_event events[STREAMS];
    char buffer[BUFFER];
    for (int n; (n = epoll_wait(epoll, events, STREAMS, patience)) > 0;) {
        for (int i = 0; i < n; i++)
            if (recv(events[i].data.fd, buffer, sizeof buffer, 0) <= 0) die("a stream ended");
    }
}

/* From sending a POST to its event's arrival at each stream. */
static void fan_out(int epoll, const char *text) {
    struct epoll_event events[STREAMS];
    char buffer[BUFFER];
    int poster = dial(), heard = 0;
    double start = now();
    if (send(poster, text, strlen(text), 0) < 0) die("cannot send");
    while (heard < STREAMS) {
        int n = epoll_wait(epoll, events, STREAMS, 5000);
        if (n == 0) die("only %d of %d streams heard of the job", heard, STREAMS);
        double at = now();
        for (int i = 0; i < n; i++) {
            if (recv(events[i].data.fd, buffer, sizeof buffer, 0) <= 0) die("a stream ended");
            sample(at - start);
            heard++;
        }
    }
    close(poster);
}

static void measure_streams(const char *post) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int epoll = epoll_create1(0);
    double before = resident_mb();
    open_streams(epoll);
    drop_pending(epoll, 200);
    n_samples = 0;
    for (int i = 0; i < ROUNDS; i++) {
        fan_out(epoll, post);
        drop_pending(epoll, 20);
    }
    printf("%-34s %9.1f ms   %s\n", "1,000 streams, fan-out, median", percentile_ms(0.5), "");
    printf("%-34s %9.1f ms   %s\n", "1,000 streams, fan-out, p99", percentile_ms(0.99), "target <= 50 ms");
    printf("%-34s %9.1f MB   target <= 40 MB (+%.1f MB for them)\n", "memory with 1,000 streams", resident_mb(),
           resident_mb() - before);
    for (int i = 0; i < STREAMS; i++)
        close(streams[i]);
    close(epoll);
}

/* A profile that is paused, so that what depends on it waits, and the daemon does nothing beside what is measured. */
static char *make_paused_job(void) {
    free(ask("PUT", "/v1/datasets/d", "some text"));
    char *answer = ask("POST", "/v1/jobs",
                       "{\"kind\":\"profile\",\"model\":\"m\",\"calibration\":{\"dataset\":\"d\"},"
                       "\"candidates\":[{\"method\":\"rtn\",\"bits\":4,\"group\":64}]}");
    char *id = member(answer, "id"), *pause = xasprintf("/v1/jobs/%s/pause", id);
    free(answer);
    free(ask("POST", pause, ""));
    free(pause);
    return id;
}

static char *conditional_get(const char *id) {
    char *target = xasprintf("/v1/jobs/%s", id), *answer = ask("GET", target, "");
    char *etag = strstr(answer, "ETag: ");
    if (etag == NULL) die("no ETag: %s", answer);
    char *header = xasprintf("If-None-Match: %.*s\r\n", (int)strcspn(etag + 6, "\r"), etag + 6);
    char *text = request("GET", target, header, "");
    free(target), free(answer), free(header);
    return text;
}

static void report(const char *what, double rate, const char *target) {
    printf("%-34s %9.0f /s   %s (p50 %.2f ms, p99 %.2f ms)\n", what, rate, target, percentile_ms(0.5),
           percentile_ms(0.99));
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 3;
    samples = xcalloc(SAMPLES_MAX, sizeof *samples);
    signal(SIGPIPE, SIG_IGN);
    start_service();
    char *id = make_paused_job();
    char *spec = xasprintf("{\"kind\":\"allocation\",\"profile\":\"%s\",\"budget\":{\"average_bits\":3}}", id);
    char *post = request("POST", "/v1/jobs", "", spec), *get = conditional_get(id);
    measure_streams(post);
    double rate = load(get, "304", seconds);
    report("GET /v1/jobs/{id}, 304", rate, "target >= 20000 /s");
    rate = load(post, "202", seconds);
    report("POST /v1/jobs, durable", rate, "target >= 3000 /s");
    free(id), free(spec), free(post), free(get), free(samples);
    stop_service();
    return 0;
}
