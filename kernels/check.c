#include "kernels/check.h"

#include <float.h>
#include <limits.h>
#include <math.h>

static enum rc shape(const char *name, const void *data, int64_t rows, int64_t cols, int64_t stride, struct err *e) {
    if (rows < 0 || cols < 0 || stride < cols || rows > INT_MAX || stride > INT_MAX)
        return err_set(e, RC_INVALID, "%s: [%lld, %lld] with stride %lld is no matrix this backend can compute on",
                       name, (long long)rows, (long long)cols, (long long)stride);
    if (data == NULL && rows > 0 && cols > 0) return err_set(e, RC_INVALID, "%s: no data", name);
    return RC_OK;
}

static enum rc matrix(const char *name, const struct mat *m, struct err *e) {
    return shape(name, m->data, m->rows, m->cols, m->stride, e);
}

/* As above, of an expected shape. */
static enum rc matrix_of(const char *name, const struct mat *m, int64_t rows, int64_t cols, struct err *e) {
    if (m->rows != rows || m->cols != cols)
        return err_set(e, RC_INVALID, "%s: [%lld, %lld] where [%lld, %lld] is needed", name, (long long)m->rows,
                       (long long)m->cols, (long long)rows, (long long)cols);
    return matrix(name, m, e);
}

static enum rc present(const char *name, const void *pointer, int64_t count, struct err *e) {
    if (pointer == NULL && count > 0) return err_set(e, RC_INVALID, "%s: no data", name);
    return RC_OK;
}

static enum rc ids_below(const char *name, const int32_t *ids, int64_t count, int64_t limit, struct err *e) {
    TRY(present(name, ids, count, e));
    for (int64_t t = 0; t < count; t++)
        if (ids[t] < 0 || ids[t] >= limit)
            return err_set(e, RC_INVALID, "%s: token id %d at position %lld, but the vocabulary has %lld entries", name,
                           (int)ids[t], (long long)t, (long long)limit);
    return RC_OK;
}

static enum rc float_type(enum dtype type, struct err *e) {
    if (type != DTYPE_F32 && type != DTYPE_F16 && type != DTYPE_BF16)
        return err_set(e, RC_UNSUPPORTED, "weights must be stored as F32, F16 or BF16");
    return RC_OK;
}

enum rc check_type(enum dtype type, const struct mat *matrices, size_t count, struct err *e) {
    for (size_t i = 0; i < count; i++)
        if (matrices[i].data != NULL && matrices[i].type != type)
            return err_set(e, RC_UNSUPPORTED, "a matrix of type %d where this backend computes in type %d",
                           (int)matrices[i].type, (int)type);
    return RC_OK;
}

enum rc check_load(const struct load_item *items, size_t count, struct err *e) {
    for (size_t i = 0; i < count; i++) {
        TRY(check_upload(items[i].host, items[i].type, items[i].count, items[i].out, e));
        if (items[i].out_type != items[i].type && items[i].out_type != DTYPE_F32)
            return err_set(e, RC_UNSUPPORTED, "load: tensors keep their type or become fp32");
    }
    return RC_OK;
}

enum rc check_upload(const void *host, enum dtype type, int64_t count, const void *out, struct err *e) {
    TRY(float_type(type, e));
    if (count < 0 || count > INT64_MAX / 8)
        return err_set(e, RC_INVALID, "upload: %lld values cannot be copied", (long long)count);
    TRY(present("upload: source", host, count, e));
    return present("upload: destination", out, count, e);
}

enum rc check_clear(const void *memory, size_t bytes, struct err *e) {
    if (bytes > INT64_MAX) return err_set(e, RC_INVALID, "clear: no memory has %zu bytes", bytes);
    return present("clear: memory", memory, (int64_t)bytes, e);
}

