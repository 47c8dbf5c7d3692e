/* An artifact of a model's Linears in a scratch folder. */
#ifndef HSAQ_TESTS_ARTIFACT_FIXTURE_H
#define HSAQ_TESTS_ARTIFACT_FIXTURE_H

#include "tests/unit/scratch.h"

#include "tests/unit/artifact_maker.h"
#include "tests/unit/tiny_copy.h"

static struct err err;

static const char *const mixed[] = {"rtn4g64-sym",     "rtn3g32-sym", "none",
                                    "rtn4g64-intzero", "rtn2g0-sym",  "rtn8g0-intzero"};
static const char *const ours[] = {"rtn4g64", "hqq3g64-hqqpack", "rtn5g16-sym",
                                   "hqq2g0",  "rtn3g80-intzero", "hqq5g64-hqqpack"};
enum { MIXED = 6 };

/* A model and how it is to be stored. */
struct fixture {
    struct scratch folder;
    struct model *model;
    struct candidate *candidates;
    json_t *allocation, *provenance;
    char path[128];
    struct artifact_maker m;
};

static inline void must(enum rc rc) {
    if (rc != RC_OK) fail_msg("%s", err.message);
}

static inline void fixture_open(struct fixture *f, const char *model, enum target target, const char *const *ids,
                                int count, const char *head) {
    static const struct backend_options options = {.threads = 1};
    *f = (struct fixture){.folder = scratch_open()};
    must(model_open("source", model, &f->model, &err));
    f->candidates = maker_candidates(f->model, ids, count, head, &err);
    assert_non_null(f->candidates);
    f->allocation = json_pack("{si sf}", "b", 1, "a", 3.3);
    f->provenance = json_pack("{ss}", "fingerprint", "0123");
    snprintf(f->path, sizeof f->path, "%s/made", f->folder.path);
    f->m.spec = (struct artifact_spec){.model = f->model,
                                       .path = f->path,
                                       .target = target,
                                       .candidates = f->candidates,
                                       .allocation = f->allocation,
                                       .provenance = f->provenance};
    must(backend_cpu.open(&options, &f->m.device, &err));
}

static inline void fixture_close(struct fixture *f) {
    artifact_close(f->m.artifact);
    backend_cpu.close(f->m.device);
    free(f->candidates);
    json_decref(f->allocation);
    json_decref(f->provenance);
    model_close(f->model);
    scratch_close(&f->folder);
}

static inline void write_shards(struct fixture *f, int from, int to) {
    for (int shard = from; shard < to; shard++)
        must(maker_shard(&f->m, shard, &err));
}

static inline void write_all(struct fixture *f) {
    must(artifact_open(&f->m.spec, &f->m.artifact, &err));
    write_shards(f, 0, artifact_shards(f->model));
    must(artifact_finish(f->m.artifact, &err));
    artifact_close(f->m.artifact);
    f->m.artifact = NULL;
}

#endif
