/* Commands over MQTT to a board that is on it by itself and has no model: whatever comes, it stays inside of its memory,
 * and what it sends is JSON that a broker takes. A board without a model refuses a request after it has read its address;
 * the first byte, where it is odd, lets it read all of it. */
#include <stdlib.h>
#include <string.h>

#include "fleet.h"
#include "json_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t now_ms(void) { return 0; }

static int publish(void *context, const char *topic, const uint8_t *payload, uint32_t size, int qos, int retain) {
    sc_json_reader r = {payload, payload + size, 1};
    (void)context, (void)qos, (void)retain;
    if (strncmp(topic, "stonechat/1/fuzz/out/", 21) != 0) abort();
    sc_json_skip(&r, NULL, NULL);
    if (!r.good || sc_json_peek(&r) != 0) abort();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static sc_fleet fleet;
    static sc_generator generator;
    static uint8_t has_model;
    if (size == 0 || size > SC_FLEET_REQUEST) return 0;
    memset(&fleet, 0, sizeof fleet);
    memset(&generator, 0, sizeof generator);
    has_model = data[0] & 1; /* the generator has no tokenizer, and says so */
    fleet.device = "fuzz";
    fleet.board = fleet.firmware = fleet.model = "host";
    fleet.generator = &generator;
    fleet.has_model = &has_model;
    fleet.now_ms = now_ms;
    fleet.publish = publish;
    sc_fleet_begin(&fleet);
    sc_fleet_connected(&fleet);
    sc_fleet_message(&fleet, "stonechat/1/fuzz/in/generate", data + 1, (uint32_t)size - 1, 0);
    sc_fleet_message(&fleet, "stonechat/1/fuzz/in/cancel/x", data + 1, (uint32_t)size - 1, 0);
    sc_fleet_tick(&fleet);
    return 0;
}
