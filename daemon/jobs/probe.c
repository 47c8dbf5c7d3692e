#include "daemon/jobs/probe.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/strbuf.h"

enum { KEPT_MAX = 64 };

struct probes {
    uv_loop_t *loop;
    const char *worker;
    struct probe *running;
    size_t count, next_kept;
    struct kept {
        char *key, *answer;
    } kept[KEPT_MAX];
    bool freed; /* ends with the last probe */
};

/* Answers when the process has exited and its output has ended; frees itself when its handles are closed. */
struct probe {
    struct probes *probes;
    struct probe *prev, *next;
    const char *command;
    uv_process_t process;
    uv_pipe_t in, out;
    uv_timer_t timer;
    uv_write_t write;
    char *input;
    struct strbuf output;
    const char *killed; /* why, for people */
    int64_t exit_status;
    int term_signal, open_handles;
    bool exited, output_ended, closing;
    probe_done done;
    void *ctx;
};

struct probes *probes_new(uv_loop_t *loop, const char *worker) {
    struct probes *p = xcalloc(1, sizeof *p);
    p->loop = loop;
    p->worker = worker;
    return p;
}

static void release(struct probes *p) {
    for (size_t i = 0; i < KEPT_MAX; i++) {
        free(p->kept[i].key);
        free(p->kept[i].answer);
    }
    free(p);
}

static void stop(struct probe *probe, const char *why) {
    probe->killed = why;
    if (!probe->exited) uv_process_kill(&probe->process, SIGKILL);
}

void probes_free(struct probes *p) {
    if (p == NULL) return;
    p->freed = true;
    for (struct probe *probe = p->running; probe != NULL; probe = probe->next)
        probe_cancel(probe);
    if (p->count == 0) release(p);
}

void probe_cancel(struct probe *probe) {
    probe->done = NULL;
    stop(probe, "cancelled");
}

const char *probes_recall(const struct probes *p, const char *key) {
    for (size_t i = 0; i < KEPT_MAX; i++) {
        if (p->kept[i].key != NULL && strcmp(p->kept[i].key, key) == 0) return p->kept[i].answer;
    }
    return NULL;
}

void probes_keep(struct probes *p, const char *key, const char *answer) {
    if (probes_recall(p, key) != NULL) return;
    struct kept *slot = &p->kept[p->next_kept++ % KEPT_MAX];
    free(slot->key);
    free(slot->answer);
    *slot = (struct kept){xstrdup(key), xstrdup(answer)};
}

/* ---- the answer ---- */

static enum rc read_error(const json_t *error, struct err *e) {
    const char *rc = "internal", *message = "", *pointer = "";
    TRY(json_get_string(error, "rc", &rc, e));
    TRY(json_get_string(error, "message", &message, e));
    TRY(json_get_string(error, "pointer", &pointer, e));
    enum rc code = rc_from_name(rc);
    return err_at(e, pointer, code == RC_OK ? RC_INTERNAL : code, "%s", message);
}

static enum rc read_reply(const struct probe *probe, json_t **root, const json_t **answer, struct err *e) {
    if (probe->killed != NULL) return err_set(e, RC_UNAVAILABLE, "hsaq-worker %s %s", probe->command, probe->killed);
    if (probe->term_signal != 0 || probe->exit_status != 0)
        return err_set(e, RC_INTERNAL, "hsaq-worker %s ended with status %lld, signal %d", probe->command,
                       (long long)probe->exit_status, probe->term_signal);
    TRY(json_parse(probe->output.data == NULL ? "" : probe->output.data, probe->output.len, root, e));
    const json_t *error = json_object_get(*root, "error");
    if (error != NULL) return read_error(error, e);
    *answer = json_object_get(*root, "ok");
    return *answer != NULL ? RC_OK : err_set(e, RC_INTERNAL, "the worker's reply has neither ok nor error");
}

static void deliver(struct probe *probe) {
    if (probe->done == NULL) return;
    struct err e = {0};
    json_t *root = NULL;
    const json_t *answer = NULL;
    if (read_reply(probe, &root, &answer, &e) != RC_OK) answer = NULL;
    probe->done(probe->ctx, answer, &e);
    json_decref(root);
}

