#include "daemon/jobs/worker.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "base/utf8.h"

enum { TICK_MS = 500, TAIL_MAX = 2048, ARGS_MAX = 16, DRAIN_TICKS = 2 };

struct worker {
    uv_process_t process;
    uv_pipe_t link, errors;
    uv_timer_t tick;
    int open_handles;
    const struct worker_events *events;
    void *ctx;
    char *line; /* what has come of the next line */
    size_t line_len, line_capacity, line_searched;
    struct strbuf tail;
    char cause[800];             /* why it was killed, or "" */
    uint64_t heard_at, leave_by; /* uv_now; leave_by 0: stays */
    bool ready, exited, link_ended, ended;
    int silent_ticks; /* two in a row, as the loop reads between them: a loop that was held up kills nobody */
    int drain_ticks;  /* since the process is gone: what it wrote last may still be in the pipes */
    int64_t exit_status;
    int signal;
};

static void on_close(uv_handle_t *handle) {
    struct worker *w = handle->data;

    if (--w->open_handles > 0) return;
    free(w->line);
    strbuf_release(&w->tail);
    free(w);
}

static void close_handles(struct worker *w) {
    uv_handle_t *handles[] = {(uv_handle_t *)&w->process, (uv_handle_t *)&w->link, (uv_handle_t *)&w->errors,
                              (uv_handle_t *)&w->tick};

    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++)
        if (!uv_is_closing(handles[i])) uv_close(handles[i], on_close);
}

static void describe_end(struct worker *w) {
    if (w->cause[0]) return;
    if (w->signal)
        snprintf(w->cause, sizeof w->cause, "killed by signal %d (%s)", w->signal, strsignal(w->signal));
    else
        snprintf(w->cause, sizeof w->cause, "exited with status %d", (int)w->exit_status);
}

static void end_if_over(struct worker *w) {
    struct worker_end end;

    if (w->ended || !w->exited || !(w->link_ended || w->drain_ticks > DRAIN_TICKS)) return;
    w->ended = true;
    describe_end(w);
    end = (struct worker_end){.exit_status = w->exit_status,
                              .signal = w->signal,
                              .cause = w->cause,
                              .stderr_tail = w->tail.data ? utf8_repair(w->tail.data) : ""};
    close_handles(w);
    w->events->on_end(w->ctx, &end);
}

static void on_process_exit(uv_process_t *process, int64_t status, int signal) {
    struct worker *w = process->data;

    w->exited = true;
    w->exit_status = status;
    w->signal = signal;
    end_if_over(w);
}

static void kill_with(struct worker *w, const char *cause, const char *detail) {
    if (!w->cause[0]) snprintf(w->cause, sizeof w->cause, "%s%s", cause, detail);
    if (!w->exited) uv_process_kill(&w->process, SIGKILL);
}

void worker_kill(struct worker *w, const char *cause) {
    kill_with(w, cause, "");
}

/* ---- what comes ---- */

static void on_hello(struct worker *w, const struct msg_hello *hello) {
    char detail[64];

    if (hello->version != PROTOCOL_VERSION) {
        snprintf(detail, sizeof detail, "%lld, this hsaqd speaks %d", (long long)hello->version, PROTOCOL_VERSION);
        kill_with(w, "the worker speaks protocol version ", detail);
        return;
    }
    w->ready = true;
    w->events->on_hello(w->ctx, hello);
}

static void on_line(struct worker *w, const char *line, size_t len) {
    struct message m;
    struct err e;

    if (message_decode(line, len, &m, &e) != RC_OK) {
        kill_with(w, "broke the protocol: ", e.message);
        return;
    }
    if (m.type == MSG_HELLO && !w->ready)
        on_hello(w, &m.hello);
    else if (m.type == MSG_HELLO || !w->ready)
        kill_with(w, "broke the protocol: hello must come first, and once", "");
    else if (m.type != MSG_HEARTBEAT)
        w->events->on_message(w->ctx, &m);
    message_release(&m);
}

/* Lines after the one that got the worker killed are not acted on. */
static void take_lines(struct worker *w) {
    size_t start = 0;
    char *end;

    while (!w->cause[0] && (end = memchr(w->line + w->line_searched, '\n', w->line_len - w->line_searched))) {
        size_t next = (size_t)(end - w->line) + 1;
        on_line(w, w->line + start, next - 1 - start);
        start = w->line_searched = next;
    }
    memmove(w->line, w->line + start, w->line_len - start);
    w->line_searched = w->line_len -= start;
    if (w->line_len > PROTOCOL_LINE_MAX) kill_with(w, "broke the protocol: a line is too long", "");
}

/* Reads straight behind what has come of the line. A size that the sender decides: no memory is no end of the daemon.
 */
static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    struct worker *w = handle->data;

    if (w->line_capacity - w->line_len < suggested) {
        size_t capacity = 2 * w->line_capacity + suggested;
        char *line = realloc(w->line, capacity);
        if (!line) {
            *buf = uv_buf_init(NULL, 0);
            return;
        }
        w->line = line;
        w->line_capacity = capacity;
    }
    *buf = uv_buf_init(w->line + w->line_len, (unsigned)suggested);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct worker *w = stream->data;

    (void)buf;
    if (n > 0) {
        w->heard_at = uv_now(stream->loop);
        w->line_len += (size_t)n;
        take_lines(w);
    } else if (n < 0) {
        uv_read_stop(stream);
        w->link_ended = true;
        if (n != UV_EOF && n != UV_ECONNRESET) kill_with(w, "the link failed: ", uv_strerror((int)n));
        end_if_over(w);
    }
}

