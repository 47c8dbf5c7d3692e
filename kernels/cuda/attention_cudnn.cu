/* Causal attention in bf16 by cuDNN, which is about twice as fast on Hopper as the kernel in flash.cu
 * (docs/performance.md) and knows later cards too. It is loaded when first needed and may be missing; what it does not
 * take (sliding windows that cut, odd sizes) goes to flash.cu.
 *
 * cuDNN wants the computation as a graph of its own operations, which it recognises and fuses: softmax of masked scores
 * between two products, with the log-sum-exp that training would keep. The tables below are that graph. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/optional_library.h"

#if !__has_include(<cudnn.h>)

enum rc cuda_cudnn_attention(struct backend_state *state, const struct attention_args *a, bool *done, struct err *e) {
    (void)state, (void)a, (void)e;
    *done = false;
    return RC_OK;
}

void cuda_cudnn_close(struct backend_state *state) {
    (void)state;
}

#else
#include <cudnn.h>

#define LIBRARY "libcudnn.so.9"

typedef cudnnBackendDescriptor_t descriptor;

/* The library's functions that are used. */
struct cudnn_functions {
    decltype(&cudnnCreate) create;
    decltype(&cudnnDestroy) destroy;
    decltype(&cudnnSetStream) set_stream;
    decltype(&cudnnBackendCreateDescriptor) create_descriptor;
    decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor;
    decltype(&cudnnBackendSetAttribute) set_attribute;
    decltype(&cudnnBackendGetAttribute) get_attribute;
    decltype(&cudnnBackendFinalize) finalize;
    decltype(&cudnnBackendExecute) execute;
};

/* --- the graph --- */

enum tensor { /* none: 0 */
              NONE,
              Q,
              K,
              V,
              OUT,
              SCALE,
              MINUS_INFINITY, /* given */
              SCORES,
              SCALED,
              ROW,
              COLUMN,
              SEEN,
              MASKED,
              MAX,
              SHIFTED,
              EXPONENTIAL,
              SUM,
              LOG_SUM,
              LOG_SUM_EXP,
              PROBABILITY,
              TENSORS
};

enum shape { SHAPE_QUERY, SHAPE_KEY_TRANSPOSED, SHAPE_VALUE, SHAPE_SCALAR, SHAPE_SCORES, SHAPE_ROWS };

struct tensor_plan {
    enum shape shape;
    cudnnDataType_t type;
};
static const struct tensor_plan tensors[TENSORS] = {
    {},
    {SHAPE_QUERY, CUDNN_DATA_BFLOAT16},
    {SHAPE_KEY_TRANSPOSED, CUDNN_DATA_BFLOAT16},
    {SHAPE_VALUE, CUDNN_DATA_BFLOAT16},
    {SHAPE_QUERY, CUDNN_DATA_BFLOAT16},
    {SHAPE_SCALAR, CUDNN_DATA_FLOAT},
    {SHAPE_SCALAR, CUDNN_DATA_FLOAT},
    {SHAPE_SCORES, CUDNN_DATA_FLOAT},
    {SHAPE_SCORES, CUDNN_DATA_FLOAT},
    {SHAPE_SCORES, CUDNN_DATA_INT32},
    {SHAPE_SCORES, CUDNN_DATA_INT32},
    {SHAPE_SCORES, CUDNN_DATA_BOOLEAN},
    {SHAPE_SCORES, CUDNN_DATA_FLOAT},
    {SHAPE_ROWS, CUDNN_DATA_FLOAT},
    {SHAPE_SCORES, CUDNN_DATA_FLOAT},
    {SHAPE_SCORES, CUDNN_DATA_FLOAT},
    {SHAPE_ROWS, CUDNN_DATA_FLOAT},
    {SHAPE_ROWS, CUDNN_DATA_FLOAT},
    {SHAPE_ROWS, CUDNN_DATA_FLOAT},
    {SHAPE_SCORES, CUDNN_DATA_BFLOAT16},
};

enum kind { PRODUCT, POINTWISE, REDUCTION };

