/* config.json: any bytes are refused with a message or give an architecture that can be computed with; and what they
 * say of quantization, a candidate for each Linear. */
#include <math.h>
#include <stdlib.h>

#include "base/json.h"
#include "tests/fuzz/target.h"
#include "worker/model/arch.h"
#include "worker/model/quant_config.h"

static void require(bool condition) {
    if (!condition) abort();
}

static void check(const struct arch *a) {
    enum { LENGTH = 3 };
    float cos_table[LENGTH * ROTARY_HALF_MAX], sin_table[LENGTH * ROTARY_HALF_MAX];
    require(a->vocab > 0 && a->hidden > 0 && a->intermediate > 0 && a->blocks > 0 && a->blocks <= BLOCKS_MAX);
    require(a->kv_heads > 0 && a->heads % a->kv_heads == 0 && a->head_dim > 0 && a->context > 0);
    require(a->rotary > 0 && a->rotary % 2 == 0 && a->rotary <= a->head_dim && a->rotary / 2 <= ROTARY_HALF_MAX);
    require(a->norm_eps > 0 && a->attention_scale > 0 && a->logits_scaling > 0);
    for (int i = 0; i < a->blocks; i++)
        require(a->window[i] >= 0);
    arch_rope_tables(a, LENGTH, cos_table, sin_table);
}

static void check_quantization(const json_t *config) {
    static const char *const names[] = {"model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head"};
    struct quant_config *q;
    struct err e = {0};
    if (quant_config_read(config, &q, &e) != RC_OK) {
        require(e.message[0] != '\0' && q == NULL);
        return;
    }
    for (size_t i = 0; q != NULL && i < sizeof names / sizeof *names; i++) {
        const struct candidate *c = NULL;
        if (quant_config_match(q, names[i], &c, &e) == RC_OK && c != NULL) require(candidate_check(c, &e) == RC_OK);
    }
    quant_config_free(q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct arch arch;
    json_t *config = NULL;
    struct err e = {0};
    if (json_parse((const char *)data, size, &config, &e) != RC_OK) return 0;
    check_quantization(config);
    if (arch_from_config(config, &arch, &e) == RC_OK)
        check(&arch);
    else
        require(e.message[0] != '\0');
    json_decref(config);
    return 0;
}
