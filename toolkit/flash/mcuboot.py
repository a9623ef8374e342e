"""Images for MCUboot: are they whole, and by which hash do boot loader and server call them.

Format: https://docs.mcuboot.com/design.html#image-format; smpclient reads the header and the tags.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass

from device_runtime.errors import ImageError

__all__ = ["SignedImage", "read_image"]

_HASHES = {0x10: hashlib.sha256, 0x11: hashlib.sha384, 0x12: hashlib.sha512}
_HEADER_BYTES = 32
_ENCRYPTED = 0x04 | 0x08  # of the header's flags: with AES-128, with AES-256


@dataclass(frozen=True)
class SignedImage:
    """What has to be known of an image."""

    version: str  # 1.2.3+4, as imgtool writes it
    digest: bytes  # of header, program and protected tags


def read_image(data: bytes, name: str) -> SignedImage:
    """Read an image's header and check its hash. Its signature is checked by MCUboot, which has the key.

    The hash of an encrypted image is that of what MCUboot decrypts: it cannot be checked here.

    Raises:
        ImageError: it is no image as imgtool makes it, or it is truncated or damaged.
    """
    from smpclient import mcuboot

    file = io.BytesIO(data)
    try:
        header = mcuboot.ImageHeader.load_from(file)
        end = header.hdr_size + header.img_size + header.protect_tlv_size
        if header.hdr_size < _HEADER_BYTES or end > len(data):
            raise ImageError(f"{name} has {len(data)} bytes; its header says at least {end}: it is truncated.")
        file.seek(end)
        info = mcuboot.ImageTLVInfo.load_from(file, mcuboot.IMAGE_TLV_INFO_MAGIC)
        tags = info.load_tlvs_from(file)
    except (mcuboot.MCUBootImageError, struct.error, ValueError, OverflowError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} is not a whole MCUboot image ({error}); sign it with `imgtool sign`.") from None
    for tag in tags:
        if (algorithm := _HASHES.get(int(tag.header.type))) is not None:
            digest = bytes(tag.value)
            if len(digest) != algorithm().digest_size:
                raise ImageError(f"{name} has a hash of {len(digest)} bytes: it is damaged.")
            if not header.flags & _ENCRYPTED and algorithm(data[:end]).digest() != digest:
                raise ImageError(f"{name} does not have the hash that it says: it is damaged.")
            version = header.ver
            return SignedImage(f"{version.major}.{version.minor}.{version.revision}+{version.build_num}", digest)
    raise ImageError(f"{name} has no hash among its tags; sign it with `imgtool sign`.")
