"""One file for each form: what it cannot do, said before work starts, and how it is written."""
