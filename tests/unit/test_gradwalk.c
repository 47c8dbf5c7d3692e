/* The gram walk on the way back: its H is the gram walk's to the last bit, its H_w, its G and its scores are what their
 * definitions say in float64, and what labels' gradients tell of a change is what the model loses by it, in nats. */
#include "tests/unit/golden_model.h"

#include "tests/unit/bare_job.h"
#include "worker/pipeline/gradwalk.h"
#include "worker/pipeline/reverse.h"
#include "worker/pipeline/upload.h"

enum { LINEARS_MAX = 32, SCORED = 7, CANDIDATES = 2, SEED = 3 };
static const double noise[CANDIDATES] = {0.02, 0.05}; /* of a weight's size, as candidates of a kind */

struct linear_result {
    float *w_hat[CANDIDATES]; /* [N, K] */
    double fisher[CANDIDATES], kfac[CANDIDATES], diag[CANDIDATES];
    int scores;
    double *g; /* [N, N] */
};

struct input_result {
    double *h, *h_w, *mean_abs; /* [K, K] twice, [K] */
};

struct walked {
    struct golden *g;
    bool in_rounds; /* else each input comes once */
    struct linear_result linears[LINEARS_MAX];
    struct input_result inputs[8][INPUT_COUNT]; /* by block */
};

static double *copy_doubles(struct golden *g, const double *values, int64_t count) {
    double *out = arena_alloc(&g->arena, (size_t)count * sizeof *out);
    memcpy(out, values, (size_t)count * sizeof *out);
    return out;
}

static double normal(struct golden *g) {
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += golden_uniform(g);
    return sum - 6;
}

static void fill_slot(struct golden *g, struct mat w, double size, struct gram_slot *slot, float **kept) {
    double squares = 0;
    for (int64_t i = 0; i < w.rows * w.cols; i++)
        squares += (double)f32_row(w, 0)[i] * f32_row(w, 0)[i];
    double step = size * sqrt(squares / (double)(w.rows * w.cols));
    *kept = arena_alloc(&g->arena, (size_t)(w.rows * w.cols) * sizeof **kept);
    for (int64_t i = 0; i < w.rows * w.cols; i++)
        (*kept)[i] = (float)(f32_row(w, 0)[i] + step * normal(g));
    for (int64_t i = 0; i < w.rows * w.cols; i++)
        ((float *)slot->d.data)[i] = f32_row(w, 0)[i] - (*kept)[i];
    slot->filled = true;
}

/* Of what fill_slot made. */
static void take_kfac(struct walked *r, const struct gram_input *in, int n) {
    struct linear_result *out = &r->linears[in->index[n]];
    int64_t rows = in->w[n].rows;
    out->g = copy_doubles(r->g, in->g[n].data, rows * rows);
    for (int c = 0; c < CANDIDATES && out->w_hat[c]; c++) {
        struct kfac_report report;
        struct kfac_args a = {
            .w = in->w[n], .w_hat = matf(out->w_hat[c], rows, in->w[n].cols), .h = in->h, .g = in->g[n]};
        golden_must(r->g, backend_cpu.kfac(r->g->job.device, &a, &report, &r->g->err));
        out->kfac[c] = kfac_score(&r->g->windows, report.kfac);
        out->diag[c] = kfac_score(&r->g->windows, report.diag);
    }
}

static enum rc take_input(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    (void)job, (void)e;
    struct walked *r = ctx;
    int64_t k = in->h.cols;
    struct input_result *out = &r->inputs[in->block][in->input];
    for (int n = 0; n < in->count; n++)
        for (size_t c = in->candidates.first; in->slots[n] && in->mine[n] && c < in->candidates.end; c++) {
            r->g->random = (uint64_t)in->index[n] * CANDIDATES + c; /* the same noise whatever came before */
            fill_slot(r->g, in->w[n], noise[c], &in->slots[n][c], &r->linears[in->index[n]].w_hat[c]);
        }
    if (r->in_rounds && out->h) return RC_OK;
    assert_null(out->h);
    out->h = copy_doubles(r->g, in->h.data, k * k);
    out->mean_abs = copy_doubles(r->g, in->mean_abs, k);
    if (in->h_w.data) out->h_w = copy_doubles(r->g, in->h_w.data, k * k);
    for (int n = 0; n < in->count; n++)
        if (in->g[n].data) take_kfac(r, in, n);
    return RC_OK;
}

