"""Make the OpenAPI 3.1 document from the declared endpoints and the pydantic models."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from queue_pg_api.answers import ErrorAnswer
from queue_pg_api.endpoints import Endpoint
from queue_pg_api.schemas import NoBody

REF_TEMPLATE = "#/components/schemas/{model}"

REFUSALS = {
    403: "A write sent by a browser for a page of another origin",
    404: "No such job, queue, schedule or limit",
    408: "The body stopped arriving",
    409: "The job's state or lease does not allow it, or the name is taken",
    413: "The body is too large",
    415: "The body is compressed",
    416: "The range begins after the end",
    422: "Bad input; `field` names it",
    500: "A fault of the server",
    503: "The database is away; try again after `Retry-After`",
}
SUCCESSES = {
    200: "OK",
    201: "Created",
    204: "Nothing to do, or done",
    206: "A part",
    304: "The client has it",
    307: "Moved",
}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI document for these endpoints."""
    schemas, components = _schemas(endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "queue-pg",
            "version": package_version(),
            "description": "A durable queue for LLM work on the Postgres you already run.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def package_version() -> str:
    try:
        return version("queue-pg")
    except PackageNotFoundError:  # run from a copy of the sources that was never installed
        return "0"


Schemas = Mapping[Any, dict[str, Any]]


def _schemas(endpoints: Sequence[Endpoint]) -> tuple[Schemas, dict[str, Any]]:
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ErrorAnswer, "serialization"): None}
    for endpoint in endpoints:
        for model in endpoint.raw_models:
            wanted[(model, "validation")] = None
        if endpoint.body is not NoBody:
            wanted[(endpoint.body, "validation")] = None
        for answer in endpoint.answers.values():
            if answer is not None:
                wanted[(answer, "serialization")] = None
    schemas, definitions = models_json_schema(list(wanted), ref_template=REF_TEMPLATE)
    return schemas, definitions.get("$defs", {})


def _operation(endpoint: Endpoint, path: str, schemas: Schemas) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(endpoint.handler) or endpoint.name).partition("\n")
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "tags": [endpoint.tag],
        "summary": summary.rstrip("."),
        "responses": _responses(endpoint, schemas),
    }
    if description.strip():
        operation["description"] = description.strip()
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += _query_parameters(endpoint.query)
    if endpoint.name == "submit_jobs":
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The `unique_key` of a job that has none; of many, each gets this key and its place.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        )
    if endpoint.event_stream:
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "The number of the last event seen; wins over `after`.",
                "schema": {"type": "integer", "minimum": 0},
            }
        )
    if parameters:
        operation["parameters"] = parameters
    if body := _request_body(endpoint, schemas):
        operation["requestBody"] = body
    return operation


def _query_parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    # Inlined: a query has flat fields, and parameters have their own place for the description.
    schema = query.model_json_schema(ref_template=REF_TEMPLATE)
    definitions = schema.get("$defs", {})
    found: list[dict[str, Any]] = []
    for name, described in schema.get("properties", {}).items():
        field = {key: value for key, value in described.items() if key not in {"title", "description"}}
        # A parameter is left out rather than sent as null.
        choices = [choice for choice in field.pop("anyOf", []) if choice != {"type": "null"}]
        for choice in choices:
            field |= definitions[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
        if field.get("default", ...) is None:
            del field["default"]
        field.pop("title", None)
        field.pop("description", None)
        parameter = {"name": name, "in": "query", "required": False, "schema": field}
        if "description" in described:
            parameter["description"] = described["description"]
        found.append(parameter)
    return found


def _request_body(endpoint: Endpoint, schemas: Schemas) -> dict[str, Any] | None:
    if endpoint.raw_body:
        content = {media_type: {"schema": schema} for media_type, schema in endpoint.raw_body.items()}
        return {"required": True, "content": content}
    if endpoint.body is NoBody:
        return None
    required = any(field.is_required() for field in endpoint.body.model_fields.values())
    return {"required": required, "content": {"application/json": {"schema": schemas[(endpoint.body, "validation")]}}}


def _responses(endpoint: Endpoint, schemas: Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in endpoint.answers.items():
        response: dict[str, Any] = {"description": SUCCESSES.get(status) or REFUSALS[status]}
        if answer is not None:
            response["content"] = {"application/json": {"schema": schemas[(answer, "serialization")]}}
            if endpoint.event_stream:
                response["content"]["text/event-stream"] = {"schema": {"type": "string"}}
        responses[str(status)] = response
    error = {"application/json": {"schema": schemas[(ErrorAnswer, "serialization")]}}
    for status in sorted(set(endpoint.refuses) - set(endpoint.answers)):
        responses[str(status)] = {"description": REFUSALS[status], "content": error}
    return responses
