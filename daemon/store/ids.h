/* Ids and times.
 *
 * An id is a ULID: 26 characters of Crockford's base 32, 48 bits of milliseconds since 1970 and 80 bits of
 * randomness, so that ids sort as strings by time. Within one process they grow strictly, even within a millisecond
 * and when the clock is set back. Loop thread only. */
#ifndef HSAQ_DAEMON_STORE_IDS_H
#define HSAQ_DAEMON_STORE_IDS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum { ID_SIZE = 27, TIME_SIZE = 25 };

enum rc id_new(char id[ID_SIZE], struct err *e);
void id_continue_after(const char *id); /* ids made from now on sort after this one */
bool id_valid(const char *text);

int64_t time_now_ms(void); /* since 1970, UTC */
/* RFC 3339, UTC, milliseconds: "2026-01-31T12:34:56.789Z". Returns text. */
char *time_format(int64_t ms, char text[TIME_SIZE]);

#endif
