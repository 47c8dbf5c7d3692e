#include "worker/model/arch.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "worker/model/rope.h"

/* What a family's layers have. */
enum feature {
    QKV_BIAS = 1 << 0,        /* always, whatever the config says */
    ATTENTION_BIAS = 1 << 1,  /* "attention_bias": q, k, v and o */
    MLP_BIAS = 1 << 2,        /* "mlp_bias": gate, up and down */
    HEAD_BIAS = 1 << 3,       /* "lm_head_bias" */
    QK_NORM = 1 << 4,         /* RMSNorm of each head of q and k */
    FUSED = 1 << 5,           /* qkv_proj and gate_up_proj */
    MULTIPLIERS = 1 << 6,     /* Granite's four */
    SLIDES = 1 << 7,          /* "sliding_window" holds for every block */
    SLIDES_BY_LAYER = 1 << 8, /* "use_sliding_window", "max_window_layers", "layer_types" */
    PHI_ROPE = 1 << 9,        /* rope.h's rules.phi */
};

/* The defaults are those of the configuration classes in transformers 5. "phi4" is what some copies of Phi-4-mini say;
 * its class is Phi-3's. */
static const struct family {
    const char *model_type;
    int vocab, hidden, intermediate, blocks, heads;
    int kv_heads; /* 0: as many as heads */
    int head_dim; /* 0: hidden / heads */
    int context;
    double norm_eps;
    int window;           /* 0: none */
    int original_context; /* 0: the context */
    unsigned features;
} families[] = {
    {"llama", 32000, 4096, 11008, 32, 32, 0, 0, 2048, 1e-6, 0, 0, ATTENTION_BIAS | MLP_BIAS},
    {"mistral", 32000, 4096, 14336, 32, 32, 8, 0, 131072, 1e-6, 4096, 0, SLIDES},
    {"qwen2", 151936, 4096, 22016, 32, 32, 32, 0, 32768, 1e-6, 4096, 0, QKV_BIAS | SLIDES_BY_LAYER},
    {"qwen3", 151936, 4096, 22016, 32, 32, 32, 128, 32768, 1e-6, 4096, 0, ATTENTION_BIAS | QK_NORM | SLIDES_BY_LAYER},
    {"granite", 32000, 4096, 11008, 32, 32, 0, 0, 2048, 1e-6, 0, 0, ATTENTION_BIAS | MLP_BIAS | MULTIPLIERS},
    {"phi3", 32064, 3072, 8192, 32, 32, 0, 0, 4096, 1e-5, 0, 4096, FUSED | SLIDES | PHI_ROPE | HEAD_BIAS},
    {"phi4", 32064, 3072, 8192, 32, 32, 0, 0, 4096, 1e-5, 0, 4096, FUSED | SLIDES | PHI_ROPE | HEAD_BIAS},
};

/* Fields that would change the result and are not implemented. Absent, null, false, 0, empty and `neutral` say that a
 * model does not use them; so does belonging to a family with one of the features `unless`. */
static const struct {
    const char *field;
    double neutral;
    unsigned unless;
} refused[] = {
    {"quantization_config", 0, 0},
    {"compression_config", 0, 0},
    {"num_local_experts", 0, 0},
    {"num_experts", 0, 0},
    {"n_routed_experts", 0, 0},
    {"num_experts_per_tok", 0, 0},
    {"moe_intermediate_size", 0, 0},
    {"clip_qkv", 0, 0},
    {"qk_layernorm", 0, 0},
    {"use_qk_norm", 0, QK_NORM},
    {"attn_logit_softcapping", 0, 0},
    {"final_logit_softcapping", 0, 0},
    {"query_pre_attn_scalar", 0, 0},
    {"rope_interleaved", 0, 0},
    {"attention_chunk_size", 0, 0},
    {"no_rope_layers", 0, 0},
    {"dual_chunk_attention_config", 0, 0},
    {"use_mrope", 0, 0},
    {"alibi", 0, 0},
    {"parallel_attn", 0, 0},
    {"use_parallel_residual", 0, 0},
    {"is_encoder_decoder", 0, 0},
    {"add_cross_attention", 0, 0},
    {"text_config", 0, 0},
    {"vision_config", 0, 0},
    {"scale_emb", 1, 0},
    {"logit_scale", 1, 0},
    {"embedding_multiplier", 1, MULTIPLIERS},
    {"residual_multiplier", 1, MULTIPLIERS},
    {"attention_multiplier", 1, MULTIPLIERS},
    {"logits_scaling", 1, MULTIPLIERS},
    {"attention_bias", 0, ATTENTION_BIAS | QKV_BIAS},
    {"mlp_bias", 0, MLP_BIAS},
    {"lm_head_bias", 0, HEAD_BIAS},
    {"sliding_window", 0, SLIDES | SLIDES_BY_LAYER},
    {"use_sliding_window", 0, SLIDES | SLIDES_BY_LAYER},
};

