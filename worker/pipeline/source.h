/* What a numeric job works on: its model, and its dataset as tokens. GPU thread only. */
#ifndef HSAQ_WORKER_PIPELINE_SOURCE_H
#define HSAQ_WORKER_PIPELINE_SOURCE_H

#include <stdbool.h>

#include "worker/model/model.h"
#include "worker/model/tokenizer.h"
#include "worker/model/windows.h"
#include "worker/pipeline/job.h"

struct source {
    struct model *model;
    struct tokenizer *tokenizer;
    struct tokens tokens;
    bool borrowed; /* what it points to belongs to somebody else */
};

/* From job->model and job->dataset, or job->source's. Release also after a failure. */
enum rc source_open(const struct job *job, struct source *s, struct err *e);
/* Its model alone, for a job without a dataset; and its tokenizer, should it turn out to need one. */
enum rc source_open_model(const struct job *job, struct source *s, struct err *e);
enum rc source_open_tokenizer(struct source *s, struct err *e);
void source_release(struct source *s);

#endif
