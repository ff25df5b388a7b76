"""What the processes that edgezoo starts see of its environment."""

from __future__ import annotations

import os

#: Variables that hold the token of the hub.
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def without_tokens() -> dict[str, str]:
    """Returns the environment without the hub's token.

    What compiles, verifies or tests in a process of its own asks no hub, and runs code of others:
    a plugin's, or that of a package which pip builds. The processes of a batch ask it.
    """
    return {name: value for name, value in os.environ.items() if name not in TOKENS}