static enum rc take_score(void *ctx, const struct job *job, int64_t linear, size_t candidate, double fisher,
                          struct err *e) {
    (void)job, (void)e;
    struct linear_result *out = &((struct walked *)ctx)->linears[linear];
    assert_in_range(candidate, 0, CANDIDATES - 1);
    out->fisher[candidate] = fisher;
    out->scores++;
    return RC_OK;
}

static bool wanted[LINEARS_MAX];

static struct grad_walk grad_walk(struct golden *g, struct walked *r, int64_t scored) {
    *r = (struct walked){.g = g};
    assert_in_range(g->model->linear_count, 2, LINEARS_MAX);
    for (int64_t i = 0; i < g->model->linear_count; i++)
        wanted[i] = g->model->linears[i].block >= 0;
    struct gram_walk gram = {.job = &g->job,
                             .model = g->model,
                             .windows = &g->windows,
                             .phase = "golden",
                             .wanted = wanted,
                             .stats = true,
                             .candidates = CANDIDATES,
                             .input = take_input,
                             .ctx = r};
    return (struct grad_walk){
        .gram = gram, .unweighed = true, .guided = true, .scored = scored, .seed = SEED, .score = take_score};
}

/* --- against definitions --- */

struct direct {
    struct walked *r;
    double sum[LINEARS_MAX][CANDIDATES];
    double *h_w[8][INPUT_COUNT], *g[LINEARS_MAX];
};

static double dot_of_error(const struct linear_gradient *at, int64_t t, const float *w_hat) {
    double dot = 0;
    for (int64_t n = 0; n < at->g.cols; n++) {
        double dy = 0;
        for (int64_t k = 0; k < at->x.cols; k++)
            dy += (double)f32_row(at->x, t)[k] * (f32_row(at->w, n)[k] - w_hat[n * at->x.cols + k]);
        dot += dy * f32_row(at->g, t)[n];
    }
    return dot;
}

static void add_weighed(struct direct *d, const struct linear_gradient *at) {
    int64_t cols = at->x.cols;
    double **h = &d->h_w[at->site->block][at->input];
    if (*h == NULL) {
        *h = arena_alloc(&d->r->g->arena, (size_t)(cols * cols) * sizeof **h);
        memset(*h, 0, (size_t)(cols * cols) * sizeof **h);
    }
    for (int64_t t = 0; t < at->x.rows; t++) {
        double weight = 0;
        for (int64_t n = 0; n < at->g.cols; n++)
            weight += (double)f32_row(at->g, t)[n] * f32_row(at->g, t)[n];
        for (int64_t i = 0; i < cols; i++)
            for (int64_t k = 0; k < cols; k++)
                (*h)[i * cols + k] += weight * f32_row(at->x, t)[i] * f32_row(at->x, t)[k];
    }
}

static void add_outer(struct direct *d, int index, struct mat g) {
    double **sum = &d->g[index];
    if (*sum == NULL)
        *sum = memset(arena_alloc(&d->r->g->arena, (size_t)(g.cols * g.cols) * sizeof **sum), 0,
                      (size_t)(g.cols * g.cols) * sizeof **sum);
    for (int64_t t = 0; t < g.rows; t++)
        for (int64_t i = 0; i < g.cols * g.cols; i++)
            (*sum)[i] += (double)f32_row(g, t)[i / g.cols] * f32_row(g, t)[i % g.cols];
}

static enum rc add_direct(void *ctx, const struct linear_gradient *at, struct err *e) {
    (void)e;
    struct direct *d = ctx;
    int index = d->r->g->model->blocks[at->site->block].linears[at->position];
    assert_int_equal(at->site->windows * GOLDEN_LENGTH, at->x.rows);
    for (int c = 0; at->site->window < SCORED && c < CANDIDATES; c++)
        for (int64_t t = 0; t < at->x.rows; t++) {
            double dot = dot_of_error(at, t, d->r->linears[index].w_hat[c]);
            d->sum[index][c] += dot * dot;
        }
    add_weighed(d, at);
    add_outer(d, index, at->g);
    return RC_OK;
}

