"""A task that is split into subtasks, and one that is chained to it.

    DATABASE_URL=... python examples/tasks_planned.py

Both run here, by drain(); in production a worker does that: queue-pg worker my_module --queues default,work_queue
"""

from __future__ import annotations

import asyncio

from queue_pg import NewTask, Plan, Queue, Tasks
from queue_pg.testing import drain

tasks = Tasks()


@tasks.task(kind="subtask", queue="work_queue")
async def subtask(task_id: str, subtask_id: str, description: str, priority: int) -> dict[str, str]:
    return {"text": f"{description}: done"}


@tasks.task(kind="plan")
async def plan(description: str, planner: str, subtask_queue: str) -> Plan:
    return Plan(description.split(", "), queue=subtask_queue)


async def main() -> None:
    async with Queue() as queue:
        task = await queue.submit_task("Build a REST API")
        print(task.status, len(task.subtasks), task.subtasks[0])
        first, *_ = await drain(queue, tasks, max_jobs=4)
        print(first.kind, (await queue.get_task(task.subtask_ids[0])).output["text"])
        done = await queue.get_task(task.id)
        print(done.status, len(done.output))

        chained = await queue.chain_task(task.subtask_ids[3], "Shorten this:")
        print(chained.prompt.replace("\n\n", " ") if chained.prompt else "")
        await queue.cancel_task(chained.id)

        # Planned by whoever runs it: above; without a handler of our own by a model.
        task = await queue.submit_task(NewTask(description="open it, read it, answer it", planner="llm"))
        print(task.status, task.subtasks)
        await drain(queue, tasks)
        done = await queue.get_task(task.id)
        print(done.status, [each["text"] for each in done.output])


if __name__ == "__main__":
    asyncio.run(main())
