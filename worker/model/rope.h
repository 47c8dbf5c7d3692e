/* Rotary embedding settings of a config.json, in every spelling that is about. Used by arch.c alone.
 *
 * A family's rules say what its configuration class in transformers does differently from the common one. */
#ifndef HSAQ_WORKER_MODEL_ROPE_H
#define HSAQ_WORKER_MODEL_ROPE_H

#include "worker/model/arch.h"

struct rope_rules {
    bool phi;             /* partial_rotary_factor counts; "su" is longrope; linear and llama3 are unknown */
    int original_context; /* original_max_position_embeddings when absent; 0: max_position_embeddings */
};

/* Fills arch->rope and arch->rotary; arch->head_dim and arch->context are set already. */
enum rc rope_from_config(const json_t *config, const struct rope_rules *rules, struct arch *arch, struct err *e);

/* RC_UNSUPPORTED at a field of an object that stands at `parent` ("" for the config itself), quoting its value. */
enum rc refuse_field(const char *parent, const char *field, const json_t *value, struct err *e);

#endif
