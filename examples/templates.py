"""Jobs submitted by the name of a template, with typed variables.

DATABASE_URL=postgresql://app@localhost/app python examples/templates.py
"""

from __future__ import annotations

import asyncio

from queue_pg import InvalidJob, Queue, Tasks
from queue_pg.testing import drain

tasks = Tasks()


@tasks.task(queue="greetings")
async def greet(text: str, times: int) -> str:
    return " ".join([text] * times)


async def main() -> None:
    async with Queue() as queue:
        template = await queue.put_template(
            "greeting",
            "greet",
            {"text": "Hello, {{ variables.who }}!", "times": "{{ variables.times }}"},
            variables={"who": "string", "times": {"type": "integer", "default": 1, "maximum": 3}},
            queue="greetings",
        )
        print(f"{template.name} has the variables {', '.join(template.variables)}")
        one = await queue.submit_template("greeting", {"who": "Ada"})
        two = await queue.submit_template("greeting", {"who": "Bob", "times": 2}, priority=5)
        await drain(queue, tasks, queues=["greetings"])
        for made in (one, two):
            print(await queue.result(made.id, timeout=30))
        try:
            await queue.submit_template("greeting", {"times": 4, "who": "Eve"})
        except InvalidJob as error:
            print(f"refused: {error}")


asyncio.run(main())
