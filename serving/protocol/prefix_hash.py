"""Names of prompt prefixes: one digest per full KV block, chained over all tokens before it.

The engine's `block_manager.py` files its cached blocks under them and announces them in `Load`;
the front's `routing.py` looks for the engine that holds most of a prompt. Both must come to the
same digests, so they are made here only. Standard library only: the front has no numpy.
"""

import struct
from collections.abc import Iterator
from hashlib import blake2b

DIGEST_BYTES = 16  # blocks of equal digest are taken for equal, so nobody may find two by trying


def block_digest(parent: bytes, token_ids: list[int]) -> bytes:
    """Digest of a block with these tokens behind the prefix `parent` (empty for the first)."""
    tokens = struct.pack(f"<{len(token_ids)}i", *token_ids)
    return blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest()


def reusable_digests(token_ids: list[int], block_size: int) -> Iterator[bytes]:
    """Digests of the blocks that a cache may spare, first block first; each is made when asked for.

    At least one token is left to compute, because its logits are wanted.
    """
    digest = b""
    for end in range(block_size, len(token_ids), block_size):
        digest = block_digest(digest, token_ids[end - block_size : end])
        yield digest
