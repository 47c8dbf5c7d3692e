#include "worker/model/fingerprint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"

struct entry {
    const struct st_tensor *tensor;
    struct hash128 hash;
    bool known;
};

struct fingerprints {
    const struct model *model;
    struct entry *entries;            /* [count] of the tensors that the model needs, by their address */
    int64_t count, next;              /* entries before `next` are known */
    struct hash128 *inputs, *weights; /* [linear_count] */
};

static void add(struct fingerprints *f, const struct st_tensor *tensor) {
    if (tensor != NULL) f->entries[f->count++].tensor = tensor;
}

static void add_linear(struct fingerprints *f, const struct linear *l) {
    add(f, l->weight);
    add(f, l->bias);
    if (l->packed == NULL) return;
    add(f, l->packed->codes);
    add(f, l->packed->scales);
    add(f, l->packed->zeros);
    add(f, l->packed->order);
}

static int by_address(const void *a, const void *b) {
    const struct st_tensor *x = ((const struct entry *)a)->tensor, *y = ((const struct entry *)b)->tensor;
    return (x > y) - (x < y);
}

static struct entry *find(const struct fingerprints *f, const struct st_tensor *tensor) {
    struct entry key = {.tensor = tensor};
    return bsearch(&key, f->entries, (size_t)f->count, sizeof key, by_address);
}

/* Sorts; a tensor that several places share stays once. */
static void sort_entries(struct fingerprints *f) {
    int64_t kept = 0;
    qsort(f->entries, (size_t)f->count, sizeof *f->entries, by_address);
    for (int64_t i = 0; i < f->count; i++)
        if (kept == 0 || f->entries[i].tensor != f->entries[kept - 1].tensor) f->entries[kept++] = f->entries[i];
    f->count = kept;
}

static void collect(struct fingerprints *f) {
    const struct model *m = f->model;
    add(f, m->embedding);
    add(f, m->final_norm);
    for (int i = 0; i < m->arch.blocks; i++) {
        add(f, m->blocks[i].input_norm);
        add(f, m->blocks[i].post_norm);
        add(f, m->blocks[i].q_norm);
        add(f, m->blocks[i].k_norm);
    }
    for (int64_t i = 0; i < m->linear_count; i++) {
        add_linear(f, &m->linears[i]);
    }
    sort_entries(f);
}

struct fingerprints *fingerprints_new(const struct model *model) {
    enum { NORMS = 4, PER_LINEAR = 6, OTHERS = 2 };
    struct fingerprints *f = xcalloc(1, sizeof *f);
    size_t linears = (size_t)model->linear_count;
    f->model = model;
    f->entries = xcalloc(linears * PER_LINEAR + (size_t)model->arch.blocks * NORMS + OTHERS, sizeof *f->entries);
    f->inputs = xcalloc(linears, sizeof *f->inputs);
    f->weights = xcalloc(linears, sizeof *f->weights);
    collect(f);
    return f;
}

void fingerprints_free(struct fingerprints *f) {
    if (f == NULL) return;
    free(f->entries);
    free(f->inputs);
    free(f->weights);
    free(f);
}

const char *fingerprints_key(const struct fingerprints *f, char key[HASH_TEXT_SIZE]) {
    char *identity = model_identity(f->model);
    struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "%s\n%s", f->model->path, identity);
    struct hash128 hash = hash_bytes(text.data, text.len);
    strbuf_release(&text);
    free(identity);
    return hash_text(&hash, key);
}

json_t *fingerprints_store(const struct fingerprints *f) {
    json_t *stored = json_object();
    char text[HASH_TEXT_SIZE];
    for (int64_t i = 0; i < f->count; i++)
        if (f->entries[i].known)
            json_object_set_new(stored, f->entries[i].tensor->name, json_string(hash_text(&f->entries[i].hash, text)));
    return stored;
}

void fingerprints_restore(struct fingerprints *f, const json_t *stored) {
    for (int64_t i = 0; i < f->count; i++) {
        const char *text = json_string_value(json_object_get(stored, f->entries[i].tensor->name));
        if (text != NULL && hash_parse(text, &f->entries[i].hash)) f->entries[i].known = true;
    }
}

/* Bytes first, then a digest of them with dtype and shape: [2, 3] and [3, 2] of equal bytes differ. */
static struct hash128 hash_tensor(const struct st_tensor *t) {
    struct hash128 bytes = hash_bytes(t->data, (size_t)t->bytes);
    char shape[192], digits[HASH_TEXT_SIZE], text[320];
    int len = snprintf(text, sizeof text, "%s %s %s", t->stored_as, shape_text(t->shape, t->dims, shape, sizeof shape),
                       hash_text(&bytes, digits));
    return hash_bytes(text, (size_t)len);
}

const struct st_tensor *fingerprints_next(struct fingerprints *f) {
    while (f->next < f->count && f->entries[f->next].known)
        f->next++;
    if (f->next == f->count) return NULL;
    struct entry *entry = &f->entries[f->next];
    entry->hash = hash_tensor(entry->tensor);
    entry->known = true;
    return entry->tensor;
}

/* The chain: a running hash, replaced by the hash of itself and what comes next. */
static void mix(struct hash128 *chain, const void *bytes, size_t len) {
    struct {
        struct hash128 before, added;
    } link = {*chain, hash_bytes(bytes, len)};
    *chain = hash_bytes(&link, sizeof link);
}

