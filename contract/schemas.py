"""Arrow schemas of the tables that rooms exchange. One row is one document unless said otherwise."""

import hashlib

import pyarrow as pa

DOMAINS = ("web", "books", "code", "academic", "reference", "conversation")

ID = pa.binary(16)
SPANS = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))
"""Character (code point) offsets into `text`, half-open, sorted, disjoint."""

DOCUMENTS = pa.schema(
    [
        pa.field("id", ID, nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("locator", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("license", pa.string()),
        pa.field("language", pa.string()),
        pa.field("extra", pa.string()),  # JSON
    ]
)

DECISIONS = pa.schema(
    [
        pa.field("id", ID, nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),  # why it was dropped; null when kept
        pa.field("survivor", ID),  # the document kept in its place; null unless dropped as a duplicate
    ]
)

SPLIT = pa.schema(
    [
        pa.field("id", ID, nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, validation or test
        pa.field("trusted", pa.bool_(), nullable=False),
        pa.field("group", pa.string(), nullable=False),  # what stays on one side
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # byte offset in the decompressed stream
        pa.field("reason", pa.string(), nullable=False),
        pa.field("head", pa.binary(), nullable=False),  # its first bytes
    ]
)

TOKENS = pa.schema(
    [
        pa.field("id", ID, nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text_bytes", pa.int64(), nullable=False),  # UTF-8 bytes of the materialised text
        pa.field("num_tokens", pa.int32(), nullable=False),  # the end token included; here too, so that plans need not read the ids
        pa.field("tokens", pa.large_list(pa.uint32()), nullable=False),  # ids, the end token last
    ]
)


def blocks_schema(context: int) -> pa.Schema:
    """Packed training blocks: `context` + 1 ids; the first is never a target. Where documents begin, and which."""
    return pa.schema(
        [
            pa.field("tokens", pa.list_(pa.uint32(), context + 1), nullable=False),
            pa.field("starts", pa.list_(pa.int32()), nullable=False),  # offsets in the block where a document begins
            pa.field("documents", pa.list_(ID), nullable=False),  # every document in the block, in order
        ]
    )


def document_id(source: str, locator: str) -> bytes:
    """BLAKE2b-128 of (source name, locator), each with its length before it so that no two pairs meet."""
    name, place = source.encode(), locator.encode()
    return hashlib.blake2b(len(name).to_bytes(8, "big") + name + place, digest_size=16).digest()