enum rc check_download(const void *device, size_t bytes, const void *host, struct err *e) {
    if (bytes > INT64_MAX) return err_set(e, RC_INVALID, "download: %zu bytes cannot be copied", bytes);
    TRY(present("download: source", device, (int64_t)bytes, e));
    return present("download: destination", host, (int64_t)bytes, e);
}

static enum rc whole_windows(const char *name, int64_t rows, int64_t length, struct err *e) {
    if (length < 1 || rows % length != 0)
        return err_set(e, RC_INVALID, "%s: %lld rows are no whole windows of %lld tokens", name, (long long)rows,
                       (long long)length);
    return RC_OK;
}

enum rc check_embed(const struct embed_args *a, struct err *e) {
    TRY(float_type(a->type, e));
    TRY(matrix("embed: out", &a->out, e));
    TRY(present("embed: table", a->table, a->out.rows, e));
    return ids_below("embed", a->ids, a->out.rows, a->vocab, e);
}

enum rc check_rmsnorm(const struct rmsnorm_args *a, struct err *e) {
    TRY(matrix("rmsnorm: x", &a->x, e));
    TRY(matrix_of("rmsnorm: out", &a->out, a->x.rows, a->x.cols, e));
    return present("rmsnorm: weight", a->weight, a->x.cols, e);
}

enum rc check_gemm(const struct gemm_args *a, struct err *e) {
    TRY(matrix("gemm: x", &a->x, e));
    TRY(matrix_of("gemm: w", &a->w, a->out.cols, a->x.cols, e));
    return matrix_of("gemm: out", &a->out, a->x.rows, a->w.rows, e);
}

enum rc check_rope(const struct rope_args *a, struct err *e) {
    if (a->heads < 1 || a->head_dim < 1 || a->rotary < 0 || a->rotary % 2 != 0 || a->rotary > a->head_dim)
        return err_set(e, RC_INVALID, "rope: %d heads of %d channels cannot rotate %d of them", a->heads, a->head_dim,
                       a->rotary);
    TRY(whole_windows("rope", a->x.rows, a->length, e));
    TRY(matrix_of("rope: x", &a->x, a->x.rows, (int64_t)a->heads * a->head_dim, e));
    TRY(present("rope: cos", a->cos, a->x.rows * a->rotary, e));
    return present("rope: sin", a->sin, a->x.rows * a->rotary, e);
}

enum rc check_attention(const struct attention_args *a, struct err *e) {
    if (a->heads < 1 || a->kv_heads < 1 || a->heads % a->kv_heads != 0 || a->head_dim < 1 || a->window < 0)
        return err_set(e, RC_INVALID, "attention: %d query heads, %d key heads, %d channels, window %d do not fit",
                       a->heads, a->kv_heads, a->head_dim, a->window);
    TRY(whole_windows("attention", a->q.rows, a->length, e));
    int64_t rows = a->q.rows, query = (int64_t)a->heads * a->head_dim, key = (int64_t)a->kv_heads * a->head_dim;
    TRY(matrix_of("attention: q", &a->q, rows, query, e));
    TRY(matrix_of("attention: k", &a->k, rows, key, e));
    TRY(matrix_of("attention: v", &a->v, rows, key, e));
    return matrix_of("attention: out", &a->out, rows, query, e);
}

enum rc check_silu_mul(const struct silu_mul_args *a, struct err *e) {
    TRY(matrix("silu_mul: gate", &a->gate, e));
    TRY(matrix_of("silu_mul: up", &a->up, a->gate.rows, a->gate.cols, e));
    return matrix_of("silu_mul: out", &a->out, a->gate.rows, a->gate.cols, e);
}

