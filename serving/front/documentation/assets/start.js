// Relative addresses: the page also works behind a path prefix. No online validator is asked.
SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "../api-doc/openapi.json",
  validatorUrl: null,
  deepLinking: true,
});
