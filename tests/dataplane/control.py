"""A control plane on a socket, as small as the data plane needs it."""

from __future__ import annotations

import asyncio

from contract.messages import decode_report

HEAD = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n"


class ControlSocket:
    """A control plane on a socket: it hands out one table and keeps the reports."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reports = []
        self.tokens = set()
        self.url = ""

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                self.tokens.add(lines["authorization"])
                content = await reader.readexactly(int(lines.get("content-length", 0)))
                if head.startswith("post"):
                    self.reports.append(decode_report(content))
                    writer.write(HEAD % (204, 0))
                else:
                    writer.write(HEAD % (200, len(self.data)) + self.data)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
