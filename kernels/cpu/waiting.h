/* How OpenMP's threads wait for one another.
 *
 * By default they spin for milliseconds, which pays only where each has a core to itself. On a shared machine a waiting
 * thread then keeps the one that it waits for from running: a small model's eval took forty times as long beside other
 * work. Sleeping costs microseconds. The runtime reads the policy while it loads, so the program that wants it sets it
 * and executes itself again. */
#ifndef HSAQ_KERNELS_CPU_WAITING_H
#define HSAQ_KERNELS_CPU_WAITING_H

#define WAIT_POLICY_VARIABLE "OMP_WAIT_POLICY"

/* Call first thing in main, before anything is open. Not when the user has chosen; and when it fails, threads spin. */
void insist_on_sleeping_waits(char **argv);

#endif
