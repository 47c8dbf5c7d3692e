#include "worker/model/describe.h"

static const char *const rope_names[] = {"default", "linear", "llama3", "longrope"};

static json_t *describe_rope(const struct arch *a) {
    const struct rope_config *r = &a->rope;
    json_t *rope =
        json_pack("{s:s, s:f, s:i}", "type", rope_names[r->type], "theta", r->theta, "rotary_dim", a->rotary);
    if (r->type == ROPE_DEFAULT) return rope;
    json_object_set_new(rope, "factor", json_real(r->factor));
    if (r->type == ROPE_LINEAR) return rope;
    json_object_set_new(rope, "original_context", json_integer(r->original_context));
    if (r->type == ROPE_LONGROPE) json_object_set_new(rope, "attention_factor", json_real(r->attention_factor));
    return rope;
}

/* null when no block slides, a number when all do alike, else one entry a block. */
static json_t *describe_windows(const struct arch *a) {
    bool alike = true;
    for (int i = 1; i < a->blocks; i++)
        alike = alike && a->window[i] == a->window[0];
    if (alike) return a->window[0] == 0 ? json_null() : json_integer(a->window[0]);
    json_t *list = json_array();
    for (int i = 0; i < a->blocks; i++)
        json_array_append_new(list, a->window[i] == 0 ? json_null() : json_integer(a->window[i]));
    return list;
}

static json_t *describe_arch(const struct arch *a) {
    json_t *arch = json_object();
    const struct {
        const char *name;
        json_t *value;
    } members[] = {
        {"vocab_size", json_integer(a->vocab)},
        {"hidden_size", json_integer(a->hidden)},
        {"intermediate_size", json_integer(a->intermediate)},
        {"blocks", json_integer(a->blocks)},
        {"heads", json_integer(a->heads)},
        {"kv_heads", json_integer(a->kv_heads)},
        {"head_dim", json_integer(a->head_dim)},
        {"context", json_integer(a->context)},
        {"norm_eps", json_real(a->norm_eps)},
        {"tied_embeddings", json_boolean(a->tied)},
        {"qkv_bias", json_boolean(a->qkv_bias)},
        {"o_bias", json_boolean(a->o_bias)},
        {"mlp_bias", json_boolean(a->mlp_bias)},
        {"qk_norm", json_boolean(a->qk_norm)},
        {"fused", json_boolean(a->fused_qkv)},
        {"sliding_window", describe_windows(a)},
        {"rope", describe_rope(a)},
        {"attention_scale", json_real(a->attention_scale)},
        {"embedding_multiplier", json_real(a->embedding_multiplier)},
        {"residual_multiplier", json_real(a->residual_multiplier)},
        {"logits_scaling", json_real(a->logits_scaling)},
    };
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        json_object_set_new(arch, members[i].name, members[i].value);
    return arch;
}

static json_t *describe_packed(const struct packed_linear *p) {
    if (p == NULL) return json_null();
    const struct candidate *c = &p->candidate;
    if (c->method == METHOD_FP8)
        return json_pack("{s:i, s:i, s:b, s:n, s:s}", "bits", 8, "group", 0, "symmetric", 1, "zero", "layout", "fp8");
    return json_pack("{s:i, s:i, s:b, s:s?, s:s}", "bits", c->bits, "group", c->group, "symmetric", c->symmetric,
                     "zero", c->symmetric ? NULL : zero_type_names[c->zero], "layout", layout_names[c->layout]);
}

static json_t *describe_linear(const struct linear *l) {
    return json_pack("{s:s, s:o, s:s, s:[I,I], s:I, s:I, s:o}", "name", l->name, "block",
                     l->block < 0 ? json_null() : json_integer(l->block), "projection", l->projection, "shape",
                     (json_int_t)l->rows, (json_int_t)l->cols, "params", (json_int_t)(l->rows * l->cols), "bytes",
                     (json_int_t)linear_bytes(l), "packed", describe_packed(l->packed));
}

/* Sums over what the forward pass reads; a tied head counts once. */
struct totals {
    int64_t params, linears, embedding, norms, biases, head; /* params in elements, the others in bytes */
};

static void count(struct totals *t, const struct st_tensor *tensor, int64_t *bytes) {
    if (tensor == NULL) return;
    t->params += tensor->count;
    *bytes += tensor->bytes;
}

static void count_linear(struct totals *t, const struct linear *l) {
    t->params += l->rows * l->cols;
    *(l->block < 0 ? &t->head : &t->linears) += linear_bytes(l);
}

static struct totals sum_up(const struct model *m) {
    struct totals t = {0};
    count(&t, m->embedding, &t.embedding);
    count(&t, m->final_norm, &t.norms);
    for (int i = 0; i < m->arch.blocks; i++) {
        count(&t, m->blocks[i].input_norm, &t.norms);
        count(&t, m->blocks[i].post_norm, &t.norms);
        count(&t, m->blocks[i].q_norm, &t.norms);
        count(&t, m->blocks[i].k_norm, &t.norms);
    }
    for (int64_t i = 0; i < m->linear_count; i++) {
        const struct linear *l = &m->linears[i];
        if (l->weight != m->embedding) count_linear(&t, l);
        count(&t, l->bias, &t.biases);
    }
    return t;
}

json_t *model_describe(const struct model *model) {
    struct totals t = sum_up(model);
    int64_t unquantized = t.embedding + t.norms + t.biases + t.head;
    json_t *linears = json_array();
    for (int64_t i = 0; i < model->linear_count; i++)
        json_array_append_new(linears, describe_linear(&model->linears[i]));
    return json_pack("{s:s, s:s, s:s?, s:o, s:I, s:I, s:o, s:{s:I, s:I, s:I, s:I, s:I}}", "name", model->name, "family",
                     model->arch.family, "quantization", model->quantization, "architecture",
                     describe_arch(&model->arch), "parameters", (json_int_t)t.params, "bytes",
                     (json_int_t)(t.linears + unquantized), "linears", linears, "unquantized_bytes", "embedding",
                     (json_int_t)t.embedding, "norms", (json_int_t)t.norms, "biases", (json_int_t)t.biases, "head",
                     (json_int_t)t.head, "total", (json_int_t)unquantized);
}
