/* One line per event on stderr, logfmt (ts=… level=… msg="…" key=value …), for main programs only: library code
 * returns errors instead. Lines are written with one write(2), so threads do not interleave. */
#ifndef HSAQ_BASE_LOG_H
#define HSAQ_BASE_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level);  /* before threads start */
void log_set_program(const char *name);    /* shown as prog=…; kept by reference */
int log_level_from_name(const char *name); /* -1 when unknown */
void log_at(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_at(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)

#endif
