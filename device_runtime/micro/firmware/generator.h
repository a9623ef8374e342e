/* Answers of one model image, a step of the model at a time: prompts as tokens or as text, sampling, JSON schemas of the
 * image, confidence. What a kv_cache holds of the last request is not computed again. */
#ifndef SC_GENERATOR_H
#define SC_GENERATOR_H

#include "answer.h"
#include "chat.h"
#include "decode.h"
#include "fields.h"
#include "member.h"
#include "sampler.h"
#include "stonechat.h"

/* Memory of the caller, `context` and `vocabulary` being those of the image or more. */
typedef struct {
    void *arena, *kv_cache;  /* at multiples of 16 */
    size_t arena_bytes, kv_bytes;
    uint32_t *prompt, *held; /* [context] each */
    uint32_t context;
    float *logits;           /* [vocabulary]; NULL: only greedy answers without a schema */
    uint32_t vocabulary;
    uint32_t *work;          /* of the tokenizer: SC_ENCODER_BYTES of the longest word */
    size_t work_bytes;
} sc_generator_memory;

typedef struct {
    sc_generator_memory memory;
    sc_needs needs;
    sc_model *model;
    sc_image image;
    sc_tokenizer tokenizer;
    sc_chat chat;
    uint8_t has_tokenizer, has_chat, has_self_test;
    uint32_t schemas; /* of the image */
    void (*after_call)(uint32_t call, const void *arena, void *context); /* or NULL: for a watchdog */
    /* the answer that is being made */
    uint32_t prompt_count, fed, held_count;
    uint32_t max_new, made, pending, pending_set;
    uint32_t stops[SC_WIRE_MAX_STOPS], stop_count;
    uint8_t text, typed, cut_text;
    float share;                          /* confidence so far, of all of it */
    float shares[SC_WIRE_MAX_FIELDS];     /* of the answer's own fields, as they come; -1: a text of the model's own */
    float softness[SC_WIRE_MAX_FIELDS];   /* temperatures that these were fitted with */
    uint32_t field_count;                 /* of them, so far */
    sc_fields fields;
    sc_sampler sampler;
    sc_schema schema;
    sc_answer answer;
    sc_decoder decoder;
    uint8_t *out; /* where a step's text goes */
    uint32_t out_room, out_size;
    sc_engine engine; /* for sc_member; its context is this generator */
} sc_generator;

/* Open an image: its hash is checked and its self-test run. `g->memory` and `g->after_call` have been set. */
sc_status sc_generator_open(sc_generator *g, const void *image, size_t bytes);

/* The bundle's name, without an end, and the first 8 bytes of its graph's SHA-256; NULL where the image has neither. */
const uint8_t *sc_generator_name(const sc_generator *g, uint8_t model[8], uint32_t *size);

/* The identities of the image's schemas, at most SC_WIRE_MAX_SCHEMAS; returns how many. */
uint32_t sc_generator_schemas(const sc_generator *g, uint64_t *identities);

/* See sc_engine. Messages (`start->form` 1) are a byte for the role, UTF-8 and a zero each. */
uint8_t sc_generator_begin(sc_generator *g, const sc_wire_start *start, const uint8_t *prompt, uint32_t bytes,
                           const char **why);
sc_step sc_generator_step(sc_generator *g, uint8_t *out, uint32_t room, uint32_t *bytes, const char **why);

#endif
