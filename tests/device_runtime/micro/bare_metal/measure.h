/* What programs without an operating system measure of themselves: instructions, and how deep the stack went. */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdint.h>

#include "semihosting.h"

#ifdef CLOCK_HZ
static volatile uint32_t *const SYSTICK = (volatile uint32_t *)0xe000e010; /* control, reload, value */

static inline void start_clock(void) {
    SYSTICK[1] = 0xffffff;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
}

static inline uint32_t now(void) { return SYSTICK[2]; }

/* It counts down. */
static inline uint64_t instructions(uint32_t from, uint32_t to) {
    return (uint64_t)((from - to) & 0xffffff) * (1000000000u / CLOCK_HZ);
}
#endif

static inline void print_number(uint64_t value) {
    char text[24];
    int at = sizeof text - 1;
    text[at] = 0;
    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    semi_print(text + at);
}

/* The linker's script says where the stack starts. */
extern uint32_t stack_top;
enum { SC_PAINTED = 32 * 1024, SC_PAINT = 0x5ca1ab1e };

/* From well below the caller's own frame downwards. */
static inline void paint_stack(void) {
    volatile uint32_t *here = (volatile uint32_t *)__builtin_frame_address(0) - 64;
    for (volatile uint32_t *at = &stack_top - SC_PAINTED / 4; at < here; at++) {
        *at = SC_PAINT;
    }
}

/* Bytes from the first word that is not painted any more to the stack's start. */
static inline uint32_t stack_used(void) {
    const volatile uint32_t *at = &stack_top - SC_PAINTED / 4;
    while (*at == SC_PAINT) {
        at++;
    }
    return (uint32_t)((const volatile uint8_t *)&stack_top - (const volatile uint8_t *)at);
}

#endif
