/* Which kernels OpenBLAS is made to use. */
#include "kernels/cpu/blas.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/ops/harness.h"

/* Stands before the library's own, so that this program meets a processor newer than the library wherever it runs. */
char *openblas_get_corename(void);
char *openblas_get_corename(void) {
    static char oldest[] = "Prescott";
    return oldest;
}

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

static bool has_flag(const char *flags, const char *name) {
    char word[32];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(flags, word) != NULL;
}

static void the_level_is_what_linux_says(void **state) {
    (void)state;
    static char line[16384];
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL && strncmp(line, "flags", 5) != 0)
        line[0] = 0;
    if (file != NULL) fclose(file);
    if (strncmp(line, "flags", 5) != 0) skip(); /* no x86, or no /proc */
    line[strcspn(line, "\n")] = ' ';
    bool avx2 = has_flag(line, "avx2") && has_flag(line, "fma");
    bool avx512 = avx2 && has_flag(line, "avx512f") && has_flag(line, "avx512vl") && has_flag(line, "avx512bw") &&
                  has_flag(line, "avx512dq");
    assert_int_equal(blas_simd_level(), avx512 ? SIMD_AVX512 : avx2 ? SIMD_AVX2 : SIMD_NONE);
}

#define STARTS "HSAQ_TEST_STARTS"

/* Runs this program as a child that calls blas_insist_on_fast_core: what OpenBLAS is told in the end, and by which
 * start of the child. */
static void told(const char *environment, char answer[64]) {
    char self[PATH_MAX] = "", command[PATH_MAX + 128];
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(command, sizeof command, "env -u " STARTS " %s '%s' child", environment, self);
    FILE *child = popen(command, "r");
    assert_non_null(child);
    if (fgets(answer, 64, child) == NULL) answer[0] = 0;
    assert_int_equal(pclose(child), 0);
    answer[strcspn(answer, "\n")] = 0;
}

static int child(char **argv) {
    setenv(STARTS, getenv(STARTS) == NULL ? "first" : "second", 1);
    blas_insist_on_fast_core(argv);
    const char *core = getenv(BLAS_CORE_VARIABLE);
    printf("%s, %s start\n", core != NULL ? core : "its own", getenv(STARTS));
    return 0;
}

static void the_program_starts_again_with_better_kernels(void **state) {
    (void)state;
    const char *better = blas_better_core("Prescott", blas_simd_level());
    char answer[64], want[64] = "its own, first start";
    if (better != NULL) snprintf(want, sizeof want, "%s, second start", better);
    told("-u " BLAS_CORE_VARIABLE, answer);
    assert_string_equal(answer, want);
}

static void what_the_user_chose_stays(void **state) {
    (void)state;
    char answer[64];
    told(BLAS_CORE_VARIABLE "=Nehalem", answer);
    assert_string_equal(answer, "Nehalem, first start");
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "child") == 0) return child(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overrules_kernels_below_the_processor),
        cmocka_unit_test(leaves_a_good_choice_alone),
        cmocka_unit_test(the_level_is_what_linux_says),
        cmocka_unit_test(the_program_starts_again_with_better_kernels),
        cmocka_unit_test(what_the_user_chose_stays),
    };
    return cmocka_run_group_tests_name("blas", tests, NULL, NULL);
}
