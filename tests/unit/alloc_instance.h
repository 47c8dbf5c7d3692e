/* Random problems of allocation, and what holds of every answer. */
#ifndef HSAQ_TESTS_ALLOC_INSTANCE_H
#define HSAQ_TESTS_ALLOC_INSTANCE_H

#include "tests/unit/cmocka_main.h"

#include "base/random.h"
#include "worker/alloc/alloc.h"

enum { MAX_ITEMS = 7, MAX_OPTIONS = 5 };

static uint64_t random_state;

static inline uint64_t random_bits(void) {
    return splitmix64(&random_state);
}

static inline int random_int(int n) {
    return (int)(random_bits() % (uint64_t)n);
}

struct instance {
    struct alloc_option options[MAX_ITEMS][MAX_OPTIONS];
    struct alloc_item items[MAX_ITEMS];
    struct alloc_problem problem;
};

/* Flavours by `kind`: coarse costs and scores with many ties and zeros; fine ones; huge costs. */
static inline void random_instance(struct instance *in, int kind) {
    in->problem = (struct alloc_problem){in->items, 1 + random_int(MAX_ITEMS), 0};
    int64_t least = 0, most = 0;
    for (int i = 0; i < in->problem.item_count; i++) {
        int count = 1 + random_int(MAX_OPTIONS);
        in->items[i] = (struct alloc_item){in->options[i], count};
        int64_t low = INT64_MAX, high = 0;
        for (int o = 0; o < count; o++) {
            struct alloc_option *option = &in->options[i][o];
            static const uint64_t costs[] = {6, 1000, 10000000000000};
            option->cost = (int64_t)(random_bits() % costs[kind]);
            option->score = kind == 0 ? random_int(5) * 0.1 : (double)(random_bits() >> 11) * 0x1p-53;
            option->bits = 2 + random_int(7);
            if (option->cost < low) low = option->cost;
            if (option->cost > high) high = option->cost;
        }
        least += low;
        most += high;
    }
    in->problem.budget = random_int(20) ? least + (int64_t)(random_bits() % (uint64_t)(most - least + 2)) : least - 1;
}

static inline void check_consistent(const struct alloc_problem *p, const struct alloc_result *r) {
    int64_t cost = 0;
    double score = 0;
    for (int i = 0; i < p->item_count; i++) {
        assert_in_range(r->choice[i], 0, p->items[i].option_count - 1);
        cost += p->items[i].options[r->choice[i]].cost;
        score += p->items[i].options[r->choice[i]].score;
    }
    assert_true(cost == r->cost);
    assert_true(cost <= p->budget);
    assert_true(score == r->objective);
    assert_true(r->gap >= 0 && r->gap <= 1);
}

#endif
