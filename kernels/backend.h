/* The one table of operations behind which every device stands.
 *
 * A state is used by one thread at a time, which attaches itself first, where it did not open it; operations run in the
 * order called (asynchronously where the device allows: download waits). Device memory comes from alloc/free alone,
 * which count against the limit given to open; an operation's workspace comes from the same arena, is kept for the next
 * one and grows only with the shapes. `cpu` (OpenBLAS, fp32) is the reference; tests/ops runs the same cases on every
 * backend against float64, each operation with its own bound. What Linears read and write has the backend's
 * `activation` type; the residual stream and logits are fp32, reductions whose length grows with tokens fp64 on the
 * CPU. A result never depends on how many windows are walked together: the rows of a call are a fixed number of
 * windows, padded where fewer are left. Definitions: the modeling files of transformers for the forward pass;
 * algorithms as cited at each operation. */
#ifndef HSAQ_KERNELS_BACKEND_H
#define HSAQ_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"
#include "base/err.h"
#include "kernels/tensor.h"

struct backend_state; /* one open device */

struct backend_options {
    int device;           /* ordinal of the device; 0 for cpu */
    int threads;          /* 0: all cores */
    int shares;           /* among how many states of the process those are divided; 0: this one alone */
    int64_t memory_limit; /* bytes the arena may hold; 0: no limit but the machine's */
};

/* A device, seen without opening it. */
struct device_description {
    char hardware[160]; /* for people */
    int64_t memory;     /* bytes */
};

/* out[t] = table[ids[t]] · multiplier */
struct embed_args {
    const void *table; /* [V, D] host memory, as stored */
    enum dtype type;
    int64_t vocab;         /* V */
    const void *on_device; /* the same in device memory, where it happens to be there; or NULL */
    const int32_t *ids;    /* [T] host memory, each in [0, V) */
    float multiplier;
    struct mat out; /* [T, D] */
};

/* out = x / sqrt(mean(x²) + eps) · weight, row by row; out may be x. Also the per-head q/k norm: rows = T·heads.
 * Types: fp32 or activation, each. */
struct rmsnorm_args {
    struct mat x;        /* [T, D] */
    const float *weight; /* [D] */
    float eps;
    struct mat out; /* [T, D] */
};

/* out = alpha · (x · wᵀ + bias) + beta · out. x and w of the activation type (w also as stored), out that or fp32. */
struct gemm_args {
    struct mat x;      /* [T, K] */
    struct mat w;      /* [N, K] */
    const float *bias; /* [N] or NULL */
    float alpha, beta;
    struct mat out; /* [T, N] */
};

/* Rotates the first `rotary` channels of each head, half-split (rotate_half), in place; row t is at position
 * t mod length. */
struct rope_args {
    struct mat x;   /* [T, heads·head_dim] */
    int64_t length; /* of a window */
    int heads, head_dim, rotary;
    const float *cos, *sin; /* [length, rotary/2] */
};

/* Causal softmax(q·kᵀ·scale)·v; query head i reads kv head i / (heads / kv_heads); a token sees `window` keys,
 * itself included (0: all before it). Rows are windows of `length` tokens, which do not see each other. Never
 * materialises T×T for all heads at once. */
struct attention_args {
    struct mat q, k, v; /* [T, heads·d], [T, kv_heads·d], [T, kv_heads·d] */
    int64_t length;
    int heads, kv_heads, head_dim, window;
    float scale;
    struct mat out; /* [T, heads·d] */
};

/* out = silu(gate) · up */
struct silu_mul_args {
    struct mat gate, up, out; /* [T, I] */
};

/* Per position t < T: NLL of the label under each model, KL(ref ‖ quant) in nats, whether the arg max agrees.
 * logits = x · headᵀ · logit_scale (+ bias); computed over vocabulary chunks, nothing [T, V] is kept.
 * Without a quantized model (x_q.data NULL) only nll_ref is written. head_q.data NULL: both use head. Several quantized
 * models share the reference's logits, each with the bits that it would have alone. */
