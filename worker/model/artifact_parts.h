/* What an artifact's files hold: pure functions beneath artifact.c. The caller frees and releases. */
#ifndef HSAQ_WORKER_MODEL_ARTIFACT_PARTS_H
#define HSAQ_WORKER_MODEL_ARTIFACT_PARTS_H

#include "worker/model/artifact.h"
#include "worker/model/shard.h"

/* Values that stand in for a tensor of the model. */
struct replacement {
    const struct st_tensor *tensor;
    enum dtype type;
    void *values;
};

struct artifact_contents {
    const struct artifact_spec *spec;
    struct packed *packed; /* [linear_count]; NULL while only sizes are asked for */
    struct replacement *replacements;
    size_t replacement_count;
};

enum { SHARD_NAME_SIZE = 48 };
void artifact_shard_name(const struct model *model, int shard, char name[SHARD_NAME_SIZE]);
void artifact_shard_tensors(const struct artifact_contents *c, int shard, struct out_shard *out);

/* The file of scales to be, by its name; their size in it; and what is done with it. */
extern const char artifact_scales_name[];
int64_t artifact_scales_bytes(const struct artifact_spec *spec);
enum rc artifact_scales_write(const struct artifact_spec *spec, int dir_fd, const void *const *scales, struct err *e);
enum rc artifact_scales_apply(const struct artifact_spec *spec, int dir_fd, struct err *e);

/* artifact_model of the folder: the first so many blocks are there. */
enum rc artifact_written_model(const struct artifact_spec *spec, int dir_fd, int blocks, struct model **model,
                               struct err *e);

/* Text of model.safetensors.index.json, config.json and README.md. `config`: the source's, changed in place. */
char *artifact_index(const struct artifact_spec *spec, int64_t total_bytes);
char *artifact_config(const struct artifact_spec *spec, json_t *config);
char *artifact_readme(const struct artifact_spec *spec, int64_t total_bytes);

#endif
