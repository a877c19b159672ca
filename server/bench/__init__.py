"""Measure the engine in process, beside what the machine can do at best in the same run.

    machine   the ceilings: read bandwidth, rate of matrix products (a process of its own)
    floors    the arithmetic between a base, a load and those ceilings; no tensors
    shape     a base with random weights at a real shape, kept under the home
    traffic   requests against one engine, and what they took
    figure    one measured figure beside its floor and its aim
    loads     the rows that are loads: first token, streams, adapters, second turns
    zipf, hotload, memory   the rows that need more than that
    run       what all rows of one run share
    report    the table and the JSON
    command   all of it in order; cli its options

Nothing here is imported by the server.
"""