struct score_args {
    struct mat x, x_q;   /* [T, D] after the final norm */
    int64_t more, apart; /* so many quantized models after x_q, each `apart` rows after the one before: Q = 1 + more */
    struct mat head, head_q; /* [V, D] */
    const float *bias;       /* [V] or NULL */
    float logit_scale;
    const int32_t *labels;    /* [T] host memory */
    double *nll, *nll_q, *kl; /* [T], [Q, T], [Q, T] host memory */
    uint8_t *top1_agree;      /* [Q, T] host memory */
};

/* --- backwards: a loss's gradient by the input of a forward operation, given dy, its gradient by the output. Matrices
 * are as the forward operation had them; gradients have the activation type but where fp32 is said. Weights have no
 * gradients here. rope goes backwards by itself, with −sin. --- */

/* dx = alpha · dy · w + beta · dx */
struct gemm_back_args {
    struct mat dy; /* [T, N] activation type */
    struct mat w;  /* [N, K] as gemm takes it */
    float alpha, beta;
    struct mat dx; /* [T, K] activation type or fp32 */
};

/* With r = 1 / sqrt(mean(x²) + eps): dx = r · (weight∘dy − x · r² · mean(weight∘dy∘x)), row by row; dx may be dy.
 * Types: fp32 or activation, each. */
struct rmsnorm_back_args {
    struct mat x;        /* [T, D] what was normalised */
    const float *weight; /* [D] */
    float eps;
    struct mat dy, dx; /* [T, D] */
    bool add;          /* dx += …: the residual stream's gradient sums */
};

/* With P the probabilities, recomputed: dv = Pᵀ·dout, dP = dout·vᵀ, dS = P∘(dP − rowsum(dout∘out)), dq = scale·dS·k,
 * dk = scale·dSᵀ·q; dk and dv sum over the query heads of their key head. The order of every sum is fixed: repeated
 * runs have the same bits. Nothing [T, T] exists for all heads at once. Source: FlashAttention-2 (Dao 2023). */
struct attention_back_args {
    struct attention_args forward; /* as it was called; `out` is its result */
    struct mat dout;               /* [T, heads·d] */
    struct mat dq, dk, dv;         /* as q, k, v, and none of them */
};

/* dgate = dy·up·σ(gate)·(1 + gate·(1 − σ(gate))), dup = dy·silu(gate); dgate may be gate and dup up. */
struct silu_mul_back_args {
    struct mat gate, up, dy, dgate, dup; /* [T, I] */
};

/* Draws a label for each position from the model's own softmax, as the true Fisher information wants them: the first
 * token at which the cumulative probability, summed in fp64 in the vocabulary's order, exceeds u. The logits are those
 * of score; so is the way over the vocabulary in chunks, twice: for the sum, then for the place. */
struct sample_labels_args {
    struct mat x;      /* [T, D] after the final norm */
    struct mat head;   /* [V, D] */
    const float *bias; /* [V] or NULL */
    float logit_scale;
    const double *u; /* [T] host memory, each in [0, 1) */
    int32_t *labels; /* [T] host memory */
};

/* nll[t] of the label, and dx = weight[t] · logit_scale · (softmax(logits) − onehot(label)) · head: the gradient of
 * Σ weight·nll. Over vocabulary chunks, twice: for the softmax's sum, then for the gradient. */
struct score_back_args {
    struct mat x;      /* [T, D] after the final norm */
    struct mat head;   /* [V, D] */
    const float *bias; /* [V] or NULL */
    float logit_scale;
    const int32_t *labels; /* [T] host memory */
    const float *weight;   /* [T] host memory; 0 for positions that are not scored; NULL: 1 everywhere */
    struct mat dx;         /* [T, D] fp32 */
    double *nll;           /* [T] host memory */
};

/* kl[t] = KL(P_ref ‖ P) in nats at each position, and dx = weight[t] · logit_scale · (P − P_ref) · head: the gradient
 * of Σ weight·kl. P is the softmax of score's logits of x, P_ref that of x_ref. Over vocabulary chunks, twice: for the
 * softmaxes' sums, then for the gradient. */
