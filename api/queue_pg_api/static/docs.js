// Show openapi.json in Swagger UI. The bundled version 4 reads OpenAPI 3.0, ours is 3.1: say the few things that
// differ in 3.0's words, for the page only.
"use strict";

function asOpenApi30(node) {
  if (Array.isArray(node)) return node.map(asOpenApi30);
  if (node === null || typeof node !== "object") return node;
  const out = {};
  for (const [key, value] of Object.entries(node)) out[key] = asOpenApi30(value);
  if (Array.isArray(out.anyOf)) {
    const choices = out.anyOf.filter((choice) => choice.type !== "null");
    if (choices.length < out.anyOf.length) {
      out.nullable = true;
      delete out.anyOf;
      if (choices.length > 1) out.anyOf = choices;
      else if (choices[0].$ref) out.allOf = choices;
      else Object.assign(out, choices[0]);
    }
  }
  if ("const" in out) {
    out.enum = [out.const];
    delete out.const;
  }
  if (Array.isArray(out.examples)) {
    out.example = out.examples[0];
    delete out.examples;
  }
  return out;
}

fetch("openapi.json")
  .then((answer) => answer.json())
  .then((spec) => {
    const shown = asOpenApi30(spec);
    shown.openapi = "3.0.3";
    shown.servers = [{ url: new URL(".", window.location.href).pathname.replace(/\/$/, "") || "/" }];
    window.ui = SwaggerUIBundle({
      spec: shown,
      dom_id: "#swagger-ui",
      deepLinking: true,
      defaultModelsExpandDepth: 0,
      validatorUrl: null,
    });
  })
  .catch((error) => {
    document.getElementById("swagger-ui").textContent = `The API's description cannot be read: ${error}`;
  });
