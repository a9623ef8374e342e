#ifndef FLASH_PORT_H
#define FLASH_PORT_H

#include "flash.h"
#include "host_port.h"

extern sc_flash port_flash;

#endif
