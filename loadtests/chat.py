"""Chat with one model: ``locust -f loadtests/chat.py --host URL [--model ID]``.

Works against any OpenAI-compatible server.
"""

from loadtests.users import StreamingUser


class Chat(StreamingUser):
    """Asks ``--model``, or the first model that the server lists."""