enum rc check_score(const struct score_args *a, struct err *e) {
    int64_t rows = a->x.rows, hidden = a->x.cols, vocab = a->head.rows;
    TRY(matrix("score: x", &a->x, e));
    TRY(matrix_of("score: head", &a->head, vocab, hidden, e));
    TRY(ids_below("score: labels", a->labels, rows, vocab, e));
    TRY(present("score: nll", a->nll, rows, e));
    if (a->x_q.data == NULL) return RC_OK;
    TRY(matrix_of("score: x_q", &a->x_q, rows, hidden, e));
    if (a->more < 0 || a->more > INT_MAX || (a->more > 0 && a->apart < rows))
        return err_set(e, RC_INVALID, "score: %lld more models, %lld rows apart, where each has %lld",
                       (long long)a->more, (long long)a->apart, (long long)rows);
    if (a->head_q.data != NULL) TRY(matrix_of("score: head_q", &a->head_q, vocab, hidden, e));
    TRY(present("score: nll_q", a->nll_q, rows, e));
    TRY(present("score: kl", a->kl, rows, e));
    return present("score: top1_agree", a->top1_agree, rows, e);
}

enum rc check_gemm_back(const struct gemm_back_args *a, struct err *e) {
    TRY(matrix("gemm_back: dy", &a->dy, e));
    TRY(matrix_of("gemm_back: w", &a->w, a->dy.cols, a->dx.cols, e));
    return matrix_of("gemm_back: dx", &a->dx, a->dy.rows, a->w.cols, e);
}

enum rc check_rmsnorm_back(const struct rmsnorm_back_args *a, struct err *e) {
    TRY(matrix("rmsnorm_back: x", &a->x, e));
    TRY(matrix_of("rmsnorm_back: dy", &a->dy, a->x.rows, a->x.cols, e));
    TRY(matrix_of("rmsnorm_back: dx", &a->dx, a->x.rows, a->x.cols, e));
    return present("rmsnorm_back: weight", a->weight, a->x.cols, e);
}

enum rc check_attention_back(const struct attention_back_args *a, struct err *e) {
    const struct attention_args *f = &a->forward;
    TRY(check_attention(f, e));
    TRY(matrix_of("attention_back: dout", &a->dout, f->out.rows, f->out.cols, e));
    TRY(matrix_of("attention_back: dq", &a->dq, f->q.rows, f->q.cols, e));
    TRY(matrix_of("attention_back: dk", &a->dk, f->k.rows, f->k.cols, e));
    return matrix_of("attention_back: dv", &a->dv, f->v.rows, f->v.cols, e);
}

enum rc check_silu_mul_back(const struct silu_mul_back_args *a, struct err *e) {
    TRY(matrix("silu_mul_back: gate", &a->gate, e));
    TRY(matrix_of("silu_mul_back: up", &a->up, a->gate.rows, a->gate.cols, e));
    TRY(matrix_of("silu_mul_back: dy", &a->dy, a->gate.rows, a->gate.cols, e));
    TRY(matrix_of("silu_mul_back: dgate", &a->dgate, a->gate.rows, a->gate.cols, e));
    return matrix_of("silu_mul_back: dup", &a->dup, a->gate.rows, a->gate.cols, e);
}

enum rc check_sample_labels(const struct sample_labels_args *a, struct err *e) {
    TRY(matrix("sample_labels: x", &a->x, e));
    TRY(matrix_of("sample_labels: head", &a->head, a->head.rows, a->x.cols, e));
    TRY(present("sample_labels: u", a->u, a->x.rows, e));
    TRY(present("sample_labels: labels", a->labels, a->x.rows, e));
    if (a->head.rows == 0 && a->x.rows > 0) return err_set(e, RC_INVALID, "sample_labels: the vocabulary is empty");
    for (int64_t t = 0; t < a->x.rows; t++)
        if (!(a->u[t] >= 0 && a->u[t] < 1))
            return err_set(e, RC_INVALID, "sample_labels: u[%lld] is %g, not in [0, 1)", (long long)t, a->u[t]);
    return RC_OK;
}