struct kl_back_args {
    struct mat x, x_ref;       /* [T, D] after the final norm */
    struct mat head, head_ref; /* [V, D]; head_ref.data NULL: both use head */
    const float *bias;         /* [V] or NULL */
    float logit_scale;
    const float *weight; /* [T] host memory; 0 for positions that do not count; NULL: 1 everywhere */
    struct mat dx;       /* [T, D] fp32 */
    double *kl;          /* [T] host memory */
};

/* What the loss gains, to first order, where all of a group's scales grow by a factor 1 + θ: with ŵ = (q − zero)·scale,
 * slope[n][j] += Σ over the columns k of group j of (gᵀ·x)[n][k] · ŵ[n][k]. */
struct scale_back_args {
    struct mat x;            /* [T, K] the Linear's input */
    struct mat g;            /* [T, N] the gradient at its output; rows may lie apart */
    struct mat w_hat;        /* [N, K] activation type, as the Linear was multiplied with */
    int group;               /* K for whole rows */
    const int32_t *group_of; /* [K] as in struct quantized; or NULL */
    float *slope;            /* [N, G] device memory */
};

/* A step of Adam (Kingma & Ba, ICLR 2015) on the logarithms θ of scales: scale = base · e^θ. `step` counts from 1;
 * slope is set to 0 for the next one. */
struct adam_args {
    int64_t count;
    float rate, beta1, beta2, epsilon;
    int64_t step;
    const float *base; /* [count] device memory, as all of the next */
    float *slope, *mean, *square, *theta, *scale;
};

/* Twice what the loss gains, to second order, where ŵ stands for w: f[t] = (g_t · (x_t·Dᵀ))², where
 * x·Dᵀ has the activation type; per window of `length` tokens Σ f and Σ f², in fp64. */
struct fisher_args {
    struct mat x;          /* [T, K] the Linear's input */
    struct mat g;          /* [T, N] the gradient at its output */
    struct mat d;          /* [N, K] D = w − ŵ of the activation type, as error leaves it */
    int64_t length;        /* of a window */
    double *sum, *squares; /* [T / length] device memory */
};

/* norms[t] = Σ_n g[t][n]², in fp64: how much a token's output matters to the loss (GuidedQuant, Kim et al. 2025).
 * Inputs that several Linears share sum theirs. √norms is what `scale` takes by row to weigh a Gram matrix. */
struct row_norms_args {
    struct mat g;  /* [T, N] */
    bool add;      /* norms += … */
    double *norms; /* [T] device memory */
    float *roots;  /* [T] device memory: √ of what norms then is; or NULL */
};

/* --- what quantization asks of activations and weights --- */

/* h += xᵀ·x, of which only the upper triangle is valid until gram_finish; stats accumulate per input channel: Σx, Σ|x|,
 * max|x|. Any stats pointer may be NULL. */
struct gram_args {
    struct mat x;          /* [T, K] */
    struct mat h;          /* [K, K] of the backend's gram type */
    double *sum, *sum_abs; /* [K] device memory */
    float *max_abs;        /* [K] device memory */
};

/* The sum over devices of a matrix that each has its part of, left on all of them. Its order is the states', or one
 * that depends on their number alone, so that a repeated sum has the same bits. */
struct combine_args {
    struct backend_state *const *states; /* [count]; no other thread uses them meanwhile */
    const struct mat *parts; /* [count] dense, of one shape, fp32, fp64 or the activation type; each on the device of
                                its state. Rounded after every addition: zeros of all but one leave that as it is */
    int count;
};

/* out[n][k] = m[n][k] · by_row[n] · by_col[k]; a factor that is NULL is 1. out may be m. How AWQ's scales get into a
 * Linear (columns), out of its producer (rows), and into H (both). */
