"""A job with a file as input leaves another one. DATABASE_URL names the database."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from queue_pg import Queue


async def upper(lines: bytes) -> AsyncIterator[bytes]:
    for line in lines.splitlines(keepends=True):
        yield line.upper()


async def main() -> None:
    async with Queue() as queue:
        job = await queue.submit("upper", queue="examples")
        await queue.put_artifact(job.id, "input/words.txt", b"one\ntwo\n")

        # What a worker in any program does; a handler has job.open_artifact and job.artifact for it.
        [claimed] = await queue.claim("an example", ["examples"])
        words = await (await queue.open_artifact(claimed.id, "input/words.txt")).read()
        made = await queue.put_artifact(claimed.id, "output/words.txt", upper(words), lease_token=claimed.lease_token)
        await queue.complete(claimed.id, claimed.lease_token, {"sha256": made.sha256})

        for artifact in await queue.artifacts(job.id):
            print(artifact.name, artifact.size, artifact.content_type, artifact.attempt)
        reader = await queue.open_artifact(job.id, "output/words.txt")
        with tempfile.TemporaryDirectory() as folder:
            path = await reader.save(Path(folder) / "words.txt")
            print(path.read_bytes())


if __name__ == "__main__":
    asyncio.run(main())