/* ½·tr(G·D·H·Dᵀ)/T over the scored tokens; `diagonal`: of G no more than that. */
static double direct_kfac(const struct direct *d, int64_t index, int c, bool diagonal) {
    const struct linear *l = &d->r->g->model->linears[index];
    const double *h = d->r->inputs[l->block][l->input].h, *g = d->g[index];
    const float *w = golden_widen(d->r->g, l->weight)->data, *w_hat = d->r->linears[index].w_hat[c];
    double sum = 0;
    for (int64_t n = 0; n < l->rows; n++)
        for (int64_t k = 0; k < l->cols; k++) {
            double dh = 0, gd = 0;
            for (int64_t j = 0; j < l->cols; j++)
                dh += ((double)w[n * l->cols + j] - w_hat[n * l->cols + j]) * h[j * l->cols + k];
            for (int64_t m = diagonal ? n : 0; m < (diagonal ? n + 1 : l->rows); m++)
                gd += g[n * l->rows + m] * ((double)w[m * l->cols + k] - w_hat[m * l->cols + k]);
            sum += gd * dh;
        }
    return sum / 2 / (GOLDEN_WINDOWS * GOLDEN_LENGTH) / (GOLDEN_WINDOWS * (GOLDEN_LENGTH - 1));
}

static void assert_close(const double *got, const double *want, int64_t count, double tolerance) {
    double squares = 0, error = 0;
    for (int64_t i = 0; i < count; i++) {
        squares += want[i] * want[i];
        error += (got[i] - want[i]) * (got[i] - want[i]);
    }
    assert_true(squares > 0);
    if (!(sqrt(error) <= tolerance * sqrt(squares))) fail_msg("off by %g", sqrt(error / squares));
}

static void scores_and_weighed_grams_are_those_of_their_definitions(void **state) {
    (void)state;
    struct golden g;
    static struct walked r;
    golden_open(&g, "qwen2");
    struct grad_walk walk = grad_walk(&g, &r, SCORED);
    walk.outer = true;
    golden_must(&g, grad_walk_run(&walk, &g.err));
    struct direct d = {.r = &r};
    struct reverse_hooks hooks = {.ctx = &d, .linear = add_direct};
    struct reverse_walk direct = {
        .job = &g.job, .model = g.model, .windows = &g.windows, .seed = SEED, .hooks = &hooks, .phase = "golden"};
    golden_must(&g, reverse_walk_run(&direct, &g.err));
    for (int64_t i = 0; i < g.model->linear_count - 1; i++) {
        const struct linear *linear = &g.model->linears[i];
        assert_int_equal(r.linears[i].scores, CANDIDATES);
        for (int c = 0; c < CANDIDATES; c++) {
            double want = d.sum[i][c] / 2 / (SCORED * (GOLDEN_LENGTH - 1));
            assert_close(&r.linears[i].fisher[c], &want, 1, 1e-4);
            double kfac = direct_kfac(&d, i, c, false), diag = direct_kfac(&d, i, c, true);
            assert_close(&r.linears[i].kfac[c], &kfac, 1, 1e-4);
            assert_close(&r.linears[i].diag[c], &diag, 1, 1e-4);
        }
        assert_close(r.linears[i].g, d.g[i], linear->rows * linear->rows, 1e-5);
        assert_close(r.inputs[linear->block][linear->input].h_w, d.h_w[linear->block][linear->input],
                     linear->cols * linear->cols, 1e-5);
    }
    golden_close(&g);
}

/* --- against the gram walk --- */

static void gram_is_that_of_the_gram_walk(void **state) {
    (void)state;
    static struct walked back, forth;
    struct backend wide = backend_cpu;
    wide.chunk_tokens = 5 * GOLDEN_LENGTH;
    struct golden g;
    golden_open(&g, "qwen3");
    g.job.backend = &wide;
    struct grad_walk walk = grad_walk(&g, &back, SCORED);
    golden_must(&g, grad_walk_run(&walk, &g.err));
    walk = grad_walk(&g, &forth, 0);
    golden_must(&g, gram_walk_run(&walk.gram, &g.err));
    for (int64_t i = 0; i < g.model->linear_count - 1; i++) {
        const struct linear *linear = &g.model->linears[i];
        const struct input_result *a = &back.inputs[linear->block][linear->input];
        const struct input_result *b = &forth.inputs[linear->block][linear->input];
        assert_memory_equal(a->h, b->h, (size_t)(linear->cols * linear->cols) * sizeof *a->h);
        assert_memory_equal(a->mean_abs, b->mean_abs, (size_t)linear->cols * sizeof *a->mean_abs);
    }
    golden_close(&g);
}