static void mix_tensor(const struct fingerprints *f, struct hash128 *chain, const struct st_tensor *tensor) {
    if (tensor != NULL) mix(chain, &find(f, tensor)->hash, sizeof(struct hash128));
}

/* What the packed bytes mean is in config.json alone. */
static void mix_packed(const struct fingerprints *f, struct hash128 *chain, const struct packed_linear *p) {
    char id[CANDIDATE_ID_SIZE];
    candidate_id(&p->candidate, id); /* before its length is asked for: arguments have no order */
    mix(chain, id, strlen(id));
    mix_tensor(f, chain, p->codes);
    mix_tensor(f, chain, p->scales);
    mix_tensor(f, chain, p->zeros);
    if (p->order != NULL) mix(chain, "order", strlen("order"));
    mix_tensor(f, chain, p->order);
}

static void put_numbers(struct strbuf *text, const double *values, int count) {
    for (int i = 0; i < count; i++)
        strbuf_printf(text, " %a", values[i]);
}

/* Every constant of the forward pass as text: struct padding has no say. */
static void mix_arch(struct hash128 *chain, const struct arch *a) {
    const int sizes[] = {a->vocab, a->hidden,   a->intermediate, a->blocks,
                         a->heads, a->kv_heads, a->head_dim,     a->rotary};
    const bool flags[] = {a->qkv_bias, a->o_bias, a->mlp_bias, a->qk_norm, a->fused_qkv, a->fused_gate_up};
    const double scales[] = {
        a->norm_eps,    a->embedding_multiplier, a->residual_multiplier,   a->attention_scale,      a->rope.theta,
        a->rope.factor, a->rope.low_freq_factor, a->rope.high_freq_factor, a->rope.attention_factor};
    struct strbuf text = STRBUF_INIT;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        strbuf_printf(&text, " %d", sizes[i]);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        strbuf_printf(&text, " %d", flags[i]);
    put_numbers(&text, scales, sizeof scales / sizeof *scales);
    strbuf_printf(&text, " %d %lld", a->rope.type, (long long)a->rope.original_context);
    if (a->rope.type == ROPE_LONGROPE) {
        put_numbers(&text, a->rope.short_factor, a->rotary / 2);
        put_numbers(&text, a->rope.long_factor, a->rotary / 2);
    }
    for (int i = 0; i < a->blocks; i++)
        strbuf_printf(&text, " %d", a->window[i]);
    mix(chain, text.data, text.len);
    strbuf_release(&text);
}

/* The block's Linears with this input: they see `chain` as it stands; then it moves on past all of them. */
static void stage(struct fingerprints *f, const struct block_tensors *b, enum linear_input input,
                  struct hash128 *chain) {
    const struct hash128 before = *chain;
    for (int i = 0; i < BLOCK_LINEARS_MAX && b->linears[i] >= 0; i++) {
        const struct linear *l = &f->model->linears[b->linears[i]];
        if (l->input != input) continue;
        f->inputs[b->linears[i]] = before;
        mix(chain, &f->weights[b->linears[i]], sizeof *f->weights);
    }
}

static void chain_block(struct fingerprints *f, const struct block_tensors *b, struct hash128 *chain) {
    mix_tensor(f, chain, b->input_norm);
    stage(f, b, INPUT_ATTENTION, chain);
    mix_tensor(f, chain, b->q_norm);
    mix_tensor(f, chain, b->k_norm);
    stage(f, b, INPUT_OUTPUT, chain);
    mix_tensor(f, chain, b->post_norm);
    stage(f, b, INPUT_MLP, chain);
    stage(f, b, INPUT_DOWN, chain);
}

void fingerprints_chain(struct fingerprints *f, const struct windows *calibration) {
    const struct model *m = f->model;
    struct hash128 chain = {{NUMERICS_VERSION}}, windows = windows_hash(calibration);
    for (int64_t i = 0; i < m->linear_count; i++) {
        f->weights[i] = (struct hash128){{0}};
        mix_tensor(f, &f->weights[i], m->linears[i].weight);
        if (m->linears[i].packed != NULL) mix_packed(f, &f->weights[i], m->linears[i].packed);
        mix_tensor(f, &f->weights[i], m->linears[i].bias);
    }
    mix_arch(&chain, &m->arch);
    mix(&chain, &windows, sizeof windows);
    mix_tensor(f, &chain, m->embedding);
    for (int i = 0; i < m->arch.blocks; i++)
        chain_block(f, &m->blocks[i], &chain);
    mix_tensor(f, &chain, m->final_norm);
    f->inputs[m->linear_count - 1] = chain;
}

const struct hash128 *fingerprints_input(const struct fingerprints *f, int64_t linear) {
    return &f->inputs[linear];
}

const struct hash128 *fingerprints_weight(const struct fingerprints *f, int64_t linear) {
    return &f->weights[linear];
}

const char *fingerprints_drift_key(const struct fingerprints *f, int64_t linear, const char *candidate_id,
                                   const char *backend, char key[HASH_TEXT_SIZE]) {
    struct hash128 hash = f->weights[linear];
    mix(&hash, &f->inputs[linear], sizeof f->inputs[linear]);
    mix(&hash, candidate_id, strlen(candidate_id));
    mix(&hash, backend, strlen(backend));
    return hash_text(&hash, key);
}
