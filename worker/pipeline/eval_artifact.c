#include "worker/pipeline/eval_artifact.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "worker/model/folder.h"
#include "worker/pipeline/prints.h"
#include "worker/pipeline/upload.h"

enum { PROVENANCE_MAX_BYTES = 1 << 20 };

/* An artifact and what it is said to be made of. */
struct pair {
    const struct model *artifact, *reference;
};

static enum rc differs(const struct pair *p, const char *what, struct err *e) {
    return err_at(e, "/artifact", RC_INVALID, "'%.100s' was not made of '%.100s': %s", p->artifact->name,
                  p->reference->name, what);
}

static bool same_tensor(const struct st_tensor *a, const struct st_tensor *b) {
    if (a == NULL || b == NULL) return a == b;
    return a->type == b->type && a->bytes == b->bytes && memcmp(a->data, b->data, (size_t)a->bytes) == 0;
}

static bool same_numbers(const double *a, const double *b, int count) {
    for (int i = 0; i < count; i++)
        if (a[i] != b[i]) return false;
    return true;
}

static bool same_rope(const struct rope_config *a, const struct rope_config *b) {
    return a->type == b->type && a->theta == b->theta && a->factor == b->factor &&
           a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor &&
           a->original_context == b->original_context && a->attention_factor == b->attention_factor &&
           same_numbers(a->short_factor, b->short_factor, ROTARY_HALF_MAX) &&
           same_numbers(a->long_factor, b->long_factor, ROTARY_HALF_MAX);
}

static bool same_arch(const struct arch *a, const struct arch *b) {
    bool shape = !strcmp(a->family, b->family) && a->hidden == b->hidden && a->intermediate == b->intermediate &&
                 a->blocks == b->blocks && a->heads == b->heads && a->kv_heads == b->kv_heads &&
                 a->head_dim == b->head_dim && a->rotary == b->rotary;
    bool forms = a->qkv_bias == b->qkv_bias && a->o_bias == b->o_bias && a->mlp_bias == b->mlp_bias &&
                 a->head_bias == b->head_bias && a->qk_norm == b->qk_norm && a->fused_qkv == b->fused_qkv &&
                 a->fused_gate_up == b->fused_gate_up;
    bool factors = a->norm_eps == b->norm_eps && a->embedding_multiplier == b->embedding_multiplier &&
                   a->residual_multiplier == b->residual_multiplier && a->logits_scaling == b->logits_scaling &&
                   a->attention_scale == b->attention_scale;
    return shape && forms && factors && same_rope(&a->rope, &b->rope) &&
           memcmp(a->window, b->window, sizeof a->window) == 0;
}

/* What both streams share. */
static bool same_shared_tensors(const struct pair *p) {
    const struct model *a = p->artifact, *b = p->reference;
    bool same = same_tensor(a->embedding, b->embedding) && same_tensor(a->head_bias, b->head_bias);
    for (int i = 0; same && i < a->arch.blocks; i++)
        same = same_tensor(a->blocks[i].q_norm, b->blocks[i].q_norm) &&
               same_tensor(a->blocks[i].k_norm, b->blocks[i].k_norm);
    return same;
}

/* NULL: there is none, as in what others made. */
static enum rc read_fingerprint(const struct model *artifact, json_t **provenance, const char **fingerprint,
                                struct err *e) {
    char *text;
    size_t len;
    *provenance = NULL;
    *fingerprint = NULL;
    enum rc rc = folder_read(artifact->dir_fd, "provenance.json", PROVENANCE_MAX_BYTES, &text, &len, e);
    if (rc == RC_NOT_FOUND) return RC_OK;
    TRY(rc);
    rc = json_parse(text, len, provenance, e);
    free(text);
    if (rc == RC_OK) rc = json_get_string(json_object_get(*provenance, "model"), "fingerprint", fingerprint, e);
    return rc == RC_OK ? RC_OK : err_context(e, "provenance.json of '%.100s'", artifact->name);
}

static enum rc compare_fingerprints(const struct job *job, const struct pair *p, const char *made_of, struct err *e) {
    struct fingerprints *prints = NULL;
    char what[256];
    enum rc rc = prints_open(job, p->reference, &prints, e);
    json_t *fingerprint = rc == RC_OK ? prints_json(prints) : NULL;
    const char *is = json_string_value(fingerprint);
    if (rc == RC_OK && (!is || strcmp(is, made_of) != 0)) {
        snprintf(what, sizeof what, "its provenance names a model with fingerprint %.64s, this one has %s", made_of,
                 is ? is : "none");
        rc = differs(p, what, e);
    }
    json_decref(fingerprint);
    fingerprints_free(prints);
    return rc;
}

static enum rc check(const struct job *job, const struct pair *p, struct err *e) {
    json_t *provenance;
    const char *made_of;
    if (p->artifact->arch.vocab != p->reference->arch.vocab) return differs(p, "their vocabularies differ", e);
    if (!same_arch(&p->artifact->arch, &p->reference->arch)) return differs(p, "their architectures differ", e);
    enum rc rc = read_fingerprint(p->artifact, &provenance, &made_of, e);
    if (rc == RC_OK && made_of) rc = compare_fingerprints(job, p, made_of, e);
    json_decref(provenance);
    TRY(rc);
    return same_shared_tensors(p) ? RC_OK : differs(p, "their embeddings, or norms of q and k, differ", e);
}

enum rc eval_artifact_open(const struct job *job, const struct model *reference, struct model **artifact,
                           struct err *e) {
    const char *name = NULL, *path = NULL;
    TRY(json_get_string(job->artifact, "name", &name, e));
    TRY(json_get_string(job->artifact, "path", &path, e));
    if (!name || !path) return err_set(e, RC_INVALID, "the start message names no artifact");
    TRY(model_open(name, path, artifact, e));
    const struct pair p = {*artifact, reference};
    return check(job, &p, e);
}

enum rc eval_artifact_head(const struct job *job, const struct model *reference, const struct model *artifact,
                           struct mat *head, struct err *e) {
    const struct linear *l = &artifact->linears[artifact->linear_count - 1];
    if (!l->packed && same_tensor(artifact->head, reference->head)) return RC_OK;
    return upload_linear(job, l, head, e);
}
