#include "generator.h"

#include <string.h>

#include "numbers.h"

enum { HASH_BYTES = 32 };
enum { LEAST_OUT = 160 }; /* bytes that the text of one token may take */
static const float NOWHERE = -16.0f; /* logits so far below the largest add nothing to a sum of 16 bits */

/* -- opening ---------------------------------------------------------------------------------------------- */

static uint8_t begin(void *g, const sc_wire_start *start, const uint8_t *prompt, uint32_t bytes, const char **why) {
    return sc_generator_begin((sc_generator *)g, start, prompt, bytes, why);
}

static sc_step step(void *g, uint8_t *out, uint32_t room, uint32_t *bytes, const char **why) {
    return sc_generator_step((sc_generator *)g, out, room, bytes, why);
}

sc_status sc_generator_open(sc_generator *g, const void *image, size_t bytes) {
    const sc_generator_memory *m = &g->memory;
    g->held_count = g->schemas = 0;
    g->has_tokenizer = g->has_chat = 0;
    g->engine.context = g;
    g->engine.begin = begin;
    g->engine.step = step;
    sc_status status = sc_measure(image, bytes, SC_CHECK_HASH, &g->needs);
    if (status == SC_OK &&
        (g->needs.context > m->context || (m->logits != NULL && g->needs.vocabulary > m->vocabulary)))
        status = SC_ARENA_TOO_SMALL;
    if (status == SC_OK)
        status = sc_open(&g->model, image, bytes, SC_TRUST_HASH, m->arena, m->arena_bytes, m->kv_cache, m->kv_bytes);
    if (status == SC_OK) status = sc_self_test(g->model);
    g->has_self_test = status == SC_OK;
    if (status == SC_MISSING_SECTION) status = SC_OK;
    if (status == SC_OK) status = sc_image_open_trusted(&g->image, image, bytes);
    if (status != SC_OK) return status;
    const sc_section table = sc_image_section(&g->image, SC_SECTION_TOKENIZER);
    const sc_section roles = sc_image_section(&g->image, SC_SECTION_CHAT);
    const sc_section schemas = sc_image_section(&g->image, SC_SECTION_SCHEMA);
    if (table.bytes == NULL) return SC_OK; /* tokens only */
    status = sc_tokenizer_open(&g->tokenizer, table.bytes, table.size);
    g->has_tokenizer = status == SC_OK;
    if (status == SC_OK && roles.bytes != NULL) {
        status = sc_chat_open(&g->chat, roles.bytes, roles.size, g->tokenizer.vocabulary);
        g->has_chat = status == SC_OK;
    }
    if (status == SC_OK && schemas.bytes != NULL && m->logits != NULL)
        status = sc_schema_count(schemas.bytes, schemas.size, &g->schemas);
    return status;
}

static sc_status open_schema(const sc_generator *g, uint32_t number, sc_schema *schema) {
    const sc_section section = sc_image_section(&g->image, SC_SECTION_SCHEMA);
    return sc_schema_open(schema, section.bytes, section.size, number);
}

uint32_t sc_generator_schemas(const sc_generator *g, uint64_t *identities) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < g->schemas && count < SC_WIRE_MAX_SCHEMAS; i++) {
        sc_schema schema;
        if (open_schema(g, i, &schema) == SC_OK) identities[count++] = schema.identity;
    }
    return count;
}

/* The identity section as far as it holds together; *ends and *after point into it. */
static int read_identity(const sc_generator *g, uint32_t *count, const uint8_t **ends, const uint8_t **after,
                         uint32_t *left) {
    const sc_section s = sc_image_section(&g->image, SC_SECTION_IDENTITY);
    if (s.bytes == NULL || s.size < 4) return 0;
    *count = sc_u32(s.bytes);
    if (*count > (s.size - 4) / 4) return 0;
    *ends = s.bytes + 4;
    *after = *ends + 4 * (size_t)*count;
    *left = s.size - 4 - 4 * *count;
    return 1;
}

const uint8_t *sc_generator_name(const sc_generator *g, uint8_t model[8], uint32_t *size) {
    const uint8_t *ends, *after;
    uint32_t count, left;
    *size = 0;
    if (!read_identity(g, &count, &ends, &after, &left) || left < HASH_BYTES) return NULL;
    memcpy(model, after, 8);
    *size = left - HASH_BYTES;
    return after + HASH_BYTES;
}

