#include "worker/pipeline/rounds.h"

#include "worker/pipeline/block.h"
#include "worker/pipeline/carve.h"

/* The first of those from `position` on; NULL: there is none. */
static const struct linear *next_wanted(const struct rounds *s, int block, int *position) {
    const struct linear *linear;
    for (; (linear = block_linear(s->model, block, *position)); ++*position)
        if (s->wanted[linear - s->model->linears]) return linear;
    return NULL;
}

/* What one candidate changes of a Linear: a matrix as big as its weights. */
static int64_t matrix_bytes(const struct rounds *s, const struct linear *linear) {
    struct carve c = {0};
    carve(&c, (size_t)(linear->rows * linear->cols) * s->value_size);
    return (int64_t)c.used;
}

static int64_t all_bytes(const struct rounds *s, const struct linear *linear) {
    return matrix_bytes(s, linear) * (int64_t)s->candidates;
}

static size_t part_of(size_t count, size_t parts) {
    return (count + parts - 1) / parts;
}

/* From candidate `from` on. */
static void take_share(const struct rounds *s, const struct linear *linear, size_t from, struct round *r) {
    int64_t room = s->bytes / matrix_bytes(s, linear);
    size_t most = room > 1 ? (size_t)room : 1, left = s->candidates - from;
    r->candidates = (struct gram_share){from, from + part_of(left, part_of(left, most))};
}

static void take_linears(const struct rounds *s, int block, const struct linear *linear, struct round *r) {
    int position = r->first;
    r->candidates = (struct gram_share){0, s->candidates};
    for (int64_t left = s->bytes; linear && (left -= all_bytes(s, linear)) >= 0;) {
        r->end = ++position;
        linear = next_wanted(s, block, &position);
    }
}

bool rounds_next(const struct rounds *s, int block, struct round *r) {
    bool within = r->end > r->first && r->candidates.end < s->candidates;
    size_t from = within ? r->candidates.end : 0;
    int position = within ? r->first : r->end;
    const struct linear *linear = next_wanted(s, block, &position);
    if (!linear) return false;
    r->first = position;
    r->end = position + 1;
    if (all_bytes(s, linear) > s->bytes)
        take_share(s, linear, from, r);
    else
        take_linears(s, block, linear, r);
    return true;
}

int64_t rounds_count(const struct rounds *s, int block) {
    struct round r = {0};
    int64_t count = 0;
    while (rounds_next(s, block, &r))
        count++;
    return count;
}

int64_t rounds_most_bytes(const struct rounds *s) {
    int64_t most = 0;
    for (int block = 0; block < s->model->arch.blocks; block++) {
        int64_t bytes = 0;
        const struct linear *linear;
        for (int position = 0; (linear = next_wanted(s, block, &position)); position++)
            bytes += all_bytes(s, linear);
        if (bytes > most) most = bytes;
    }
    return most;
}

int64_t rounds_least_bytes(const struct rounds *s) {
    int64_t most = 0;
    for (int64_t i = 0; i < s->model->linear_count; i++) {
        const struct linear *linear = &s->model->linears[i];
        bool counts = s->wanted[i] && linear->block >= 0;
        if (counts && matrix_bytes(s, linear) > most) most = matrix_bytes(s, linear);
    }
    return s->candidates > 0 ? most : 0;
}
