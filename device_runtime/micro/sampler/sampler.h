/* From logits to a token: greedy, or drawn with temperature, top-k and top-p. A seed draws what
 * device_runtime/engine/sampler.py draws for it, token by token: weights are whole numbers, computed in single precision
 * by operations that every machine rounds alike, and sums of whole numbers are exact in any order. */
#ifndef SC_SAMPLER_H
#define SC_SAMPLER_H

#include <stdint.h>

typedef struct {
    float temperature; /* 0: greedy */
    uint32_t top_k;    /* draw from the k likeliest; 0: from all */
    float top_p;       /* draw from the fewest tokens that together have this probability; counted in 1/65,536 */
    uint64_t seed;
} sc_sampling;

typedef struct {
    float scale; /* from a difference of logits to a power of two; 0: greedy */
    uint32_t top_k, top_p;
    uint64_t state;
} sc_sampler;

void sc_sampler_begin(sc_sampler *sampler, const sc_sampling *sampling);

/* The next token for `count` > 0 logits, none of them NaN. Those of -infinity are never drawn, unless all are. Of equal
 * ones the lower id is the likelier. */
uint32_t sc_sampler_choose(sc_sampler *sampler, const float *logits, uint32_t count);

/* Go on as if so many tokens had been drawn. */
void sc_sampler_skip(sc_sampler *sampler, uint64_t tokens);

#endif