/* The tokens that end an answer in text. */
static void set_ends(sc_generator *g) {
    const uint8_t *ends, *after;
    uint32_t count, left;
    if (!read_identity(g, &count, &ends, &after, &left)) return;
    for (uint32_t i = 0; i < count && g->stop_count < SC_WIRE_MAX_STOPS; i++)
        g->stops[g->stop_count++] = sc_u32(ends + 4 * (size_t)i);
}

/* -- prompts: g->memory.prompt gets what comes after the prefix ------------------------------------------- */

static sc_status keep(void *context, uint32_t token) {
    sc_generator *g = (sc_generator *)context;
    if (g->prompt_count == g->memory.context) return SC_CONTEXT_FULL;
    g->memory.prompt[g->prompt_count++] = token;
    return SC_OK;
}

static uint32_t role_of(uint8_t mark) {
    return mark == 's' ? SC_SYSTEM : mark == 'u' ? SC_USER : mark == 'a' ? SC_ASSISTANT : SC_ROLES;
}

static sc_status encode(sc_generator *g, const uint8_t *prompt, uint32_t bytes) {
    sc_encoder encoder;
    sc_conversation conversation;
    sc_status status =
        sc_encoder_begin(&encoder, &g->tokenizer, g->memory.work, g->memory.work_bytes, keep, g);
    if (status != SC_OK) return status;
    if (bytes > 0 && prompt[0] == 'p') {
        status = sc_encoder_text(&encoder, prompt + 1, bytes - 2);
        return status == SC_OK ? sc_encoder_finish(&encoder) : status;
    }
    if (!g->has_chat) return SC_MISSING_SECTION;
    sc_conversation_begin(&conversation, &g->chat, &encoder);
    for (uint32_t at = 0; at < bytes && status == SC_OK;) {
        uint32_t end = at + 1;
        while (end < bytes && prompt[end] != 0) end++;
        status = sc_conversation_message(&conversation, role_of(prompt[at]), prompt + at + 1, end - at - 1);
        at = end + 1;
    }
    return status == SC_OK ? sc_conversation_answer(&conversation) : status;
}

static uint8_t refuse(const char **why, uint8_t code, const char *words) {
    *why = words;
    return code;
}

static uint8_t take_text(sc_generator *g, const uint8_t *prompt, uint32_t bytes, const char **why) {
    if (!g->has_tokenizer)
        return refuse(why, SC_WIRE_FAULT_CODE_UNSUPPORTED, "the image has no tokenizer: send tokens");
    if (bytes < 2 || prompt[bytes - 1] != 0)
        return refuse(why, SC_WIRE_FAULT_CODE_MALFORMED, "a message is a role, UTF-8 and a zero byte");
    const sc_status status = encode(g, prompt, bytes);
    if (status == SC_CONTEXT_FULL)
        return refuse(why, SC_WIRE_FAULT_CODE_TOO_LONG, "the prompt has more tokens than the context");
    if (status == SC_MISSING_SECTION)
        return refuse(why, SC_WIRE_FAULT_CODE_UNSUPPORTED, "the image has no chat roles: send a plain prompt");
    if (status == SC_BAD_ARGUMENT)
        return refuse(why, SC_WIRE_FAULT_CODE_UNSUPPORTED, "the chat template has no such role there");
    if (status != SC_OK) return refuse(why, SC_WIRE_FAULT_CODE_MALFORMED, sc_status_text(status));
    const uint32_t known = g->has_chat ? sc_chat_after_prefix(&g->chat, g->memory.prompt, g->prompt_count) : 0;
    g->prompt_count -= known;
    memmove(g->memory.prompt, g->memory.prompt + known, g->prompt_count * sizeof *g->memory.prompt);
    return 0;
}