struct scale_args {
    struct mat m;                 /* [N, K] any float type, or fp64 */
    const float *by_row, *by_col; /* [N], [K] device memory */
    struct mat out;               /* [N, K] fp64 where m is; else fp32 or the activation type */
};

/* share[k] = mean over n of |w[n][k]| / (the largest |w| of its row's group; 0 / 0 is 0): AWQ's measure of a column's
 * weight. The groups are those of RTN. */
struct column_share_args {
    struct mat w;  /* [N, K] */
    int group;     /* 0: whole rows */
    double *share; /* [K] host memory */
};

/* What GPTQ (Frantar et al. 2022) needs of H, for every candidate and Linear with this input, group (where the order
 * depends on it) and damping: with H′ = H + damp·mean(diag H)·I and its rows and columns in the order in which columns
 * are rounded, H′⁻¹ = UᵀU. A dead column (H_kk = 0) gets H′_kk = 1, which the mean does not see: so H's unit changes no
 * code. Where H′ is not positive definite in fp64, damp is doubled until it is, up to 1; then RC_INVALID, as for an H
 * that is not finite. */
struct factor {
    int64_t cols;   /* K */
    float *upper;   /* [K, K] U; zeros below the diagonal */
    int32_t *order; /* [K] host memory: the column rounded at each step */
    uint8_t *dead;  /* [K] host memory, by column */
    double damp;    /* what it took */
    double mean;    /* of diag H */
};
struct factor_args {
    struct mat h; /* [K, K] of the backend's gram type, finished */
    enum column_order order;
    int group;          /* 0: whole rows */
    double damp;        /* to begin with */
    struct factor *out; /* buffers by factor_alloc */
};

/* A quantized Linear, unpacked. Groups run along K; group g of row n is w[n, g·group : (g+1)·group], the last may be
 * short; or column k is in group group_of[k]. ŵ = (q − zero)·scale. scale and zero are already rounded to the 16-bit
 * floats that storage keeps. */
struct quantized {
    int64_t rows, cols, groups; /* N, K, G = ceil(K / group) */
    int bits, group;            /* group = K for whole rows */
    bool fp8;                   /* codes are e4m3 floats: ŵ = code·scale, groups = 1, zero = 0, scale is a bf16 */
    uint8_t *codes;             /* [N, K]; symmetric codes are stored with 2^(bits−1) added */
    float *scale;               /* [N, G] */
    float *zero;                /* [N, G]; 2^(bits−1) everywhere when symmetric */
    int32_t *group_of;          /* [K] for ORDER_ACTIVATION; else NULL */
};

/* What a quantizer has to say about its own work. */
struct quantize_report {
    int64_t constant_groups; /* groups with max == min, stored exactly */
    int64_t rtn_groups;      /* HQQ: groups where RTN's parameters had the smaller weight error and were kept */
};

/* RTN, HQQ (Badri & Shaji 2023) or GPTQ; METHOD_AWQ (Lin et al. 2023) is RTN here: its scales are in w and h already.
 * A candidate that descends has GPTQ's codes gone through again so many times, in the order in which it rounded them:
 * each moves to where tr((w − ŵ)·H′·(w − ŵ)ᵀ), H′ damped as the factor is, is least as the others are; scales and zeros
 * stay (cyclic coordinate descent: QuantEase, Behdin et al. 2023; CDQuant, Nair & Suggala 2024).
 * With a factor of the rows too, of G = Σ gᵀg at the Linear's output, GPTQ is two-sided: it goes for the least
 * tr(G′·E·H′·Eᵀ), E = ŵ − w (YAQA, Tseng et al. 2025). All groups are fitted before, to the weights as they are; a
 * column's weights are rounded in the order of that factor's steps, and of what rounding the weight at step q left,
 * R_q, the weight at a step p > q takes R_q·V_qp before it is rounded, V_qp = U_qp/U_qq of the rows' factor. What the
 * columns behind make up for is as ever the difference to the weight as the columns before it had left it. RC_INVALID
 * naming row and column when w holds NaN or Inf. */
