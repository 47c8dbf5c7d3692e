#include "worker/model/artifact_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/sizes.h"
#include "base/strbuf.h"
#include "worker/model/quant_config.h"

static bool is_quantized(const struct artifact_spec *s, int64_t linear) {
    return s->candidates[linear].method != METHOD_NONE;
}

static bool is_head(const struct artifact_spec *s, int64_t linear) {
    return linear == s->model->linear_count - 1;
}

static struct candidate scheme_of(const struct artifact_spec *s, int64_t linear) {
    return target_scheme(&s->candidates[linear], s->model->linears[linear].cols);
}

int artifact_shards(const struct model *model) {
    return model->arch.blocks + 1;
}

void artifact_shard_name(const struct model *model, int shard, char name[SHARD_NAME_SIZE]) {
    snprintf(name, SHARD_NAME_SIZE, "model-%05d-of-%05d.safetensors", shard + 1, artifact_shards(model));
}

/* --- tensors --- */

static const char *const type_names[] = {[DTYPE_F32] = "F32", [DTYPE_F16] = "F16", [DTYPE_BF16] = "BF16"};

static void add_plain(const struct artifact_contents *c, const char *name, const struct st_tensor *t,
                      struct out_shard *out) {
    if (t == NULL) return;
    struct out_tensor tensor = {.type = t->stored_as, .dims = t->dims, .bytes = t->bytes, .data = t->data};
    for (int i = 0; i < t->dims; i++)
        tensor.shape[i] = t->shape[i];
    for (size_t i = 0; i < c->replacement_count; i++) {
        const struct replacement *r = &c->replacements[i];
        if (r->tensor != t) continue;
        tensor.type = type_names[r->type];
        tensor.bytes = t->count * (int64_t)dtype_size(r->type);
        tensor.data = r->values;
    }
    shard_add(out, name, tensor);
}

static void add_part(const char *linear, const char *suffix, struct out_tensor tensor, struct out_shard *out) {
    char *name = xasprintf("%s.%s", linear, suffix);
    tensor.dims = tensor.shape[1] > 0 ? 2 : 1;
    shard_add(out, name, tensor);
    free(name);
}

/* A container of codes: of 32 bits, but for most widths of the HQQ layout. */
static struct out_tensor codes_tensor(const struct candidate *c, int64_t rows, int64_t cols, int64_t bytes) {
    bool words = c->layout == LAYOUT_DENSE || c->bits == 3;
    int64_t containers = bytes / (words ? 4 : 1), wide = c->group > 0 ? c->group : cols;
    if (c->layout == LAYOUT_DENSE) wide = containers / rows;
    return (struct out_tensor){.type = words ? "I32" : "U8", .shape = {containers / wide, wide}, .bytes = bytes};
}

static void add_zeros(const struct linear *l, const struct candidate *c, const struct packed *p, int64_t groups,
                      struct out_shard *out) {
    struct out_tensor zeros = {.type = "F16", .shape = {l->rows, groups}, .bytes = p->zeros_bytes, .data = p->zeros};
    if (p->zeros_bytes == 0) return;
    if (c->zero == ZERO_INTEGER) {
        zeros.type = "I32";
        zeros.shape[0] = p->zeros_bytes / 4 / groups;
    }
    add_part(l->name, c->zero == ZERO_INTEGER ? "weight_zero_point" : "weight_zero", zeros, out);
}

/* One scale a row, or one for all. */
static void add_fp8(const struct linear *l, const struct candidate *c, const struct packed *p, struct out_shard *out) {
    struct out_tensor codes = {
        .type = "F8_E4M3", .shape = {l->rows, l->cols}, .bytes = p->codes_bytes, .data = p->codes};
    struct out_tensor scales = {.type = "BF16", .shape = {l->rows, 1}, .bytes = p->scales_bytes, .data = p->scales};
    if (c->fp8_scale == FP8_PER_TENSOR) {
        scales.shape[0] = 1;
        scales.shape[1] = 0;
    }
    add_part(l->name, "weight", codes, out);
    add_part(l->name, "weight_scale", scales, out);
}

