/* Which kernels OpenBLAS is made to use. */
#include "kernels/cpu/blas.h"
#include "tests/ops/harness.h"

static void overrules_kernels_below_the_processor(void **state) {
    (void)state;
    assert_string_equal(blas_better_core("Prescott", SIMD_AVX512), "SkylakeX");
    assert_string_equal(blas_better_core("nehalem", SIMD_AVX2), "Haswell");
}

static void leaves_a_good_choice_alone(void **state) {
    (void)state;
    assert_null(blas_better_core("Zen", SIMD_AVX512));
    assert_null(blas_better_core("Cooperlake", SIMD_AVX512));
    assert_null(blas_better_core("Haswell", SIMD_AVX512));
    assert_null(blas_better_core("Prescott", SIMD_NONE));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overrules_kernels_below_the_processor),
        cmocka_unit_test(leaves_a_good_choice_alone),
    };
    return cmocka_run_group_tests_name("blas", tests, NULL, NULL);
}