/* The prefix in a prompt of tokens is taken to be the image's: the engine keeps no ids of it. */
static uint8_t take_tokens(sc_generator *g, const uint8_t *prompt, uint32_t bytes, const char **why) {
    const uint32_t count = bytes / 4;
    if (bytes % 4 != 0) return refuse(why, SC_WIRE_FAULT_CODE_MALFORMED, "a prompt has whole tokens of 4 bytes");
    if (count >= g->needs.context)
        return refuse(why, SC_WIRE_FAULT_CODE_TOO_LONG, "the prompt has as many tokens as the context, or more");
    if (count <= g->needs.prefix)
        return refuse(why, SC_WIRE_FAULT_CODE_MALFORMED, "the prompt is not the model's prefix and more");
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t token = sc_u32(prompt + 4 * (size_t)i);
        if (token >= g->needs.vocabulary)
            return refuse(why, SC_WIRE_FAULT_CODE_MALFORMED, "the prompt has a token beyond the vocabulary");
        if (i >= g->needs.prefix) g->memory.prompt[g->prompt_count++] = token;
    }
    return 0;
}

/* -- beginning -------------------------------------------------------------------------------------------- */

static void text_out(void *context, const uint8_t *utf8, size_t bytes) {
    sc_generator *g = (sc_generator *)context;
    if (bytes > g->out_room - g->out_size) {
        g->cut_text = 1;
        return;
    }
    memcpy(g->out + g->out_size, utf8, bytes);
    g->out_size += (uint32_t)bytes;
}

/* The temperatures that a task's confidence was fitted with, where the image has them for this schema. */
static void read_calibration(sc_generator *g, uint64_t identity) {
    const sc_section s = sc_image_section(&g->image, SC_SECTION_CALIBRATION);
    if (s.bytes == NULL || s.size < 4) return;
    uint32_t entries = sc_u32(s.bytes);
    for (size_t at = 4; entries > 0 && s.size - at >= 12; entries--) {
        const uint64_t found = (uint64_t)sc_u32(s.bytes + at) | (uint64_t)sc_u32(s.bytes + at + 4) << 32;
        const uint32_t count = sc_u32(s.bytes + at + 8);
        at += 12;
        if (count > (s.size - at) / 4) return;
        for (uint32_t i = 0; found == identity && i < count && i < SC_WIRE_MAX_FIELDS; i++) {
            float softness;
            const uint32_t bits = sc_u32(s.bytes + at + 4 * (size_t)i);
            memcpy(&softness, &bits, sizeof softness);
            g->softness[i] = softness > 0.0f ? softness : 1.0f;
        }
        at += 4 * (size_t)count;
    }
}

static uint8_t begin_typed(sc_generator *g, uint64_t identity, const char **why) {
    sc_status status = SC_BAD_ARGUMENT;
    uint32_t i = 0;
    while (i < g->schemas && (open_schema(g, i, &g->schema) != SC_OK || g->schema.identity != identity)) i++;
    if (i == g->schemas)
        return refuse(why, SC_WIRE_FAULT_CODE_UNSUPPORTED, "the image has no such schema: convert with --schema");
    status = sc_answer_begin(&g->answer, &g->schema, &g->tokenizer, g->stops, g->stop_count, g->max_new);
    return status == SC_OK ? 0 : refuse(why, SC_WIRE_FAULT_CODE_TOO_LONG, sc_status_text(status));
}

