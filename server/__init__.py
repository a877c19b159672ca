"""The HTTP server: OpenAI routes, admin routes, the engine, experiments. Knows no training code."""
