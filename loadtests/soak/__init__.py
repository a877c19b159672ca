"""The soak: everything that happens to a server in its life, all at once, for twenty minutes.

``python -m loadtests.soak`` (`make soak`) starts a server of its own and speaks HTTP with it. Every
request ends in one of three legal ways or is *lost*; a single lost one fails the run.
"""