enum rc check_score_back(const struct score_back_args *a, struct err *e) {
    int64_t rows = a->x.rows, hidden = a->x.cols, vocab = a->head.rows;
    TRY(matrix("score_back: x", &a->x, e));
    TRY(matrix_of("score_back: head", &a->head, vocab, hidden, e));
    TRY(matrix_of("score_back: dx", &a->dx, rows, hidden, e));
    if (a->dx.type != DTYPE_F32) return err_set(e, RC_UNSUPPORTED, "score_back: dx sums over the vocabulary in fp32");
    TRY(ids_below("score_back: labels", a->labels, rows, vocab, e));
    return present("score_back: nll", a->nll, rows, e);
}

enum rc check_fisher(const struct fisher_args *a, struct err *e) {
    TRY(matrix("fisher: x", &a->x, e));
    TRY(matrix_of("fisher: g", &a->g, a->x.rows, a->d.rows, e));
    TRY(matrix_of("fisher: d", &a->d, a->d.rows, a->x.cols, e));
    TRY(whole_windows("fisher", a->x.rows, a->length, e));
    TRY(present("fisher: sum", a->sum, a->x.rows, e));
    return present("fisher: squares", a->squares, a->x.rows, e);
}

enum rc check_row_norms(const struct row_norms_args *a, struct err *e) {
    TRY(matrix("row_norms: g", &a->g, e));
    return present("row_norms: norms", a->norms, a->g.rows, e);
}

enum rc check_kl_back(const struct kl_back_args *a, struct err *e) {
    int64_t rows = a->x.rows, hidden = a->x.cols, vocab = a->head.rows;
    TRY(matrix("kl_back: x", &a->x, e));
    TRY(matrix_of("kl_back: x_ref", &a->x_ref, rows, hidden, e));
    TRY(matrix_of("kl_back: head", &a->head, vocab, hidden, e));
    if (a->head_ref.data != NULL) TRY(matrix_of("kl_back: head_ref", &a->head_ref, vocab, hidden, e));
    if (vocab == 0 && rows > 0) return err_set(e, RC_INVALID, "kl_back: the vocabulary is empty");
    TRY(matrix_of("kl_back: dx", &a->dx, rows, hidden, e));
    if (a->dx.type != DTYPE_F32) return err_set(e, RC_UNSUPPORTED, "kl_back: dx sums over the vocabulary in fp32");
    return present("kl_back: kl", a->kl, rows, e);
}

enum rc check_scale_back(const struct scale_back_args *a, struct err *e) {
    TRY(matrix("scale_back: x", &a->x, e));
    TRY(matrix_of("scale_back: g", &a->g, a->x.rows, a->w_hat.rows, e));
    TRY(matrix_of("scale_back: w_hat", &a->w_hat, a->w_hat.rows, a->x.cols, e));
    if (a->group < 1 || a->group > a->x.cols)
        return err_set(e, RC_INVALID, "scale_back: %lld columns have no groups of %d", (long long)a->x.cols, a->group);
    return present("scale_back: slope", a->slope, a->w_hat.rows, e);
}

enum rc check_adam(const struct adam_args *a, struct err *e) {
    if (a->count < 0 || a->count > INT64_MAX / 8 || a->step < 1)
        return err_set(e, RC_INVALID, "adam: %lld values at step %lld: steps count from 1", (long long)a->count,
                       (long long)a->step);
    bool rates = a->rate >= 0 && a->rate <= FLT_MAX && a->beta1 >= 0 && a->beta1 < 1 && a->beta2 >= 0 && a->beta2 < 1 &&
                 a->epsilon > 0 && a->epsilon <= FLT_MAX;
    if (!rates)
        return err_set(e, RC_INVALID,
                       "adam: a rate of %g with betas of %g and %g and epsilon %g moves nothing sensibly",
                       (double)a->rate, (double)a->beta1, (double)a->beta2, (double)a->epsilon);
    TRY(present("adam: base", a->base, a->count, e));
    TRY(present("adam: slope", a->slope, a->count, e));
    TRY(present("adam: mean", a->mean, a->count, e));
    TRY(present("adam: square", a->square, a->count, e));
    TRY(present("adam: theta", a->theta, a->count, e));
    return present("adam: scale", a->scale, a->count, e);
}

