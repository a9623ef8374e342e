/* The schema's reader for tests in Python. */
#include <stdint.h>

#include "schema.h"

/* How many bytes of a text are taken: all, or -1 - N when byte N is refused. *end: 1 the answer may end here, 2 it has
 * ended. Below -1,000,000: the table is refused with a status. */
int32_t test_read(const uint8_t *section, uint32_t size, uint32_t number, const uint8_t *text, uint32_t bytes,
                  int32_t *end) {
    sc_schema schema;
    const sc_status status = sc_schema_open(&schema, section, size, number);
    if (status != SC_OK) return -1000000 - (int32_t)status;
    sc_schema_state state;
    sc_schema_begin(&schema, &state);
    for (uint32_t i = 0; i < bytes; i++)
        if (!sc_schema_push(&schema, &state, text[i])) return -1 - (int32_t)i;
    *end = sc_schema_may_end(&schema, &state) + sc_schema_has_ended(&state);
    return (int32_t)bytes;
}

/* The shortest way to the end after a text: its bytes; -1 when it is longer than `most` or a byte of it is refused. */
int32_t test_shortest(const uint8_t *section, uint32_t size, const uint8_t *text, uint32_t bytes, uint8_t *out,
                      uint32_t most) {
    sc_schema schema;
    if (sc_schema_open(&schema, section, size, 0) != SC_OK) return -1;
    sc_schema_state state;
    sc_schema_begin(&schema, &state);
    for (uint32_t i = 0; i < bytes; i++)
        if (!sc_schema_push(&schema, &state, text[i])) return -1;
    for (uint32_t i = 0; i < most; i++) {
        const int byte = sc_schema_shortest_byte(&schema, &state);
        if (byte < 0) return (int32_t)i;
        if (!sc_schema_push(&schema, &state, (uint8_t)byte)) return -1;
        out[i] = (uint8_t)byte;
    }
    return -1;
}
