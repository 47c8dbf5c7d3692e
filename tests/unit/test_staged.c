/* A block that goes in stages computes what it computes in one go with the weights that it ends up with, to the last
 * bit, and every hook sees what follows from what was replaced before it. */
#include "tests/unit/bare_job.h"

#include <string.h>

#include "base/arena.h"
#include "tests/unit/late_copies.h"
#include "worker/pipeline/walk.h"

enum { WINDOWS = 7, LENGTH = 32, INPUTS_SEEN = 4096 };

/* What one walk saw. */
struct seen {
    struct site site;
    enum linear_input input;
    double sum;
};
struct record {
    const struct model *model;
    struct arena arena;            /* of what is replaced, and everything here */
    struct block_weights *weights; /* [blocks] that the stages end with */
    unsigned ignored;              /* a bit for each input that is not looked at */
    bool fold;                     /* also what makes an input is replaced */
    struct seen inputs[INPUTS_SEEN];
    int count, stages;
    float *final; /* [WINDOWS, LENGTH, D] */
};

static float *scaled(struct record *r, const float *w, int64_t count, float by) {
    float *out = arena_alloc(&r->arena, (size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++)
        out[i] = w[i] * (by + (float)(i % 7) * 0.01f);
    return out;
}

static void scale_mat(struct record *r, struct mat *m, float by) {
    m->data = scaled(r, m->data, m->rows * m->cols, by);
}

static int find(const struct model *model, int block, const char *projection) {
    int position = 0;
    while (strcmp(block_linear(model, block, position)->projection, projection) != 0)
        position++;
    return position;
}

static float *copied(struct record *r, const float *w, int64_t count) {
    float *out = arena_alloc(&r->arena, (size_t)count * sizeof *out);
    memcpy(out, w, (size_t)count * sizeof *out);
    return out;
}

/* The block's own go when the walk ends. */
static void keep_norms(struct record *r, struct block_weights *w) {
    w->input_norm = copied(r, w->input_norm, r->model->arch.hidden);
    w->post_norm = copied(r, w->post_norm, r->model->arch.hidden);
}

static void fold(struct record *r, int block, enum linear_input input, struct block_weights *w) {
    int hidden = r->model->arch.hidden;
    if (input == INPUT_ATTENTION) w->input_norm = scaled(r, w->input_norm, hidden, 0.9f);
    if (input == INPUT_OUTPUT) scale_mat(r, &w->linear[find(r->model, block, "v_proj")], 1.1f);
    if (input == INPUT_MLP) w->post_norm = scaled(r, w->post_norm, hidden, 0.8f);
    if (input == INPUT_DOWN) scale_mat(r, &w->linear[find(r->model, block, "up_proj")], 1.2f);
}

static enum rc replace(void *ctx, int block, enum linear_input input, struct block_weights *w, struct err *e) {
    (void)e;
    struct record *r = ctx;
    const struct linear *linear;
    assert_int_equal(r->stages++, block * INPUT_HEAD + (int)input);
    for (int i = 0; (linear = block_linear(r->model, block, i)); i++)
        if (linear->input == input) scale_mat(r, &w->linear[i], 1 + 0.01f * (float)i);
    if (input == INPUT_ATTENTION) keep_norms(r, w);
    if (r->fold) fold(r, block, input, w);
    r->weights[block] = *w;
    return RC_OK;
}

static enum rc show(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    (void)stream, (void)e;
    *w = ((struct record *)ctx)->weights[block];
    return RC_OK;
}

static enum rc note_input(void *ctx, const struct site *site, enum linear_input input, struct mat x, struct err *e) {
    (void)e;
    struct record *r = ctx;
    assert_int_equal(x.rows, site->windows * LENGTH);
    struct seen *s = &r->inputs[r->count++];
    *s = (struct seen){.site = *site, .input = input};
    for (int64_t i = 0; i < x.rows * x.cols; i++)
        s->sum += (double)((const float *)x.data)[i] * (double)(i % 13 + 1);
    return RC_OK;
}

static bool looks(void *ctx, int block, enum linear_input input) {
    (void)block;
    return !(((struct record *)ctx)->ignored >> input & 1);
}

static enum rc keep_final(void *ctx, int64_t window, const struct mat *x, struct err *e) {
    (void)e;
    struct record *r = ctx;
    size_t count = (size_t)(x[0].rows * x[0].cols);
    memcpy(r->final + (size_t)window * count, x[0].data, count * sizeof *r->final);
    return RC_OK;
}

static void walk_once(struct bare_job *b, struct record *r, bool staged) {
    struct walk_hooks hooks = {.ctx = r,
                               .weights = staged ? NULL : show,
                               .input = note_input,
                               .stage = staged ? replace : NULL,
                               .looks = r->ignored ? looks : NULL,
                               .final = keep_final};
    struct windows windows;
    bare_must(b, windows_first(&b->source.tokens, LENGTH, WINDOWS, &windows, &b->err));
    struct walk walk = {.job = &b->job,
                        .model = r->model,
                        .windows = &windows,
                        .count = WINDOWS,
                        .streams = 1,
                        .last_block = -1,
                        .hooks = &hooks,
                        .inputs_stay = !r->fold,
                        .phase = "calibrate",
                        .tokens_total = WINDOWS * LENGTH};
    bare_must(b, walk_run(&walk, &b->err));
    windows_release(&windows);
}

static void record_open(struct record *r, const struct model *model) {
    *r = (struct record){.model = model};
    r->weights = arena_alloc(&r->arena, (size_t)model->arch.blocks * sizeof *r->weights);
    r->final = arena_alloc(&r->arena, (size_t)(WINDOWS * LENGTH * model->arch.hidden) * sizeof *r->final);
}

static const struct seen *same_site(const struct record *r, const struct seen *s) {
    for (int i = 0; i < r->count; i++)
        if (!memcmp(&r->inputs[i].site, &s->site, sizeof s->site) && r->inputs[i].input == s->input)
            return &r->inputs[i];
    fail_msg("no input of block %d, window %d", s->site.block, (int)s->site.window);
    return NULL;
}

/* Both walks over one model; each hook is called once for each input of each block and chunk. */
static void compare(struct bare_job *b, struct record *staged, struct record *plain) {
    size_t finals = (size_t)(WINDOWS * LENGTH * b->source.model->arch.hidden) * sizeof(float);
    walk_once(b, staged, true);
    assert_int_equal(staged->stages, staged->model->arch.blocks * INPUT_HEAD);
    assert_int_equal(b->run.done, b->run.total);
    assert_false(b->run.went_back);
    memcpy(plain->weights, staged->weights, (size_t)plain->model->arch.blocks * sizeof *plain->weights);
    walk_once(b, plain, false);
    if (!staged->ignored) assert_int_equal(staged->count, plain->count);
    assert_memory_equal(staged->final, plain->final, finals);
}

static void stages_give_what_the_final_weights_give(void **state) {
    (void)state;
    for (int fold_too = 0; fold_too < 2; fold_too++) {
        struct bare_job b;
        struct record staged, plain;
        bare_open(&b);
        record_open(&staged, b.source.model);
        record_open(&plain, b.source.model);
        staged.fold = fold_too;
        compare(&b, &staged, &plain);
        for (int i = 0; !fold_too && i < staged.count; i++) {
            const struct seen *s = &staged.inputs[i];
            assert_true(same_site(&plain, s)->sum == s->sum);
        }
        arena_release(&staged.arena);
        arena_release(&plain.arena);
        bare_close(&b);
    }
}

/* Where nobody looks, no window goes; but for the middle of a block, from which the rest goes on. */
static void stages_that_nobody_looks_at_are_not_walked(void **state) {
    (void)state;
    for (unsigned n = 2; n < 2 << INPUT_HEAD; n++) {
        unsigned ignored = n / 2;
        struct bare_job b;
        struct record staged, plain;
        int walked =
            1 - (int)(ignored & 1) + 1 - (int)(ignored >> INPUT_OUTPUT & 1) + 1 + 1 - (int)(ignored >> INPUT_DOWN & 1);
        bare_open(&b);
        record_open(&staged, b.source.model);
        record_open(&plain, b.source.model);
        staged.ignored = ignored;
        staged.fold = n % 2; /* else inputs are kept from one stage for the next */
        compare(&b, &staged, &plain);
        assert_int_equal(staged.count, walked * b.source.model->arch.blocks * WINDOWS);
        arena_release(&staged.arena);
        arena_release(&plain.arena);
        bare_close(&b);
    }
}

static int64_t no_room(struct backend_state *state) {
    (void)state;
    return 0;
}

/* Several windows a chunk, the last one padded; hidden states in the host's memory, brought while others are computed.
 */
static void stages_do_not_depend_on_where_states_lie(void **state) {
    (void)state;
    struct backend device = with_late_copies(backend_cpu);
    struct bare_job b, one;
    struct record staged, plain, single;
    bare_open(&b);
    bare_open(&one);
    device.chunk_tokens = 2 * LENGTH;
    device.loads_ahead = device.own_memory = true;
    device.room = no_room;
    b.job.backend = &device;
    record_open(&staged, b.source.model);
    record_open(&plain, b.source.model);
    record_open(&single, one.source.model);
    staged.fold = single.fold = true;
    compare(&b, &staged, &plain);
    walk_once(&one, &single, true);
    for (int i = 0; i < WINDOWS * LENGTH * one.source.model->arch.hidden; i++)
        assert_float_equal(staged.final[i], single.final[i], 1e-4f);
    arena_release(&staged.arena);
    arena_release(&plain.arena);
    arena_release(&single.arena);
    bare_close(&b);
    bare_close(&one);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stages_give_what_the_final_weights_give),
        cmocka_unit_test(stages_that_nobody_looks_at_are_not_walked),
        cmocka_unit_test(stages_do_not_depend_on_where_states_lie),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
