/* Runs a fuzz target over the files named, or over those in the directories named: regressions without a fuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/target.h"

static int replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t capacity = 1 << 24;
    uint8_t *data = malloc(capacity);
    size_t size = fread(data, 1, capacity, file);
    fclose(file);
    /* An exact copy, so that a sanitizer sees a read beyond its end. */
    uint8_t *exact = malloc(size ? size : 1);
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    free(data);
    return 0;
}

static int replay_directory(DIR *directory, const char *path) {
    int failed = 0, count = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char name[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        failed += replay_file(name);
        count++;
    }
    printf("%s: %d inputs\n", path, count);
    return failed;
}

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++) {
        DIR *directory = opendir(argv[i]);
        failed += directory != NULL ? replay_directory(directory, argv[i]) : replay_file(argv[i]);
        if (directory != NULL) closedir(directory);
    }
    return failed > 0;
}
