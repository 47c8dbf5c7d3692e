/* `hsaq-worker run job.json`: one job by hand, without a daemon. Prints the NDJSON that the daemon would get. */
#ifndef HSAQ_WORKER_RUN_H
#define HSAQ_WORKER_RUN_H

#include "worker/execute.h"

struct run_options {
    const char *spec;          /* file with a job spec; its dataset is a text file, its model a folder or a name */
    const char *models;        /* folder beneath which a model's name is looked up; NULL: the name is a path */
    const char *datasets;      /* the same for datasets */
    const char *artifacts;     /* folder in which an artifact is made; NULL: the one at hand */
    const char *resume;        /* output of an earlier run whose rows are kept, or NULL; of the same arithmetic */
    const char *const *inputs; /* "profile=FILE": output of the run that the spec's member stands for */
    int input_count;
};

/* An error of the job itself is printed as its message and returned as well. */
enum rc run_by_hand(const struct worker *worker, const struct run_options *options, struct err *e);

#endif
