/* A schema section and an answer from outside: a size (uint32), the section of that size, the answer. Whatever they
 * are, the reader stays inside of its memory, and the way to the end that it shows leads there. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "schema.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4) return 0;
    uint32_t bytes = sc_u32(data);
    if (bytes > size - 4) bytes = (uint32_t)size - 4;
    /* A copy of its own size, so that a sanitizer sees a read past either end. */
    uint8_t *section = malloc(bytes ? bytes : 1);
    memcpy(section, data + 4, bytes);
    sc_schema schema;
    if (sc_schema_open(&schema, section, bytes, 0) == SC_OK) {
        sc_schema_state state, before;
        sc_schema_begin(&schema, &state);
        before = state;
        for (size_t i = 4 + bytes; i < size && sc_schema_push(&schema, &state, data[i]); i++) before = state;
        for (int i = 0; i < 300; i++) {
            const int byte = sc_schema_shortest_byte(&schema, &before);
            if (byte < 0 || !sc_schema_push(&schema, &before, (uint8_t)byte)) break;
        }
        (void)sc_schema_in_text(&schema, &before);
    }
    free(section);
    return 0;
}