struct operation_plan {
    enum kind kind;
    int what;             /* a pointwise mode or a reduction */
    cudnnDataType_t type; /* to compute in */
    enum tensor x, b, t, y;
    int64_t axis; /* of an index */
};
static const struct operation_plan operations[] = {
    {PRODUCT, 0, CUDNN_DATA_FLOAT, Q, K, NONE, SCORES, 0},
    {POINTWISE, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, SCORES, SCALE, NONE, SCALED, 0},
    {POINTWISE, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, SCALED, NONE, NONE, ROW, 2},
    {POINTWISE, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, SCALED, NONE, NONE, COLUMN, 3},
    {POINTWISE, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, ROW, COLUMN, NONE, SEEN, 0},
    {POINTWISE, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, SCALED, MINUS_INFINITY, SEEN, MASKED, 0},
    {REDUCTION, CUDNN_REDUCE_TENSOR_MAX, CUDNN_DATA_FLOAT, MASKED, NONE, NONE, MAX, 0},
    {POINTWISE, CUDNN_POINTWISE_SUB, CUDNN_DATA_FLOAT, MASKED, MAX, NONE, SHIFTED, 0},
    {POINTWISE, CUDNN_POINTWISE_EXP, CUDNN_DATA_FLOAT, SHIFTED, NONE, NONE, EXPONENTIAL, 0},
    {REDUCTION, CUDNN_REDUCE_TENSOR_ADD, CUDNN_DATA_FLOAT, EXPONENTIAL, NONE, NONE, SUM, 0},
    {POINTWISE, CUDNN_POINTWISE_LOG, CUDNN_DATA_FLOAT, SUM, NONE, NONE, LOG_SUM, 0},
    {POINTWISE, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, MAX, LOG_SUM, NONE, LOG_SUM_EXP, 0},
    {POINTWISE, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, EXPONENTIAL, SUM, NONE, PROBABILITY, 0},
    {PRODUCT, 0, CUDNN_DATA_FLOAT, PROBABILITY, V, NONE, OUT, 0},
};
static const int OPERATIONS = sizeof operations / sizeof *operations;

/* --- plans, one for each shape --- */

struct attention_shape {
    int64_t windows, length, heads, kv_heads, dim;
    int64_t q_stride, k_stride, v_stride, out_stride; /* of a token, in elements */
};

enum { DESCRIPTORS_MAX = TENSORS + 2 * 16 + 8 };

struct attention_plan {
    struct attention_shape shape;
    descriptor plan; /* NULL: cuDNN has none */
    int64_t workspace;
    descriptor all[DESCRIPTORS_MAX]; /* to be destroyed */
    int count;
};

enum { PLANS_MAX = 16 }; /* shapes of one job are few; more start over */

struct cudnn {
    struct cudnn_functions call;
    cudnnHandle_t handle;
    struct attention_plan *plans;
    int plan_count;
};

/* Whether it worked: what cuDNN declines, flash.cu does. */
#define TRY_CUDNN(call_)                                                                                               \
    do {                                                                                                               \
        if ((call_) != CUDNN_STATUS_SUCCESS) return false;                                                             \
    } while (0)

static bool create(struct cudnn *c, struct attention_plan *p, cudnnBackendDescriptorType_t type, descriptor *out) {
    if (p->count == DESCRIPTORS_MAX) return false;
    TRY_CUDNN(c->call.create_descriptor(type, out));
    p->all[p->count++] = *out;
    return true;
}

static bool set(struct cudnn *c, descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *values) {
    return c->call.set_attribute(d, name, type, count, values) == CUDNN_STATUS_SUCCESS;
}

static bool set_descriptor(struct cudnn *c, descriptor d, cudnnBackendAttributeName_t name, descriptor value) {
    return value == NULL || set(c, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

struct layout4 {
    int64_t dims[4], strides[4];
};

static struct layout4 lay_out(const struct attention_shape *s, enum tensor t) {
    int64_t stride = t == Q ? s->q_stride : t == K ? s->k_stride : t == V ? s->v_stride : s->out_stride;
    switch (tensors[t].shape) {
    case SHAPE_QUERY: return {{s->windows, s->heads, s->length, s->dim}, {s->length * stride, s->dim, stride, 1}};
    case SHAPE_KEY_TRANSPOSED:
        return {{s->windows, s->kv_heads, s->dim, s->length}, {s->length * stride, s->dim, 1, stride}};
    case SHAPE_VALUE: return {{s->windows, s->kv_heads, s->length, s->dim}, {s->length * stride, s->dim, stride, 1}};
    case SHAPE_SCORES:
        return {{s->windows, s->heads, s->length, s->length},
                {s->heads * s->length * s->length, s->length * s->length, s->length, 1}};
    case SHAPE_ROWS: return {{s->windows, s->heads, s->length, 1}, {s->heads * s->length, s->length, 1, 1}};
    default: return {{1, 1, 1, 1}, {1, 1, 1, 1}};
    }
}

static bool make_tensor(struct cudnn *c, struct attention_plan *p, enum tensor t, descriptor *d) {
    const int64_t id = t, alignment = 16;
    const bool is_virtual = t >= SCORES, by_value = tensors[t].shape == SHAPE_SCALAR;
    struct layout4 l = lay_out(&p->shape, t);
    return create(c, p, CUDNN_BACKEND_TENSOR_DESCRIPTOR, d) &&
           set(c, *d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id) &&
           set(c, *d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &tensors[t].type) &&
           set(c, *d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment) &&
           set(c, *d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, l.dims) &&
           set(c, *d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, l.strides) &&
           set(c, *d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual) &&
           set(c, *d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value) &&
           c->call.finalize(*d) == CUDNN_STATUS_SUCCESS;
}

static bool make_product(struct cudnn *c, struct attention_plan *p, const struct operation_plan *o, const descriptor *t,
                         descriptor *out) {
    descriptor what;
    return create(c, p, CUDNN_BACKEND_MATMUL_DESCRIPTOR, &what) &&
           set(c, what, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &o->type) &&
           c->call.finalize(what) == CUDNN_STATUS_SUCCESS &&
           create(c, p, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, out) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_MATMUL_ADESC, t[o->x]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_MATMUL_BDESC, t[o->b]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_MATMUL_CDESC, t[o->y]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_MATMUL_DESC, what);
}

static bool make_pointwise(struct cudnn *c, struct attention_plan *p, const struct operation_plan *o,
                           const descriptor *t, descriptor *out) {
    const cudnnPointwiseMode_t mode = (cudnnPointwiseMode_t)o->what;
    descriptor what;
    if (!create(c, p, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, &what) ||
        !set(c, what, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode) ||
        !set(c, what, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &o->type))
        return false;
    if (o->axis && !set(c, what, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &o->axis)) return false;
    return c->call.finalize(what) == CUDNN_STATUS_SUCCESS &&
           create(c, p, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, out) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, what) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, t[o->x]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, t[o->b]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t[o->t]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, t[o->y]);
}

