#include "worker/model/model.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "worker/model/folder.h"
#include "worker/model/quant_config.h"
#include "worker/model/synthetic.h"

enum { CONFIG_MAX_BYTES = 4 * 1024 * 1024 };

/* A dimension of a tensor, and what in config.json it comes from. */
enum dim { DIM_NONE, DIM_VOCAB, DIM_HIDDEN, DIM_INTERMEDIATE, DIM_GATE_UP, DIM_HEAD, DIM_Q, DIM_KV, DIM_QKV };

static const char *const dim_sources[] = {
    [DIM_NONE] = "",
    [DIM_VOCAB] = "vocab_size",
    [DIM_HIDDEN] = "hidden_size",
    [DIM_INTERMEDIATE] = "intermediate_size",
    [DIM_GATE_UP] = "2 × intermediate_size",
    [DIM_HEAD] = "head_dim",
    [DIM_Q] = "num_attention_heads × head_dim",
    [DIM_KV] = "num_key_value_heads × head_dim",
    [DIM_QKV] = "(num_attention_heads + 2 × num_key_value_heads) × head_dim",
};

static int64_t dim_size(const struct arch *a, enum dim dim) {
    switch (dim) {
    case DIM_NONE: break;
    case DIM_VOCAB: return a->vocab;
    case DIM_HIDDEN: return a->hidden;
    case DIM_INTERMEDIATE: return a->intermediate;
    case DIM_GATE_UP: return 2 * (int64_t)a->intermediate;
    case DIM_HEAD: return a->head_dim;
    case DIM_Q: return (int64_t)a->heads * a->head_dim;
    case DIM_KV: return (int64_t)a->kv_heads * a->head_dim;
    case DIM_QKV: return ((int64_t)a->heads + 2 * (int64_t)a->kv_heads) * a->head_dim;
    }
    return 1;
}

/* A block's Linears in forward order; those of the other storage (fused or not) are left out. */
enum storage { ALWAYS, SPLIT_QKV, FUSED_QKV, SPLIT_GATE_UP, FUSED_GATE_UP };
enum bias { BIAS_QKV, BIAS_O, BIAS_MLP };

static const struct projection {
    const char *module, *name;
    enum storage storage;
    enum linear_input input;
    enum dim rows, cols;
    enum bias bias;
} projections[] = {
    {"self_attn", "qkv_proj", FUSED_QKV, INPUT_ATTENTION, DIM_QKV, DIM_HIDDEN, BIAS_QKV},
    {"self_attn", "q_proj", SPLIT_QKV, INPUT_ATTENTION, DIM_Q, DIM_HIDDEN, BIAS_QKV},
    {"self_attn", "k_proj", SPLIT_QKV, INPUT_ATTENTION, DIM_KV, DIM_HIDDEN, BIAS_QKV},
    {"self_attn", "v_proj", SPLIT_QKV, INPUT_ATTENTION, DIM_KV, DIM_HIDDEN, BIAS_QKV},
    {"self_attn", "o_proj", ALWAYS, INPUT_OUTPUT, DIM_HIDDEN, DIM_Q, BIAS_O},
    {"mlp", "gate_up_proj", FUSED_GATE_UP, INPUT_MLP, DIM_GATE_UP, DIM_HIDDEN, BIAS_MLP},
    {"mlp", "gate_proj", SPLIT_GATE_UP, INPUT_MLP, DIM_INTERMEDIATE, DIM_HIDDEN, BIAS_MLP},
    {"mlp", "up_proj", SPLIT_GATE_UP, INPUT_MLP, DIM_INTERMEDIATE, DIM_HIDDEN, BIAS_MLP},
    {"mlp", "down_proj", ALWAYS, INPUT_DOWN, DIM_HIDDEN, DIM_INTERMEDIATE, BIAS_MLP},
};
enum { PROJECTION_COUNT = sizeof projections / sizeof *projections };

static bool is_stored(const struct arch *a, enum storage storage) {
    switch (storage) {
    case ALWAYS: break;
    case SPLIT_QKV: return !a->fused_qkv;
    case FUSED_QKV: return a->fused_qkv;
    case SPLIT_GATE_UP: return !a->fused_gate_up;
    case FUSED_GATE_UP: return a->fused_gate_up;
    }
    return true;
}