struct quantize_args {
    struct mat w; /* [N, K] */
    struct candidate candidate;
    struct mat h; /* [K, K] for RANGE_WEIGHTED without GPTQ, RANGE_OUTPUT, and to descend: what the factor is of */
    const struct factor *factor; /* for GPTQ, of the candidate's order, group and damp; else NULL */
    const struct factor *rows;   /* [N] for GPTQ, of G, of any order; or NULL */
    struct quantized *out;       /* buffers by quantized_alloc */
    struct quantize_report *report;
};

struct dequantize_args {
    const struct quantized *q;
    const float *by_col; /* [K] device memory: what each column is multiplied with; NULL: 1 */
    struct mat out;      /* [N, K] */
};

/* Output error and reconstruction error of ŵ against w. tr(D H Dᵀ) = Σ (DᵀD)·H element by
 * element, in fp64. h.data NULL: output error is not computed and drift fields
 * are 0. The denominator is the same for every candidate of a Linear: hand it back in to save its cost. */
struct error_args {
    struct mat w, w_hat;     /* [N, K]; w_hat fp32 or of the activation type */
    struct mat h;            /* [K, K] */
    const double *drift_den; /* tr(W H Wᵀ) as reported before for the same w and h; NULL: computed */
    struct mat difference;   /* [N, K] of the activation type: becomes D; data NULL: not wanted */
};
struct error_report {
    double drift_num, drift_den; /* tr(D H Dᵀ), tr(W H Wᵀ) */
    double frobenius, weight_frobenius, max_abs, mean_abs;
};

/* Σ tr(D H Dᵀ) over Linears that read one input, D = W − Q(W·diag t)·diag t⁻¹ with Q to round to nearest: what AWQ's
 * search asks of each scale t that it tries. Asynchronous: sums of many calls are downloaded together. D is rounded to
 * bf16 where H is fp32. No finite number where W·diag t holds one that is none. */
struct scaled_error_args {
    const struct mat *w;               /* [count] of [N, K] any float type */
    const struct candidate *candidate; /* [count] METHOD_RTN with RANGE_FULL */
    int count;
    const float *by_col, *inverse; /* [K] device memory: t, 1/t */
    struct mat h;                  /* [K, K] of the backend's gram type, finished */
    double *sum;                   /* [1] device memory */
};

/* out = w + deviation · z, z independent standard normal numbers, by Box and Muller from one hash a weight: element
 * i = n·K + k takes the i-th number h of the splitmix64 stream that begins at `key` (base/random.h), with
 * u = (h >> 40) + 1 and v = (h >> 16) mod 2^24, both in units of 2^−24: z = √(−2·ln u) · cos(2π·v), |z| < 5.8. So a
 * weight's noise depends on the key and its place alone. */
struct perturb_args {
    struct mat w; /* [N, K] any float type */
    uint64_t key;
    float deviation; /* finite, not negative */
    struct mat out;  /* [N, K] fp32 or the activation type; may be w */
};

/* What the loss gains where ŵ stands for w, as far as tokens' gradients and inputs have nothing to do with each other
 * (K-FAC, Martens & Grosse 2015): with D = w − ŵ, kfac = tr(G·D·H·Dᵀ) = Σ (G·D)∘(D·H), and diag the same with G's
 * diagonal alone. Products as those of error, sums in fp64. */
struct kfac_args {
    struct mat w, w_hat; /* [N, K]; w_hat fp32 */
    struct mat h, g; /* [K, K], [N, N] of the backend's gram type, finished: Σ xᵀx of its input, Σ gᵀg at its output */
};
struct kfac_report {
    double kfac, diag;
};

/* Values on their way from a checkpoint to the device. */
struct load_item {
    const void *host;
    enum dtype type; /* as stored */
    int64_t count;
    void *out;
    enum dtype out_type; /* the stored one, or fp32 */
};

