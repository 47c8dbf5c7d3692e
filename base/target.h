/* Targets: the software that is to load an artifact, hence which candidates may be in it.
 *
 * `compressed-tensors` is the PyPI package of that name, alone or beneath transformers; `vllm` reads the same files
 * with fewer kernels; `none` is this project's own loader, which reads every candidate. docs/formats.md has the table,
 * and tests/golden checks the package's half of it. Pure functions; the allocation asks them before it chooses, the
 * writer of artifacts before it writes. */
#ifndef HSAQ_BASE_TARGET_H
#define HSAQ_BASE_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/candidate.h"
#include "base/err.h"

enum target { TARGET_NONE, TARGET_COMPRESSED_TENSORS, TARGET_VLLM };

extern const char *const target_names[]; /* NULL-terminated, indexed by enum target */

/* Whether a Linear with so many input channels may be stored this way; RC_UNSUPPORTED says why not, and what to do. */
enum rc target_check(enum target target, const struct candidate *c, int64_t cols, struct err *e);

/* What a file says of a Linear with so many input channels, as a candidate of METHOD_RTN whatever method made it (or
 * METHOD_FP8, METHOD_NONE): two that are equal here are stored alike. */
struct candidate target_scheme(const struct candidate *c, int64_t cols);
bool target_same_scheme(const struct candidate *a, const struct candidate *b); /* of two schemes */

/* A target that computes several projections of a block as one wants them stored alike: which of its sets (q, k, v;
 * gate, up) this one is in; −1: none. */
int target_tie(enum target target, const char *projection);

#endif