static void on_alloc_errors(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    (void)handle;
    buf->base = malloc(suggested); /* without memory, on_read_errors hears of UV_ENOBUFS */
    buf->len = suggested;
}

static void on_read_errors(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct worker *w = stream->data;

    if (n > 0) strbuf_append(&w->tail, buf->base, (size_t)n);
    if (w->tail.len > TAIL_MAX) strbuf_consume(&w->tail, w->tail.len - TAIL_MAX);
    if (n < 0) uv_read_stop(stream);
    free(buf->base);
}

static bool is_silent(struct worker *w, uint64_t now) {
    bool late = now - w->heard_at > (w->ready ? WORKER_SILENCE_MS : WORKER_HELLO_MS);

    w->silent_ticks = late ? w->silent_ticks + 1 : 0;
    return w->silent_ticks >= 2;
}

static void on_tick(uv_timer_t *tick) {
    struct worker *w = tick->data;
    uint64_t now = uv_now(tick->loop);

    if (w->exited) {
        w->drain_ticks++;
        end_if_over(w);
    } else if (w->link_ended) {
        worker_kill(w, "closed its link");
    } else if (w->leave_by && now >= w->leave_by) {
        worker_kill(w, "did not leave when asked");
    } else if (is_silent(w, now)) {
        worker_kill(w, w->ready ? "no heartbeat for 10 s" : "no hello for 30 s");
    }
}

/* ---- what goes ---- */

struct outgoing {
    uv_write_t request;
    char *line;
};

static void on_written(uv_write_t *request, int status) {
    struct outgoing *out = (struct outgoing *)request;

    (void)status; /* a broken link is noticed by its reader */
    free(out->line);
    free(out);
}

void worker_send(struct worker *w, const struct message *m) {
    struct outgoing *out;
    uv_buf_t buf;

    if (w->ended || w->exited) return;
    out = xcalloc(1, sizeof *out);
    out->line = message_encode(m);
    buf = uv_buf_init(out->line, (unsigned)strlen(out->line));
    if (uv_write(&out->request, (uv_stream_t *)&w->link, &buf, 1, on_written) != 0) on_written(&out->request, 0);
}

void worker_shutdown(struct worker *w) {
    if (w->leave_by) return;
    w->leave_by = uv_now(w->tick.loop) + WORKER_LEAVE_MS;
    worker_send(w, &(struct message){.type = MSG_SHUTDOWN});
}

int64_t worker_pid(const struct worker *w) {
    return w->exited ? 0 : w->process.pid;
}

/* ---- birth ---- */

struct arguments {
    char *items[ARGS_MAX];
    char ram_limit[32], vram_limit[32];
    int count;
};

static void add_argument(struct arguments *a, const char *text) {
    a->items[a->count++] = (char *)text;
}

static void add_limit(struct arguments *a, const char *option, char text[32], int64_t bytes) {
    if (!bytes) return;
    snprintf(text, 32, "%lld", (long long)bytes);
    add_argument(a, option);
    add_argument(a, text);
}

static void fill_arguments(struct arguments *a, const struct worker_options *o) {
    const char *option = strchr(o->device, ',') ? "--devices" : "--device";
    const char *const fixed[] = {o->path, "serve", "--fd", "3", option, o->device, "--scratch", o->scratch, NULL};

    *a = (struct arguments){0};
    for (size_t i = 0; fixed[i]; i++)
        add_argument(a, fixed[i]);
    add_limit(a, "--ram-limit", a->ram_limit, o->ram_limit);
    add_limit(a, "--vram-limit", a->vram_limit, o->vram_limit);
    if (!o->precise) return;
    add_argument(a, "--precision");
    add_argument(a, "fp32");
}

static int spawn(uv_loop_t *loop, struct worker *w, const struct worker_options *o) {
    struct arguments args;
    uv_stdio_container_t stdio[4] = {
        {.flags = UV_IGNORE},
        {.flags = UV_IGNORE},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&w->errors},
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&w->link},
    };

    fill_arguments(&args, o);
    return uv_spawn(
        loop, &w->process,
        &(uv_process_options_t){
            .exit_cb = on_process_exit, .file = o->path, .args = args.items, .stdio = stdio, .stdio_count = 4});
}

enum rc worker_spawn(uv_loop_t *loop, const struct worker_options *options, struct worker **out, struct err *e) {
    struct worker *w = xcalloc(1, sizeof *w);
    int code;

    w->events = options->events;
    w->ctx = options->ctx;
    w->open_handles = 4;
    uv_pipe_init(loop, &w->link, 0);
    uv_pipe_init(loop, &w->errors, 0);
    uv_timer_init(loop, &w->tick);
    w->process.data = w->link.data = w->errors.data = w->tick.data = w;
    code = spawn(loop, w, options);
    if (code != 0) {
        close_handles(w);
        return err_set(e, RC_UNAVAILABLE, "cannot start the worker %s: %s", options->path, uv_strerror(code));
    }
    w->heard_at = uv_now(loop);
    uv_timer_start(&w->tick, on_tick, TICK_MS, TICK_MS);
    uv_read_start((uv_stream_t *)&w->link, on_alloc, on_read);
    uv_read_start((uv_stream_t *)&w->errors, on_alloc_errors, on_read_errors);
    *out = w;
    return RC_OK;
}
