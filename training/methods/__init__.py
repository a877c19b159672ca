"""What is trained and in which form it leaves the run: one small file per method.

``method.Method`` is what the loop and the pipeline ask of each.
"""
