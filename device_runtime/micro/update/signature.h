/* Ed25519 (RFC 8032): checking, not signing. */
#ifndef SC_SIGNATURE_H
#define SC_SIGNATURE_H

#include <stdint.h>

/* Whether `signature` is that of `key` over the message. */
int sc_signature_is_good(const uint8_t signature[64], const uint8_t key[32], const uint8_t *message, uint32_t bytes);

/* SHA-512 of two pieces one after the other. */
void sc_sha512(const uint8_t *first, uint32_t first_bytes, const uint8_t *second, uint32_t second_bytes,
               uint8_t digest[64]);

#endif
