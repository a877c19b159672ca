"""Which version is better: experiments, their sticky split, and feedback on answers."""
