"""The OpenAPI document: FastAPI's, and what it cannot know. Nothing here runs for a request."""
