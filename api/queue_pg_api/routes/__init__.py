"""One module per resource; each declares its endpoints in an `Endpoints` table that also makes the OpenAPI document."""
