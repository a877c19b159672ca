"""Measure the engine in process, beside what the machine can do at best in the same run.

    machine   the ceilings: read bandwidth, rate of matrix products (a process of its own)
    floors    the arithmetic between a base, a load and those ceilings; no tensors
    shape     a base with random weights at a real shape, kept under the home
    traffic   requests against one engine, and what they took
    rows      the figures, each with its aim; one function measures one row or a group of them
    zipf, hotload, memory   the rows that need more than a load
    report    the table and the JSON
    command   all of it in order

Nothing here is imported by the server.
"""
