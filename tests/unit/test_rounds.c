/* Which of a block's candidates are measured together: as many as have room, and each once. */
#include "tests/unit/cmocka_main.h"

#include <string.h>

#include "worker/pipeline/rounds.h"

enum { POSITIONS = 4, BLOCKS = 2, LINEARS = POSITIONS * BLOCKS + 1, CANDIDATES = 6, UNIT = 512 };

/* A candidate takes 1, 1, 4 and 2 units at the positions of a block; and most of lm_head, which is in none. */
static const int64_t units[POSITIONS] = {1, 1, 4, 2};

struct fixture {
    struct linear linears[LINEARS];
    struct block_tensors blocks[BLOCKS];
    struct model model;
    bool wanted[LINEARS];
    struct rounds rounds;
};

static struct rounds *open_fixture(struct fixture *f, int64_t room) {
    memset(f, 0, sizeof *f);
    for (int i = 0; i < LINEARS; i++) {
        bool head = i == LINEARS - 1;
        f->linears[i] = (struct linear){
            .block = head ? -1 : i / POSITIONS, .rows = head ? 99 : units[i % POSITIONS], .cols = UNIT / 2};
        f->wanted[i] = true;
    }
    for (int block = 0; block < BLOCKS; block++)
        for (int at = 0; at < BLOCK_LINEARS_MAX; at++)
            f->blocks[block].linears[at] = at < POSITIONS ? block * POSITIONS + at : -1;
    f->model = (struct model){.linears = f->linears, .linear_count = LINEARS, .blocks = f->blocks};
    f->model.arch.blocks = BLOCKS;
    f->rounds = (struct rounds){&f->model, f->wanted, CANDIDATES, 2, room * UNIT};
    return &f->rounds;
}

static void assert_rounds(const struct rounds *s, int block, const struct round *expected, int64_t count) {
    struct round r = {0};
    for (int64_t i = 0; i < count; i++) {
        assert_true(rounds_next(s, block, &r));
        assert_int_equal(r.first, expected[i].first);
        assert_int_equal(r.end, expected[i].end);
        assert_int_equal(r.candidates.first, expected[i].candidates.first);
        assert_int_equal(r.candidates.end, expected[i].candidates.end);
    }
    assert_false(rounds_next(s, block, &r));
    assert_int_equal(rounds_count(s, block), count);
}

static void all_that_has_room_is_one_round(void **state) {
    (void)state;
    static const struct round all = {0, 4, {0, CANDIDATES}};
    struct fixture f;
    assert_rounds(open_fixture(&f, 48), 0, &all, 1);
    assert_rounds(open_fixture(&f, 1000), 1, &all, 1);
}

static void whole_linears_go_together(void **state) {
    (void)state;
    static const struct round two[] = {{0, 3, {0, 6}}, {3, 4, {0, 6}}};
    static const struct round three[] = {{0, 2, {0, 6}}, {2, 3, {0, 6}}, {3, 4, {0, 6}}};
    struct fixture f;
    assert_rounds(open_fixture(&f, 47), 0, two, 2);
    assert_rounds(open_fixture(&f, 24), 1, three, 3);
}

static void one_that_is_too_much_is_shared_out_evenly(void **state) {
    (void)state;
    static const struct round halves[] = {{0, 2, {0, 6}}, {2, 3, {0, 3}}, {2, 3, {3, 6}}, {3, 4, {0, 6}}};
    static const struct round less[] = {{0, 1, {0, 6}}, {1, 2, {0, 6}}, {2, 3, {0, 2}}, {2, 3, {2, 4}},
                                        {2, 3, {4, 6}}, {3, 4, {0, 3}}, {3, 4, {3, 6}}};
    struct fixture f;
    assert_rounds(open_fixture(&f, 23), 0, halves, 4);
    assert_rounds(open_fixture(&f, 12), 0, halves, 4);
    assert_rounds(open_fixture(&f, 8), 1, less, 7);
}

/* What one takes is taken in any case. */
static void the_least_is_one_candidate_at_a_time(void **state) {
    (void)state;
    struct fixture f;
    assert_int_equal(rounds_count(open_fixture(&f, 0), 0), POSITIONS * CANDIDATES);
    assert_int_equal(rounds_count(open_fixture(&f, 4), 0), 2 * 2 + CANDIDATES + 3);
}

static void only_what_is_wanted_counts(void **state) {
    (void)state;
    static const struct round rest = {1, 4, {0, 6}};
    struct fixture f;
    open_fixture(&f, 18);
    f.wanted[0] = f.wanted[2] = false;
    assert_rounds(&f.rounds, 0, &rest, 1);
    memset(f.wanted, 0, POSITIONS);
    assert_rounds(&f.rounds, 0, NULL, 0);
}

static void without_candidates_there_is_one_round(void **state) {
    (void)state;
    static const struct round all = {0, 4, {0, 0}};
    struct fixture f;
    open_fixture(&f, 0)->candidates = 0;
    assert_rounds(&f.rounds, 0, &all, 1);
    assert_int_equal(rounds_least_bytes(&f.rounds), 0);
    assert_int_equal(rounds_most_bytes(&f.rounds), 0);
}

static void least_and_most_are_of_linears_in_blocks(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, 0);
    assert_int_equal(rounds_least_bytes(&f.rounds), 4 * UNIT);
    assert_int_equal(rounds_most_bytes(&f.rounds), 8 * CANDIDATES * UNIT);
    f.linears[2].cols += 1; /* each matrix begins where another could */
    assert_int_equal(rounds_least_bytes(&f.rounds), 4 * UNIT + 256);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_that_has_room_is_one_round),
        cmocka_unit_test(whole_linears_go_together),
        cmocka_unit_test(one_that_is_too_much_is_shared_out_evenly),
        cmocka_unit_test(the_least_is_one_candidate_at_a_time),
        cmocka_unit_test(only_what_is_wanted_counts),
        cmocka_unit_test(without_candidates_there_is_one_round),
        cmocka_unit_test(least_and_most_are_of_linears_in_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