static bool make_reduction(struct cudnn *c, struct attention_plan *p, const struct operation_plan *o,
                           const descriptor *t, descriptor *out) {
    const cudnnReduceTensorOp_t reduction = (cudnnReduceTensorOp_t)o->what;
    descriptor what;
    return create(c, p, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, &what) &&
           set(c, what, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &reduction) &&
           set(c, what, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &o->type) &&
           c->call.finalize(what) == CUDNN_STATUS_SUCCESS &&
           create(c, p, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, out) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, t[o->x]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, t[o->y]) &&
           set_descriptor(c, *out, CUDNN_ATTR_OPERATION_REDUCTION_DESC, what);
}

static bool make_graph(struct cudnn *c, struct attention_plan *p, descriptor *graph) {
    static bool (*const make[])(struct cudnn *, struct attention_plan *, const struct operation_plan *,
                                const descriptor *, descriptor *) = {make_product, make_pointwise, make_reduction};
    descriptor t[TENSORS] = {}, all[OPERATIONS];
    for (int i = Q; i < TENSORS; i++)
        if (!make_tensor(c, p, (enum tensor)i, &t[i])) return false;
    for (int i = 0; i < OPERATIONS; i++) {
        const struct operation_plan *o = &operations[i];
        if (!make[o->kind](c, p, o, t, &all[i])) return false;
        TRY_CUDNN(c->call.finalize(all[i]));
    }
    return create(c, p, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, graph) &&
           set(c, *graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &c->handle) &&
           set(c, *graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, OPERATIONS, all) &&
           c->call.finalize(*graph) == CUDNN_STATUS_SUCCESS;
}

/* The engine that cuDNN's heuristic puts first: no race, so that every process takes the same. */
static bool choose_engine(struct cudnn *c, struct attention_plan *p, descriptor graph, descriptor *engine) {
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    descriptor heuristic;
    int64_t found = 0;
    return create(c, p, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristic) &&
           set_descriptor(c, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph) &&
           set(c, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode) &&
           c->call.finalize(heuristic) == CUDNN_STATUS_SUCCESS &&
           create(c, p, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, engine) &&
           c->call.get_attribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &found,
                                 engine) == CUDNN_STATUS_SUCCESS &&
           found > 0;
}

static bool make_plan(struct cudnn *c, struct attention_plan *p) {
    descriptor graph, engine, plan;
    int64_t found;
    if (!make_graph(c, p, &graph) || !choose_engine(c, p, graph, &engine)) return false;
    if (!create(c, p, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan) ||
        !set(c, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &c->handle) ||
        !set_descriptor(c, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine))
        return false;
    TRY_CUDNN(c->call.finalize(plan));
    TRY_CUDNN(c->call.get_attribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &found,
                                    &p->workspace));
    p->plan = plan;
    return true;
}

static void release_plans(struct cudnn *c) {
    for (int i = 0; i < c->plan_count; i++)
        for (int k = c->plans[i].count - 1; k >= 0; k--)
            c->call.destroy_descriptor(c->plans[i].all[k]);
    c->plan_count = 0;
}

