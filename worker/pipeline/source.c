#include "worker/pipeline/source.h"

#include "base/json.h"

static enum rc member(const json_t *object, const char *key, const char *what, const char **out, struct err *e) {
    *out = NULL;
    TRY(json_get_string(object, key, out, e));
    return *out ? RC_OK : err_set(e, RC_INVALID, "the start message names no %s", what);
}

enum rc source_open_model(const struct job *job, struct source *s, struct err *e) {
    const char *name, *path;
    *s = (struct source){0};
    if (job->source) {
        *s = *job->source;
        s->borrowed = true;
        return RC_OK;
    }
    TRY(member(job->model, "name", "model", &name, e));
    TRY(member(job->model, "path", "model folder", &path, e));
    return model_open(name, path, &s->model, e);
}

enum rc source_open_tokenizer(struct source *s, struct err *e) {
    if (s->tokenizer || tokenizer_load(s->model->dir_fd, &s->tokenizer, e) == RC_OK) return RC_OK;
    return err_context(e, "model '%.100s'", s->model->name);
}

enum rc source_open(const struct job *job, struct source *s, struct err *e) {
    const char *text;
    TRY(source_open_model(job, s, e));
    if (s->borrowed) return RC_OK;
    TRY(member(job->dataset, "path", "dataset file", &text, e));
    TRY(source_open_tokenizer(s, e));
    return tokens_read(s->tokenizer, text, s->model->arch.vocab, &s->tokens, e);
}

static void close_source(struct source *s) {
    tokens_release(&s->tokens);
    if (s->tokenizer) tokenizer_free(s->tokenizer);
    if (s->model) model_close(s->model);
}

void source_release(struct source *s) {
    if (!s->borrowed) close_source(s);
    *s = (struct source){0};
}
