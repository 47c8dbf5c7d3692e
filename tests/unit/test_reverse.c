/* Gradients at every Linear's output are those of torch's autograd, for one tiny model of each family and variant
 * (tools/make-gradient-goldens); and the bits of a window's do not depend on how many windows are in the job, on where
 * hidden states are kept, or on whether a block is gone through twice. */
#include "tests/unit/golden_model.h"
#include "tests/unit/late_copies.h"

#include "base/json.h"
#include "worker/pipeline/reverse.h"

enum { LENGTH_MAX = 64 };

/* --- against transformers --- */

static double worst;

struct check {
    struct golden *g;
    const json_t *golden; /* "gradients" */
    double tolerance;     /* of a gradient's norm */
    int checked;
};

static void check_linear(struct check *c, const char *name, const json_t *golden, struct mat g) {
    char text[320];
    snprintf(text, sizeof text, "%s, %s", c->g->model->name, name);
    double norm = json_real_value(json_object_get(golden, "norm")), squares = 0, tolerance = c->tolerance * norm;
    for (int64_t t = 0; t < g.rows; t++)
        for (int64_t n = 0; n < g.cols; n++)
            squares += (double)f32_row(g, t)[n] * f32_row(g, t)[n];
    double off = fabs(sqrt(squares) - norm);
    if (!(off <= tolerance)) fail_msg("%s: the gradient's norm is %.9g, torch says %.9g", text, sqrt(squares), norm);
    const json_t *at = json_object_get(golden, "at"), *values = json_object_get(golden, "values");
    assert_true(json_array_size(at) > 0);
    for (size_t i = 0; i < json_array_size(at); i++) {
        int64_t flat = json_integer_value(json_array_get(at, i));
        double want = json_real_value(json_array_get(values, i)), got = f32_row(g, flat / g.cols)[flat % g.cols];
        if (!(fabs(got - want) <= tolerance))
            fail_msg("%s: [%lld] is %.9g, torch says %.9g", text, (long long)flat, got, want);
        off = fmax(off, fabs(got - want));
    }
    worst = fmax(worst, off / norm);
}

static enum rc check_gradient(void *ctx, const struct linear_gradient *at, struct err *e) {
    (void)e;
    struct check *c = ctx;
    const struct linear *linear = block_linear(c->g->model, at->site->block, at->position);
    char name[160];
    snprintf(name, sizeof name, "%s.weight", linear->name);
    const json_t *golden = json_object_get(c->golden, name);
    if (golden == NULL) fail_msg("%s has no golden gradient", name);
    assert_int_equal(at->input, linear->input);
    assert_int_equal(at->x.cols, linear->cols);
    assert_int_equal(at->g.cols, linear->rows);
    check_linear(c, name, golden, at->g);
    c->checked++;
    return RC_OK;
}

static void read_ids(const json_t *list, int32_t *out) {
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, i));
}

static void check_model(const json_t *golden, const json_t *window) {
    struct golden g;
    int32_t ids[LENGTH_MAX] = {0}, labels[LENGTH_MAX] = {0};
    double nll, loss = json_real_value(json_object_get(golden, "loss"));
    golden_open(&g, json_string_value(json_object_get(golden, "name")));
    struct check c = {.g = &g, .golden = json_object_get(golden, "gradients")};
    c.tolerance = 4 * json_real_value(json_object_get(golden, "noise"));
    struct windows windows = {ids, 1, (int64_t)json_array_size(json_object_get(window, "ids")), 1};
    assert_true(windows.length <= LENGTH_MAX);
    read_ids(json_object_get(window, "ids"), ids);
    read_ids(json_object_get(golden, "labels"), labels);
    struct reverse_hooks hooks = {.ctx = &c, .linear = check_gradient};
    struct reverse_walk walk = {.job = &g.job,
                                .model = g.model,
                                .windows = &windows,
                                .labels = labels,
                                .hooks = &hooks,
                                .nll = &nll,
                                .phase = "golden"};
    golden_must(&g, reverse_walk_run(&walk, &g.err));
    assert_int_equal(c.checked, json_object_size(c.golden) - 1); /* but for "input" */
    if (!(fabs(nll - loss) <= 1e-5 * loss)) fail_msg("%s: the loss is %.6f, torch says %.6f", g.model->name, nll, loss);
    golden_close(&g);
}

