/* config.json → architecture: every family's defaults and traps, and the refusal of what is not implemented. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "worker/model/arch.h"

#define LLAMA                                                                                                          \
    "\"model_type\":\"llama\",\"vocab_size\":256,\"hidden_size\":64,\"intermediate_size\":96,"                         \
    "\"num_hidden_layers\":3,\"num_attention_heads\":4,\"max_position_embeddings\":128"

static struct arch arch; /* large: kept off the stack */
static struct err err;

static enum rc parse(const char *text) {
    json_t *config;
    assert_int_equal(json_parse(text, strlen(text), &config, &err), RC_OK);
    enum rc rc = arch_from_config(config, &arch, &err);
    json_decref(config);
    return rc;
}

static void must_parse(const char *text) {
    if (parse(text) != RC_OK) fail_msg("%s: %s", text, err.message);
}

static void must_refuse(const char *text, enum rc rc, const char *pointer, const char *word) {
    if (parse(text) != rc) fail_msg("%s: not refused as expected: %s", text, err.message);
    assert_string_equal(err.pointer, pointer);
    if (strstr(err.message, word) == NULL) fail_msg("'%s' does not mention %s", err.message, word);
}

static void defaults_are_those_of_transformers(void **state) {
    (void)state;
    static const struct {
        const char *family;
        int vocab, hidden, intermediate, kv_heads, head_dim, context, window;
        double eps;
    } want[] = {
        {"llama", 32000, 4096, 11008, 32, 128, 2048, 0, 1e-6},
        {"mistral", 32000, 4096, 14336, 8, 128, 131072, 4096, 1e-6},
        {"qwen2", 151936, 4096, 22016, 32, 128, 32768, 0, 1e-6},
        {"qwen3", 151936, 4096, 22016, 32, 128, 32768, 0, 1e-6},
        {"granite", 32000, 4096, 11008, 32, 128, 2048, 0, 1e-6},
        {"phi3", 32064, 3072, 8192, 32, 96, 4096, 0, 1e-5},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        char text[64];
        snprintf(text, sizeof text, "{\"model_type\":\"%s\"}", want[i].family);
        must_parse(text);
        assert_string_equal(arch.family, want[i].family);
        assert_int_equal(arch.vocab, want[i].vocab);
        assert_int_equal(arch.hidden, want[i].hidden);
        assert_int_equal(arch.intermediate, want[i].intermediate);
        assert_int_equal(arch.kv_heads, want[i].kv_heads);
        assert_int_equal(arch.head_dim, want[i].head_dim);
        assert_int_equal(arch.context, want[i].context);
        assert_int_equal(arch.window[31], want[i].window);
        assert_true(arch.norm_eps == want[i].eps && arch.rope.theta == 10000 && !arch.tied);
    }
}

static void families_have_their_own_parts(void **state) {
    (void)state;
    must_parse("{" LLAMA ",\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true}");
    assert_true(arch.qkv_bias && arch.o_bias && arch.mlp_bias && arch.tied && !arch.qk_norm && !arch.fused_qkv);
    must_parse("{\"model_type\":\"qwen2\"}");
    assert_true(arch.qkv_bias && !arch.o_bias);
    must_parse("{\"model_type\":\"qwen3\",\"attention_bias\":true}");
    assert_true(arch.qk_norm && arch.qkv_bias && arch.o_bias);
    must_parse("{\"model_type\":\"phi3\"}");
    assert_true(arch.fused_qkv && arch.fused_gate_up && !arch.qkv_bias);
    must_parse("{\"model_type\":\"granite\",\"attention_multiplier\":0.5,\"embedding_multiplier\":12,"
               "\"residual_multiplier\":0.25,\"logits_scaling\":8}");
    assert_true(arch.attention_scale == 0.5 && arch.embedding_multiplier == 12 && arch.residual_multiplier == 0.25 &&
                arch.logits_scaling == 8);
}

static void head_dim_of_the_config_wins(void **state) {
    (void)state;
    must_parse("{" LLAMA ",\"head_dim\":32}");
    assert_int_equal(arch.head_dim, 32);
    assert_true(arch.attention_scale == 1 / sqrt(32));
    must_parse("{" LLAMA ",\"head_dim\":null}");
    assert_int_equal(arch.head_dim, 16);
    must_parse("{\"model_type\":\"mistral\",\"num_key_value_heads\":null}");
    assert_int_equal(arch.kv_heads, 32);
}