enum rc check_gram(const struct gram_args *a, struct err *e) {
    TRY(matrix("gram: x", &a->x, e));
    if (a->h.rows != a->x.cols || a->h.cols != a->x.cols)
        return err_set(e, RC_INVALID, "gram: h is [%lld, %lld] but x has %lld channels", (long long)a->h.rows,
                       (long long)a->h.cols, (long long)a->x.cols);
    return shape("gram: h", a->h.data, a->h.rows, a->h.cols, a->h.stride, e);
}

enum rc check_gram_finish(struct mat h, struct err *e) {
    return matrix_of("gram_finish: h", &h, h.rows, h.rows, e);
}

enum rc check_combine(const struct combine_args *a, struct err *e) {
    if (a->count < 1) return err_set(e, RC_INVALID, "combine: %d devices", a->count);
    const struct mat *first = &a->parts[0];
    if (first->type != DTYPE_F32 && first->type != DTYPE_F64 && first->type != DTYPE_BF16)
        return err_set(e, RC_UNSUPPORTED, "combine: only fp32, fp64 and bf16 matrices are summed");
    for (int i = 0; i < a->count; i++) {
        const struct mat *m = &a->parts[i];
        if (a->states[i] == NULL) return err_set(e, RC_INVALID, "combine: device %d of %d is missing", i, a->count);
        TRY(matrix_of("combine", m, first->rows, first->cols, e));
        if (m->type != first->type) return err_set(e, RC_INVALID, "combine: the types differ");
        if (m->stride != m->cols)
            return err_set(e, RC_UNSUPPORTED, "combine: stride %lld: the matrices must be dense", (long long)m->stride);
    }
    return RC_OK;
}

enum rc check_candidate(const struct candidate *c, struct err *e) {
    if (c->method == METHOD_NONE) return err_set(e, RC_INVALID, "`none` keeps 16 bits: there is nothing to quantize");
    if (c->bits < 2 || c->bits > 8) return err_set(e, RC_UNSUPPORTED, "%d bits: codes have 2 to 8", c->bits);
    if (c->group < 0) return err_set(e, RC_INVALID, "group %d is negative", c->group);
    if (c->method == METHOD_HQQ && c->symmetric)
        return err_set(e, RC_UNSUPPORTED, "hqq moves the zero, which a symmetric candidate does not have: use rtn");
    if (c->method == METHOD_FP8 && (c->bits != 8 || c->group != 0))
        return err_set(e, RC_UNSUPPORTED, "fp8 has 8 bits and a scale a row");
    if (candidate_uses_gptq(c) && c->range == RANGE_OUTPUT)
        return err_set(e, RC_UNSUPPORTED, "gptq does not round to nearest: its range cannot be chosen by the output");
    if (c->descend < 0 || c->descend > (candidate_uses_gptq(c) ? DESCEND_MAX : 0))
        return err_set(e, RC_UNSUPPORTED, "%d sweeps: only gptq's codes descend, up to %d times", c->descend,
                       DESCEND_MAX);
    bool clips = c->range == RANGE_PERCENTILE || c->range == RANGE_RATIO;
    if (clips && (c->clip < 1 || c->clip > PARTS))
        return err_set(e, RC_INVALID, "%d of %d of the weights are no range", c->clip, PARTS);
    return RC_OK;
}

enum rc check_scale(const struct scale_args *a, struct err *e) {
    TRY(matrix("scale: m", &a->m, e));
    TRY(matrix_of("scale: out", &a->out, a->m.rows, a->m.cols, e));
    if ((a->m.type == DTYPE_F64) != (a->out.type == DTYPE_F64))
        return err_set(e, RC_UNSUPPORTED, "scale: fp64 stays fp64, and nothing else becomes it");
    if (a->m.type == DTYPE_F64) return RC_OK;
    TRY(float_type(a->m.type, e));
    return float_type(a->out.type, e);
}

