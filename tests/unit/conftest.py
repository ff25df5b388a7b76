"""Fixtures for the unit tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_site import card_text


@pytest.fixture
def models_toml() -> Callable[..., str]:
    """The text of a models.toml that is right; tests spoil it."""
    return card_text
