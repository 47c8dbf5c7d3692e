/* The worker's end of the link: hello, jobs, cancel, heartbeats, and how it ends. Each test forks a worker. */
#include "tests/unit/cmocka_main.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/protocol.h"
#include "worker/control.h"

enum { PATIENCE_MS = 20000 };

struct peer {
    pid_t pid;
    int fd;
    FILE *in;
    char *line;
    size_t capacity;
};

/* `backend` NULL: the worker's own. */
static void serve(int fd, const struct backend *backend) {
    struct worker worker = {0};
    struct worker_options options = {.devices = "cpu", .threads = 1, .scratch = "/tmp"};
    struct err e;
    if (worker_open(&options, &worker, &e) != RC_OK) _exit(98);
    if (backend) worker.backend = backend;
    control_serve(&worker, "cpu", fd, &e);
    _exit(99);
}

static void start_worker_on(struct peer *p, const struct backend *backend) {
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    *p = (struct peer){.pid = fork(), .fd = fds[0]};
    if (p->pid == 0) {
        close(fds[0]);
        serve(fds[1], backend);
    }
    close(fds[1]);
    p->in = fdopen(dup(p->fd), "r");
    setvbuf(p->in, NULL, _IONBF, 0); /* so that poll sees what was not read yet */
}

static void start_worker(struct peer *p) {
    start_worker_on(p, NULL);
}

/* The next message of a type; those before it are dropped. */
static struct message expect(struct peer *p, enum message_type type) {
    for (;;) {
        struct message m;
        struct err e;
        struct pollfd ready = {.fd = p->fd, .events = POLLIN};
        assert_int_equal(poll(&ready, 1, PATIENCE_MS), 1);
        ssize_t n = getline(&p->line, &p->capacity, p->in);
        assert_true(n > 0);
        if (message_decode(p->line, (size_t)n - 1, &m, &e) != RC_OK) fail_msg("%s", e.message);
        if (m.type == type) return m;
        message_release(&m);
    }
}

static void say(struct peer *p, const char *text) {
    assert_int_equal(write(p->fd, text, strlen(text)), (ssize_t)strlen(text));
}