struct backend {
    const char *name;       /* "cpu", "cuda" */
    const char *arithmetic; /* "cpu/fp32": what else a result depends on; part of every cache key */
    enum dtype activation;  /* what Linears read and write: fp32 or bf16 */
    bool weights_as_stored; /* Linears keep the checkpoint's type; else they are fp32 */
    enum dtype gram_type;   /* of H: fp64 or fp32 */
    bool own_memory;        /* the device's memory is not the host's */
    bool loads_ahead;       /* load goes on beside the operations that follow it */
    int64_t chunk_tokens;   /* a forward pass takes as many whole windows as have about so many tokens, at least one */
    int64_t batch_tokens;   /* what a job may lose with a lost worker */
    /* How many devices there are, and what each is, by its ordinal. Cheap: takes no memory of theirs.
     * RC_NOT_FOUND, saying why, where there is none; RC_UNSUPPORTED for a device that cannot be computed on. */
    enum rc (*count)(int *count, struct err *e);
    enum rc (*describe)(int device, struct device_description *out, struct err *e);
    enum rc (*open)(const struct backend_options *options, struct backend_state **state, struct err *e);
    /* The calling thread computes on this device from now on. */
    enum rc (*attach)(struct backend_state *state, struct err *e);
    void (*close)(struct backend_state *state);
    const char *(*hardware)(struct backend_state *state); /* for people */
    int64_t (*memory)(struct backend_state *state);       /* bytes of the device */
    int64_t (*memory_peak)(struct backend_state *state);  /* most bytes ever held by the arena */
    int64_t (*room)(struct backend_state *state);         /* bytes that alloc can still give */

    enum rc (*alloc)(struct backend_state *state, size_t bytes, void **memory, struct err *e); /* 64-byte aligned */
    void (*free)(struct backend_state *state, void *memory);
    enum rc (*clear)(struct backend_state *state, void *memory, size_t bytes, struct err *e); /* to zero bytes */
    /* Memory of the host that the device copies from and to at full speed. Does not count against the limit. */
    enum rc (*host_alloc)(struct backend_state *state, size_t bytes, void **memory, struct err *e);
    void (*host_free)(struct backend_state *state, void *memory);
    /* Host bytes of `type` → device fp32, converting. */
    enum rc (*upload)(struct backend_state *state, const void *host, enum dtype type, int64_t count, float *out,
                      struct err *e);
    /* Begins to bring tensors to the device; the host memory stays as it is until loaded, which makes the operations
     * that follow see them. One load at a time. */
    enum rc (*load)(struct backend_state *state, const struct load_item *items, size_t count, struct err *e);
    enum rc (*loaded)(struct backend_state *state, struct err *e);
    /* Device bytes as they are → host. */
    enum rc (*download)(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e);
    /* Copies beside the operations, between device memory and memory from host_alloc, which the host leaves alone. Each
     * begins when the operations and the copies before it are done. Those that follow an offload must not write over
     * its source before `offloaded`, nor those that follow a fetch touch its destination before `fetched`, nor may the
     * memory go. */
    enum rc (*offload)(struct backend_state *state, const void *device, size_t bytes, void *host, struct err *e);
    enum rc (*fetch)(struct backend_state *state, const void *host, size_t bytes, void *device, struct err *e);
    enum rc (*offloaded)(struct backend_state *state, struct err *e);
    enum rc (*fetched)(struct backend_state *state, struct err *e);
    /* Waits until the device has done what was asked before the last call of this but one: a cancelled job must not
     * have seconds of work queued, and progress must tell the truth. */
    enum rc (*keep_pace)(struct backend_state *state, struct err *e);

