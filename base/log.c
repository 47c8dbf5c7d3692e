#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum log_level threshold = LOG_INFO;
static const char *program = "hsaq";
static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_set_level(enum log_level level) {
    threshold = level;
}

void log_set_program(const char *name) {
    program = name;
}

int log_level_from_name(const char *name) {
    for (int i = 0; i <= LOG_DEBUG; i++)
        if (strcmp(level_names[i], name) == 0) return i;
    return -1;
}

/* Quotes and control characters would let hostile input forge fields or lines. */
static void sanitize(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == '"' || *text == 0x7f) *text = '\'';
}

void log_at(enum log_level level, const char *fmt, ...) {
    if (level > threshold) return;
    char message[1024], line[1280], stamp[32];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    sanitize(message);
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    int len = snprintf(line, sizeof line, "ts=%s.%03ldZ level=%s prog=%s msg=\"%s\"\n", stamp, now.tv_nsec / 1000000,
                       level_names[level], program, message);
    if (len > (int)sizeof line - 1) len = (int)sizeof line - 1;
    if (write(STDERR_FILENO, line, (size_t)len) < 0) return; /* nowhere left to complain to */
}
