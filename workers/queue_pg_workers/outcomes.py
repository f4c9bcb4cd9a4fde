"""Outcomes that the worker decides; those that handlers return or raise are made by `queue_pg.outcomes`."""

from __future__ import annotations

from queue_pg.errors import InvalidJob
from queue_pg.models import LeasedJob, Outcome
from queue_pg.outcomes import discarded
from queue_pg.payloads import encode_json, error_object, sanitise_text


def payload_unreadable(job: LeasedJob, reason: str) -> Outcome:
    return discarded(job.id, job.lease_token, "payload_unreadable", reason)


def payload_invalid(job: LeasedJob, invalid: InvalidJob) -> Outcome:
    return discarded(job.id, job.lease_token, "payload_invalid", invalid.message, field=invalid.field)


def arguments_unpicklable(job: LeasedJob, error: BaseException) -> Outcome:
    message = f"an argument cannot be handed to another process: {sanitise_text(error, 500)}"
    return discarded(job.id, job.lease_token, "arguments_unpicklable", message)


def result_refused(job: LeasedJob, reason: str) -> Outcome:
    return discarded(job.id, job.lease_token, "result_invalid", f"the database refuses the result: {reason}")


def timed_out(job: LeasedJob) -> Outcome:
    message = f"the attempt ran longer than its timeout of {job.timeout_seconds:g} s"
    error = encode_json(error_object("timeout", message, timeout_seconds=job.timeout_seconds), field="error")
    return Outcome(id=job.id, lease_token=job.lease_token, outcome="fail", error=error)


def worker_error(job: LeasedJob, error: Exception) -> Outcome:
    message = f"the worker could not run the handler: {type(error).__name__}: {sanitise_text(error)}"
    stored = encode_json(error_object("worker_error", message), field="error")
    return Outcome(id=job.id, lease_token=job.lease_token, outcome="fail", error=stored)


def released(job: LeasedJob) -> Outcome:
    return Outcome(job.id, job.lease_token, "release")
