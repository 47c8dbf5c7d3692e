/* What a number computed from a model depends on, as hashes: the keys of the drift cache.
 *
 * A tensor's hash covers its bytes, dtype and shape. From them a chain gives for every Linear the hash of all that
 * determines its input: numerics version, architecture, calibration windows, embedding, every earlier block and, in its
 * own block, the stages before its own:
 *
 *   input_norm → q, k, v (biases, q/k norms) → o → post_norm → gate, up → down
 *
 * So changing one byte of one weight changes the keys of that Linear and of exactly what lies downstream of it; Linears
 * that share an input do not depend on each other. Never a file's name.
 *
 * A packed Linear's weight is its packed tensors and what config.json says they mean; it is never taken for the plain
 * Linear of equal values.
 *
 * Hashing reads the whole model, so tensor hashes are kept in the daemon's fingerprint cache, keyed by the files'
 * identity. Use: new → look `key` up, restore → next until it returns NULL (asking for cancellation in between) →
 * store when anything was computed → chain → keys. One thread at a time. */
#ifndef HSAQ_WORKER_MODEL_FINGERPRINT_H
#define HSAQ_WORKER_MODEL_FINGERPRINT_H

#include <jansson.h>
#include <stdint.h>

#include "worker/model/hash.h"
#include "worker/model/model.h"
#include "worker/model/windows.h"

/* Raise it whenever a change of the arithmetic changes results: cached rows of older versions are then never found. */
enum { NUMERICS_VERSION = 1 };

struct fingerprints;

struct fingerprints *fingerprints_new(const struct model *model); /* the model must outlive it */
void fingerprints_free(struct fingerprints *f);

/* For CACHE_FINGERPRINT: the model's path and its files' size, modification time and inode, hashed. */
const char *fingerprints_key(const struct fingerprints *f, char key[HASH_TEXT_SIZE]);
/* {"tensor": "hash"} of every tensor that the model needs. A new reference. */
json_t *fingerprints_store(const struct fingerprints *f);
/* Takes what fits; anything else will be computed. */
void fingerprints_restore(struct fingerprints *f, const json_t *stored);

/* Hashes one tensor that has no hash yet and returns it; NULL when all have one. */
const struct st_tensor *fingerprints_next(struct fingerprints *f);

/* Once every tensor has its hash; again for other windows. */
void fingerprints_chain(struct fingerprints *f, const struct windows *calibration);
/* Of everything upstream of a Linear; `linear` is an index into model.linears. */
const struct hash128 *fingerprints_input(const struct fingerprints *f, int64_t linear);
/* Of the Linear's own weight and bias. */
const struct hash128 *fingerprints_weight(const struct fingerprints *f, int64_t linear);
/* The drift cache's key. `backend`: name and precision of what computes, "cpu/fp32". */
const char *fingerprints_drift_key(const struct fingerprints *f, int64_t linear, const char *candidate_id,
                                   const char *backend, char key[HASH_TEXT_SIZE]);

#endif