static bool has_bias(const struct arch *a, enum bias bias) {
    return bias == BIAS_QKV ? a->qkv_bias : bias == BIAS_O ? a->o_bias : a->mlp_bias;
}

static enum rc check_shape(const struct arch *a, const struct st_tensor *t, enum dim rows, enum dim cols,
                           struct err *e) {
    int64_t want[2] = {dim_size(a, rows), dim_size(a, cols)};
    int dims = cols == DIM_NONE ? 1 : 2;
    if (t->dims == dims && t->shape[0] == want[0] && (dims == 1 || t->shape[1] == want[1])) return RC_OK;
    char have_text[192], want_text[64];
    return err_set(e, RC_INVALID, "%s: tensor '%s' has shape %s, but config.json asks for %s (%s%s%s)", t->file,
                   t->name, shape_text(t->shape, t->dims, have_text, sizeof have_text),
                   shape_text(want, dims, want_text, sizeof want_text), dim_sources[rows], dims == 2 ? " by " : "",
                   dim_sources[cols]);
}

static const struct st_tensor *find(const struct model *m, const char *name) {
    return m->synthetic ? synthetic_find(m->synthetic, name) : safetensors_find(m->tensors, name);
}

static enum rc generate(const struct model *m, const char *name, enum dim rows, enum dim cols,
                        const struct st_tensor **out, struct err *e) {
    int64_t shape[2] = {dim_size(&m->arch, rows), dim_size(&m->arch, cols)};
    return synthetic_make(m->synthetic, name, shape, cols == DIM_NONE ? 1 : 2, out, e);
}

/* cols DIM_NONE: a vector. */
static enum rc need(const struct model *m, const char *name, enum dim rows, enum dim cols, const struct st_tensor **out,
                    struct err *e) {
    const struct st_tensor *t = find(m, name);
    if (t == NULL && m->synthetic) TRY(generate(m, name, rows, cols, &t, e));
    if (t == NULL) return err_set(e, RC_INVALID, "tensor '%s' is missing from the model's files", name);
    if (!t->readable || (t->type != DTYPE_F32 && t->type != DTYPE_F16 && t->type != DTYPE_BF16))
        return err_set(e, RC_UNSUPPORTED, "%s: tensor '%s' is stored as %s; weights must be F32, F16 or BF16", t->file,
                       name, t->stored_as);
    *out = t;
    return check_shape(&m->arch, t, rows, cols, e);
}

static enum rc need_norm(const struct model *m, int block, const char *suffix, enum dim dim,
                         const struct st_tensor **out, struct err *e) {
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", block, suffix);
    return need(m, name, dim, DIM_NONE, out, e);
}

/* A bias that the file has and the config denies would be dropped from the result without a word. */
static enum rc find_bias(const struct model *m, const char *linear, bool wanted, enum dim rows,
                         const struct st_tensor **out, struct err *e) {
    char name[128];
    snprintf(name, sizeof name, "%s.bias", linear);
    if (wanted) return need(m, name, rows, DIM_NONE, out, e);
    const struct st_tensor *t = find(m, name);
    if (t == NULL) return RC_OK;
    return err_set(e, RC_INVALID,
                   "%s: tensor '%s' is there, but config.json (model_type %s, attention_bias, mlp_bias) gives this "
                   "Linear no bias",
                   t->file, name, m->arch.family);
}

/* The Linear's weight, plain or packed. */
static enum rc find_weight(const struct model *m, struct quant_config *quant, const struct projection *p,
                           struct linear *l, struct err *e) {
    char name[128];
    const struct candidate *stored = NULL;
    if (quant != NULL) TRY(quant_config_match(quant, l->name, &stored, e));
    if (stored != NULL) return packed_linear_find(m->tensors, l->name, stored, l->rows, l->cols, &l->packed, e);
    snprintf(name, sizeof name, "%s.weight", l->name);
    return need(m, name, p->rows, p->cols, &l->weight, e);
}

