"""Outcomes that the worker decides; those that handlers return or raise are made by `queue_pg.outcomes`."""

from __future__ import annotations

from queue_pg.errors import InvalidJob
from queue_pg.models import ClaimedJob, Outcome
from queue_pg.outcomes import discarded
from queue_pg.payloads import encode_json, error_object


def payload_unreadable(job: ClaimedJob, reason: str) -> Outcome:
    return discarded(job.id, job.lease_token, "payload_unreadable", reason)


def payload_invalid(job: ClaimedJob, invalid: InvalidJob) -> Outcome:
    return discarded(job.id, job.lease_token, "payload_invalid", invalid.message, field=invalid.field)


def result_refused(job: ClaimedJob, reason: str) -> Outcome:
    return discarded(job.id, job.lease_token, "result_invalid", f"the database refuses the result: {reason}")


def timed_out(job: ClaimedJob) -> Outcome:
    message = f"the attempt ran longer than its timeout of {job.timeout_seconds:g} s"
    error = encode_json(error_object("timeout", message, timeout_seconds=job.timeout_seconds), field="error")
    return Outcome(id=job.id, lease_token=job.lease_token, outcome="fail", error=error)


def released(job: ClaimedJob) -> Outcome:
    return Outcome(id=job.id, lease_token=job.lease_token, outcome="release")