/* The chunks that hold the scored windows hold others as well. */
static void score_does_not_depend_on_chunks(void **state) {
    (void)state;
    static struct walked narrow, chunked;
    struct backend wide = backend_cpu;
    wide.chunk_tokens = 5 * GOLDEN_LENGTH;
    struct golden g;
    golden_open(&g, "phi3");
    struct grad_walk walk = grad_walk(&g, &narrow, SCORED);
    golden_must(&g, grad_walk_run(&walk, &g.err));
    g.job.backend = &wide;
    walk = grad_walk(&g, &chunked, SCORED);
    golden_must(&g, grad_walk_run(&walk, &g.err));
    for (int64_t i = 0; i < g.model->linear_count - 1; i++)
        assert_close(chunked.linears[i].fisher, narrow.linears[i].fisher, CANDIDATES, 1e-4);
    golden_close(&g);
}

enum { CHUNK = 2, CHUNKS = (GOLDEN_WINDOWS + CHUNK - 1) / CHUNK, AGAIN = (SCORED + CHUNK - 1) / CHUNK };

static int visits; /* of a block by a chunk on the way back */
static int64_t room_given;

static enum rc counting_attention_back(struct backend_state *s, const struct attention_back_args *a, struct err *e) {
    visits++;
    return backend_cpu.attention_back(s, a, e);
}

static int64_t little_room(struct backend_state *s) {
    (void)s;
    return room_given;
}

struct visited {
    bool tight;
    int64_t differences;
};

static void walk_visiting(struct walked *r, struct visited v) {
    struct backend device = backend_cpu;
    struct golden g;
    golden_open(&g, "phi3");
    device.chunk_tokens = CHUNK * GOLDEN_LENGTH;
    device.own_memory = true;
    device.attention_back = counting_attention_back;
    if (v.tight) device.room = little_room;
    g.job.backend = &device;
    room_given = 1 << 12;
    visits = 0;
    struct grad_walk walk = grad_walk(&g, r, SCORED);
    walk.differences = v.differences;
    r->in_rounds = v.differences > 0;
    int64_t rounds = r->in_rounds ? grad_walk_rounds(&walk, v.differences) : 1;
    assert_true(rounds > 1 || !r->in_rounds);
    golden_must(&g, grad_walk_run(&walk, &g.err));
    assert_int_equal(visits, g.model->arch.blocks * (CHUNKS + (v.tight ? rounds * AGAIN : 0)));
    golden_close(&g);
}

/* Where there is room for what they read, and for all that it is taken for, the windows are not computed again; else
 * they are once a round. */
static void kept_inputs_and_rounds_score_the_same(void **state) {
    (void)state;
    static const struct visited ways[] = {{false, 0}, {true, 0}, {false, 1}, {true, 1}};
    static struct walked first, other;
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
        struct walked *r = way == 0 ? &first : &other;
        walk_visiting(r, ways[way]);
        for (size_t i = 0; i < LINEARS_MAX; i++) {
            assert_int_equal(r->linears[i].scores, first.linears[i].scores);
            assert_memory_equal(r->linears[i].fisher, first.linears[i].fisher, sizeof first.linears[i].fisher);
        }
    }
}

static void only_what_is_wanted_is_walked(void **state) {
    (void)state;
    static struct walked all, some;
    struct golden g;
    golden_open(&g, "llama");
    struct grad_walk walk = grad_walk(&g, &all, 0);
    golden_must(&g, grad_walk_run(&walk, &g.err));
    walk = grad_walk(&g, &some, SCORED);
    int last = g.model->arch.blocks - 1, only = g.model->blocks[last].linears[6];
    for (int i = 0; i < LINEARS_MAX; i++)
        wanted[i] = i == only;
    golden_must(&g, grad_walk_run(&walk, &g.err));
    for (int64_t i = 0; i < g.model->linear_count; i++) {
        assert_int_equal(all.linears[i].scores, 0);
        assert_int_equal(some.linears[i].scores, i == only ? CANDIDATES : 0);
    }
    assert_null(some.inputs[last][INPUT_MLP].h);
    size_t bytes = (size_t)(g.model->linears[only].cols * g.model->linears[only].cols) * sizeof(double);
    assert_memory_equal(some.inputs[last][INPUT_DOWN].h_w, all.inputs[last][INPUT_DOWN].h_w, bytes);
    golden_close(&g);
}

