"""``python watchers.py URL COUNT``: so many panels, each with its WebSocket and its two films, as browsers have them; they only read.

Prints "watching" when all of them get pictures; at the end of standard input how many bytes came.
"""

from __future__ import annotations

import asyncio
import os
import sys

import aiohttp


async def main() -> None:
    """Until standard input is closed."""
    url, count = sys.argv[1], int(sys.argv[2])
    if hasattr(os, "nice"):
        os.nice(19)  # other machines do this in a show
    got = [0] * (2 * count)

    async def film(session: aiohttp.ClientSession, what: str, place: int) -> None:
        async with session.get(f"{url}{what}.mjpg") as answer:
            async for chunk in answer.content.iter_any():
                got[place] += len(chunk)

    async def talk(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{url}panel", max_msg_size=0) as panel:
            async for _ in panel:
                pass

    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        work = [asyncio.create_task(talk(session)) for _ in range(count)]
        work += [
            asyncio.create_task(film(session, what, 2 * i + k))
            for i in range(count)
            for k, what in enumerate(("input", "output"))
        ]
        while not all(got):
            await asyncio.sleep(0.05)
        print("watching", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(sum(got), flush=True)
        for each in work:
            each.cancel()


asyncio.run(main())
