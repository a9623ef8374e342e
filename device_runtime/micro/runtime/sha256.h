/* SHA-256 (FIPS 180-4). */
#ifndef SC_SHA256_H
#define SC_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t bytes; /* hashed so far */
    uint8_t block[64];
} sc_sha256;

void sc_sha256_start(sc_sha256 *hash);
void sc_sha256_add(sc_sha256 *hash, const void *bytes, size_t size);
void sc_sha256_finish(sc_sha256 *hash, uint8_t digest[32]);

#endif
