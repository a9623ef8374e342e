/* The sampler for tests in Python. */
#include <stdint.h>

#include "sampler.h"

void test_draw(float temperature, uint32_t top_k, float top_p, uint64_t seed, uint64_t skip, const float *logits,
               uint32_t count, uint32_t draws, uint32_t *tokens) {
    const sc_sampling sampling = {temperature, top_k, top_p, seed};
    sc_sampler sampler;
    sc_sampler_begin(&sampler, &sampling);
    sc_sampler_skip(&sampler, skip);
    for (uint32_t i = 0; i < draws; i++) tokens[i] = sc_sampler_choose(&sampler, logits, count);
}
