/* config.json → architecture: everything the forward pass needs to know, and nothing of JSON after that.
 *
 * Families: Llama (plain, linear and llama3 rope), Mistral (sliding window), Qwen2 (qkv bias), Qwen3 (q/k norm),
 * Granite (four multipliers), Phi-3/Phi-4-mini (fused projections, partial rotary, longrope). Reference: each family's
 * configuration and modeling files in transformers, whose defaults hold for absent fields. What is not implemented is
 * RC_UNSUPPORTED, naming the field and its value; what makes no sense is RC_INVALID; both with the field's pointer. */
#ifndef HSAQ_WORKER_MODEL_ARCH_H
#define HSAQ_WORKER_MODEL_ARCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_LONGROPE };

enum { ROTARY_HALF_MAX = 256, BLOCKS_MAX = 1024 };

struct rope_config {
    enum rope_type type;
    double theta, factor;
    double low_freq_factor, high_freq_factor; /* llama3 */
    int64_t original_context;                 /* llama3, longrope */
    double attention_factor;                  /* longrope: multiplies cos and sin; 1 otherwise */
    double short_factor[ROTARY_HALF_MAX], long_factor[ROTARY_HALF_MAX];
};

struct arch {
    char family[24]; /* config's model_type */
    int vocab, hidden, intermediate, blocks, heads, kv_heads, head_dim, rotary, context;
    double norm_eps;
    bool tied, qkv_bias, o_bias, mlp_bias, head_bias, qk_norm, fused_qkv, fused_gate_up;
    double embedding_multiplier, residual_multiplier, logits_scaling, attention_scale;
    struct rope_config rope;
    int window[BLOCKS_MAX]; /* keys a token of that block sees, itself included; 0: all */
};

enum rc arch_from_config(const json_t *config, struct arch *arch, struct err *e);

/* cos and sin tables [length, rotary/2] for positions 0…length−1 of a window of that length. Computed in double and
 * rounded once; transformers rounds the frequencies to fp32 as well, so its angles stray by up to 1e-7 · position. */
void arch_rope_tables(const struct arch *arch, int64_t length, float *cos_out, float *sin_out);

#endif
