"""What the processes that edgezoo starts see of its environment."""

from __future__ import annotations

import os

#: Variables that hold the token of the hub.
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def without_tokens() -> dict[str, str]:
    """Returns the environment without the hub's token.

    No process that edgezoo starts asks the hub, and each runs code of others: a worker and the
    testkit that of a plugin, pip that of a package which is built.
    """
    return {name: value for name, value in os.environ.items() if name not in TOKENS}
