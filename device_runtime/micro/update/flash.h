/* Flash that an update is written to: sectors are erased to FF, then written once. */
#ifndef SC_FLASH_H
#define SC_FLASH_H

#include <stdint.h>

typedef struct {
    void *context;
    const uint8_t *bytes;  /* the flash as the processor reads it; offsets below count from here */
    uint32_t sector_bytes; /* of what is erased at once */
    /* Both return 0 when they succeed. `offset` and `size` of a write are multiples of 4. */
    int (*erase)(void *context, uint32_t offset);
    int (*write)(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size);
} sc_flash;

#endif
