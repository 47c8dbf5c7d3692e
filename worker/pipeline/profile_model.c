#include "base/json.h"
#include "worker/model/describe.h"
#include "worker/pipeline/fold.h"
#include "worker/pipeline/prints.h"
#include "worker/pipeline/profile.h"

static json_t *architecture_json(const struct arch *a) {
    return json_pack("{si si si si si si si si}", "blocks", a->blocks, "hidden", a->hidden, "intermediate",
                     a->intermediate, "heads", a->heads, "kv_heads", a->kv_heads, "head_dim", a->head_dim, "vocab",
                     a->vocab, "context", a->context);
}

static json_t *windows_json(const struct arch *a) {
    json_t *list = json_array();
    for (int i = 0; i < a->blocks; i++)
        json_array_append_new(list, json_integer(a->window[i]));
    return list;
}

/* Everything as stored, less the weights that the profile's candidates would replace. */
static int64_t unquantized_bytes(const struct profiled_model *p) {
    json_t *described = model_describe(p->model);
    int64_t bytes = json_integer_value(json_object_get(described, "bytes"));
    json_decref(described);
    for (size_t l = 0; l < p->count; l++) {
        const struct linear *linear = &p->model->linears[p->place[l]];
        if (linear->weight != p->model->embedding) bytes -= linear_bytes(linear);
    }
    return bytes;
}

json_t *profiled_model_json(const struct profiled_model *p) {
    int64_t params = 0;
    bool head = false;
    for (size_t l = 0; l < p->count; l++) {
        const struct linear *linear = &p->model->linears[p->place[l]];
        params += linear->rows * linear->cols;
        head = head || linear->block < 0;
    }
    return json_pack("{ss ss so so so sI sb sb sI sI}", "name", p->model->name, "family", p->model->arch.family,
                     "fingerprint", prints_json(p->prints), "architecture", architecture_json(&p->model->arch),
                     "windows", windows_json(&p->model->arch), "unquantized_bytes", (json_int_t)unquantized_bytes(p),
                     "tied", p->model->arch.tied, "head_counted", head, "linears", (json_int_t)p->count, "params",
                     (json_int_t)params);
}

static bool is_profiled(const struct profiled_model *p, int64_t index) {
    for (size_t l = 0; l < p->count; l++)
        if (p->place[l] == index) return true;
    return false;
}

bool profiled_can_fold(const struct profiled_model *p, int block, enum linear_input input) {
    struct calibrated_block recipe = {.block = block};
    const struct fold fold = {.model = p->model, .block = &recipe, .input = input};
    for (int position = 0; block >= 0 && position < BLOCK_LINEARS_MAX; position++) {
        int index = p->model->blocks[block].linears[position];
        if (index < 0) break;
        enum method method = is_profiled(p, index) ? METHOD_RTN : METHOD_NONE;
        recipe.linears[recipe.count++] =
            (struct calibrated_linear){.linear = &p->model->linears[index], .index = index, .candidate.method = method};
    }
    return fold_possible(&fold);
}

void profiled_fold_key(const struct profiled_model *p, const struct linear *linear, struct strbuf *key) {
    strbuf_printf(key, " %s", profiled_can_fold(p, linear->block, linear->input) ? "folded" : "unfolded");
}

void gradients_key(const struct model *model, const struct fingerprints *prints, int64_t seed, struct strbuf *key) {
    char input[HASH_TEXT_SIZE], head[HASH_TEXT_SIZE];
    int64_t last = model->linear_count - 1;
    strbuf_printf(key, " %lld %s %s", (long long)seed, hash_text(fingerprints_input(prints, last), input),
                  hash_text(fingerprints_weight(prints, last), head));
    /* Of no Linear's input, so that the chain does not have it. */
    if (model->arch.logits_scaling != 1) strbuf_printf(key, " logits/%a", model->arch.logits_scaling);
}
