"""edgezoo: from a Hugging Face checkpoint to a quantized file that runs on a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pluggy

    #: Marks a function of a plugin as the implementation of the hook with the same name.
    hookimpl: pluggy.HookimplMarker

__version__ = "0.1.0"

#: Version of the hook contract. A plugin's card states the one that it was written for.
HOOK_API = 1
#: The oldest version whose plugins still work. `edgezoo_core.hookspecs` says when the two grow.
OLDEST_HOOK_API = 1

__all__ = ["HOOK_API", "OLDEST_HOOK_API", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    # Only plugins ask for it, and listing them runs none of their code: it need not pay for pluggy.
    if name == "hookimpl":
        import pluggy

        return pluggy.HookimplMarker("edgezoo")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
