#include "image.h"

#include <string.h>

#include "sha256.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model images are little-endian and are read in place: there is no reader for big-endian processors"
#endif

enum {
    FORMAT_AT = 4,
    SECTIONS_AT = 6,
    SIZE_AT = 8,
    RESERVED_AT = 12,
    HASH_AT = 16,
    TABLE_AT = 48,
    ENTRY_BYTES = 16 /* kind, offset, size, 0 */
};

static sc_status check_table(const uint8_t *bytes, uint32_t size, uint32_t sections) {
    uint32_t end = TABLE_AT + ENTRY_BYTES * sections; /* of what is taken so far */
    uint32_t last_kind = 0;
    for (uint32_t i = 0; i < sections; i++) {
        const uint8_t *entry = bytes + TABLE_AT + ENTRY_BYTES * i;
        uint32_t kind = sc_u32(entry), offset = sc_u32(entry + 4), length = sc_u32(entry + 8);
        /* kinds and offsets ascend, so that no kind comes twice and no byte belongs to two sections */
        if (kind <= last_kind || offset < end || offset % SC_IMAGE_ALIGNMENT != 0 || sc_u32(entry + 12) != 0) {
            return SC_DAMAGED;
        }
        if (offset > size || length > size - offset) {
            return SC_DAMAGED;
        }
        last_kind = kind;
        end = offset + length;
    }
    return SC_OK;
}

static sc_status check_hash(const uint8_t *bytes, uint32_t size) {
    sc_sha256 hash;
    uint8_t digest[32];
    sc_sha256_start(&hash);
    sc_sha256_add(&hash, bytes, HASH_AT);
    sc_sha256_add(&hash, bytes + TABLE_AT, size - TABLE_AT);
    sc_sha256_finish(&hash, digest);
    return memcmp(digest, bytes + HASH_AT, sizeof digest) == 0 ? SC_OK : SC_DAMAGED;
}

sc_status sc_image_open_trusted(sc_image *image, const void *data, size_t size) {
    const uint8_t *bytes = data;
    uint32_t image_size, sections;
    sc_status status;
    if (image == NULL || data == NULL) {
        return SC_BAD_ARGUMENT;
    }
    memset(image, 0, sizeof *image);
    if ((uintptr_t)data % SC_IMAGE_ALIGNMENT != 0) {
        return SC_MISALIGNED;
    }
    if (size < TABLE_AT) {
        return SC_TRUNCATED;
    }
    if (memcmp(bytes, "SCMI", 4) != 0) {
        return SC_NOT_AN_IMAGE;
    }
    if (sc_u16(bytes + FORMAT_AT) != SC_IMAGE_FORMAT) {
        return SC_UNKNOWN_FORMAT;
    }
    image_size = sc_u32(bytes + SIZE_AT);
    sections = sc_u16(bytes + SECTIONS_AT);
    if (image_size > size) {
        return SC_TRUNCATED;
    }
    if (sections > SC_IMAGE_MOST_SECTIONS || image_size < TABLE_AT + ENTRY_BYTES * sections ||
        sc_u32(bytes + RESERVED_AT) != 0) {
        return SC_DAMAGED;
    }
    status = check_table(bytes, image_size, sections);
    if (status == SC_OK) {
        image->bytes = bytes;
        image->size = image_size;
        image->sections = sections;
    }
    return status;
}

sc_status sc_image_open(sc_image *image, const void *data, size_t size) {
    sc_status status = sc_image_open_trusted(image, data, size);
    if (status == SC_OK) {
        status = check_hash(image->bytes, image->size);
        if (status != SC_OK) {
            memset(image, 0, sizeof *image);
        }
    }
    return status;
}

sc_section sc_image_section(const sc_image *image, uint32_t kind) {
    sc_section section = {NULL, 0};
    for (uint32_t i = 0; i < image->sections; i++) {
        const uint8_t *entry = image->bytes + TABLE_AT + ENTRY_BYTES * i;
        if (sc_u32(entry) == kind) {
            section.bytes = image->bytes + sc_u32(entry + 4);
            section.size = sc_u32(entry + 8);
        }
    }
    return section;
}
