/* The numbers of one step of Adam that are the same for every value: host code that both backends share. */
#ifndef HSAQ_KERNELS_ADAM_H
#define HSAQ_KERNELS_ADAM_H

#include <math.h>

#include "kernels/backend.h"

/* mean = keep_mean·mean + add_mean·slope; square = keep_square·square + add_square·slope²;
 * θ −= rate · mean / (√(square · unbias) + epsilon) */
struct adam_step {
    float keep_mean, add_mean, keep_square, add_square;
    float rate;   /* the mean's bias taken out */
    float unbias; /* what the squares' bias shrank them by */
    float epsilon;
};

/* In fp64: 1 − β^step cancels. */
static inline struct adam_step adam_step(const struct adam_args *a) {
    double beta1 = (double)a->beta1, beta2 = (double)a->beta2, step = (double)a->step;
    struct adam_step s;
    s.keep_mean = a->beta1;
    s.add_mean = (float)(1 - beta1);
    s.keep_square = a->beta2;
    s.add_square = (float)(1 - beta2);
    s.rate = (float)((double)a->rate / (1 - pow(beta1, step)));
    s.unbias = (float)(1 / (1 - pow(beta2, step)));
    s.epsilon = a->epsilon;
    return s;
}

#endif
