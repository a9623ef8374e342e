/* stonechat: the engine that runs a model image.
 *
 * No heap, no operating system, no static state: everything lies in memory that the caller gives, and two models may be
 * open at a time. The image is read where it lies. A function that can fail returns an sc_status and changes nothing
 * when it is not SC_OK, except where it says so. Nothing here is safe to call for one model from two threads at a time.
 */
#ifndef STONECHAT_H
#define STONECHAT_H

#include <stddef.h>
#include <stdint.h>

#include "sc_status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sc_model sc_model;

/* What an image needs, and what it holds. */
typedef struct {
    size_t arena_bytes;     /* for activations and for the sc_model itself */
    size_t kv_cache_bytes;  /* keys and values of all positions; may lie in slower memory than the arena */
    uint32_t context;       /* positions of the kv_cache, those of the prefix among them */
    uint32_t vocabulary;    /* tokens are 0 … vocabulary - 1 */
    uint32_t prefix;        /* positions that the fixed prefix takes */
} sc_needs;

/* Logits as the last layer leaves them: value = (stored - zero_point) * scale. */
typedef struct {
    const void *stored; /* int8_t or int16_t [count], in the arena: valid until the next sc_feed */
    uint32_t count;     /* the vocabulary */
    uint32_t bits;      /* 8 or 16 */
    float scale;
    int32_t zero_point;
} sc_logits;

/* Flags of sc_open and sc_measure. */
enum {
    SC_CHECK_HASH = 0,
    SC_TRUST_HASH = 1 /* the caller has checked the file's own hash just now; everything else is checked anyway */
};

/* What the image at `image` needs. It is checked in full; SC_DAMAGED, SC_TRUNCATED … say what is wrong with it. */
sc_status sc_measure(const void *image, size_t image_bytes, unsigned flags, sc_needs *needs);

/* Open an image. `image`, `arena` and `kv_cache` start at multiples of 16 and stay as they are until the model is not
 * used any more; there is nothing to close. On success *model lies in the arena and is right after the prefix. */
sc_status sc_open(sc_model **model, const void *image, size_t image_bytes, unsigned flags, void *arena,
                  size_t arena_bytes, void *kv_cache, size_t kv_cache_bytes);

/* Take in one token. SC_CONTEXT_FULL: the kv_cache has no free position; sc_rewind makes room. */
sc_status sc_feed(sc_model *model, uint32_t token);

/* The logits after the last token that was fed. */
sc_logits sc_read_logits(const sc_model *model);

/* The logit of one token as a number; 0 for a token that the vocabulary does not have. */
float sc_logit(const sc_model *model, uint32_t token);

/* The token with the largest logit, the first of several. */
uint32_t sc_greedy(const sc_model *model);

/* Chooses the next token from the logits, as a sampler does. Returns a token below the vocabulary. */
typedef uint32_t (*sc_choose)(const sc_model *model, void *context);

/* Gets each new token before it is fed. Returns 0 to go on, anything else to stop. */
typedef int (*sc_on_token)(uint32_t token, void *context);

/* Why sc_generate came back. */
typedef enum { SC_STOPPED, SC_LENGTH } sc_finish;

/* Feed a prompt, then choose and feed tokens until `on_token` stops it or `max_new` tokens are there.
 *
 * `choose` may be NULL for the largest logit. The token that `on_token` stopped at is not fed. SC_CONTEXT_FULL when the
 * context is full; the tokens until then have been delivered. */
sc_status sc_generate(sc_model *model, const uint32_t *prompt, size_t prompt_tokens, size_t max_new, sc_choose choose,
                      void *choose_context, sc_on_token on_token, void *on_token_context, sc_finish *finish);

/* Positions that the kv_cache holds now, those of the prefix among them. */
uint32_t sc_position(const sc_model *model);

/* Forget all positions from `position` on. Positions of the prefix cannot be forgotten: it stops there. */
void sc_rewind(sc_model *model, uint32_t position);

/* Bytes that sc_save writes. */
size_t sc_saved_bytes(const sc_model *model);

/* Write the kv_cache and the position; sc_restore takes them in again, on any board with the same image. */
sc_status sc_save(const sc_model *model, void *to, size_t bytes);
sc_status sc_restore(sc_model *model, const void *from, size_t bytes);

/* Run the golden test of the image: the kernels of this build compute on this processor what they computed when the
 * image was made. Rewinds to the prefix. SC_MISSING_SECTION: the image has none. */
sc_status sc_self_test(sc_model *model);

/* Called after each call of the call list, with the arena as it is then: for tests that compare tensors, for
 * profiles, and for a watchdog. */
typedef void (*sc_after_call)(uint32_t call, const void *arena, void *context);

/* sc_feed, and `after` after each call. */
sc_status sc_feed_watched(sc_model *model, uint32_t token, sc_after_call after, void *context);

#ifdef __cplusplus
}
#endif
#endif
