/* An answer that is held to a schema, for tests in Python: `fill` gives the logits of each step. */
#include <stdint.h>
#include <stdlib.h>

#include "answer.h"

typedef void (*fill_logits)(uint32_t step, float *logits);

/* The tokens of the answer; *status says how it ended. */
uint32_t test_answer(const uint8_t *section, uint32_t section_size, const uint8_t *table, uint32_t table_size,
                     uint32_t end, uint32_t most, float temperature, fill_logits fill, uint32_t *tokens,
                     int32_t *status) {
    sc_schema schema;
    sc_tokenizer tokenizer;
    sc_answer answer;
    sc_sampler sampler;
    const sc_sampling sampling = {temperature, 0, 1.0f, 1};
    uint32_t count = 0;
    sc_status found = sc_schema_open(&schema, section, section_size, 0);
    if (found == SC_OK) found = sc_tokenizer_open(&tokenizer, table, table_size);
    if (found == SC_OK) found = sc_answer_begin(&answer, &schema, &tokenizer, &end, 1, most);
    if (found == SC_OK) {
        float *logits = malloc(tokenizer.vocabulary * sizeof *logits);
        sc_sampler_begin(&sampler, &sampling);
        while (found == SC_OK && !sc_answer_has_ended(&answer)) {
            fill(count, logits);
            found = sc_answer_choose(&answer, logits, most - count, &sampler, &tokens[count]);
            count++;
        }
        free(logits);
    }
    *status = (int32_t)found;
    return count;
}
