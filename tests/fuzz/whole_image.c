/* A model image from outside, as a firmware opens it: tokenizer, chat roles, schemas, identity and calibration too. What
 * it is then asked for is a message, plain tokens, and an answer that a schema holds, of a few steps each. */
#include "fuzzed_image.h"
#include "generator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { STEPS = 30, WORK = 4096, MOST_VOCABULARY = 1 << 12, MOST_CONTEXT = 1 << 10 };

static void answer(sc_generator *g, const sc_wire_start *start, const uint8_t *prompt, uint32_t bytes) {
    const char *why;
    uint8_t out[64];
    uint32_t written;
    const int begun = sc_generator_begin(g, start, prompt, bytes, &why) == 0;
    must(begun);
    if (!begun) return;
    for (int i = 0; i < STEPS && sc_generator_step(g, out, sizeof out, &written, &why) == SC_STEP_MORE; i++) {
    }
}

static void ask(sc_generator *g) {
    /* the prefix of the corpus is 0 1 */
    static const uint8_t words[] = "ua\0", tokens[] = {0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0};
    sc_wire_start start;
    uint64_t identities[SC_WIRE_MAX_SCHEMAS];
    uint32_t schemas = sc_generator_schemas(g, identities), name_size;
    uint8_t model[8];
    (void)sc_generator_name(g, model, &name_size);
    memset(&start, 0, sizeof start);
    start.request = 1, start.max_new = STEPS;
    start.prompt_bytes = sizeof tokens;
    answer(g, &start, tokens, sizeof tokens);
    start.form = SC_WIRE_FORM_TEXT;
    start.prompt_bytes = sizeof words - 1;
    start.temperature = 1.0f, start.top_p = 0.9f, start.top_k = 5, start.seed = 3;
    answer(g, &start, words, sizeof words - 1);
    for (uint32_t i = 0; i < schemas && i < 2; i++) {
        start.schema = identities[i];
        answer(g, &start, words, sizeof words - 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzzed_image f;
    if (open_image(&f, data, size) && f.needs.vocabulary <= MOST_VOCABULARY && f.needs.context <= MOST_CONTEXT) {
        static sc_generator g;
        memset(&g, 0, sizeof g);
        g.memory.arena = f.arena, g.memory.kv_cache = f.kv_cache;
        g.memory.arena_bytes = f.needs.arena_bytes, g.memory.kv_bytes = f.needs.kv_cache_bytes;
        g.memory.context = f.needs.context, g.memory.vocabulary = f.needs.vocabulary;
        g.memory.prompt = malloc(f.needs.context * sizeof *g.memory.prompt);
        g.memory.held = malloc(f.needs.context * sizeof *g.memory.held);
        g.memory.logits = malloc(f.needs.vocabulary * sizeof *g.memory.logits);
        g.memory.work = malloc(WORK);
        g.memory.work_bytes = WORK;
        const int opened = sc_generator_open(&g, f.image, size) == SC_OK;
        must(opened);
        if (opened) ask(&g);
        free(g.memory.prompt);
        free(g.memory.held);
        free(g.memory.logits);
        free(g.memory.work);
    }
    close_image(&f);
    return 0;
}
