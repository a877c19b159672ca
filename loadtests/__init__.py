"""Load tests: Locust scenarios that speak HTTP only. One file per scenario; see README.md here.

Nothing here imports another package of the project, so that it measures any server that speaks
OpenAI's protocol.
"""
