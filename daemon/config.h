/* What the command line and --config FILE (JSON, the same keys) say. The command line wins. Main thread, at start. */
#ifndef HSAQ_DAEMON_CONFIG_H
#define HSAQ_DAEMON_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/log.h"

struct config {
    char *host; /* loopback: "127.0.0.1", "::1"; "localhost" becomes 127.0.0.1 */
    int port;   /* 0: any free one */
    char *data;
    char **models; /* absolute roots */
    size_t n_models;
    char *artifacts;     /* NULL: data/artifacts */
    char *device;        /* "auto", "cpu", "cuda", or "cuda:0,cuda:1"; what it comes to: jobs/devices.h */
    int64_t ram_limit;   /* bytes; 0: none */
    int64_t vram_limit;  /* bytes of each GPU; 0: none */
    bool precise;        /* GPUs compute in fp32 */
    char *worker;        /* path of hsaq-worker */
    int64_t worker_idle; /* seconds */
    int64_t max_body;    /* bytes of a JSON body; datasets are not bounded by it */
    enum log_level log_level;
    bool show_help, show_version, show_routes; /* print and leave; nothing else is checked then */
    struct arena arena;                        /* owns the strings */
};

enum rc config_load(struct config *c, int argc, char **argv, struct err *e);
void config_release(struct config *c);
const char *config_help(void);

#endif
