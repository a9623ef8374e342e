/* SMSC's LAN9118, the Ethernet card of the MPS2 and MPS3 boards, by polling. Registers: its data sheet, chapter 5. */
#include "network.h"

enum { RX_DATA = 0x00, TX_DATA = 0x20, RX_STATUS = 0x40, BYTE_TEST = 0x64, RX_CONFIG = 0x6c, TX_CONFIG = 0x70,
       HW_CONFIG = 0x74, RX_CONTROL = 0x78, RX_USED = 0x7c, TX_FREE = 0x80, MAC_COMMAND = 0xa4, MAC_DATA = 0xa8,
       FLOW = 0xac };
enum { MAC_CONTROL = 1, MAC_HIGH = 2, MAC_LOW = 3 };
#define BUSY 0x80000000u
#define REGISTER(offset) (*(volatile uint32_t *)(NETWORK_AT + (offset)))
enum { PATIENCE = 100000, LONGEST = 1518, CHECKSUM = 4 };

static int set_mac(uint32_t number, uint32_t value) {
    uint32_t left = PATIENCE;
    REGISTER(MAC_DATA) = value;
    REGISTER(MAC_COMMAND) = BUSY | number;
    while ((REGISTER(MAC_COMMAND) & BUSY) != 0)
        if (--left == 0) return -1;
    return 0;
}

int card_start(const uint8_t address[6]) {
    uint32_t left = PATIENCE;
    if (REGISTER(BYTE_TEST) != 0x87654321u) return -1;
    REGISTER(HW_CONFIG) = 1; /* reset */
    while ((REGISTER(HW_CONFIG) & 1) != 0)
        if (--left == 0) return -1;
    REGISTER(HW_CONFIG) = 1u << 20 | 5u << 16; /* has to be 1; 5 KiB to send from, the rest to receive into */
    REGISTER(FLOW) = 0x006e3740;
    if (set_mac(MAC_HIGH, (uint32_t)address[4] | (uint32_t)address[5] << 8) != 0) return -1;
    if (set_mac(MAC_LOW, (uint32_t)address[0] | (uint32_t)address[1] << 8 | (uint32_t)address[2] << 16 |
                             (uint32_t)address[3] << 24) != 0)
        return -1;
    REGISTER(RX_CONFIG) = 0;
    REGISTER(TX_CONFIG) = 2;                        /* on */
    return set_mac(MAC_CONTROL, 1u << 3 | 1u << 2); /* send, receive */
}

int card_send(const uint8_t *frame, uint32_t size) {
    if ((REGISTER(TX_FREE) & 0xffff) < size + 16) return -1;
    REGISTER(TX_DATA) = 1u << 13 | 1u << 12 | size; /* all of a frame, in one piece */
    REGISTER(TX_DATA) = size << 16 | size;
    for (uint32_t i = 0; i < size; i += 4) {
        uint32_t word = 0;
        for (uint32_t k = 0; k < 4 && i + k < size; k++) word |= (uint32_t)frame[i + k] << (8 * k);
        REGISTER(TX_DATA) = word;
    }
    return 0;
}

uint32_t card_receive(uint8_t *frame, uint32_t room) {
    if ((REGISTER(RX_USED) >> 16 & 0xff) == 0) return 0;
    const uint32_t status = REGISTER(RX_STATUS), all = status >> 16 & 0x3fff;
    const uint32_t size = all > CHECKSUM ? all - CHECKSUM : 0;
    const int good = (status & 1u << 15) == 0 && all <= LONGEST && size <= room;
    for (uint32_t i = 0; i < all; i += 4) {
        const uint32_t word = REGISTER(RX_DATA);
        for (uint32_t k = 0; k < 4 && good && i + k < size; k++) frame[i + k] = (uint8_t)(word >> (8 * k));
    }
    return good ? size : 0;
}
