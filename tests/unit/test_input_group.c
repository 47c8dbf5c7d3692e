/* How much of a device quantizing the Linears of an input takes, and how many candidates go together in the rest. */
#include "tests/unit/cmocka_main.h"

#include "worker/pipeline/input_group.h"

static int factored;
static int64_t bytes_there;

static int64_t some_room(struct backend_state *state) {
    (void)state;
    return bytes_there;
}

enum { MI = 1 << 20, FLOATS = sizeof(float) * MI };

static enum rc no_factor(struct backend_state *state, const struct factor_args *a, struct err *e) {
    (void)state, (void)a, (void)e;
    factored++;
    return RC_OK;
}

static enum rc no_memory(struct backend_state *state, size_t bytes, void **memory, struct err *e) {
    (void)state, (void)bytes, (void)e;
    *memory = NULL;
    return RC_OK;
}

/* With so much room when the factors are there. */
static int together(int64_t rows, int64_t cols, int64_t room) {
    struct backend b = backend_cpu;
    struct job job = {.backend = &b};
    struct mat w = matf(NULL, rows, cols), g = {&w, rows, rows, rows, DTYPE_F64};
    struct input_group group = {
        .job = &job, .guided.h = {&w, cols, cols, cols, DTYPE_F64}, .w = &w, .g = &g, .count = 1};
    struct candidate c;
    struct err e;
    int count = 0;
    b.room = some_room;
    b.factor = no_factor;
    b.alloc = no_memory;
    bytes_there = room;
    factored = 0;
    assert_int_equal(candidate_from_id("gptq3g64-guided-twosided", &c, &e), RC_OK);
    assert_int_equal(input_group_together(&group, 0, &c, &count, &e), RC_OK);
    assert_int_equal(factored, 2);
    input_group_release(&group);
    return count;
}

/* For each weight a code, half a byte of parameters, and two floats. */
static void as_many_go_together_as_there_is_room_for(void **state) {
    (void)state;
    const int64_t plenty = (int64_t)1 << 40;
    assert_int_equal(together(1024, 1024, plenty), GROUP_TOGETHER_MAX);
    assert_int_equal(together(8192, 1024, plenty), 32);
    assert_int_equal(together(16384, 1024, plenty), 16);
    assert_int_equal(together(1 << 19, 1024, plenty), 1); /* a lm_head */
    assert_int_equal(together(8192, 1024, 2 * 8 * MI * 19 / 2), 2);
    assert_int_equal(together(8192, 1024, 2 * 8 * MI * 19 / 2 - 1), 1);
    assert_int_equal(together(8192, 1024, 0), 1);
}

/* Small Linears as many as make 32 Mi weights or the widest one's have their memory reserved. */
static void some_that_go_together_have_room_reserved(void **state) {
    (void)state;
    struct linear linears[] = {{.block = 0, .input = INPUT_ATTENTION, .rows = 1024, .cols = 1024},
                               {.block = 0, .input = INPUT_MLP, .rows = 8192, .cols = 1024},
                               {.block = -1, .input = INPUT_HEAD, .rows = 131072, .cols = 1024}};
    struct model model = {.linears = linears, .linear_count = 3};
    int64_t one = input_group_bytes(&model, 1);
    assert_int_equal(input_group_bytes(&model, 3) - one, 2 * 8 * MI * 3 / 2); /* the rows' factor takes more to make */
    assert_int_equal(input_group_bytes(&model, 4) - one, 3 * 8 * MI * 3 / 2);
    assert_int_equal(input_group_bytes(&model, 100), input_group_bytes(&model, 4));
    linears[1].rows = 40 * 1024;
    assert_int_equal(input_group_bytes(&model, 2), input_group_bytes(&model, 1));
}

/* Columns and rows are not of the same input: K = 8192 goes with narrow rows, N = 8192 with narrow columns. Of a side
 * there are two squares of floats, or each Linear's, and four more in turn, or those of what is rounded. */
static void an_input_takes_its_own_sides(void **state) {
    (void)state;
    struct linear linears[] = {{.block = 0, .input = INPUT_ATTENTION, .rows = 1024, .cols = 1024},
                               {.block = 0, .input = INPUT_MLP, .rows = 8192, .cols = 1024},
                               {.block = 0, .input = INPUT_MLP, .rows = 4096, .cols = 1024},
                               {.block = 0, .input = INPUT_DOWN, .rows = 1024, .cols = 8192},
                               {.block = 1, .input = INPUT_MLP, .rows = 4096, .cols = 1024},
                               {.block = 1, .input = INPUT_DOWN, .rows = 4096, .cols = 2048}};
    struct model model = {.linears = linears, .linear_count = 4};
    int64_t weights = 8 * MI * 3 / 2 + 8 * FLOATS;
    assert_int_equal(input_group_bytes(&model, 0), weights + (2 + 4) * 64L * FLOATS);
    assert_int_equal(input_group_bytes(&model, 1), weights + 2 * 64L * FLOATS + FLOATS + 4 * 64L * FLOATS);
    linears[3].cols = 4096;
    assert_int_equal(input_group_bytes(&model, 1), weights + 2 * FLOATS + (64L + 16) * FLOATS + 4 * 64L * FLOATS);
    linears[1].rows = linears[2].rows = linears[3].cols = 1024;
    assert_int_equal(input_group_bytes(&model, 1), MI * 3 / 2 + FLOATS + (2 + 2 + 4) * FLOATS);
    assert_int_equal(input_group_bytes(&model, 4), 4 * MI * 3 / 2 + FLOATS + (2 + 2 + 2 * 4) * FLOATS);
    model.linear_count = 6; /* the next block's, none of them the first one's as well */
    assert_int_equal(input_group_bytes(&model, 1), 8 * MI * 3 / 2 + 8 * FLOATS + (2 * 4 + 16 + 4 * 16L) * FLOATS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_many_go_together_as_there_is_room_for),
        cmocka_unit_test(some_that_go_together_have_room_reserved),
        cmocka_unit_test(an_input_takes_its_own_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