static bool unused(const json_t *value, double neutral) {
    switch (value == NULL ? JSON_NULL : json_typeof(value)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_INTEGER:
    case JSON_REAL: return json_number_value(value) == 0 || json_number_value(value) == neutral;
    case JSON_ARRAY: return json_array_size(value) == 0;
    case JSON_OBJECT: return json_object_size(value) == 0;
    default: return false;
    }
}

static enum rc find_family(const json_t *config, const struct family **family, struct err *e) {
    const char *type = NULL;
    TRY(json_get_string(config, "model_type", &type, e));
    if (type == NULL) return err_at(e, "/model_type", RC_INVALID, "config.json: model_type is missing");
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(type, families[i].model_type) != 0) continue;
        *family = &families[i];
        return RC_OK;
    }
    return err_at(e, "/model_type", RC_UNSUPPORTED,
                  "config.json: model_type = \"%.64s\" is not supported; supported are llama, mistral, qwen2, qwen3, "
                  "granite and phi3",
                  type);
}

static enum rc check_refused(const json_t *config, const struct family *family, struct err *e) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const json_t *value = json_object_get(config, refused[i].field);
        if ((family->features & refused[i].unless) == 0 && !unused(value, refused[i].neutral))
            return refuse_field("", refused[i].field, value, e);
    }
    const char *activation = "silu";
    TRY(json_get_string(config, "hidden_act", &activation, e));
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0) /* two names of one function */
        return refuse_field("", "hidden_act", json_object_get(config, "hidden_act"), e);
    return RC_OK;
}

static enum rc get_size(const json_t *config, const char *field, int64_t max, int fallback, int *out, struct err *e) {
    int64_t value = fallback;
    TRY(json_get_int(config, field, 1, max, &value, e));
    *out = (int)value;
    return RC_OK;
}

static enum rc parse_sizes(const json_t *config, const struct family *f, struct arch *a, struct err *e) {
    enum { WIDTH_MAX = 1 << 22, VOCAB_MAX = 1 << 24, HEADS_MAX = 4096, HEAD_DIM_MAX = 1024, CONTEXT_MAX = 1 << 30 };
    TRY(get_size(config, "vocab_size", VOCAB_MAX, f->vocab, &a->vocab, e));
    TRY(get_size(config, "hidden_size", WIDTH_MAX, f->hidden, &a->hidden, e));
    TRY(get_size(config, "intermediate_size", WIDTH_MAX, f->intermediate, &a->intermediate, e));
    TRY(get_size(config, "num_hidden_layers", BLOCKS_MAX, f->blocks, &a->blocks, e));
    TRY(get_size(config, "num_attention_heads", HEADS_MAX, f->heads, &a->heads, e));
    bool null_kv = json_is_null(json_object_get(config, "num_key_value_heads"));
    int kv_heads = null_kv || f->kv_heads == 0 ? a->heads : f->kv_heads;
    TRY(get_size(config, "num_key_value_heads", HEADS_MAX, kv_heads, &a->kv_heads, e));
    if (a->heads % a->kv_heads != 0)
        return err_at(e, "/num_key_value_heads", RC_INVALID,
                      "config.json: num_key_value_heads = %d does not divide num_attention_heads = %d", a->kv_heads,
                      a->heads);
    TRY(get_size(config, "head_dim", HEAD_DIM_MAX, f->head_dim, &a->head_dim, e));
    if (a->head_dim == 0 && a->hidden % a->heads != 0)
        return err_at(e, "/hidden_size", RC_INVALID,
                      "config.json: hidden_size = %d is no multiple of num_attention_heads = %d, and there is no "
                      "head_dim",
                      a->hidden, a->heads);
    if (a->head_dim == 0) a->head_dim = a->hidden / a->heads;
    return get_size(config, "max_position_embeddings", CONTEXT_MAX, f->context, &a->context, e);
}

static enum rc parse_flags(const json_t *config, const struct family *f, struct arch *a, struct err *e) {
    bool attention_bias = false;
    if (f->features & ATTENTION_BIAS) TRY(json_get_bool(config, "attention_bias", &attention_bias, e));
    if (f->features & MLP_BIAS) TRY(json_get_bool(config, "mlp_bias", &a->mlp_bias, e));
    if (f->features & HEAD_BIAS) TRY(json_get_bool(config, "lm_head_bias", &a->head_bias, e));
    TRY(json_get_bool(config, "tie_word_embeddings", &a->tied, e));
    a->o_bias = attention_bias;
    a->qkv_bias = attention_bias || (f->features & QKV_BIAS) != 0;
    a->qk_norm = (f->features & QK_NORM) != 0;
    a->fused_qkv = a->fused_gate_up = (f->features & FUSED) != 0;
    return RC_OK;
}

