/* Where a board on this machine has what other boards have at fixed addresses. */
#ifndef HOST_PORT_H
#define HOST_PORT_H

#include <stdint.h>

extern uint8_t host_run_area[];
extern const uint8_t *host_image;
#define RUN_AT host_run_area

#endif