static void add_packed(const struct artifact_contents *c, int64_t linear, struct out_shard *out) {
    const struct linear *l = &c->spec->model->linears[linear];
    struct candidate scheme = scheme_of(c->spec, linear);
    struct packed p = packed_sizes(&c->spec->candidates[linear], l->rows, l->cols);
    if (c->packed != NULL && c->packed[linear].codes != NULL) p = c->packed[linear];
    if (scheme.method == METHOD_FP8) {
        add_fp8(l, &scheme, &p, out);
        return;
    }
    struct out_tensor codes = codes_tensor(&scheme, l->rows, l->cols, p.codes_bytes);
    int64_t groups = p.scales_bytes / 2 / l->rows;
    struct out_tensor scales = {.type = "F16", .shape = {l->rows, groups}, .bytes = p.scales_bytes, .data = p.scales};
    struct out_tensor shape = {.type = "I64", .shape = {2}, .bytes = 2 * sizeof l->rows, .data = &l->rows};
    codes.data = p.codes;
    add_part(l->name, "weight_packed", codes, out);
    add_part(l->name, "weight_scale", scales, out);
    add_part(l->name, "weight_shape", shape, out);
    add_zeros(l, &scheme, &p, groups, out);
    if (p.group_of_bytes > 0)
        add_part(l->name, "weight_g_idx",
                 (struct out_tensor){.type = "I32", .shape = {l->cols}, .bytes = p.group_of_bytes, .data = p.group_of},
                 out);
}

static void add_linear(const struct artifact_contents *c, int64_t linear, struct out_shard *out) {
    const struct linear *l = &c->spec->model->linears[linear];
    if (is_quantized(c->spec, linear))
        add_packed(c, linear, out);
    else if (!is_head(c->spec, linear) || !c->spec->model->arch.tied)
        add_plain(c, l->weight->name, l->weight, out);
    if (l->bias != NULL) add_plain(c, l->bias->name, l->bias, out);
}

static void add_norm(const struct artifact_contents *c, const struct st_tensor *t, struct out_shard *out) {
    if (t != NULL) add_plain(c, t->name, t, out);
}

static void block_tensors(const struct artifact_contents *c, int block, struct out_shard *out) {
    const struct block_tensors *b = &c->spec->model->blocks[block];
    add_norm(c, b->input_norm, out);
    add_norm(c, b->post_norm, out);
    add_norm(c, b->q_norm, out);
    add_norm(c, b->k_norm, out);
    for (int i = 0; i < BLOCK_LINEARS_MAX && b->linears[i] >= 0; i++)
        add_linear(c, b->linears[i], out);
}

void artifact_shard_tensors(const struct artifact_contents *c, int shard, struct out_shard *out) {
    const struct model *m = c->spec->model;
    *out = (struct out_shard){0};
    if (shard < m->arch.blocks) {
        block_tensors(c, shard, out);
        return;
    }
    /* A tied model may have it under the head's name; a head that is quantized is no longer tied. */
    add_plain(c, "model.embed_tokens.weight", m->embedding, out);
    add_norm(c, m->final_norm, out);
    add_linear(c, m->linear_count - 1, out);
}

char *artifact_index(const struct artifact_spec *spec, int64_t total_bytes) {
    const struct artifact_contents contents = {.spec = spec};
    json_t *map = json_object();
    for (int shard = 0; shard < artifact_shards(spec->model); shard++) {
        struct out_shard tensors;
        char file[SHARD_NAME_SIZE];
        artifact_shard_tensors(&contents, shard, &tensors);
        artifact_shard_name(spec->model, shard, file);
        for (size_t i = 0; i < tensors.count; i++)
            json_object_set_new(map, tensors.tensors[i].name, json_string(file));
        shard_release(&tensors);
    }
    json_t *index = json_pack("{s{sI} so}", "metadata", "total_size", (json_int_t)total_bytes, "weight_map", map);
    char *text = json_pretty(index, true);
    json_decref(index);
    return text;
}

/* --- config.json --- */

static const char *format_name(const struct artifact_spec *s, const struct candidate *scheme) {
    if (s->target == TARGET_NONE) return quant_method_own;
    return scheme->method == METHOD_FP8 ? "float-quantized" : "pack-quantized";
}

/* Of all: the one that there is. */
static const char *common_format(const struct artifact_spec *s) {
    const char *common = NULL;
    for (int64_t i = 0; i < s->model->linear_count; i++) {
        struct candidate scheme = scheme_of(s, i);
        if (!is_quantized(s, i)) continue;
        const char *format = format_name(s, &scheme);
        if (common != NULL && strcmp(common, format) != 0) return "mixed-precision";
        common = format;
    }
    return common;
}