static void gradients_are_those_of_autograd(void **state) {
    (void)state;
    struct err e;
    json_t *goldens, *gradients;
    const json_t *golden;
    size_t i;
    assert_int_equal(json_parse_file("tests/golden/goldens.json", 1 << 20, &goldens, &e), RC_OK);
    assert_int_equal(json_parse_file("tests/golden/gradients.json", 1 << 20, &gradients, &e), RC_OK);
    const json_t *models = json_object_get(goldens, "models");
    json_array_foreach(json_object_get(gradients, "models"), i, golden) {
        const json_t *model = json_array_get(models, i);
        assert_string_equal(json_string_value(json_object_get(model, "name")),
                            json_string_value(json_object_get(golden, "name")));
        check_model(golden, json_array_get(json_object_get(model, "windows"), 0));
    }
    assert_true(i >= 17);
    print_message("%zu models, largest difference of a value %.1e of the gradient's norm\n", i, worst);
    json_decref(goldens);
    json_decref(gradients);
}

/* --- bits --- */

/* FNV-1a over what hooks see of a window, Linear by Linear. */
struct seen {
    struct golden *g;
    uint64_t linear[GOLDEN_WINDOWS][64], again[GOLDEN_WINDOWS][64];
    double nll[GOLDEN_WINDOWS];
    int calls, ends;
};

