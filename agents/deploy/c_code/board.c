/* A policy on an emulated Cortex-M4 (qemu's mps2-an386): prints what a decision takes, then acts on given observations.
 *
 * Compiled with policy.c and -DPOLICY_CALL=..., one call of a group's function. qemu runs with -icount shift=0, so that an
 * instruction is a nanosecond of the board's time, and SysTick counts 25 of them per microsecond: 40 instructions a tick.
 */
#include "policy.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PAINT 0xdeadbeefu
#define DECISIONS 20
#define STACK_WORDS 16384

extern uint32_t bss_start[], bss_end[], stack_top[];
extern void initialise_monitor_handles(void);
extern int policy_main(void);

static volatile uint32_t *const SYSTICK = (volatile uint32_t *)0xe000e010u; /* control, reload, value */
static volatile uint32_t *const CPACR = (volatile uint32_t *)0xe000ed88u;
static float observation[4096], memory[4096];
static float action[256]; /* ints are as long */

static __attribute__((noinline)) void decide(void)
{
    POLICY_CALL;
}

/* Words below the stack pointer are painted; the lowest that a decision changed says how deep it went. */
static __attribute__((noinline)) unsigned stack_of_a_decision(void)
{
    uint32_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (uint32_t *p = top - STACK_WORDS; p < top - 8; p++)
        *(volatile uint32_t *)p = PAINT;
    decide();
    uint32_t *p = top - STACK_WORDS;
    while (p < top && *(volatile uint32_t *)p == PAINT)
        p++;
    return 4u * (unsigned)(top - p);
}

static uint32_t ticks(int decisions)
{
    SYSTICK[1] = 0xffffffu;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5; /* on, the processor's clock */
    uint32_t start;
    do /* it is zero until it is loaded */
        start = SYSTICK[2];
    while (start == 0);
    for (int i = 0; i < decisions; i++)
        decide();
    return start - SYSTICK[2];
}

void reset(void)
{
    for (uint32_t *p = bss_start; p < bss_end; p++)
        *p = 0;
    *CPACR |= 0xfu << 20; /* the floating-point unit */
    __asm__ volatile("dsb\n isb");
    initialise_monitor_handles();
    for (int i = 0; i < 4096; i++)
        observation[i] = 0.01f * (float)(i % 100 - 50);
    const unsigned stack = stack_of_a_decision();
    const uint32_t none = ticks(0), some = ticks(DECISIONS);
    fprintf(stderr, "stack %u instructions %lu\n", stack, (unsigned long)(some - none) * 40ul / DECISIONS);
    exit(policy_main());
}

void _fini(void) /* newlib's exit calls it */
{
}

static void fault(void)
{
    fprintf(stderr, "fault\n");
    exit(3);
}

__attribute__((section(".vectors"), used)) static void (*const VECTORS[16])(void) = {
    (void (*)(void))stack_top, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault};