static enum rc get_positive(const json_t *config, const char *field, double *out, struct err *e) {
    TRY(json_get_number(config, field, out, e));
    if (isfinite(*out) && *out > 0) return RC_OK;
    char pointer[64] = "";
    json_pointer_push_key(pointer, sizeof pointer, field);
    return err_at(e, pointer, RC_INVALID, "config.json: %s = %g must be a positive number", field, *out);
}

static enum rc parse_scales(const json_t *config, const struct family *f, struct arch *a, struct err *e) {
    a->norm_eps = f->norm_eps;
    a->embedding_multiplier = a->residual_multiplier = a->logits_scaling = 1;
    a->attention_scale = 1 / sqrt(a->head_dim);
    TRY(get_positive(config, "rms_norm_eps", &a->norm_eps, e));
    if ((f->features & MULTIPLIERS) == 0) return RC_OK;
    a->attention_scale = 1;
    TRY(get_positive(config, "attention_multiplier", &a->attention_scale, e));
    TRY(get_positive(config, "embedding_multiplier", &a->embedding_multiplier, e));
    TRY(get_positive(config, "residual_multiplier", &a->residual_multiplier, e));
    return get_positive(config, "logits_scaling", &a->logits_scaling, e);
}

/* Blocks from `from` on see `window` keys. */
struct sliding {
    bool on;
    int64_t window, from;
};

static enum rc parse_sliding(const json_t *config, const struct family *f, struct sliding *s, struct err *e) {
    *s = (struct sliding){(f->features & SLIDES) != 0, f->window, 0};
    if (f->features & SLIDES_BY_LAYER) {
        s->from = 28; /* the default of Qwen2 and Qwen3 */
        TRY(json_get_bool(config, "use_sliding_window", &s->on, e));
        TRY(json_get_int(config, "max_window_layers", 0, INT_MAX, &s->from, e));
    }
    if (s->on) TRY(json_get_int(config, "sliding_window", 1, INT_MAX, &s->window, e));
    if (json_is_null(json_object_get(config, "sliding_window")) || s->window == 0) s->on = false;
    return RC_OK;
}

static enum rc read_layer_type(const json_t *types, int block, bool *sliding, struct err *e) {
    char index[16];
    snprintf(index, sizeof index, "%d", block);
    const json_t *entry = json_array_get(types, (size_t)block);
    const char *type = json_is_string(entry) ? json_string_value(entry) : "";
    *sliding = strcmp(type, "sliding_attention") == 0;
    return *sliding || strcmp(type, "full_attention") == 0 ? RC_OK : refuse_field("/layer_types", index, entry, e);
}

/* Newer configs list what each block does. Only Qwen lets the list decide; elsewhere it may not disagree. */
static enum rc parse_windows(const json_t *config, const struct family *f, struct arch *a, struct err *e) {
    struct sliding s;
    TRY(parse_sliding(config, f, &s, e));
    const json_t *types = json_object_get(config, "layer_types");
    bool listed = types != NULL && !json_is_null(types);
    if (listed && json_array_size(types) != (size_t)a->blocks)
        return err_at(e, "/layer_types", RC_INVALID,
                      "config.json: layer_types must be a list with one entry for each of the %d blocks", a->blocks);
    for (int i = 0; i < a->blocks; i++) {
        bool sliding = s.on && i >= s.from, wanted = sliding;
        if (listed) TRY(read_layer_type(types, i, &wanted, e));
        if (wanted != sliding && !(f->features & SLIDES_BY_LAYER && s.on))
            return err_at(e, "/layer_types", RC_UNSUPPORTED,
                          "config.json: layer_types[%d] says the opposite of what sliding_window does in %s", i,
                          a->family);
        a->window[i] = wanted ? (int)s.window : 0;
    }
    return RC_OK;
}

enum rc arch_from_config(const json_t *config, struct arch *arch, struct err *e) {
    *arch = (struct arch){0};
    if (!json_is_object(config)) return err_set(e, RC_INVALID, "config.json is no JSON object");
    const struct family *family = families;
    TRY(find_family(config, &family, e));
    snprintf(arch->family, sizeof arch->family, "%s", family->model_type);
    TRY(check_refused(config, family, e));
    TRY(parse_sizes(config, family, arch, e));
    TRY(parse_flags(config, family, arch, e));
    TRY(parse_scales(config, family, arch, e));
    TRY(parse_windows(config, family, arch, e));
    struct rope_rules rules = {(family->features & PHI_ROPE) != 0, family->original_context};
    return rope_from_config(config, &rules, arch, e);
}