uint8_t sc_generator_begin(sc_generator *g, const sc_wire_start *start, const uint8_t *prompt, uint32_t bytes,
                           const char **why) {
    const sc_sampling sampling = {start->temperature, start->top_k, start->top_p, start->seed};
    uint32_t common = 0;
    g->prompt_count = g->fed = g->made = g->pending_set = 0;
    g->text = start->form == SC_WIRE_FORM_TEXT;
    g->typed = start->schema != 0;
    g->cut_text = 0;
    g->share = 1.0f;
    g->field_count = 0;
    memset(&g->fields, 0, sizeof g->fields);
    for (uint32_t i = 0; i < SC_WIRE_MAX_FIELDS; i++) {
        g->shares[i] = 1.0f;
        g->softness[i] = i < start->softness_count && start->softness[i] > 0.0f ? start->softness[i] : 1.0f;
    }
    g->stop_count = start->stop_count;
    for (uint32_t i = 0; i < g->stop_count; i++) g->stops[i] = start->stop_tokens[i];
    if (g->text) set_ends(g);
    if (start->temperature != start->temperature || start->temperature < 0.0f)
        return refuse(why, SC_WIRE_FAULT_CODE_MALFORMED, "a temperature is 0 or more");
    if (start->temperature > 0.0f && g->memory.logits == NULL)
        return refuse(why, SC_WIRE_FAULT_CODE_UNSUPPORTED, "answers are greedy here");
    uint8_t code = g->text ? take_text(g, prompt, bytes, why) : take_tokens(g, prompt, bytes, why);
    if (code != 0) return code;
    const uint32_t all = g->needs.prefix + g->prompt_count;
    if (g->prompt_count == 0) return refuse(why, SC_WIRE_FAULT_CODE_MALFORMED, "the prompt is empty");
    if (all >= g->needs.context)
        return refuse(why, SC_WIRE_FAULT_CODE_TOO_LONG, "the prompt has as many tokens as the context, or more");
    const uint32_t room = g->needs.context - all + 1; /* the last token of an answer is never fed back */
    g->max_new = start->max_new != 0 && start->max_new < room ? start->max_new : room;
    if (g->typed && (code = begin_typed(g, start->schema, why)) != 0) return code;
    if (g->typed && start->softness_count == 0) read_calibration(g, start->schema);
    sc_sampler_begin(&g->sampler, &sampling);
    sc_sampler_skip(&g->sampler, start->drawn);
    /* the last token is fed again: its logits are gone */
    while (common < g->held_count && common + 1 < g->prompt_count && g->memory.held[common] == g->memory.prompt[common])
        common++;
    sc_rewind(g->model, g->needs.prefix + common);
    g->held_count = g->fed = common;
    g->engine.prompt_tokens = all;
    g->engine.cached_tokens = g->needs.prefix + common;
    g->engine.completion_tokens = 0;
    g->engine.confidence = 0;
    g->engine.share_count = 0;
    if (g->text) sc_decoder_begin(&g->decoder, &g->tokenizer, text_out, g);
    return 0;
}

/* -- steps ------------------------------------------------------------------------------------------------ */

static sc_status feed(sc_generator *g, uint32_t token) {
    const sc_status status =
        g->after_call ? sc_feed_watched(g->model, token, g->after_call, NULL) : sc_feed(g->model, token);
    if (status == SC_OK) g->memory.held[g->held_count++] = token;
    return status;
}

static void read_logits(sc_generator *g) {
    const sc_logits l = sc_read_logits(g->model);
    for (uint32_t i = 0; i < l.count; i++) {
        const int32_t stored = l.bits == 8 ? ((const int8_t *)l.stored)[i] : ((const int16_t *)l.stored)[i];
        g->memory.logits[i] = ((float)stored - (float)l.zero_point) * l.scale;
    }
}

/* The probability of `token` among those that the schema allows now, at this temperature. Before it is taken. */
static float probability(const sc_generator *g, const sc_answer *before, uint32_t token, float temperature) {
    const float chosen = sc_logit(g->model, token);
    float most = chosen, sum = 0.0f;
    for (uint32_t i = 0; i < g->needs.vocabulary; i++) {
        const float logit = sc_logit(g->model, i);
        if (logit > most && sc_answer_allows(before, i)) most = logit;
    }
    for (uint32_t i = 0; i < g->needs.vocabulary; i++) {
        const float logit = (sc_logit(g->model, i) - most) / temperature;
        if (logit > NOWHERE && logit <= 0.0f && (i == token || sc_answer_allows(before, i))) sum += sc_exp(logit);
    }
    return sc_exp((chosen - most) / temperature) / sum;
}

typedef struct {
    sc_generator *generator;
    sc_schema_state state;
    uint32_t touched, texts; /* a bit for each field */
} spelling;

static void spell(void *context, uint8_t byte) {
    spelling *s = (spelling *)context;
    sc_generator *g = s->generator;
    const int own = g->fields.depth == 1, field = sc_fields_push(&g->fields, byte);
    (void)sc_schema_push(&g->schema, &s->state, byte);
    if (field < 0 || field >= (int)SC_WIRE_MAX_FIELDS) return;
    s->touched |= 1u << field;
    if (own && sc_schema_in_text(&g->schema, &s->state)) s->texts |= 1u << field;
}

