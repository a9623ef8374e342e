/* An answer that is held to a schema, token by token. It ends within its limit by cutting a text and by nothing else: a
 * number or a name that the limit cuts leaves the answer incomplete, because shortening it would change it. */
#ifndef SC_ANSWER_H
#define SC_ANSWER_H

#include "sampler.h"
#include "schema.h"
#include "table.h"

typedef struct {
    const sc_schema *schema;
    const sc_tokenizer *tokenizer;
    const uint32_t *ends; /* tokens that end an answer */
    uint32_t end_count;
    sc_schema_state state;
    uint32_t near, spare; /* tokens: from when on the end is watched; at most so many are kept for values after a text */
    int cut, ended;
} sc_answer;

/* Start an answer of at most `most` tokens. SC_ANSWER_TOO_LONG: the shortest that fits the schema has more. */
sc_status sc_answer_begin(sc_answer *answer, const sc_schema *schema, const sc_tokenizer *tokenizer,
                          const uint32_t *ends, uint32_t end_count, uint32_t most);

/* Choose the next token among those that the schema allows, and take it. `left`: tokens that the answer may still have,
 * this one among them. With a sampler that draws, `logits` (one for each token of the vocabulary) are changed: those of
 * other tokens become -infinity. SC_ANSWER_INCOMPLETE: no token may follow, or the limit cuts a value. */
sc_status sc_answer_choose(sc_answer *answer, float *logits, uint32_t left, sc_sampler *sampler, uint32_t *token);

/* Whether the schema allows this token next. */
int sc_answer_allows(const sc_answer *answer, uint32_t token);

/* The bytes of the answer that a token stands for, one after another. */
void sc_answer_spell(const sc_answer *answer, uint32_t token, void (*byte)(void *context, uint8_t byte), void *context);

/* Whether the answer is whole and has ended. */
int sc_answer_has_ended(const sc_answer *answer);

#endif