/* One that has nothing to score is not gone through again, and what lies before it gets its gradient all the same. */
static void a_block_that_is_not_wanted_hands_gradients_on(void **state) {
    (void)state;
    static struct walked all, some;
    struct golden g;
    golden_open(&g, "llama-sharded");
    assert_int_equal(g.model->arch.blocks, 3);
    struct grad_walk walk = grad_walk(&g, &all, SCORED);
    golden_must(&g, grad_walk_run(&walk, &g.err));
    walk = grad_walk(&g, &some, SCORED);
    for (int64_t i = 0; i < g.model->linear_count; i++)
        wanted[i] = wanted[i] && g.model->linears[i].block != 1;
    golden_must(&g, grad_walk_run(&walk, &g.err));
    for (int64_t i = 0; i < g.model->linear_count; i++) {
        if (!wanted[i]) continue;
        assert_int_equal(some.linears[i].scores, CANDIDATES);
        assert_memory_equal(some.linears[i].fisher, all.linears[i].fisher, sizeof all.linears[i].fisher);
    }
    golden_close(&g);
}

/* --- against what the model loses --- */

struct replacement {
    const struct golden *g;
    int64_t linear;
    float *w_hat;
};

static enum rc replace(void *ctx, int stream, int block, struct block_weights *w, struct err *e) {
    (void)stream, (void)e;
    const struct replacement *r = ctx;
    for (int position = 0; position < BLOCK_LINEARS_MAX; position++)
        if (r->w_hat && r->g->model->blocks[block].linears[position] == r->linear) w->linear[position].data = r->w_hat;
    return RC_OK;
}

/* KL(reference ‖ replaced) in nats, mean over the positions that have a label. */
static double divergence(struct golden *g, const float *reference, const float *replaced, struct mat head) {
    enum { T = GOLDEN_WINDOWS * GOLDEN_LENGTH };
    double nll[T], nll_q[T], kl[T], sum = 0;
    uint8_t agree[T];
    int64_t hidden = g->model->arch.hidden;
    struct score_args a = {.x = matf((float *)reference, T, hidden),
                           .x_q = matf((float *)replaced, T, hidden),
                           .head = head,
                           .logit_scale = (float)(1 / g->model->arch.logits_scaling),
                           .labels = g->windows.ids,
                           .nll = nll,
                           .nll_q = nll_q,
                           .kl = kl,
                           .top1_agree = agree};
    golden_must(g, g->job.backend->score(g->job.device, &a, &g->err));
    for (int t = 0; t < T; t++)
        if (t % GOLDEN_LENGTH < GOLDEN_LENGTH - 1) sum += kl[t];
    return sum / (double)reverse_scored(&g->windows);
}

/* ½·(Σ_t g_t·Δy_t)² over a window, which the scores leave at Σ_t (…)². */
struct windowed {
    struct walked *r;
    double half_squares[LINEARS_MAX];
};

static enum rc add_window(void *ctx, const struct linear_gradient *at, struct err *e) {
    (void)e;
    struct windowed *w = ctx;
    int index = w->r->g->model->blocks[at->site->block].linears[at->position];
    double dot = 0;
    for (int64_t t = 0; index % 3 == 2 && t < at->x.rows; t++)
        dot += dot_of_error(at, t, w->r->linears[index].w_hat[0]);
    w->half_squares[index] += dot * dot / 2;
    return RC_OK;
}

/* The Fisher information of labels that the model draws is the curvature of its KL: wrong labels, dependent draws or a
 * wrong factor would show. */
