"""One worker process: `python -m queue_pg_workers.main`, or called by the command itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from types import FrameType
from typing import Any

from queue_pg import logs
from queue_pg.errors import QueuePgError
from queue_pg.models import InstanceDefaults
from queue_pg.tracing import configure_from_environment
from queue_pg_workers.commands.hiding import hide_process
from queue_pg_workers.commands.runner import CommandRunner
from queue_pg_workers.commands.settings import CommandSettings
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.forks import handle_stop_signals
from queue_pg_workers.kinds import Handler
from queue_pg_workers.process_child import HANDLER_LOG_VARIABLE
from queue_pg_workers.providers.base import Provider
from queue_pg_workers.providers.choice import ProviderSettings, make_provider
from queue_pg_workers.target import load_handlers
from queue_pg_workers.webhooks.sender import WebhookSender, WebhookSettings
from queue_pg_workers.worker import HANDING_BACK_SECONDS, INTERRUPTION_SECONDS, Worker

log = logging.getLogger(__name__)

# In the environment and not on the command line: it holds the password of the database, and `ps` shows arguments.
CONFIG_VARIABLE = "QUEUE_PG_WORKER_PROCESS"
# How long the process may outlive the worker's own end: non-daemon threads and atexit functions of user code.
EXIT_SECONDS = 2.0
# When the grace is over a worker hands back what runs; one that has not ended then cannot obey.
LAST_RESORT_SECONDS = INTERRUPTION_SECONDS + HANDING_BACK_SECONDS + 1.8


def main() -> None:
    """Run the process that a supervisor has started."""
    config = config_from_json(os.environ.pop(CONFIG_VARIABLE))
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    sys.exit(work(config))


def work(config: WorkerConfig) -> int:
    """Work until signalled; return the exit code. Prints its errors."""
    logs.configure(config.log_format, config.log_level)
    os.environ[HANDLER_LOG_VARIABLE] = f"{config.log_format}:{config.log_level}"
    # Until there is a worker to stop: importing the user's module can take long.
    handle_stop_signals(_end_early)
    # For tasks that handlers submit, and for handlers in processes of their own.
    os.environ["DATABASE_URL"] = config.dsn
    commands: CommandRunner | None = None
    try:
        provider = make_provider(config.provider)
        sender = WebhookSender(config.webhooks)
        if config.commands.commands is not None:
            hide_process()
            commands = CommandRunner(config.commands)
        configure_from_environment("queue-pg-worker")
        handlers = load_handlers(config.target, provider, sender, commands)
        asyncio.run(_work(config, handlers, provider, sender))
    except QueuePgError as error:
        print_error(error)
        return error.exit_code
    except SystemExit as early:
        return int(early.code or 0)
    except Exception:
        log.exception("the worker met an error of its own")
        return 1
    finally:
        if commands is not None:
            commands.close()
    return 0


def _end_early(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def print_error(error: QueuePgError) -> None:
    hint = f" {error.hint}" if error.hint else ""
    sys.stderr.write(f"error: {error.message}{hint}\n")


def config_to_json(config: WorkerConfig) -> str:
    return json.dumps(asdict(config))


def config_from_json(text: str) -> WorkerConfig:
    fields: dict[str, Any] = json.loads(text)
    provider = ProviderSettings(**fields.pop("provider"))
    commands = CommandSettings(**fields.pop("commands"))
    defaults = InstanceDefaults(**fields.pop("defaults"))
    queues = tuple(fields.pop("queues"))
    webhooks: dict[str, Any] = fields.pop("webhooks")
    allowed = tuple(webhooks.pop("allow_private"))
    return WorkerConfig(
        **fields,
        queues=queues,
        provider=provider,
        commands=commands,
        defaults=defaults,
        webhooks=WebhookSettings(**webhooks, allow_private=allowed),
    )


async def _work(
    config: WorkerConfig, handlers: Mapping[str, Handler], provider: Provider, sender: WebhookSender
) -> None:
    worker = Worker(config, handlers)
    # What has been imported stays: the garbage collector need not walk through it while jobs run.
    gc.collect()
    gc.freeze()
    order = _OrderToStop(worker)
    handle_stop_signals(order)
    try:
        await worker.run()
    finally:
        order.done()
        _exit_within(EXIT_SECONDS)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(provider.aclose(), 1)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(sender.aclose(), 1)


class _OrderToStop:
    """The handler of SIGTERM and SIGINT: the first asks the worker to finish, the second to hand back and go.

    Should a handler block the event loop, so that the worker cannot obey, a thread hands the jobs back and ends
    the process a little after the worker should have ended it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._signals = 0
        self._last_resort: threading.Timer | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        now = self._signals > 1
        self._loop.call_soon_threadsafe(lambda: self._worker.stop(now=now))
        grace = 0 if now else self._worker.config.grace_seconds
        self.done()
        self._last_resort = threading.Timer(grace + LAST_RESORT_SECONDS, self._give_up)
        self._last_resort.daemon = True
        self._last_resort.start()

    def done(self) -> None:
        if self._last_resort is not None:
            self._last_resort.cancel()

    def _give_up(self) -> None:
        log.error("a handler blocks the event loop; the worker ends without it")
        _exit_within(EXIT_SECONDS)
        self._worker.hand_back_from_thread()
        os._exit(0)


def _exit_within(seconds: float) -> None:
    """End the process so much later, whoever holds it up."""

    def end() -> None:
        logging.shutdown()
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _end_with_supervisor() -> None:
    """Wait for the supervisor's death, which closes our stdin; nobody would restart or stop us any more."""
    # Not by sys.stdin, whose lock a thread must not hold while the interpreter shuts down.
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    # Two orders to stop, so at once; and two numbers, because equal pending signals merge into one.
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
