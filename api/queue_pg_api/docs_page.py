"""/docs: Swagger UI from the PyPI package `swagger-ui-bundle`, served from here, with no inline script."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Route
from swagger_ui_bundle import swagger_ui_path

from queue_pg_api.errors import not_found

# Swagger UI sets styles from script (allowed: that is not inline style) and draws its icons from data: URLs.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>queue-pg HTTP API</title>
    <link rel="stylesheet" href="docs/swagger-ui.css">
    <link rel="icon" type="image/png" href="docs/favicon-32x32.png">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="docs/swagger-ui-bundle.js"></script>
    <script src="docs/start.js"></script>
  </body>
</html>
"""

OWN_ASSETS = Path(__file__).parent / "static"
ASSETS: dict[str, tuple[Path, str]] = {
    "swagger-ui.css": (Path(str(swagger_ui_path)) / "swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": (Path(str(swagger_ui_path)) / "swagger-ui-bundle.js", "text/javascript"),
    "favicon-32x32.png": (Path(str(swagger_ui_path)) / "favicon-32x32.png", "image/png"),
    "start.js": (OWN_ASSETS / "docs.js", "text/javascript"),
}


async def docs_page(_: Request) -> Response:
    return HTMLResponse(PAGE, headers=HEADERS)


async def docs_asset(request: Request) -> Response:
    # A table, not a folder: no path that a client sends is ever joined to one of ours.
    path, media_type = ASSETS[request.path_params["name"]]
    return FileResponse(path, media_type=media_type, headers={**HEADERS, "cache-control": "max-age=3600"})


async def docs_asset_or_404(request: Request) -> Response:
    if request.path_params["name"] not in ASSETS:
        raise not_found("No such file.")
    return await docs_asset(request)


def docs_routes() -> list[BaseRoute]:
    return [
        Route("/docs", docs_page, methods=["GET"]),
        Route("/docs/{name}", docs_asset_or_404, methods=["GET"]),
    ]
