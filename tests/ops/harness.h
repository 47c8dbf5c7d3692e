/* What every operation test stands on: the backends, reproducible inputs, device buffers, and comparison against
 * float64 with a bound.
 *
 * A test program lists its cmocka tests and calls run_on_backends: each runs once on the cpu and, where there is a GPU,
 * once in each of its precisions. All
 * host and device memory taken through here is given back after each test. */
#ifndef HSAQ_TESTS_OPS_HARNESS_H
#define HSAQ_TESTS_OPS_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/backend.h"

struct device {
    const struct backend *b;
    struct backend_state *s;
};
extern struct device dev; /* of the running test */
extern struct err err;    /* for calls that a test makes */

int run_on_backends(const char *name, const struct CMUnitTest *tests, size_t count);
#define RUN_ON_BACKENDS(name, tests) run_on_backends(name, tests, sizeof(tests) / sizeof *(tests))
int run_on_cpu(const char *name, const struct CMUnitTest *tests, size_t count);
#define RUN_ON_CPU(name, tests) run_on_cpu(name, tests, sizeof(tests) / sizeof *(tests))

#define assert_ok(call) assert_ok_at((call), #call, __FILE__, __LINE__)
void assert_ok_at(enum rc rc, const char *call, const char *file, int line);
/* The call is refused with this rc, and the message holds `part`. */
#define assert_refused(call, rc, part) assert_refused_at((call), (rc), (part), #call, __FILE__, __LINE__)
void assert_refused_at(enum rc got, enum rc want, const char *part, const char *call, const char *file, int line);

/* |got − want| <= bound · scale[i] for all i (scale NULL: 1). Prints the worst place when it does not hold. */
#define assert_close(got, want, scale, count, bound)                                                                   \
    assert_close_at((got), (want), (scale), (count), (bound), __FILE__, __LINE__)
void assert_close_at(const float *got, const double *want, const double *scale, int64_t count, double bound,
                     const char *file, int line);
#define assert_near(got, want, tolerance) assert_near_at((got), (want), (tolerance), __FILE__, __LINE__)
void assert_near_at(double got, double want, double tolerance, const char *file, int line);

/* A candidate by what RTN and HQQ have, in initializers. */
#define CANDIDATE(m, b, g, s, z, l)                                                                                    \
    { .method = (m), .bits = (b), .group = (g), .symmetric = (s), .zero = (z), .layout = (l) }

/* Reproducible numbers. */
void seed(uint64_t value);
double uniform(void); /* [0, 1) */
double normal(void);  /* mean 0, deviation 1 */
int64_t below(int64_t limit);

/* Host memory, given back after the test. */
void *host_bytes(size_t bytes); /* zeroed */
float *host_normal(int64_t count, double deviation);
float *host_bf16(int64_t count, double deviation); /* the same, rounded to bf16 */
double *host_doubles(int64_t count);
float *host_zeros(int64_t count);

/* Device memory, given back after the test. A matrix gets `pad` extra columns of PADDING that nobody may touch. */
#define PADDING 12345.0f
float *put(const float *host, int64_t count);
void *put_stored(const void *host, enum dtype type, int64_t count); /* as it is */
struct mat put_matrix(const float *host, int64_t rows, int64_t cols, int64_t pad);
/* In the backend's activation type, to which the host's values are rounded too. */
struct mat put_activation(float *host, int64_t rows, int64_t cols, int64_t pad);
struct mat device_gram(int64_t channels); /* zeroed [K, K] */
double *get_gram(struct mat h);           /* finished */
double *device_doubles(int64_t count);    /* zeroed */
float *device_floats(int64_t count);      /* zeroed */
/* As assert_close, of all of a matrix; what rounding to its type costs is allowed besides. */
#define assert_matrix(m, want, scale, bound) assert_matrix_at((m), (want), (scale), (bound), __FILE__, __LINE__)
void assert_matrix_at(struct mat m, const double *want, const double *scale, double bound, const char *file, int line);
/* Dense copy [rows, cols]; fails the test when the padding changed. */
float *get_matrix(struct mat m);
struct quantized device_quantized(int64_t rows, int64_t cols, const struct candidate *c);
float *get_floats(const float *device, int64_t count);
double *get_doubles(const double *device, int64_t count);
uint8_t *get_bytes(const uint8_t *device, int64_t count);

/* Shapes that operations stumble over: one token, one channel, K no multiple of 8, more than one tile. */
struct shape {
    int64_t tokens, rows, cols; /* T, N, K */
};
extern const struct shape shapes[];
extern const int shape_count;

#endif