static json_t *fp8_json(const struct candidate *scheme) {
    return json_pack("{si ss sb ss sn sb}", "num_bits", 8, "type", "float", "symmetric", 1, "strategy",
                     scheme->fp8_scale == FP8_PER_TENSOR ? "tensor" : "channel", "group_size", "dynamic", 0);
}

static json_t *weights_json(const struct artifact_spec *s, const struct candidate *scheme) {
    if (scheme->method == METHOD_FP8) return fp8_json(scheme);
    json_t *group = scheme->group > 0 ? json_integer(scheme->group) : json_null();
    json_t *weights =
        json_pack("{si ss sb ss so sb sn}", "num_bits", scheme->bits, "type", "int", "symmetric", scheme->symmetric,
                  "strategy", scheme->group > 0 ? "group" : "channel", "group_size", group, "dynamic", 0, "actorder");
    if (s->target != TARGET_NONE) return weights;
    if (!scheme->symmetric) json_object_set_new(weights, "zero", json_string(zero_type_names[scheme->zero]));
    json_object_set_new(weights, "layout", json_string(layout_names[scheme->layout]));
    return weights;
}

/* The first Linear that is stored as this one is. */
static int64_t first_alike(const struct artifact_spec *s, int64_t linear) {
    struct candidate scheme = scheme_of(s, linear), other;
    for (int64_t i = 0; i < linear; i++)
        if (other = scheme_of(s, i), target_same_scheme(&scheme, &other)) return i;
    return linear;
}

/* Those that are stored as `first` is, as one of config_groups: by name, which every reader understands. */
static json_t *group_json(const struct artifact_spec *s, int64_t first) {
    struct candidate scheme = scheme_of(s, first);
    json_t *targets = json_array();
    for (int64_t i = first; i < s->model->linear_count; i++)
        if (first_alike(s, i) == first) json_array_append_new(targets, json_string(s->model->linears[i].name));
    return json_pack("{so so sn sn ss}", "targets", targets, "weights", weights_json(s, &scheme), "input_activations",
                     "output_activations", "format", format_name(s, &scheme));
}

static json_t *quantization_json(const struct artifact_spec *s) {
    json_t *groups = json_object(), *ignore = json_array();
    for (int64_t i = 0; i < s->model->linear_count; i++) {
        char name[32];
        if (!is_quantized(s, i)) json_array_append_new(ignore, json_string(s->model->linears[i].name));
        if (!is_quantized(s, i) || first_alike(s, i) != i) continue;
        snprintf(name, sizeof name, "group_%zu", json_object_size(groups));
        json_object_set_new(groups, name, group_json(s, i));
    }
    return json_pack("{ss ss ss so so sn}", "quant_method",
                     s->target == TARGET_NONE ? quant_method_own : quant_method_ct, "format", common_format(s),
                     "quantization_status", "compressed", "config_groups", groups, "ignore", ignore, "kv_cache_scheme");
}

char *artifact_config(const struct artifact_spec *spec, json_t *config) {
    bool any = false;
    for (int64_t i = 0; i < spec->model->linear_count; i++)
        any = any || is_quantized(spec, i);
    if (is_quantized(spec, spec->model->linear_count - 1))
        json_object_set_new(config, "tie_word_embeddings", json_false());
    if (any) json_object_set_new(config, "quantization_config", quantization_json(spec));
    return json_pretty(config, false);
}

/* --- README.md --- */

static void put_scheme(const struct candidate *scheme, struct strbuf *text) {
    if (scheme->method == METHOD_NONE) {
        strbuf_puts(text, "as in the source");
        return;
    }
    if (scheme->method == METHOD_FP8) {
        strbuf_printf(text, "fp8 (e4m3), a scale a %s", scheme->fp8_scale == FP8_PER_TENSOR ? "Linear" : "row");
        return;
    }
    strbuf_printf(text, "%d bits, %s", scheme->bits,
                  scheme->symmetric              ? "symmetric"
                  : scheme->zero == ZERO_INTEGER ? "integer zeros"
                                                 : "float zeros");
    if (scheme->group > 0)
        strbuf_printf(text, ", groups of %d", scheme->group);
    else
        strbuf_puts(text, ", a group a row");
    if (scheme->layout == LAYOUT_HQQ) strbuf_puts(text, ", hqq layout");
}

