/* What a port gives the firmware: a serial line that receives by interrupt, a clock, a watchdog, and a restart. */
#ifndef PORT_H
#define PORT_H

#include <stdint.h>

enum { PORT_UNKNOWN, PORT_COMMAND, PORT_WATCHDOG }; /* why the board started; as in sc_wire.h */

void port_start(void);
int port_read(void);                                   /* the next byte that has come; -1: none */
void port_write(const uint8_t *bytes, uint32_t size);  /* waits for the line, not for a reader */
void port_wait(void);                                  /* until something may have come */
uint32_t port_now_ms(void);                            /* since the start */
uint32_t port_overruns(void);                          /* bytes that found the receive buffer full */
void port_feed_watchdog(void);
void port_restart(uint32_t cause);

/* Kept over a restart, not without power. */
typedef struct {
    uint32_t magic, boots, cause, boots_inverted;
} port_kept;
extern port_kept kept;

/* What the parts of a port give each other. */
void port_received(uint8_t byte); /* receive.c, for the interrupt of a UART */
void uart_start(void);            /* uart_….c */
void uart_interrupt(void);
void uart_write(uint8_t byte);
void watchdog_start(void); /* watchdog_….c */
void watchdog_interrupt(void);
void clock_start(void); /* start_….c */
void interrupts_start(void);
void interrupts_off(void);
void interrupts_on(void);
void sleep_until_interrupt(void); /* with interrupts off: wakes for one that would come, and does not take it yet */
void start_program(const void *at); /* for the boot loader: a program with its own vectors */

int main(void);

#endif