static struct attention_plan *find_plan(struct cudnn *c, const struct attention_shape *shape) {
    for (int i = 0; i < c->plan_count; i++)
        if (!memcmp(&c->plans[i].shape, shape, sizeof *shape)) return &c->plans[i];
    if (c->plan_count == PLANS_MAX) release_plans(c);
    struct attention_plan *p = &c->plans[c->plan_count++];
    *p = {};
    p->shape = *shape;
    if (!make_plan(c, p)) p->plan = NULL; /* remembered, so as not to be tried again */
    return p;
}

/* --- the library --- */

static bool load_library(struct cudnn *c) {
    const struct library_function wanted[] = {
        {"cudnnCreate", (void **)&c->call.create},
        {"cudnnDestroy", (void **)&c->call.destroy},
        {"cudnnSetStream", (void **)&c->call.set_stream},
        {"cudnnBackendCreateDescriptor", (void **)&c->call.create_descriptor},
        {"cudnnBackendDestroyDescriptor", (void **)&c->call.destroy_descriptor},
        {"cudnnBackendSetAttribute", (void **)&c->call.set_attribute},
        {"cudnnBackendGetAttribute", (void **)&c->call.get_attribute},
        {"cudnnBackendFinalize", (void **)&c->call.finalize},
        {"cudnnBackendExecute", (void **)&c->call.execute},
    };
    return optional_library_load(LIBRARY, wanted, sizeof wanted / sizeof *wanted);
}

static bool open_library(struct backend_state *state, struct cudnn *c) {
    if (!load_library(c)) return false;
    c->plans = (struct attention_plan *)calloc(PLANS_MAX, sizeof *c->plans);
    if (c->plans == NULL) return false;
    TRY_CUDNN(c->call.create(&c->handle));
    TRY_CUDNN(c->call.set_stream(c->handle, state->stream));
    return true;
}

/* Opened once; a handle of NULL says that it is not there. */
static struct cudnn *library(struct backend_state *state) {
    if (state->cudnn == NULL) {
        state->cudnn = (struct cudnn *)calloc(1, sizeof *state->cudnn);
        if (state->cudnn && !open_library(state, state->cudnn)) state->cudnn->handle = NULL;
    }
    return state->cudnn && state->cudnn->handle ? state->cudnn : NULL;
}

void cuda_cudnn_close(struct backend_state *state) {
    struct cudnn *c = state->cudnn;
    if (c == NULL) return;
    if (c->handle) {
        release_plans(c);
        c->call.destroy(c->handle);
    }
    free(c->plans);
    free(c);
    state->cudnn = NULL;
}

/* --- the operation --- */

static bool takes(const struct attention_args *a) {
    const struct mat all[] = {a->q, a->k, a->v, a->out};
    return (a->window == 0 || a->window >= a->length) && a->head_dim % 8 == 0 && a->head_dim <= 256 && a->length > 1 &&
           rows_aligned(all, 4, 16);
}

static struct attention_shape shape_of(const struct attention_args *a) {
    return {a->q.rows / a->length, a->length,   a->heads,    a->kv_heads,  a->head_dim,
            a->q.stride,           a->k.stride, a->v.stride, a->out.stride};
}

static bool execute(struct cudnn *c, const struct attention_plan *p, const struct attention_args *a, void *workspace) {
    float scale = a->scale, minus_infinity = -INFINITY;
    int64_t ids[] = {Q, K, V, OUT, SCALE, MINUS_INFINITY};
    void *pointers[] = {a->q.data, a->k.data, a->v.data, a->out.data, &scale, &minus_infinity};
    const int count = sizeof ids / sizeof *ids;
    descriptor pack;
    TRY_CUDNN(c->call.create_descriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack));
    bool done = set(c, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids) &&
                set(c, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers) &&
                set(c, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace) &&
                c->call.finalize(pack) == CUDNN_STATUS_SUCCESS &&
                c->call.execute(c->handle, p->plan, pack) == CUDNN_STATUS_SUCCESS;
    c->call.destroy_descriptor(pack);
    return done;
}

enum rc cuda_cudnn_attention(struct backend_state *state, const struct attention_args *a, bool *done, struct err *e) {
    struct cudnn *c = takes(a) ? library(state) : NULL;
    *done = false;
    if (c == NULL) return RC_OK;
    struct attention_shape shape = shape_of(a);
    struct attention_plan *p = find_plan(c, &shape);
    if (p->plan == NULL) return RC_OK;
    void *workspace;
    TRY(cuda_scratch(state, (size_t)p->workspace + 256, &workspace, e));
    *done = execute(c, p, a, workspace);
    return RC_OK;
}

#endif
