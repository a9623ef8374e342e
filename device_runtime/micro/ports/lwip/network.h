/* A board's network: a card, lwIP over it, and the connection to a broker. */
#ifndef SC_NETWORK_H
#define SC_NETWORK_H

#include "fleet.h"

void network_start(sc_fleet *fleet); /* after sc_fleet_begin */
void network_poll(void);             /* often, from the main loop */

/* Of a card (lan9118.c). A frame has no checksum at its end. */
int card_start(const uint8_t address[6]);                /* 0: it is there */
int card_send(const uint8_t *frame, uint32_t size);      /* 0: it is on its way */
uint32_t card_receive(uint8_t *frame, uint32_t room);    /* bytes of the next frame; 0: none */

#endif