enum rc check_column_share(const struct column_share_args *a, struct err *e) {
    TRY(matrix("column_share: w", &a->w, e));
    TRY(float_type(a->w.type, e));
    if (a->w.rows < 1 || a->w.cols < 1 || a->group < 0)
        return err_set(e, RC_INVALID, "column_share: [%lld, %lld] in groups of %d is no Linear", (long long)a->w.rows,
                       (long long)a->w.cols, a->group);
    return present("column_share: share", a->share, a->w.cols, e);
}

/* What GPTQ is given of H, or of G, is of this many channels. */
static enum rc check_factor_form(const char *of, const struct factor *f, int64_t cols, struct err *e) {
    if (f == NULL || f->upper == NULL || f->order == NULL || f->dead == NULL)
        return err_set(e, RC_INVALID, "the factor of %s has no buffers", of);
    if (f->cols == cols) return RC_OK;
    return err_set(e, RC_INVALID, "the factor of %s is of %lld channels where %lld are needed", of, (long long)f->cols,
                   (long long)cols);
}

enum rc check_factor(const struct factor_args *a, struct err *e) {
    TRY(matrix_of("factor: h", &a->h, a->h.cols, a->h.cols, e));
    if (a->h.cols < 1 || a->group < 0 || !(a->damp > 0 && a->damp <= 1))
        return err_set(e, RC_INVALID, "factor: %lld channels, groups of %d, damping %g", (long long)a->h.cols, a->group,
                       a->damp);
    return check_factor_form("H", a->out, a->h.cols, e);
}

enum rc check_quantized(const struct quantized *q, struct err *e) {
    bool sizes = q->rows > 0 && q->cols > 0 && q->rows <= INT_MAX && q->cols <= INT_MAX && q->bits >= 2 &&
                 q->bits <= 8 && q->group > 0 && q->group <= q->cols &&
                 q->groups == (q->cols + q->group - 1) / q->group;
    if (!sizes)
        return err_set(e, RC_INVALID, "[%lld, %lld] in %lld groups of %d at %d bits is no quantized Linear",
                       (long long)q->rows, (long long)q->cols, (long long)q->groups, q->group, q->bits);
    if (q->codes == NULL || q->scale == NULL || q->zero == NULL)
        return err_set(e, RC_INVALID, "the quantized Linear has no buffers");
    return RC_OK;
}

static enum rc check_rows(const struct quantize_args *a, struct err *e) {
    if (a->rows == NULL) return RC_OK;
    if (!candidate_uses_gptq(&a->candidate))
        return err_set(e, RC_INVALID, "quantize: only gptq goes by a factor of the rows");
    if (a->candidate.descend > 0)
        return err_set(e, RC_UNSUPPORTED, "quantize: codes descend by H alone, not where gptq is two-sided");
    return check_factor_form("the rows", a->rows, a->w.rows, e);
}

/* What the candidate needs of H is there. */
static enum rc check_calibrated(const struct quantize_args *a, struct err *e) {
    const struct candidate *c = &a->candidate;
    bool gptq = candidate_uses_gptq(c);
    if (gptq) TRY(check_factor_form("H", a->factor, a->w.cols, e));
    if (gptq && c->descend == 0) return RC_OK;
    if (!gptq && c->range != RANGE_WEIGHTED && c->range != RANGE_OUTPUT) return RC_OK;
    return matrix_of("quantize: h", &a->h, a->w.cols, a->w.cols, e);
}

