"""A DNS server, over UDP, for the records of Cloud DNS's public zones: what Let's Encrypt is told of a domain.

It is asked for what Docker's own DNS does not know, and refuses whatever is in no zone. https://www.rfc-editor.org/rfc/rfc1035
"""

import asyncio
import re
import struct
from collections.abc import Callable

_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 16: "TXT", 28: "AAAA", 257: "CAA"}
_HEADER = struct.Struct(">HHHHHH")
_STRINGS = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ANSWER, _AUTHORITATIVE, _REFUSED = 0x8000, 0x0400, 5
_POINTER_TO_NAME, _INTERNET, _TTL_SECONDS = 0xC00C, 1, 0


class NameServer(asyncio.DatagramProtocol):
    """Answers by `lookup`, from a name with its final dot and a type to the data, None where the name is in no zone."""

    def __init__(self, lookup: Callable[[str, str], list[str] | None]) -> None:
        self._lookup = lookup

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers go through."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one question; what is none gets no answer."""
        answer = self.answer(data)
        if answer and isinstance(self._transport, asyncio.DatagramTransport):
            self._transport.sendto(answer, addr)

    def answer(self, data: bytes) -> bytes | None:
        """Return the answer to a message, None where it is not a question."""
        try:
            identity, flags, count, *_ = _HEADER.unpack_from(data)
            name, end = _name(data, _HEADER.size)
            number, _ = struct.unpack_from(">HH", data, end)
        except (struct.error, IndexError, UnicodeDecodeError):
            return None
        if flags & _ANSWER or count != 1:
            return None
        question = data[_HEADER.size : end + 4]
        found = self._lookup(name.lower(), _TYPES.get(number, ""))
        records = [encoded for text in found or [] if (encoded := _encoded(number, text)) is not None]
        status = _ANSWER | (flags & 0x7900) | (_REFUSED if found is None else _AUTHORITATIVE)
        head = _HEADER.pack(identity, status, 1, len(records), 0, 0)
        place = struct.pack(">HHHI", _POINTER_TO_NAME, number, _INTERNET, _TTL_SECONDS)
        return head + question + b"".join(place + struct.pack(">H", len(one)) + one for one in records)


def _name(data: bytes, start: int) -> tuple[str, int]:
    """Return a question's name, which has no pointers, and where it ends."""
    labels = []
    while length := data[start]:
        labels.append(data[start + 1 : start + 1 + length].decode("ascii"))
        start += 1 + length
    return ".".join([*labels, ""]), start + 1


def _encoded(number: int, text: str) -> bytes | None:
    """Return a record's data for the wire, None for types that nobody asks for here."""
    match _TYPES.get(number):
        case "A":
            return bytes(map(int, text.split(".")))
        case "TXT":
            strings = [one.replace('\\"', '"').encode() for one in _STRINGS.findall(text)]
            return b"".join(bytes([len(one)]) + one for one in strings)
    return None
