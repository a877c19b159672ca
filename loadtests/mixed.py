"""Requests for many adapters at once: ``locust -f loadtests/mixed.py --host URL``.

Takes turns over ``--models a@1,b@1,…``, or over everything in ``/v1/models``, the base included.
"""

from loadtests.users import Rotation, StreamingUser

rotation = Rotation()


class Mixed(StreamingUser):
    """Each request goes to the next model in turn, so neighbours in a batch differ."""

    def next_model(self) -> str:
        named = [model.strip() for model in self.options.models.split(",") if model.strip()]
        return rotation.pick(named or self.listed_models())
