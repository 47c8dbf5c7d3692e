/* cmocka wants these before it, in this order. */
#ifndef HSAQ_TESTS_CMOCKA_MAIN_H
#define HSAQ_TESTS_CMOCKA_MAIN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