static uint64_t hash_rows(uint64_t hash, struct mat m) {
    for (int64_t t = 0; t < m.rows; t++) {
        const unsigned char *bytes = (const unsigned char *)f32_row(m, t);
        for (size_t i = 0; i < (size_t)m.cols * sizeof(float); i++)
            hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    return hash;
}

static void hash_windows(struct seen *s, const struct linear_gradient *at, uint64_t hashes[][64]) {
    int index = s->g->model->blocks[at->site->block].linears[at->position];
    assert_in_range(index, 0, 63);
    for (int64_t i = 0; i < at->site->windows; i++) {
        struct mat x = mat_rows(at->x, i * GOLDEN_LENGTH, GOLDEN_LENGTH);
        uint64_t hash = hash_rows(0xcbf29ce484222325u, x);
        hashes[at->site->window + i][index] = hash_rows(hash, mat_rows(at->g, i * GOLDEN_LENGTH, GOLDEN_LENGTH));
    }
}

static enum rc see(void *ctx, const struct linear_gradient *at, struct err *e) {
    (void)e;
    struct seen *s = ctx;
    hash_windows(s, at, s->linear);
    for (int64_t t = at->site->windows * GOLDEN_LENGTH; t < at->g.rows; t++)
        for (int64_t n = 0; n < at->g.cols; n++)
            assert_true(f32_row(at->g, t)[n] == 0); /* padding */
    s->calls++;
    return RC_OK;
}

static enum rc see_again(void *ctx, const struct linear_gradient *at, struct err *e) {
    (void)e;
    struct seen *s = ctx;
    assert_int_equal(s->ends, s->g->model->arch.blocks - at->site->block);
    hash_windows(s, at, s->again);
    return RC_OK;
}

static enum rc see_end(void *ctx, int block, const struct block_weights *w, struct err *e) {
    (void)block, (void)w, (void)e;
    ((struct seen *)ctx)->ends++;
    return RC_OK;
}

/* The first `count` windows. */
static void look_from(struct golden *g, int64_t count, int64_t again, uint64_t seed, struct seen *s) {
    memset(s, 0, sizeof *s);
    s->g = g;
    struct windows windows = {g->windows.ids, count, GOLDEN_LENGTH, 1};
    struct reverse_hooks hooks = {.ctx = s, .linear = see, .end = see_end, .linear_again = again ? see_again : NULL};
    struct reverse_walk walk = {.job = &g->job,
                                .model = g->model,
                                .windows = &windows,
                                .seed = seed,
                                .again = again,
                                .hooks = &hooks,
                                .nll = s->nll,
                                .phase = "golden"};
    golden_must(g, reverse_walk_run(&walk, &g->err));
    assert_int_equal(s->ends, g->model->arch.blocks);
}

static void look(struct golden *g, int64_t count, int64_t again, struct seen *s) {
    look_from(g, count, again, 11, s);
}

/* Three windows a chunk, on a device of its own memory. */
static struct backend wide_device(void) {
    struct backend b = with_late_copies(backend_cpu);
    b.chunk_tokens = 3 * GOLDEN_LENGTH;
    return b;
}

static void assert_same(const struct seen *a, const struct seen *b, int64_t count) {
    assert_true(a->calls > 0);
    assert_memory_equal(a->linear, b->linear, (size_t)count * sizeof a->linear[0]);
    assert_memory_equal(a->nll, b->nll, (size_t)count * sizeof a->nll[0]);
}

static void bits_do_not_depend_on_the_number_of_windows(void **state) {
    (void)state;
    static struct seen all[2], some;
    struct golden g;
    struct backend wide = wide_device();
    golden_open(&g, "qwen3");
    for (int chunked = 0; chunked < 2; chunked++) {
        if (chunked) g.job.backend = &wide;
        look(&g, GOLDEN_WINDOWS, 0, &all[chunked]);
        look(&g, 7, 0, &some); /* the third chunk is padded */
        assert_same(&some, &all[chunked], 7);
        assert_memory_not_equal(some.linear[0], some.linear[1], sizeof some.linear[0]);
    }
    for (int i = 0; i < GOLDEN_WINDOWS; i++) /* the same labels */
        assert_true(fabs(all[0].nll[i] - all[1].nll[i]) < 1e-4 * all[0].nll[i]);
    golden_close(&g);
}

static int64_t room_given;

static int64_t given_room(struct backend_state *state) {
    (void)state;
    return room_given;
}

static void bits_do_not_depend_on_where_hidden_states_are(void **state) {
    (void)state;
    static struct seen plain, elsewhere;
    struct golden g;
    struct backend wide = wide_device();
    golden_open(&g, "granite");
    g.job.backend = &wide;
    look(&g, GOLDEN_WINDOWS, 0, &plain);
    int64_t slot = 3 * GOLDEN_LENGTH * g.model->arch.hidden * (int64_t)sizeof(float);
    for (int64_t slots = 0; slots < 12; slots += 5) { /* in memory; the rest in a file */
        g.job.ram_limit = slots * slot + 1;
        look(&g, GOLDEN_WINDOWS, 0, &elsewhere);
        assert_same(&elsewhere, &plain, GOLDEN_WINDOWS);
    }
    wide.own_memory = wide.loads_ahead = true;
    wide.room = given_room;
    g.job.ram_limit = 0;
    for (int windows = 9; windows <= GOLDEN_WINDOWS; windows += 3) /* an odd number of chunks, and an even one */
        for (int64_t slots = 0; slots < 12; slots++) {
            room_given = ((int64_t)1536 << 20) + slots * slot;
            look(&g, windows, 4, &elsewhere);
            assert_same(&elsewhere, &plain, windows);
        }
    golden_close(&g);
}

static void a_second_visit_sees_what_the_first_saw(void **state) {
    (void)state;
    static struct seen once, twice;
    struct golden g;
    struct backend wide = wide_device();
    golden_open(&g, "phi3");
    g.job.backend = &wide;
    look(&g, 8, 0, &once);
    look(&g, 8, 6, &twice);
    assert_same(&twice, &once, 8);
    assert_memory_equal(twice.again, once.linear, 6 * sizeof once.linear[0]);
    golden_close(&g);
}

/* --- labels --- */

static double mean_nll(struct golden *g, uint64_t seed) {
    static struct seen s;
    double sum = 0;
    look_from(g, GOLDEN_WINDOWS, 0, seed, &s);
    for (int i = 0; i < GOLDEN_WINDOWS; i++)
        sum += s.nll[i];
    return sum / (double)reverse_scored(&g->windows);
}

/* NLL of what a model draws averages its entropy, that of other labels the cross entropy, which is more. */
static void labels_are_drawn_from_the_model(void **state) {
    (void)state;
    struct golden g;
    golden_open(&g, "llama");
    assert_int_equal(reverse_scored(&g.windows), GOLDEN_WINDOWS * (GOLDEN_LENGTH - 1));
    double one = mean_nll(&g, 1), same = mean_nll(&g, 1), other = mean_nll(&g, 2);
    print_message("NLL of drawn labels %.3f and %.3f, log of the vocabulary %.3f\n", one, other,
                  log(g.model->arch.vocab));
    assert_true(one == same && one != other);
    assert_true(fabs(one - other) < 0.3 && fmax(one, other) < 0.7 * log(g.model->arch.vocab));
    golden_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_those_of_autograd),
        cmocka_unit_test(bits_do_not_depend_on_the_number_of_windows),
        cmocka_unit_test(bits_do_not_depend_on_where_hidden_states_are),
        cmocka_unit_test(a_second_visit_sees_what_the_first_saw),
        cmocka_unit_test(labels_are_drawn_from_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
