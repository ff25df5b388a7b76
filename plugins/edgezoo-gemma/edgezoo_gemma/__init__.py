"""Gemma (the first generation) for edgezoo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgezoo_core import hookimpl

if TYPE_CHECKING:
    from edgezoo_core.authoring import Config, Decoder, Model, TensorNames


@hookimpl
def author(model: Model, config: Config) -> Decoder:
    """Builds the decoder that config.json describes."""
    from edgezoo_core import authoring
    from edgezoo_gemma import gemma

    described = gemma.model_config(config)
    return authoring.decoder(described, folds=authoring.usual_folds(described))


@hookimpl
def tensor_names(config: Config, names: frozenset[str]) -> TensorNames:
    """Says where each part stands in the checkpoint."""
    from edgezoo_gemma import gemma

    return gemma.tensor_names(config, names)