static void windows_slide_only_where_they_should(void **state) {
    (void)state;
    must_parse("{\"model_type\":\"mistral\",\"sliding_window\":null}");
    assert_int_equal(arch.window[0], 0);
    must_parse("{\"model_type\":\"mistral\",\"sliding_window\":7}");
    assert_int_equal(arch.window[31], 7);
    must_parse("{\"model_type\":\"qwen2\",\"sliding_window\":9,\"max_window_layers\":2}");
    assert_int_equal(arch.window[31], 0);
    must_parse("{\"model_type\":\"qwen2\",\"sliding_window\":9,\"max_window_layers\":2,\"use_sliding_window\":true}");
    assert_int_equal(arch.window[1], 0);
    assert_int_equal(arch.window[2], 9);
    must_parse("{\"model_type\":\"qwen3\",\"num_hidden_layers\":2,\"sliding_window\":9,\"use_sliding_window\":true,"
               "\"layer_types\":[\"sliding_attention\",\"full_attention\"]}");
    assert_int_equal(arch.window[0], 9);
    assert_int_equal(arch.window[1], 0);
    must_refuse("{" LLAMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\"]}",
                RC_UNSUPPORTED, "/layer_types", "layer_types[1]");
    must_refuse("{" LLAMA ",\"layer_types\":[\"full_attention\"]}", RC_INVALID, "/layer_types", "3 blocks");
    must_refuse("{" LLAMA ",\"layer_types\":[\"full_attention\",\"chunked_attention\",\"full_attention\"]}",
                RC_UNSUPPORTED, "/layer_types/1", "chunked_attention");
}

static void what_is_not_implemented_is_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *field, *value;
    } cases[] = {
        {"hidden_act", "\"gelu\""},
        {"num_local_experts", "8"},
        {"clip_qkv", "8.0"},
        {"quantization_config", "{\"quant_method\":\"gptq\"}"},
        {"rope_interleaved", "true"},
        {"final_logit_softcapping", "30.0"},
        {"embedding_multiplier", "12"},
        {"sliding_window", "4096"},
        {"lm_head_bias", "true"},
        {"use_qk_norm", "true"},
        {"attention_chunk_size", "128"},
        {"dual_chunk_attention_config", "{\"chunk_size\":1}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512], pointer[64];
        snprintf(text, sizeof text, "{" LLAMA ",\"%s\":%s}", cases[i].field, cases[i].value);
        snprintf(pointer, sizeof pointer, "/%s", cases[i].field);
        must_refuse(text, RC_UNSUPPORTED, pointer, cases[i].field);
        if (strstr(err.message, cases[i].value) == NULL) fail_msg("'%s' does not give the value", err.message);
    }
    must_refuse("{\"model_type\":\"mixtral\"}", RC_UNSUPPORTED, "/model_type", "mixtral");
    must_refuse("{}", RC_INVALID, "/model_type", "missing");
    must_refuse("{\"model_type\":\"mistral\",\"attention_bias\":true}", RC_UNSUPPORTED, "/attention_bias", "true");
    must_parse(
        "{" LLAMA ",\"quantization_config\":null,\"num_local_experts\":0,\"clip_qkv\":null,"
        "\"embedding_multiplier\":1.0,\"rope_interleaved\":false,\"no_rope_layers\":[],\"hidden_act\":\"silu\"}");
}

static void nonsense_is_refused_with_its_pointer(void **state) {
    (void)state;
    must_refuse("{\"model_type\":7}", RC_INVALID, "/model_type", "string");
    must_refuse("{\"model_type\":\"llama\",\"hidden_size\":0}", RC_INVALID, "/hidden_size", "hidden_size");
    must_refuse("{\"model_type\":\"llama\",\"hidden_size\":4294967296}", RC_INVALID, "/hidden_size", "hidden_size");
    must_refuse("{\"model_type\":\"llama\",\"hidden_size\":\"64\"}", RC_INVALID, "/hidden_size", "hidden_size");
    must_refuse("{\"model_type\":\"llama\",\"num_hidden_layers\":1025}", RC_INVALID, "/num_hidden_layers", "1024");
    must_refuse("{" LLAMA ",\"num_key_value_heads\":3}", RC_INVALID, "/num_key_value_heads", "divide");
    must_refuse("{\"model_type\":\"llama\",\"hidden_size\":65}", RC_INVALID, "/hidden_size", "multiple");
    must_refuse("{" LLAMA ",\"rms_norm_eps\":-1}", RC_INVALID, "/rms_norm_eps", "positive");
    must_refuse("{" LLAMA ",\"head_dim\":15}", RC_UNSUPPORTED, "/head_dim", "15");
    must_refuse("{" LLAMA ",\"rope_theta\":-1}", RC_INVALID, "/rope_theta", "positive");
}

