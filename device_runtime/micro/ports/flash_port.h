/* The flash of a board whose firmware takes updates. */
#ifndef FLASH_PORT_H
#define FLASH_PORT_H

#include "flash.h"

extern const sc_flash port_flash;

#endif