/* What a token that was chosen says of the fields that it is a part of: device_runtime/engine/typed/choice.py. */
static void weigh(sc_generator *g, const sc_answer *before, uint32_t token) {
    spelling s = {g, before->state, 0, 0};
    const float plain = probability(g, before, token, 1.0f);
    const int in_text = sc_schema_in_text(&g->schema, &before->state);
    g->share *= plain;
    sc_answer_spell(before, token, spell, &s);
    for (uint32_t i = 0; i < SC_WIRE_MAX_FIELDS; i++) {
        if ((s.touched >> i & 1) == 0) continue;
        if (g->field_count <= i) g->field_count = i + 1;
        if ((s.texts >> i & 1) != 0) g->shares[i] = -1.0f;
        if (g->shares[i] < 0.0f || in_text) continue;
        const float softness = g->softness[i];
        g->shares[i] *= softness == 1.0f ? plain : probability(g, before, token, softness);
    }
}

static int is_stop(const sc_generator *g, uint32_t token) {
    for (uint32_t i = 0; i < g->stop_count; i++)
        if (g->stops[i] == token) return 1;
    return g->text && g->has_chat && sc_chat_is_end(&g->chat, token);
}

static sc_step fail(const char **why, sc_status status) {
    *why = sc_status_text(status);
    return SC_STEP_FAILED;
}

static sc_status choose(sc_generator *g, uint32_t *token) {
    if (!g->typed && g->sampler.scale <= 0.0f) {
        *token = sc_greedy(g->model);
        return SC_OK;
    }
    read_logits(g);
    if (!g->typed) {
        *token = sc_sampler_choose(&g->sampler, g->memory.logits, g->needs.vocabulary);
        return SC_OK;
    }
    const sc_answer before = g->answer;
    const sc_status status =
        sc_answer_choose(&g->answer, g->memory.logits, g->max_new - g->made, &g->sampler, token);
    if (status == SC_OK) weigh(g, &before, *token);
    return status;
}

static sc_step last_text(sc_generator *g, sc_step step, uint32_t *bytes) {
    if (g->text) {
        sc_decoder_finish(&g->decoder);
        *bytes = g->out_size;
    }
    if (g->typed && step == SC_STEP_STOP) {
        const uint32_t share = (uint32_t)(g->share * 65535.0f + 0.5f);
        g->engine.confidence = (uint16_t)(share < 1 ? 1 : share > 65535 ? 65535 : share);
        g->engine.shares = g->shares;
        g->engine.share_count = g->field_count;
    }
    return step;
}

sc_step sc_generator_step(sc_generator *g, uint8_t *out, uint32_t room, uint32_t *bytes, const char **why) {
    uint32_t token;
    sc_status status;
    *bytes = 0;
    g->out = out;
    g->out_room = room;
    g->out_size = 0;
    if (g->pending_set || g->fed < g->prompt_count) {
        const uint32_t next = g->pending_set ? g->pending : g->memory.prompt[g->fed++];
        g->pending_set = 0;
        if ((status = feed(g, next)) != SC_OK) return fail(why, status);
        if (g->fed < g->prompt_count) return SC_STEP_MORE;
    }
    if ((status = choose(g, &token)) != SC_OK) return fail(why, status);
    g->made++;
    g->engine.completion_tokens = g->made;
    if (is_stop(g, token)) return last_text(g, SC_STEP_STOP, bytes);
    if (g->text) {
        if (room < LEAST_OUT) return last_text(g, SC_STEP_LENGTH, bytes);
        if ((status = sc_decoder_token(&g->decoder, token)) != SC_OK) return fail(why, status);
        *bytes = g->out_size;
    } else {
        if (room < 4) return SC_STEP_LENGTH;
        for (uint32_t i = 0; i < 4; i++) out[i] = (uint8_t)(token >> (8 * i));
        *bytes = 4;
    }
    if (g->typed && sc_answer_has_ended(&g->answer)) return last_text(g, SC_STEP_STOP, bytes);
    if (g->made == g->max_new || g->cut_text) return last_text(g, SC_STEP_LENGTH, bytes);
    g->pending = token;
    g->pending_set = 1;
    return SC_STEP_MORE;
}
