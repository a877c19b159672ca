"""The decoder for CPUs with matrix tiles (AMX): kernels in C, orchestration in Python.

bfloat16 only. Other machines and number formats run `server.engine.decoder`.
"""