static void put_counts(const struct artifact_spec *s, struct strbuf *text) {
    strbuf_puts(text, "| Linears | stored as | bits a weight |\n| ---: | --- | ---: |\n");
    for (int64_t first = 0; first < s->model->linear_count; first++) {
        struct candidate scheme = scheme_of(s, first);
        int64_t count = 0, weights = 0, bytes = 0;
        for (int64_t i = first; i < s->model->linear_count && first_alike(s, first) == first; i++) {
            if (first_alike(s, i) != first) continue;
            const struct linear *l = &s->model->linears[i];
            struct packed sizes = packed_sizes(&scheme, l->rows, l->cols);
            count++;
            weights += l->rows * l->cols;
            bytes += is_quantized(s, i) ? packed_bytes(&sizes) : l->weight->bytes;
        }
        if (count == 0) continue;
        strbuf_printf(text, "| %lld | ", (long long)count);
        put_scheme(&scheme, text);
        strbuf_printf(text, " | %.2f |\n", 8.0 * (double)bytes / (double)weights);
    }
}

/* transformers 5.24 makes room for zeros that are not packed, and refuses those that are; the package's own converter
 * reads them. */
static const char with_zeros[] =
    "\nSome Linears have zeros, which `transformers` does not load from this format (5.24 does not); let the package\n"
    "turn the folder into one with plain weights first:\n\n"
    "    from compressed_tensors.entrypoints.convert import convert_checkpoint\n"
    "    from compressed_tensors.entrypoints.convert.converters import CompressedTensorsDequantizer\n"
    "    convert_checkpoint(\".\", \"plain\", CompressedTensorsDequantizer(\".\"))\n";

static bool has_zeros(const struct artifact_spec *s) {
    for (int64_t i = 0; i < s->model->linear_count; i++)
        if (is_quantized(s, i) && s->candidates[i].method != METHOD_FP8 && !s->candidates[i].symmetric) return true;
    return false;
}

static const char *const how_to_load[] = {
    [TARGET_NONE] = "Its Linears have forms that only `hsaqd` reads (`quant_method` is \"hsaqd\"): put the folder "
                    "beneath a models\n"
                    "folder of the service, and evaluate it like any other model.\n",
    [TARGET_COMPRESSED_TENSORS] =
        "The format is `pack-quantized` of compressed-tensors. With the PyPI packages `transformers` and\n"
        "`compressed-tensors` (0.20 or newer):\n\n"
        "    AutoModelForCausalLM.from_pretrained(\".\", dtype=\"float32\")\n\n"
        "Scales are stored as float16; what is loaded as bfloat16 rounds them to 8 bits.\n",
    [TARGET_VLLM] = "The format is `pack-quantized` of compressed-tensors, with what vLLM has kernels for:\n\n"
                    "    vllm serve .\n\n"
                    "Scales are stored as float16; `--dtype float16` keeps them as they are, bfloat16 rounds them to\n"
                    "8 bits.\n",
};

char *artifact_readme(const struct artifact_spec *spec, int64_t total_bytes) {
    struct strbuf text = STRBUF_INIT;
    char size[24];
    strbuf_printf(&text, "# %s, quantized\n\n", spec->model->name);
    strbuf_printf(
        &text,
        "Written by hsaqd: the %s model `%s`, its weights in %s. Embedding, norms and biases are the\nsource's, "
        "in its precision, unless provenance.json says otherwise.\n\n",
        spec->model->arch.family, spec->model->name, size_format(total_bytes, size, sizeof size));
    put_counts(spec, &text);
    if (spec->refined)
        strbuf_puts(&text,
                    "\nAfter calibration the scales of all groups were refined together, so that the model puts out "
                    "what its source\ndoes; provenance.json says with what.\n");
    strbuf_printf(&text, "\n## Loading\n\n%s", how_to_load[spec->target]);
    if (spec->target == TARGET_COMPRESSED_TENSORS && has_zeros(spec)) strbuf_puts(&text, with_zeros);
    strbuf_puts(&text, "\n## Files\n\n"
                       "- `allocation.json`: which Linear got which recipe.\n"
                       "- `provenance.json`: from which model, with which calibration and settings, by which version.\n"
                       "- `config.json`: the source's, with `quantization_config`.\n"
                       "- `model-*.safetensors`: one shard a block, the last one for the rest.\n");
    return strbuf_detach(&text);
}
