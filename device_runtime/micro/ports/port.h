/* What a port gives the console: a serial line. */
#ifndef PORT_H
#define PORT_H

#include <stdint.h>

void port_start(void);
uint8_t port_read(void); /* waits for a byte */
void port_write(uint8_t byte);

int main(void);

#endif