    enum rc (*embed)(struct backend_state *state, const struct embed_args *a, struct err *e);
    enum rc (*rmsnorm)(struct backend_state *state, const struct rmsnorm_args *a, struct err *e);
    enum rc (*gemm)(struct backend_state *state, const struct gemm_args *a, struct err *e);
    enum rc (*rope)(struct backend_state *state, const struct rope_args *a, struct err *e);
    enum rc (*attention)(struct backend_state *state, const struct attention_args *a, struct err *e);
    enum rc (*silu_mul)(struct backend_state *state, const struct silu_mul_args *a, struct err *e);
    enum rc (*score)(struct backend_state *state, const struct score_args *a, struct err *e);
    enum rc (*gram)(struct backend_state *state, const struct gram_args *a, struct err *e);
    enum rc (*gram_finish)(struct backend_state *state, struct mat h, struct err *e); /* mirrors the upper triangle */
    enum rc (*combine)(const struct combine_args *a, struct err *e);
    enum rc (*scale)(struct backend_state *state, const struct scale_args *a, struct err *e);
    enum rc (*column_share)(struct backend_state *state, const struct column_share_args *a, struct err *e);
    enum rc (*factor)(struct backend_state *state, const struct factor_args *a, struct err *e);
    /* `count` of them, independent of one another: a device may do two-sided ones that follow each other side by side;
     * what each takes of workspace, about 2 floats a weight, adds up then. The first failure ends it and says no more
     * than it would alone, so a caller whose Linears are not one and the same calls for each; no `out` is whole then.
     */
    enum rc (*quantize)(struct backend_state *state, const struct quantize_args *a, int count, struct err *e);
    enum rc (*dequantize)(struct backend_state *state, const struct dequantize_args *a, struct err *e);
    enum rc (*error)(struct backend_state *state, const struct error_args *a, struct error_report *report,
                     struct err *e);
    enum rc (*scaled_error)(struct backend_state *state, const struct scaled_error_args *a, struct err *e);
    enum rc (*perturb)(struct backend_state *state, const struct perturb_args *a, struct err *e);
    enum rc (*kfac)(struct backend_state *state, const struct kfac_args *a, struct kfac_report *report, struct err *e);

    enum rc (*gemm_back)(struct backend_state *state, const struct gemm_back_args *a, struct err *e);
    enum rc (*rmsnorm_back)(struct backend_state *state, const struct rmsnorm_back_args *a, struct err *e);
    enum rc (*attention_back)(struct backend_state *state, const struct attention_back_args *a, struct err *e);
    enum rc (*silu_mul_back)(struct backend_state *state, const struct silu_mul_back_args *a, struct err *e);
    enum rc (*sample_labels)(struct backend_state *state, const struct sample_labels_args *a, struct err *e);
    enum rc (*score_back)(struct backend_state *state, const struct score_back_args *a, struct err *e);
    enum rc (*fisher)(struct backend_state *state, const struct fisher_args *a, struct err *e);
    enum rc (*row_norms)(struct backend_state *state, const struct row_norms_args *a, struct err *e);
    enum rc (*kl_back)(struct backend_state *state, const struct kl_back_args *a, struct err *e);
    enum rc (*scale_back)(struct backend_state *state, const struct scale_back_args *a, struct err *e);
    enum rc (*adam)(struct backend_state *state, const struct adam_args *a, struct err *e);
};

extern const struct backend backend_cpu;

/* The CUDA backend lies in a library of its own, which needs the toolkit's: it is loaded when a device of that name is
 * asked for, so that one build runs on machines with and without a GPU. `activation` chooses the precision: bf16 is
 * fast, fp32 does what the cpu does. RC_NOT_FOUND, saying why, where it is not there or cannot be loaded; what it is
 * loaded from stays with the process. */
enum rc backend_cuda_load(enum dtype activation, const struct backend **backend, struct err *e);

/* Buffers for a quantized [rows, cols] from the backend's arena; release in reverse order is not required. */
enum rc quantized_alloc(const struct backend *b, struct backend_state *state, int64_t rows, int64_t cols,
                        const struct candidate *candidate, struct quantized *out, struct err *e);
void quantized_release(const struct backend *b, struct backend_state *state, struct quantized *q);
enum rc factor_alloc(const struct backend *b, struct backend_state *state, int64_t cols, struct factor *out,
                     struct err *e);
void factor_release(const struct backend *b, struct backend_state *state, struct factor *f);

#endif