static void rope_is_read_in_every_spelling(void **state) {
    (void)state;
    must_parse("{" LLAMA ",\"rope_theta\":500000}");
    assert_true(arch.rope.theta == 500000 && arch.rope.type == ROPE_DEFAULT && arch.rotary == 16);
    must_parse("{" LLAMA ",\"rope_theta\":5,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}");
    assert_true(arch.rope.type == ROPE_LINEAR && arch.rope.factor == 2 && arch.rope.theta == 5);
    must_parse("{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0,\"rope_theta\":77}}");
    assert_true(arch.rope.type == ROPE_LINEAR && arch.rope.factor == 4 && arch.rope.theta == 77);
    must_parse("{" LLAMA ",\"rope_scaling\":{},\"rope_parameters\":{\"rope_type\":\"default\"}}");
    assert_int_equal(arch.rope.type, ROPE_DEFAULT);
    must_parse("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
               "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}");
    assert_true(arch.rope.type == ROPE_LLAMA3 && arch.rope.original_context == 64);
}

static void rope_that_is_not_implemented_is_refused(void **state) {
    (void)state;
    must_refuse("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}", RC_UNSUPPORTED,
                "/rope_scaling/rope_type", "yarn");
    must_refuse("{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", RC_UNSUPPORTED,
                "/rope_scaling/type", "dynamic");
    must_refuse("{" LLAMA ",\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[16,24,24]}}", RC_UNSUPPORTED,
                "/rope_scaling/mrope_section", "16");
    must_refuse("{" LLAMA ",\"rope_scaling\":{\"type\":\"su\"}}", RC_UNSUPPORTED, "/rope_scaling/type", "su");
    must_refuse("{\"model_type\":\"phi3\",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", RC_UNSUPPORTED,
                "/rope_scaling/type", "linear");
    must_refuse("{" LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}", RC_UNSUPPORTED,
                "/rope_parameters/full_attention", "full_attention");
    must_refuse("{" LLAMA ",\"partial_rotary_factor\":0.5}", RC_UNSUPPORTED, "/partial_rotary_factor", "0.5");
    must_refuse("{" LLAMA ",\"rope_scaling\":[1]}", RC_INVALID, "/rope_scaling", "object");
    must_refuse("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", RC_INVALID, "/rope_scaling/factor", "missing");
    must_refuse("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"2\"}}", RC_INVALID,
                "/rope_scaling/factor", "factor");
    must_refuse("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
                "\"high_freq_factor\":4}}",
                RC_INVALID, "/rope_scaling/high_freq_factor", "greater");
}

#define PHI                                                                                                            \
    "\"model_type\":\"phi3\",\"hidden_size\":32,\"num_attention_heads\":4,\"max_position_embeddings\":64,"             \
    "\"original_max_position_embeddings\":16"

static void longrope_has_factors_by_length_and_an_attention_factor(void **state) {
    (void)state;
    must_parse("{" PHI ",\"partial_rotary_factor\":0.5,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,2],"
               "\"long_factor\":[3,4]}}");
    assert_int_equal(arch.rotary, 4);
    assert_true(arch.rope.type == ROPE_LONGROPE);
    assert_true(arch.rope.attention_factor == sqrt(1 + log(4) / log(16)));
    float cos_table[17 * 2], sin_table[17 * 2];
    arch_rope_tables(&arch, 16, cos_table, sin_table);
    assert_float_equal(sin_table[3], arch.rope.attention_factor * sin(0.01 / 2), 1e-7);
    arch_rope_tables(&arch, 17, cos_table, sin_table);
    assert_float_equal(sin_table[3], arch.rope.attention_factor * sin(0.01 / 4), 1e-7);
    must_parse("{" PHI ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1],"
               "\"long_factor\":[1,1,1,1],\"attention_factor\":1.5}}");
    assert_true(arch.rope.attention_factor == 1.5);
    must_parse("{\"model_type\":\"phi3\",\"hidden_size\":32,\"num_attention_heads\":16,\"max_position_embeddings\":8,"
               "\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1],\"long_factor\":[1]}}");
    assert_true(arch.rope.original_context == 4096 && arch.rope.attention_factor == 1);
    must_refuse("{" PHI ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1],\"long_factor\":[1,1,1,1]}}",
                RC_INVALID, "/rope_scaling/short_factor", "pair");
    must_refuse("{" PHI
                ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,0,1],\"long_factor\":[1,1,1,1]}}",
                RC_INVALID, "/rope_scaling/short_factor", "positive");
}

