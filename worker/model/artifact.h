/* An artifact: a quantized model as a folder that others can load.
 *
 * A shard of safetensors a block and one for the rest, model.safetensors.index.json, config.json (the source's, with
 * quantization_config), the source's tokenizer files, allocation.json, provenance.json and a README.md for whoever
 * finds it. docs/formats.md has the layouts and who reads what. Equal inputs give equal bytes.
 *
 * It grows in a folder of a temporary name beside its own, which is renamed when all is there and on the disk: never
 * half there. After a kill, artifact_open on the same path finds what was complete, by shard, when the inputs are the
 * same; else it begins anew. Use: open → for each shard that artifact_has not: put and replace, write → (put_scales →
 * rescale) → finish; close at any time. One thread at a time; a second writer of the same path is RC_CONFLICT. */
#ifndef HSAQ_WORKER_MODEL_ARTIFACT_H
#define HSAQ_WORKER_MODEL_ARTIFACT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"
#include "base/err.h"
#include "base/target.h"
#include "kernels/formats.h"
#include "worker/model/model.h"

struct artifact_spec {
    const struct model *model; /* on disk, not quantized; outlives the artifact */
    const char *path;          /* the folder to be; the one around it is there */
    enum target target;
    const struct candidate *candidates; /* [model->linear_count] what each Linear is stored as; outlives the artifact */
    /* Objects, written as they are, but sorted. What the provenance says is what makes two artifacts the same. */
    const json_t *allocation, *provenance;
    bool refined; /* other scales will be given for it when all shards are there */
};

struct artifact;

/* Whether the target can carry it: RC_UNSUPPORTED names the Linear. */
enum rc artifact_check(const struct artifact_spec *spec, struct err *e);
/* Of the whole folder, before anything is written; its shards to the byte, where nothing is replaced by another type.
 */
int64_t artifact_bytes(const struct artifact_spec *spec);

/* RC_CONFLICT when another folder has the path; RC_NO_SPACE, naming folder and bytes, before anything is written. */
enum rc artifact_open(const struct artifact_spec *spec, struct artifact **artifact, struct err *e);
void artifact_close(struct artifact *a); /* what was written stays for the next artifact_open; NULL is fine */

/* Shards: one a block, then the rest (embedding, final norm, head). */
int artifact_shards(const struct model *model);
/* Complete and on the disk. */
bool artifact_has(const struct artifact *a, int shard);

/* The blocks whose shards are complete, from the first on. */
int artifact_blocks(const struct artifact *a);
/* The source, but so many of those blocks as they are in the artifact: what the rest of it is calibrated behind; or as
 * many as there are shards: all of it. To walk over, no more; artifact_model_close it before the artifact. */
enum rc artifact_model(const struct artifact *a, int blocks, struct model **model, struct err *e);
void artifact_model_close(struct model *model); /* NULL is fine */

/* The codes of a Linear (an index into model.linears) that is quantized. Takes the buffers, whatever it returns. */
enum rc artifact_put(struct artifact *a, int64_t linear, struct packed *packed, struct err *e);
/* Other values in place of one of the model's tensors (copied): F32, F16 or BF16. */
enum rc artifact_replace(struct artifact *a, const struct st_tensor *tensor, enum dtype type, const void *values,
                         struct err *e);
/* Once all of the shard's quantized Linears were put; gives their memory back. */
enum rc artifact_write(struct artifact *a, int shard, struct err *e);

/* Refining, when all shards are there. First the scales [linear_count], fp16 [N, G] each or NULL, as a whole, in a file
 * of their own; then every shard with them in it, written anew one after the other. A kill between leaves what
 * artifact_rescale ends to the same bytes. */
enum rc artifact_put_scales(struct artifact *a, const void *const *scales, struct err *e);
bool artifact_has_scales(const struct artifact *a); /* they are on the disk, or in the finished artifact */
enum rc artifact_rescale(struct artifact *a, struct err *e);

/* Of what is in the folder. */
enum rc artifact_size(const struct artifact *a, int64_t *files, int64_t *bytes, struct err *e);

/* The other files, and the folder's name. The artifact has been opened as a model before it gets that. */
enum rc artifact_finish(struct artifact *a, struct err *e);

#endif