static int exit_status(struct peer *p) {
    int status = 0;
    for (int waited = 0; waitpid(p->pid, &status, WNOHANG) == 0; waited += 10) {
        if (waited > PATIENCE_MS) {
            kill(p->pid, SIGKILL);
            fail_msg("the worker does not end");
        }
        usleep(10000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int end_worker(struct peer *p) {
    fclose(p->in);
    close(p->fd);
    free(p->line);
    return exit_status(p);
}

static void hello_comes_first_and_heartbeats_follow(void **state) {
    (void)state;
    struct peer p;
    start_worker(&p);
    struct message m = expect(&p, MSG_HELLO);
    assert_int_equal(m.hello.version, PROTOCOL_VERSION);
    assert_int_equal(m.hello.pid, p.pid);
    assert_string_equal(m.hello.device, "cpu");
    assert_string_equal(m.hello.arithmetic, backend_cpu.arithmetic);
    assert_true(m.hello.memory > 0 && *m.hello.hardware);
    message_release(&m);
    for (int i = 0; i < 2; i++) {
        m = expect(&p, MSG_HEARTBEAT);
        message_release(&m);
    }
    assert_int_equal(end_worker(&p), 0);
}

static const char job[] =
    "{\"type\":\"start\",\"job\":\"J1\",\"attempt\":1,\"spec\":{\"kind\":\"eval\",\"model\":\"M\",\"dataset\":\"D\","
    "\"length\":%d},\"model\":{\"name\":\"M\",\"path\":\"%s\"},"
    "\"dataset\":{\"name\":\"D\",\"path\":\"tests/fixture/heldout.txt\"}}\n";

static void start_job(struct peer *p, int length, const char *model) {
    char line[512];
    snprintf(line, sizeof line, job, length, model);
    say(p, line);
}

static void job_ends_with_one_result(void **state) {
    (void)state;
    struct peer p;
    start_worker(&p);
    for (int i = 0; i < 2; i++) {
        start_job(&p, 256, "tests/fixture/tiny");
        struct message m = expect(&p, MSG_RESULT);
        assert_string_equal(m.result.job, "J1");
        message_release(&m);
    }
    assert_int_equal(end_worker(&p), 0);
}

static void failed_job_says_why_and_the_worker_lives(void **state) {
    (void)state;
    struct peer p;
    start_worker(&p);
    start_job(&p, 256, "tests/fixture/none");
    struct message m = expect(&p, MSG_ERROR);
    assert_int_equal(m.error.err.rc, RC_NOT_FOUND);
    message_release(&m);
    start_job(&p, 256, "tests/fixture/tiny");
    m = expect(&p, MSG_RESULT);
    message_release(&m);
    assert_int_equal(end_worker(&p), 0);
}

static enum rc failing_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    (void)state, (void)a;
    return err_set(e, RC_UNAVAILABLE, "the GPU failed");
}

/* With a line for the log, but none that ends the job, which is thus lost, not failed. */
static void a_device_that_failed_ends_the_worker(void **state) {
    (void)state;
    struct peer p;
    struct backend failing = backend_cpu;
    failing.gemm = failing_gemm;
    start_worker_on(&p, &failing);
    start_job(&p, 256, "tests/fixture/tiny");
    struct message m = expect(&p, MSG_LOG);
    assert_string_equal(m.log.text, "the GPU failed");
    message_release(&m);
    assert_int_equal(getline(&p.line, &p.capacity, p.in), -1);
    assert_int_equal(end_worker(&p), 1);
}

static void cancel_ends_the_job_within_a_second(void **state) {
    (void)state;
    struct peer p;
    struct timespec before, after;
    start_worker(&p);
    start_job(&p, 8, "tests/fixture/tiny"); /* many short windows: seconds of work */
    struct message m = expect(&p, MSG_PROGRESS);
    message_release(&m);
    clock_gettime(CLOCK_MONOTONIC, &before);
    say(&p, "{\"type\":\"cancel\",\"job\":\"other\"}\n{\"type\":\"cancel\",\"job\":\"J1\"}\n");
    m = expect(&p, MSG_ERROR);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_int_equal(m.error.err.rc, RC_CANCELLED);
    message_release(&m);
    assert_true((double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec) < 1);
    assert_int_equal(end_worker(&p), 0);
}

static void end_of_the_link_ends_a_busy_worker(void **state) {
    (void)state;
    struct peer p;
    start_worker(&p);
    start_job(&p, 8, "tests/fixture/tiny");
    struct message m = expect(&p, MSG_PROGRESS);
    message_release(&m);
    int status = end_worker(&p);
    assert_true(status == 0 || status == 1); /* by the control thread, or by a write that failed first */
}

static void shutdown_ends_it(void **state) {
    (void)state;
    struct peer p;
    start_worker(&p);
    say(&p, "{\"type\":\"shutdown\"}\n");
    assert_int_equal(exit_status(&p), 0);
    fclose(p.in);
    close(p.fd);
    free(p.line);
}

static void garbage_is_reported_and_ends_it(void **state) {
    (void)state;
    static const char *const lines[] = {"garbage\n", "{\"type\":\"hello\"}\n", "{\"type\":\"cached\",\"entries\":{}}\n",
                                        "\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct peer p;
        start_worker(&p);
        say(&p, lines[i]);
        struct message m = expect(&p, MSG_LOG);
        assert_string_equal(m.log.level, "error");
        message_release(&m);
        assert_int_equal(end_worker(&p), 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_comes_first_and_heartbeats_follow),
        cmocka_unit_test(job_ends_with_one_result),
        cmocka_unit_test(failed_job_says_why_and_the_worker_lives),
        cmocka_unit_test(a_device_that_failed_ends_the_worker),
        cmocka_unit_test(cancel_ends_the_job_within_a_second),
        cmocka_unit_test(end_of_the_link_ends_a_busy_worker),
        cmocka_unit_test(shutdown_ends_it),
        cmocka_unit_test(garbage_is_reported_and_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
