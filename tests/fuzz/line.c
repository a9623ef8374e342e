/* What comes over the serial line of a board without a model: frames, packets, the console's lines. A byte of 255 at the
 * start of the input takes what follows as bodies of frames, each after its size, so that a CRC need not be found. */
#include <stdlib.h>
#include <string.h>

#include "device.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void send(void *context, const uint8_t *bytes, uint32_t size) {
    volatile uint8_t last;
    (void)context;
    for (uint32_t i = 0; i < size; i++) last = bytes[i];
    (void)last;
}

static uint32_t now_ms(void) { return 0; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static sc_device device;
    static uint8_t prompt[256], answer[256], framed[SC_LINE_FRAMED(255)];
    static const uint8_t nothing[64] __attribute__((aligned(16)));
    memset(&device, 0, sizeof device);
    device.board = "host";
    device.firmware = "0";
    device.send = send;
    device.now_ms = now_ms;
    device.prompt = prompt;
    device.prompt_room = sizeof prompt;
    device.answer = answer;
    device.answer_room = sizeof answer;
    device.image = nothing;
    device.image_room = sizeof nothing;
    sc_device_begin(&device);
    if (size > 0 && data[0] == 255) {
        for (data++, size--; size > 0;) {
            const uint32_t left = (uint32_t)size - 1, bytes = data[0] < left ? data[0] : left;
            const uint32_t all = bytes > 0 ? sc_line_frame(data + 1, bytes, framed) : 0;
            for (uint32_t i = 0; i < all; i++) sc_device_receive(&device, framed[i]);
            data += 1 + bytes;
            size -= 1 + bytes;
        }
        return 0;
    }
    for (size_t i = 0; i < size; i++) sc_device_receive(&device, data[i]);
    return 0;
}