enum rc check_quantize(const struct quantize_args *a, struct err *e) {
    TRY(check_candidate(&a->candidate, e));
    TRY(check_quantized(a->out, e));
    int64_t group = a->candidate.group > 0 && a->candidate.group < a->w.cols ? a->candidate.group : a->w.cols;
    bool indexed = candidate_uses_gptq(&a->candidate) && a->candidate.order == ORDER_ACTIVATION;
    if (a->out->bits != a->candidate.bits || a->out->group != group || (a->out->group_of != NULL) != indexed ||
        a->out->fp8 != (a->candidate.method == METHOD_FP8))
        return err_set(e, RC_INVALID, "quantize: the buffers were made for another candidate");
    if (a->report == NULL) return err_set(e, RC_INVALID, "quantize: nowhere to report");
    TRY(check_calibrated(a, e));
    TRY(check_rows(a, e));
    return matrix_of("quantize: w", &a->w, a->out->rows, a->out->cols, e);
}

enum rc check_dequantize(const struct dequantize_args *a, struct err *e) {
    TRY(check_quantized(a->q, e));
    return matrix_of("dequantize: out", &a->out, a->q->rows, a->q->cols, e);
}

enum rc check_error(const struct error_args *a, struct err *e) {
    TRY(matrix("error: w", &a->w, e));
    TRY(matrix_of("error: w_hat", &a->w_hat, a->w.rows, a->w.cols, e));
    if (a->difference.data != NULL) TRY(matrix_of("error: difference", &a->difference, a->w.rows, a->w.cols, e));
    if (a->h.data == NULL) return RC_OK;
    if (a->h.rows != a->w.cols || a->h.cols != a->w.cols)
        return err_set(e, RC_INVALID, "error: h is [%lld, %lld] but w has %lld channels", (long long)a->h.rows,
                       (long long)a->h.cols, (long long)a->w.cols);
    return shape("error: h", a->h.data, a->h.rows, a->h.cols, a->h.stride, e);
}

static enum rc check_rounded(const struct mat *w, const struct candidate *c, int64_t cols, struct err *e) {
    TRY(check_candidate(c, e));
    if (c->method != METHOD_RTN || c->range != RANGE_FULL)
        return err_set(e, RC_UNSUPPORTED, "scaled_error: rounds to nearest over the full range");
    TRY(matrix_of("scaled_error: w", w, w->rows, cols, e));
    return float_type(w->type, e);
}

enum rc check_scaled_error(const struct scaled_error_args *a, struct err *e) {
    int64_t cols = a->h.cols;
    TRY(matrix_of("scaled_error: h", &a->h, cols, cols, e));
    if (cols < 1 || a->count < 1) return err_set(e, RC_INVALID, "scaled_error: no Linear");
    TRY(present("scaled_error: by_col", a->by_col, cols, e));
    TRY(present("scaled_error: inverse", a->inverse, cols, e));
    TRY(present("scaled_error: sum", a->sum, 1, e));
    for (int i = 0; i < a->count; i++)
        TRY(check_rounded(&a->w[i], &a->candidate[i], cols, e));
    return RC_OK;
}

enum rc check_perturb(const struct perturb_args *a, struct err *e) {
    TRY(matrix("perturb: w", &a->w, e));
    TRY(matrix_of("perturb: out", &a->out, a->w.rows, a->w.cols, e));
    TRY(float_type(a->w.type, e));
    TRY(float_type(a->out.type, e));
    if (!isfinite(a->deviation) || a->deviation < 0)
        return err_set(e, RC_INVALID, "perturb: a deviation of %g", (double)a->deviation);
    return RC_OK;
}

enum rc check_kfac(const struct kfac_args *a, struct err *e) {
    TRY(matrix("kfac: w", &a->w, e));
    TRY(matrix_of("kfac: w_hat", &a->w_hat, a->w.rows, a->w.cols, e));
    TRY(matrix_of("kfac: h", &a->h, a->w.cols, a->w.cols, e));
    return matrix_of("kfac: g", &a->g, a->w.rows, a->w.rows, e);
}
