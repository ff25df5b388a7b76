"""What the linear layers of a model read while it reads a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from edgezoo_core import model, parity

if TYPE_CHECKING:
    from edgezoo_core.model import AuthoredModel

#: Takes the input of a linear layer, float32 [T, columns].
Listener = Callable[[torch.Tensor], None]


def listen(
    authored: AuthoredModel, tokens: Sequence[int], listeners: Mapping[str, Listener]
) -> None:
    """Runs an authored model over tokens in float32, the weights of a layer in memory at a time.

    The head is not run: its logits are the largest tensor of all, and nobody asks for them.

    Args:
        authored: The model, parameters on meta; used up.
        tokens: What is read, in one pass.
        listeners: Path of a Linear of the module -> who is handed its input, in the model's order.
    """
    module: Any = authored.module
    if hasattr(module, "lm_head"):
        module.lm_head = _NoHead()
    for path, listener in listeners.items():
        called = module.get_submodule(path)
        called.register_forward_pre_hook(_handing(listener))
    model.on_demand(module, authored.weights)
    with torch.inference_mode():
        parity.run(module, torch.tensor([list(tokens)], dtype=torch.int32))


class _NoHead(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns one number in place of the logits of each token."""
        return x[..., :1]


def _handing(listener: Listener) -> Callable[[Any, Any], None]:
    def hand(_: Any, arguments: Any) -> None:
        x = arguments[0]
        listener(x.detach().reshape(-1, x.shape[-1]).float())

    return hand