static void on_closed(uv_handle_t *handle) {
    struct probe *probe = handle->data;
    struct probes *p = probe->probes;
    if (--probe->open_handles > 0) return;
    if (probe->next != NULL) probe->next->prev = probe->prev;
    *(probe->prev != NULL ? &probe->prev->next : &p->running) = probe->next;
    p->count--;
    strbuf_release(&probe->output);
    free(probe->input);
    free(probe);
    if (p->freed && p->count == 0) release(p);
}

static void close_handle(uv_handle_t *handle) {
    if (!uv_is_closing(handle)) uv_close(handle, on_closed);
}

static void finish_when_over(struct probe *probe) {
    if (!probe->exited || !probe->output_ended || probe->closing) return;
    probe->closing = true;
    deliver(probe);
    close_handle((uv_handle_t *)&probe->process);
    close_handle((uv_handle_t *)&probe->in);
    close_handle((uv_handle_t *)&probe->out);
    close_handle((uv_handle_t *)&probe->timer);
}

/* ---- the process ---- */

static void on_exit_of(uv_process_t *process, int64_t status, int signal) {
    struct probe *probe = process->data;
    probe->exited = true;
    probe->exit_status = status;
    probe->term_signal = signal;
    finish_when_over(probe);
}

static void on_timeout(uv_timer_t *timer) {
    stop(timer->data, "took too long");
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    (void)handle;
    *buf = uv_buf_init(xcalloc(1, suggested), (unsigned)suggested);
}

static void on_output(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct probe *probe = stream->data;
    if (n > 0 && probe->output.len + (size_t)n > PROBE_OUTPUT_MAX)
        stop(probe, "said too much");
    else if (n > 0)
        strbuf_append(&probe->output, buf->base, (size_t)n);
    free(buf->base);
    if (n >= 0) return;
    probe->output_ended = true;
    finish_when_over(probe);
}

/* A worker that does not read its question to the end says why in its reply. */
static void on_written(uv_write_t *write, int status) {
    struct probe *probe = write->data;
    (void)status;
    close_handle((uv_handle_t *)&probe->in);
}

static void init_handles(struct probe *probe, uv_loop_t *loop) {
    uv_pipe_init(loop, &probe->in, 0);
    uv_pipe_init(loop, &probe->out, 0);
    uv_timer_init(loop, &probe->timer);
    probe->process.data = probe->in.data = probe->out.data = probe->timer.data = probe->write.data = probe;
    probe->open_handles = 4;
}

static int spawn(struct probe *probe) {
    struct probes *p = probe->probes;
    char *args[] = {(char *)p->worker, (char *)probe->command, NULL};
    uv_stdio_container_t stdio[] = {
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE, .data.stream = (uv_stream_t *)&probe->in},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&probe->out},
        {.flags = UV_IGNORE},
    };
    uv_process_options_t options = {
        .exit_cb = on_exit_of, .file = p->worker, .args = args, .stdio = stdio, .stdio_count = 3};
    return uv_spawn(p->loop, &probe->process, &options);
}

enum rc probe_start(struct probes *p, const char *command, json_t *question, probe_done done, void *ctx,
                    struct probe **out, struct err *e) {
    char *input = json_line(question);
    json_decref(question);
    if (p->count >= PROBES_MAX || input == NULL) {
        free(input);
        return err_set(e, RC_UNAVAILABLE, "%d questions are being asked of workers already; repeat this in a moment",
                       PROBES_MAX);
    }
    struct probe *probe = xcalloc(1, sizeof *probe);
    *probe =
        (struct probe){.probes = p, .next = p->running, .command = command, .input = input, .done = done, .ctx = ctx};
    if (probe->next != NULL) probe->next->prev = probe;
    p->running = probe;
    p->count++;
    init_handles(probe, p->loop);
    int failure = spawn(probe);
    if (failure != 0) {
        probe->exited = probe->output_ended = true;
        probe->done = NULL;
        finish_when_over(probe);
        return err_set(e, RC_INTERNAL, "cannot start %s: %s", p->worker, uv_strerror(failure));
    }
    uv_buf_t buf = uv_buf_init(input, (unsigned)strlen(input));
    uv_write(&probe->write, (uv_stream_t *)&probe->in, &buf, 1, on_written);
    uv_read_start((uv_stream_t *)&probe->out, on_alloc, on_output);
    uv_timer_start(&probe->timer, on_timeout, PROBE_TIMEOUT_MS, 0);
    *out = probe;
    return RC_OK;
}
