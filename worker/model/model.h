/* A model: its architecture, its Linears and where every tensor lies. On disk, as a folder with config.json and
 * safetensors: opening reads headers only (and, when a model that ties its embeddings stores both, the two of them, to
 * see whether they are the same). Or generated in memory from config.json alone (synthetic.h), to measure with.
 *
 * Linears are listed in the order the forward pass meets them. A fused qkv_proj or gate_up_proj is one Linear, as
 * stored. lm_head is listed last and flagged; whether it counts for bits is the job's choice.
 * A quantized model (quant_config.h says which ones can be read) has Linears whose weights are packed; everything that
 * runs or hashes a model takes either.
 * Every other tensor here has the shape that the architecture asks for and is F32, F16 or BF16; its data may be
 * unaligned (safetensors.h). Tensors that no one needs are ignored. */
#ifndef HSAQ_WORKER_MODEL_MODEL_H
#define HSAQ_WORKER_MODEL_MODEL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "worker/model/arch.h"
#include "worker/model/packed.h"
#include "worker/model/safetensors.h"

/* The distinct inputs of a block's Linears, in the order they come up; Linears with the same input share one Gram. */
enum linear_input { INPUT_ATTENTION, INPUT_OUTPUT, INPUT_MLP, INPUT_DOWN, INPUT_HEAD, INPUT_COUNT };

struct linear {
    const char *name;       /* "model.layers.3.self_attn.q_proj": the tensor's name without ".weight" */
    const char *projection; /* "q_proj", "down_proj", "lm_head", … */
    int block;              /* −1: lm_head */
    enum linear_input input;
    int64_t rows, cols;                    /* N out_features, K in_features */
    const struct st_tensor *weight, *bias; /* weight NULL when packed; bias NULL when there is none */
    struct packed_linear *packed;          /* NULL: as `weight` */
};

enum { BLOCK_LINEARS_MAX = 7 };

struct block_tensors {
    const struct st_tensor *input_norm, *post_norm, *q_norm, *k_norm; /* q/k norm NULL when there is none */
    int linears[BLOCK_LINEARS_MAX]; /* indices into model.linears in forward order; −1 after the last */
};

struct model {
    char *name, *path;
    int dir_fd;                  /* −1 when generated */
    struct arch arch;            /* arch.tied: the head really is the embedding */
    struct safetensors *tensors; /* of a model on disk, */
    struct synthetic *synthetic; /* or of a generated one; the other is NULL */
    struct linear *linears;
    int64_t linear_count;                                              /* lm_head included as the last */
    struct block_tensors *blocks;                                      /* [arch.blocks] */
    const struct st_tensor *embedding, *final_norm, *head, *head_bias; /* head == embedding when tied, NULL if packed */
    const char *quantization;                                          /* quant_method of a quantized model, or NULL */
};

/* RC_INVALID or RC_UNSUPPORTED say which file, field or tensor does not fit; RC_NOT_FOUND which file is missing. */
enum rc model_open(const char *name, const char *path, struct model **model, struct err *e);
/* `config`: what config.json holds. `blocks`: so many of its blocks alone; 0: all. Equal arguments, equal weights. */
enum rc model_generate(const json_t *config, int blocks, uint64_t seed, struct model **model, struct err *e);
void model_close(struct model *model);

/* As stored, without the bias. */
int64_t linear_bytes(const struct linear *linear);

/* What names the weights without reading them: the files' identity (safetensors.h), or the seed. The caller frees. */
char *model_identity(const struct model *model);

#endif
