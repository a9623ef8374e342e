/* A server of the Simple Management Protocol (docs.zephyrproject.org, "SMP Protocol Specification" and "SMP over
 * console"): echo, parameters and reset of group 0; the image list, test, confirm, upload and erase of group 1. */
#ifndef SC_SMP_H
#define SC_SMP_H

#include "update.h"

enum { SC_SMP_BYTES = 1024 }; /* of a request, its header among them */

typedef struct {
    sc_update *update; /* NULL: a board without slots */
    void (*send)(void *context, const uint8_t *bytes, uint32_t size);
    void *send_context;
    uint8_t reset_asked; /* the owner restarts once the answer is out */
    uint8_t busy;        /* set by the owner: an image list has a flag for it, nothing else depends on it */
    /* its own: */
    uint8_t request[SC_SMP_BYTES + 4], answer[SC_SMP_BYTES];
    uint32_t have, need; /* bytes of a packet, with length and CRC */
    uint32_t quad, quad_count;
} sc_smp;

/* A line that begins with 06 09 or 04 14, without its end, has come. Returns whether a request was answered. */
int sc_smp_line(sc_smp *smp, const uint8_t *line, uint32_t size);

/* One request in, an answer out; returns its size. 0: none. For transports that keep packets whole, and for tests. */
uint32_t sc_smp_answer(sc_smp *smp, const uint8_t *request, uint32_t size, uint8_t *answer, uint32_t room);

#endif
