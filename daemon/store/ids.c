#include "daemon/store/ids.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static const char crockford[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

enum { TIME_CHARS = 10, RANDOM_CHARS = ID_SIZE - 1 - TIME_CHARS };

/* The last id made, as digits of base 32. */
static unsigned char last[ID_SIZE - 1];

static void put_time(unsigned char digits[ID_SIZE - 1], int64_t ms) {
    for (int i = TIME_CHARS - 1; i >= 0; i--, ms >>= 5)
        digits[i] = (unsigned char)(ms & 31);
}

static void increment(unsigned char digits[ID_SIZE - 1]) {
    for (int i = ID_SIZE - 2; i >= 0; i--) {
        digits[i] = (digits[i] + 1) & 31;
        if (digits[i]) return;
    }
}

enum rc id_new(char id[ID_SIZE], struct err *e) {
    unsigned char digits[ID_SIZE - 1], random[RANDOM_CHARS];

    put_time(digits, time_now_ms());
    if (memcmp(digits, last, TIME_CHARS) > 0) {
        if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
            return err_errno(e, "cannot get random bytes for an id");
        for (int i = 0; i < RANDOM_CHARS; i++)
            digits[TIME_CHARS + i] = random[i] & 31;
        memcpy(last, digits, sizeof last);
    } else {
        increment(last);
    }
    for (int i = 0; i < ID_SIZE - 1; i++)
        id[i] = crockford[last[i]];
    id[ID_SIZE - 1] = '\0';
    return RC_OK;
}

bool id_valid(const char *text) {
    return strlen(text) == ID_SIZE - 1 && strspn(text, crockford) == ID_SIZE - 1;
}

void id_continue_after(const char *id) {
    if (!id_valid(id)) return;
    for (int i = 0; i < ID_SIZE - 1; i++)
        last[i] = (unsigned char)(strchr(crockford, id[i]) - crockford);
}

int64_t time_now_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

char *time_format(int64_t ms, char text[TIME_SIZE]) {
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;
    char day[TIME_SIZE];

    if (!gmtime_r(&seconds, &tm) || strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &tm) != 19)
        snprintf(day, sizeof day, "9999-12-31T23:59:59");
    memcpy(text, day, 19);
    text[19] = '.';
    text[20] = (char)('0' + ms / 100 % 10);
    text[21] = (char)('0' + ms / 10 % 10);
    text[22] = (char)('0' + ms % 10);
    text[23] = 'Z';
    text[24] = '\0';
    return text;
}
