/* That threads sleep while they wait, unless the user says otherwise. */
#include "kernels/cpu/waiting.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/ops/harness.h"

/* Runs this program as a child in a changed environment: the policy that its runtime loaded with. */
static void policy_with(const char *environment, char answer[64]) {
    char self[PATH_MAX] = "", command[PATH_MAX + 128];
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(command, sizeof command, "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT %s '%s' child", environment, self);
    FILE *child = popen(command, "r");
    assert_non_null(child);
    if (fgets(answer, 64, child) == NULL) answer[0] = 0;
    assert_int_equal(pclose(child), 0);
}

/* What the program was started with, as the kernel keeps it: a variable set later does not show there. */
static int child(char **argv) {
    static char block[1 << 16];
    insist_on_sleeping_waits(argv);
    FILE *file = fopen("/proc/self/environ", "r");
    size_t n = file ? fread(block, 1, sizeof block - 1, file) : 0;
    for (const char *entry = block; entry < block + n; entry += strlen(entry) + 1)
        if (strncmp(entry, WAIT_POLICY_VARIABLE "=", strlen(WAIT_POLICY_VARIABLE) + 1) == 0)
            printf("%s", entry + strlen(WAIT_POLICY_VARIABLE) + 1);
    if (file) fclose(file);
    return n == 0;
}

static void threads_sleep_by_default(void **state) {
    (void)state;
    char answer[64];
    policy_with("", answer);
    assert_string_equal(answer, "passive");
}

static void what_the_user_chose_stays(void **state) {
    (void)state;
    char answer[64];
    policy_with("OMP_WAIT_POLICY=active", answer);
    assert_string_equal(answer, "active");
    policy_with("GOMP_SPINCOUNT=5", answer);
    assert_string_equal(answer, "");
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "child") == 0) return child(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_sleep_by_default),
        cmocka_unit_test(what_the_user_chose_stays),
    };
    return cmocka_run_group_tests_name("waiting", tests, NULL, NULL);
}