static enum rc add_linear(struct model *m, struct quant_config *quant, const struct projection *p, int block,
                          struct err *e) {
    struct linear *l = &m->linears[m->linear_count++];
    *l = (struct linear){.projection = p->name, .block = block, .input = p->input};
    l->name = xasprintf("model.layers.%d.%s.%s", block, p->module, p->name);
    l->rows = dim_size(&m->arch, p->rows);
    l->cols = dim_size(&m->arch, p->cols);
    TRY(find_weight(m, quant, p, l, e));
    return find_bias(m, l->name, has_bias(&m->arch, p->bias), p->rows, &l->bias, e);
}

static enum rc add_block(struct model *m, struct quant_config *quant, int block, struct err *e) {
    struct block_tensors *b = &m->blocks[block];
    TRY(need_norm(m, block, "input_layernorm", DIM_HIDDEN, &b->input_norm, e));
    TRY(need_norm(m, block, "post_attention_layernorm", DIM_HIDDEN, &b->post_norm, e));
    if (m->arch.qk_norm) {
        TRY(need_norm(m, block, "self_attn.q_norm", DIM_HEAD, &b->q_norm, e));
        TRY(need_norm(m, block, "self_attn.k_norm", DIM_HEAD, &b->k_norm, e));
    }
    int n = 0;
    for (int i = 0; i < PROJECTION_COUNT; i++) {
        if (!is_stored(&m->arch, projections[i].storage)) continue;
        b->linears[n++] = (int)m->linear_count;
        TRY(add_linear(m, quant, &projections[i], block, e));
    }
    while (n < BLOCK_LINEARS_MAX)
        b->linears[n++] = -1;
    return RC_OK;
}

static bool same_bytes(const struct st_tensor *a, const struct st_tensor *b) {
    return a->type == b->type && a->bytes == b->bytes && memcmp(a->data, b->data, (size_t)a->bytes) == 0;
}

static const char embed_name[] = "model.embed_tokens.weight", head_name[] = "lm_head.weight";

/* Whether the head is packed. A target like "Linear" means every head but one that is the embedding. */
static enum rc find_packed_head(struct model *m, struct quant_config *quant, struct linear *l, struct err *e) {
    const struct candidate *stored = NULL;
    if (quant != NULL) TRY(quant_config_match(quant, l->name, &stored, e));
    if (stored == NULL) return RC_OK;
    bool there = safetensors_find(m->tensors, "lm_head.weight_packed") != NULL;
    if (!there && m->arch.tied) return RC_OK;
    m->arch.tied = false;
    return packed_linear_find(m->tensors, l->name, stored, l->rows, l->cols, &l->packed, e);
}

/* As transformers does: a tied model may store either name alone; one that stores both is tied only when they are
 * equal. */
static enum rc add_embeddings(struct model *m, bool packed_head, struct err *e) {
    bool has_embed = find(m, embed_name) != NULL;
    bool has_head = find(m, head_name) != NULL;
    const char *embed = !has_embed && has_head && m->arch.tied ? head_name : embed_name;
    const char *head = !has_head && m->arch.tied ? embed : head_name;
    TRY(need(m, embed, DIM_VOCAB, DIM_HIDDEN, &m->embedding, e));
    if (!packed_head) TRY(need(m, head, DIM_VOCAB, DIM_HIDDEN, &m->head, e));
    if (m->arch.tied && same_bytes(m->embedding, m->head)) m->head = m->embedding;
    m->arch.tied = m->head == m->embedding;
    return find_bias(m, "lm_head", m->arch.head_bias, DIM_VOCAB, &m->head_bias, e);
}

static enum rc add_head(struct model *m, struct quant_config *quant, struct err *e) {
    struct linear *l = &m->linears[m->linear_count++];
    *l = (struct linear){.name = xstrdup("lm_head"),
                         .projection = "lm_head",
                         .block = -1,
                         .input = INPUT_HEAD,
                         .rows = m->arch.vocab,
                         .cols = m->arch.hidden};
    TRY(find_packed_head(m, quant, l, e));
    TRY(add_embeddings(m, l->packed != NULL, e));
    l->weight = m->head;
    l->bias = m->head_bias;
    return RC_OK;
}

