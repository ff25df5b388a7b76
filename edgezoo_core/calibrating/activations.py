"""What the linear layers of a model read while it reads a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from edgezoo_core import model, parity

if TYPE_CHECKING:
    from edgezoo_core.model import AuthoredModel

#: Takes the input of a linear layer, float32 [T, columns].
Listener = Callable[[torch.Tensor], None]


class Listening:
    """Runs an authored model in float32, the weights of a layer in memory at a time.

    The head is not run: its logits are the largest tensor of all, and nobody asks for them.

    Args:
        authored: The model, parameters on meta; used up.
    """

    def __init__(self, authored: AuthoredModel) -> None:
        self._module: Any = authored.module
        if hasattr(self._module, "lm_head"):
            self._module.lm_head = _NoHead()
        model.on_demand(self._module, authored.weights)

    def read(self, tokens: Sequence[int], listeners: Mapping[str, Listener]) -> None:
        """Reads tokens in one pass, until each listener has been called.

        Args:
            tokens: What is read.
            listeners: Path of a Linear of the module -> who is handed its input.
        """
        left = set(listeners)
        hooks = [
            self._module.get_submodule(path).register_forward_pre_hook(
                _handing(path, listener, left)
            )
            for path, listener in listeners.items()
        ]
        try:
            with torch.inference_mode(), suppress(_HeardError):
                parity.run(self._module, torch.tensor([list(tokens)], dtype=torch.int32))
        finally:
            for hook in hooks:
                hook.remove()


class _HeardError(Exception):
    """All that was asked for has been heard."""


class _NoHead(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns one number in place of the logits of each token."""
        return x[..., :1]


def _handing(path: str, listener: Listener, left: set[str]) -> Callable[[Any, Any], None]:
    def hand(_: Any, arguments: Any) -> None:
        x = arguments[0]
        listener(x.detach().reshape(-1, x.shape[-1]).float())
        left.discard(path)
        if not left:
            raise _HeardError

    return hand
