"""Bytes on their way into a bucket: multipart bodies, files, checksums."""

import base64
import email.parser
import hashlib
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import google_crc32c

from emulator.errors import ApiError

_CHUNK_BYTES = 1 << 20


def parse_json(content: bytes) -> dict[str, Any]:
    """Return the JSON object in a body, or nothing for an empty one; raises `ApiError` 400."""
    try:
        value = json.loads(content or b"{}")
    except ValueError as error:
        raise ApiError(400, f"Parse Error: {error}", reason="parseError") from error
    if not isinstance(value, dict):
        raise ApiError(400, "Parse Error: an object is expected.", reason="parseError")
    return value


def parse_multipart(body: bytes, content_type: str) -> tuple[dict[str, Any], bytes]:
    """Return metadata and content of a `multipart/related` upload; lines may end in CR LF or, as Google allows, LF."""
    header = email.parser.Parser().parsestr(f"Content-Type: {content_type}\n\n")
    boundary = header.get_boundary()
    if not boundary:
        raise ApiError(400, "A multipart upload needs a boundary.")
    newline = b"\r\n" if body.lstrip().startswith(b"--" + boundary.encode() + b"\r\n") else b"\n"
    parts = (newline + body.lstrip()).split(newline + b"--" + boundary.encode())
    if len(parts) < 4 or not parts[3].startswith(b"--"):
        raise ApiError(400, "Malformed multipart body: metadata, content and an end are expected.")
    # After the boundary the rest of its line, then headers, an empty line and the part itself.
    (_, _, metadata), (head, _, content) = (part.partition(newline * 2) for part in parts[1:3])
    described = parse_json(metadata)
    kind = email.parser.BytesParser().parsebytes(head.strip() + b"\n\n").get("Content-Type")
    if kind:
        described.setdefault("contentType", kind)
    return described, content


async def one(content: bytes) -> AsyncIterator[bytes]:
    """Yields one chunk."""
    yield content


async def read(file: pathlib.Path) -> AsyncIterator[bytes]:
    """Yields a file's content."""
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


async def append(file: pathlib.Path, chunks: AsyncIterator[bytes], offset: int | None = None) -> None:
    """Writes chunks at an offset of a file, by default at its end, making the file if need be."""
    with file.open("r+b" if file.exists() else "w+b") as target:
        target.seek(*((0, 2) if offset is None else (offset, 0)))
        async for chunk in chunks:
            target.write(chunk)


def checksums(file: pathlib.Path) -> tuple[int, str, str]:
    """Return size, MD5 and CRC32C of a file, the checksums in base64 as Cloud Storage shows them."""
    size, md5, crc = 0, hashlib.md5(usedforsecurity=False), 0
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            md5.update(chunk)
            crc = google_crc32c.extend(crc, chunk)
    return size, base64.b64encode(md5.digest()).decode(), base64.b64encode(crc.to_bytes(4, "big")).decode()
