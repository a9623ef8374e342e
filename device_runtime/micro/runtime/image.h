/* The container of a model image: a header, a table of sections, and the sections. docs/explained/model-image.md
 * describes it; converters/emit/c/image.py writes it. An image is read where it lies, in flash or in a mapped file.
 */
#ifndef SC_IMAGE_H
#define SC_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "sc_status.h"

#define SC_IMAGE_FORMAT 1u
#define SC_IMAGE_ALIGNMENT 16u /* of the image, and of each section in it */
#define SC_IMAGE_MOST_SECTIONS 32u

/* What is in a section. A reader passes over kinds that it does not know. */
enum {
    SC_SECTION_GRAPH = 1,     /* the call list and the arena's plan */
    SC_SECTION_CONSTANTS = 2, /* weights, tables and scales in the kernels' layout */
    SC_SECTION_PREFIX = 3,    /* kv_cache of the fixed prefix */
    SC_SECTION_SELF_TEST = 4, /* tokens and a digest of the logits that follow them */
    SC_SECTION_TOKENIZER = 16,
    SC_SECTION_CHAT = 17, /* what comes before and after each role's words */
    SC_SECTION_SCHEMA = 18, /* the table that holds answers to a JSON schema */
    SC_SECTION_IDENTITY = 19, /* u32 count, u32 tokens that end an answer, the graph's SHA-256, the bundle's name */
    SC_SECTION_CALIBRATION = 20 /* u32 count; for each schema u64 identity, u32 count, f32 temperatures of its fields */
};

typedef struct {
    const uint8_t *bytes; /* at a multiple of 16; NULL for a section that the image does not have */
    uint32_t size;        /* bytes */
} sc_section;

typedef struct {
    const uint8_t *bytes;
    uint32_t size;
    uint32_t sections;
} sc_image;

/* Check a whole image: format, table, and the SHA-256 over everything else. Nothing of `image` may be used unless
 * SC_OK is returned. `size` may be larger than the image, as a flash partition is. */
sc_status sc_image_open(sc_image *image, const void *bytes, size_t size);

/* The same without the hash, for a caller that has just checked the file's own hash, as a bundle's reader does. */
sc_status sc_image_open_trusted(sc_image *image, const void *bytes, size_t size);

/* The section of one kind. */
sc_section sc_image_section(const sc_image *image, uint32_t kind);

/* Little-endian numbers at any address; the same instruction as a plain load where the target allows it. */
static inline uint32_t sc_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline uint32_t sc_u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }

#endif
