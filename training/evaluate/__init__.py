"""Suites of tasks: what an adapter can do beside its base, with confidence intervals.

``suite`` and ``questions`` are light and run before any model is loaded; ``ask`` asks one model;
``compare`` makes ``results`` of the answers; ``report`` and ``plots`` write them down.
"""
