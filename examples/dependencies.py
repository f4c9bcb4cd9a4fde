"""Jobs that wait for others: one page is fetched, two jobs read it at once, the last one takes what both have made.

DATABASE_URL names the database; it needs `queue-pg migrate` once.
"""

import asyncio

from queue_pg import NewJob, Parent, Queue, Tasks
from queue_pg.testing import drain

tasks = Tasks()


@tasks.task(queue="pages")
async def fetch(url: str) -> dict[str, str]:
    return {"text": f"All about {url}"}


@tasks.task(queue="pages")
async def shout(text: str) -> str:
    return text.upper()


@tasks.task(queue="pages")
async def count(text: str) -> int:
    return len(text.split())


@tasks.task(queue="pages")
async def report(title: str, words: int) -> str:
    return f"{title} ({words} words)"


async def main() -> None:
    async with Queue() as queue:
        text = {"text": "{{ parents.page.output.text }}"}
        *_, last = await queue.submit_graph(
            [
                NewJob(kind="fetch", queue="pages", key="page", payload={"url": "example.org"}),
                NewJob(kind="shout", queue="pages", key="title", payload=text, depends_on=["page"]),
                NewJob(kind="count", queue="pages", key="words", payload=text, depends_on=["page"]),
                NewJob(
                    kind="report",
                    queue="pages",
                    payload={"title": "{{ parents.title.output }}", "words": "{{ parents.words.output }}"},
                    depends_on=["title", Parent("words", on_unsuccessful="fail")],
                ),
            ]
        )
        print("the report is", (await queue.get(last.id)).state)
        await drain(queue, tasks, queues=["pages"])  # in production: queue-pg worker
        print(await queue.result(last.id))


if __name__ == "__main__":
    asyncio.run(main())