/* What config.json says of quantization is read here and then left out: the architecture is that of the weights. */
static enum rc understand_config(struct model *m, json_t *config, struct quant_config **quant, struct err *e) {
    TRY(quant_config_read(config, quant, e));
    if (*quant != NULL) m->quantization = quant_config_method(*quant);
    json_object_del(config, "quantization_config");
    return arch_from_config(config, &m->arch, e);
}

static enum rc read_config(struct model *m, struct quant_config **quant, struct err *e) {
    char *text;
    size_t len;
    json_t *config;
    TRY(folder_read(m->dir_fd, "config.json", CONFIG_MAX_BYTES, &text, &len, e));
    enum rc rc = json_parse(text, len, &config, e);
    free(text);
    if (rc != RC_OK) return err_context(e, "config.json");
    rc = understand_config(m, config, quant, e);
    json_decref(config);
    return rc;
}

/* Every tensor that the architecture asks for, in its place. */
static enum rc match_tensors(struct model *m, struct quant_config *quant, struct err *e) {
    m->blocks = xcalloc((size_t)m->arch.blocks, sizeof *m->blocks);
    m->linears = xcalloc((size_t)m->arch.blocks * BLOCK_LINEARS_MAX + 1, sizeof *m->linears);
    for (int i = 0; i < m->arch.blocks; i++)
        TRY(add_block(m, quant, i, e));
    TRY(need(m, "model.norm.weight", DIM_HIDDEN, DIM_NONE, &m->final_norm, e));
    return add_head(m, quant, e);
}

static enum rc open_all(struct model *m, struct quant_config **quant, struct err *e) {
    TRY(folder_open(m->path, &m->dir_fd, e));
    TRY(read_config(m, quant, e));
    TRY(safetensors_open(m->dir_fd, &m->tensors, e));
    return match_tensors(m, *quant, e);
}

static struct model *model_new(const char *name, const char *path) {
    struct model *m = xcalloc(1, sizeof *m);
    m->name = xstrdup(name);
    m->path = xstrdup(path);
    m->dir_fd = -1;
    return m;
}

enum rc model_open(const char *name, const char *path, struct model **model, struct err *e) {
    struct model *m = model_new(name, path);
    struct quant_config *quant = NULL;
    enum rc rc = open_all(m, &quant, e);
    quant_config_free(quant);
    if (rc != RC_OK) {
        model_close(m);
        m = NULL;
        rc = err_context(e, "model '%.100s'", name);
    }
    *model = m;
    return rc;
}

static enum rc cut_blocks(struct arch *arch, int blocks, struct err *e) {
    if (blocks > arch->blocks)
        return err_set(e, RC_INVALID, "%d blocks were asked for, but config.json has %d", blocks, arch->blocks);
    if (blocks > 0) arch->blocks = blocks;
    return RC_OK;
}

enum rc model_generate(const json_t *config, int blocks, uint64_t seed, struct model **model, struct err *e) {
    struct model *m = model_new("synthetic", "synthetic");
    m->synthetic = synthetic_new(seed);
    enum rc rc = arch_from_config(config, &m->arch, e);
    if (rc == RC_OK) rc = cut_blocks(&m->arch, blocks, e);
    if (rc == RC_OK) rc = match_tensors(m, NULL, e);
    if (rc != RC_OK) {
        model_close(m);
        m = NULL;
    }
    *model = m;
    return rc;
}

char *model_identity(const struct model *model) {
    return model->synthetic ? synthetic_identity(model->synthetic) : safetensors_identity(model->tensors);
}

int64_t linear_bytes(const struct linear *linear) {
    return linear->packed != NULL ? packed_linear_bytes(linear->packed) : linear->weight->bytes;
}

void model_close(struct model *model) {
    if (model == NULL) return;
    for (int64_t i = 0; i < model->linear_count; i++) {
        free((char *)model->linears[i].name);
        free(model->linears[i].packed);
    }
    free(model->linears);
    free(model->blocks);
    safetensors_close(model->tensors);
    synthetic_free(model->synthetic);
    if (model->dir_fd >= 0) close(model->dir_fd);
    free(model->name);
    free(model->path);
    free(model);
}
