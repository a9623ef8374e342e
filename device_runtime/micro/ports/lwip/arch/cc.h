/* What lwIP wants to know of the compiler and the machine. */
#ifndef ARCH_CC_H
#define ARCH_CC_H

#include <stdint.h>

#include "port.h"

#define LWIP_NO_INTTYPES_H 1
#define X8_F "02x"
#define U16_F "u"
#define S16_F "d"
#define X16_F "x"
#define U32_F "u"
#define S32_F "d"
#define X32_F "x"
#define SZT_F "u"
#define BYTE_ORDER LITTLE_ENDIAN
#define LWIP_PLATFORM_DIAG(message) ((void)0)
void network_fault(const char *message); /* says it on the console, and restarts */
#define LWIP_PLATFORM_ASSERT(message) network_fault(message)
uint32_t network_random(void);
#define LWIP_RAND() network_random()

#endif