static void rope_tables_follow_their_formula(void **state) {
    (void)state;
    float cos_table[8 * 8], sin_table[8 * 8];
    must_parse("{" LLAMA "}");
    arch_rope_tables(&arch, 8, cos_table, sin_table);
    for (int t = 0; t < 8; t++)
        for (int i = 0; i < 8; i++) {
            assert_float_equal(cos_table[t * 8 + i], cos(t / pow(10000, i / 8.0)), 1e-7);
            assert_float_equal(sin_table[t * 8 + i], sin(t / pow(10000, i / 8.0)), 1e-7);
        }
    must_parse("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}");
    arch_rope_tables(&arch, 8, cos_table, sin_table);
    assert_float_equal(sin_table[8], sin(0.5), 1e-7);
    /* llama3 with bands at wavelengths 16 and 64: 2π is kept, 19.9 blended, 2π·10^1.5 interpolated */
    must_parse("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
               "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}");
    arch_rope_tables(&arch, 8, cos_table, sin_table);
    double f = pow(10, -0.5), smooth = (64 * f / (2 * M_PI) - 1) / 3;
    assert_float_equal(sin_table[8], sin(1), 1e-7);
    assert_float_equal(sin_table[9], sin((1 - smooth) * f / 8 + smooth * f), 1e-7);
    assert_float_equal(sin_table[11], sin(pow(10, -1.5) / 8), 1e-7);
}

static void check_published(const char *root, const char *file, enum rc want) {
    char path[512];
    snprintf(path, sizeof path, "%s/data/configs/%s.config.json", root, file);
    json_t *config;
    if (json_parse_file(path, 1 << 20, &config, &err) != RC_OK) fail_msg("%s", err.message);
    enum rc rc = arch_from_config(config, &arch, &err);
    json_decref(config);
    if (rc != want) fail_msg("%s: %s", file, err.message);
}

static void published_configs_are_understood(void **state) {
    (void)state;
    const char *root = getenv("HSAQ_SHARED") ? getenv("HSAQ_SHARED") : "../shared";
    FILE *probe = NULL;
    char path[512];
    snprintf(path, sizeof path, "%s/data/configs/Qwen--Qwen3-8B.config.json", root);
    if ((probe = fopen(path, "r")) == NULL) {
        print_message("%s is absent: skipping\n", path);
        skip();
    }
    fclose(probe);
    check_published(root, "Llama-3.2-1B-Instruct", RC_OK);
    assert_true(arch.tied && arch.head_dim == 64 && arch.kv_heads == 8 && arch.rope.type == ROPE_DEFAULT);
    check_published(root, "meta-llama--Meta-Llama-3.1-8B", RC_OK);
    assert_true(arch.rope.type == ROPE_LLAMA3 && arch.rope.original_context == 8192 && arch.rope.theta == 500000);
    check_published(root, "SmolLM2-135M", RC_OK);
    assert_true(arch.blocks == 30 && arch.kv_heads == 3 && arch.norm_eps == 1e-5 && arch.rope.theta == 100000);
    check_published(root, "Qwen2.5-0.5B-Instruct", RC_OK);
    assert_true(arch.qkv_bias && arch.window[23] == 0 && arch.kv_heads == 2);
    check_published(root, "Qwen--Qwen3-0.6B", RC_OK);
    assert_true(arch.qk_norm && arch.heads * arch.head_dim == 2048 && arch.hidden == 1024);
    check_published(root, "Qwen--Qwen3-8B", RC_OK);
    assert_true(!arch.tied && arch.qk_norm);
    check_published(root, "granite-8b-49159", RC_OK);
    assert_true(arch.attention_scale == 0.0078125 && arch.embedding_multiplier == 12 &&
                arch.residual_multiplier == 0.22 && arch.logits_scaling == 16 && arch.vocab == 49159);
    check_published(root, "phi3.5-mini-instruct", RC_OK);
    assert_true(arch.rotary == 96 && arch.rope.type == ROPE_LONGROPE && arch.rope.attention_factor == 1);
    check_published(root, "phi-4-mini-reasoning", RC_OK);
    assert_true(arch.rotary == 96 && arch.head_dim == 128 && arch.tied && arch.window[31] == 262144);
    assert_float_equal(arch.rope.attention_factor, 1.1902380714238083, 1e-12);
    check_published(root, "mistralai--Mixtral-8x7B-v0.1", RC_UNSUPPORTED);
    assert_string_equal(err.pointer, "/model_type");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_transformers),
        cmocka_unit_test(families_have_their_own_parts),
        cmocka_unit_test(head_dim_of_the_config_wins),
        cmocka_unit_test(windows_slide_only_where_they_should),
        cmocka_unit_test(what_is_not_implemented_is_refused_by_name),
        cmocka_unit_test(nonsense_is_refused_with_its_pointer),
        cmocka_unit_test(rope_is_read_in_every_spelling),
        cmocka_unit_test(rope_that_is_not_implemented_is_refused),
        cmocka_unit_test(longrope_has_factors_by_length_and_an_attention_factor),
        cmocka_unit_test(rope_tables_follow_their_formula),
        cmocka_unit_test(published_configs_are_understood),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
