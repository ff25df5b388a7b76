"""edgezoo: from a Hugging Face checkpoint to a quantized file that runs on a phone."""

import pluggy

__version__ = "0.1.0"

#: Version of the hook contract. A plugin's card states the one that it was written for.
HOOK_API = 1

#: Marks a function of a plugin as the implementation of the hook with the same name.
hookimpl = pluggy.HookimplMarker("edgezoo")

__all__ = ["HOOK_API", "__version__", "hookimpl"]