static void gradients_tell_what_the_model_loses(void **state) {
    (void)state;
    enum { SEEDS = 50 };
    static struct walked r;
    struct golden g;
    struct mat head;
    golden_open(&g, "llama");
    struct grad_walk walk = grad_walk(&g, &r, GOLDEN_WINDOWS);
    golden_must(&g, grad_walk_run(&walk, &g.err));
    struct windowed w = {.r = &r};
    struct reverse_hooks hooks = {.ctx = &w, .linear = add_window};
    struct reverse_walk back = {
        .job = &g.job, .model = g.model, .windows = &g.windows, .hooks = &hooks, .phase = "golden"};
    for (back.seed = 1; back.seed <= SEEDS; back.seed++)
        golden_must(&g, reverse_walk_run(&back, &g.err));
    golden_must(&g, upload_linear(&g.job, &g.model->linears[g.model->linear_count - 1], &head, &g.err));
    const float *reference = golden_finals(&g, NULL, NULL);
    for (int64_t i = 2; i < g.model->linear_count - 1; i += 3) {
        struct replacement one = {&g, i, r.linears[i].w_hat[0]};
        double kl = divergence(&g, reference, golden_finals(&g, replace, &one), head);
        double told = w.half_squares[i] / SEEDS / (double)reverse_scored(&g.windows);
        print_message("%-40s %.2e nats lost, %.2e told, %.2e by tokens\n", g.model->linears[i].name, kl, told,
                      r.linears[i].fisher[0]);
        assert_true(fabs(told / kl - 1) < 0.25);
    }
    backend_cpu.free(g.job.device, head.data);
    golden_close(&g);
}

/* --- what weighing is for --- */

static bool all_wanted[6 * 7 + 1];

struct guided {
    struct bare_job *b;
    double sum[CANDIDATES]; /* GPTQ by H, by H_w */
};

static enum rc quantize_both(void *ctx, const struct job *job, const struct gram_input *in, struct err *e) {
    struct guided *g = ctx;
    struct candidate c;
    TRY(candidate_from_id("gptq3g64", &c, e));
    for (int which = 0; which < CANDIDATES; which++) {
        struct input_group group = gram_input_group(job, g->b->source.model, in);
        if (which == 1) group.gram.h = in->h_w;
        for (int n = 0; n < in->count; n++) {
            struct mat d = in->slots[n][which].d; /* ŵ comes first */
            TRY(group_effective_weights(&group, n, &c, d, e));
            for (int64_t i = 0; i < d.rows * d.cols; i++)
                f32_row(d, 0)[i] = f32_row(in->w[n], 0)[i] - f32_row(d, 0)[i];
            in->slots[n][which].filled = true;
        }
        input_group_release(&group);
    }
    return RC_OK;
}

static enum rc add_up(void *ctx, const struct job *job, int64_t linear, size_t candidate, double fisher,
                      struct err *e) {
    (void)job, (void)linear, (void)e;
    ((struct guided *)ctx)->sum[candidate] += fisher;
    return RC_OK;
}

/* Of the trained model: its tokens do not matter alike. */
static void weighed_gram_makes_gptq_lose_less(void **state) {
    (void)state;
    struct bare_job b;
    struct windows windows;
    bare_open(&b);
    struct guided g = {.b = &b};
    for (int64_t i = 0; i < 6 * 7; i++)
        all_wanted[i] = true;
    bare_must(&b, windows_first(&b.source.tokens, 64, 24, &windows, &b.err));
    struct gram_walk gram = {.job = &b.job,
                             .model = b.source.model,
                             .windows = &windows,
                             .phase = "guided",
                             .wanted = all_wanted,
                             .candidates = CANDIDATES,
                             .input = quantize_both,
                             .ctx = &g};
    struct grad_walk walk = {
        .gram = gram, .unweighed = true, .guided = true, .scored = 24, .seed = SEED, .score = add_up};
    bare_must(&b, grad_walk_run(&walk, &b.err));
    print_message("GPTQ at 3 bits loses %.4f nats by H, %.4f by H_w\n", g.sum[0], g.sum[1]);
    assert_true(g.sum[1] > 0 && g.sum[1] < 0.8 * g.sum[0]);
    windows_release(&windows);
    bare_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_and_weighed_grams_are_those_of_their_definitions),
        cmocka_unit_test(gram_is_that_of_the_gram_walk),
        cmocka_unit_test(score_does_not_depend_on_chunks),
        cmocka_unit_test(kept_inputs_and_rounds_score_the_same),
        cmocka_unit_test(only_what_is_wanted_is_walked),
        cmocka_unit_test(a_block_that_is_not_wanted_hands_gradients_on),
        cmocka_unit_test(gradients_tell_what_the_model_loses),
        cmocka_unit_test(weighed_gram_makes_gptq_lose_less),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
