"""Templates of strangers: what they may take, and that one that takes too much harms no other."""

from __future__ import annotations

from contextlib import suppress

import pytest

from edgezoo_core import sandbox, tokenizer
from edgezoo_core.bundle import rendering
from edgezoo_core.bundle.turns import RefusedError

TURNS = [{"role": "user", "content": "Hello"}]
BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "long text": "{{ 'a' * 10000000000 }}",
}


@pytest.fixture
def limited(monkeypatch):
    monkeypatch.setattr(sandbox, "LIMIT_S", 0.5)


def transformers(template):
    return tokenizer.render(template, TURNS, is_asked=True, tokens={})


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_and_the_next_template_renders(bomb, limited):
    with pytest.raises(sandbox.TemplateError, match=r"takes too much|takes more than|calls itself"):
        transformers(BOMBS[bomb])
    assert transformers("{{ messages[0].content }}!") == "Hello!"
    with pytest.raises(RefusedError):
        rendering.render(BOMBS[bomb], TURNS, is_asked=True)
    assert rendering.render("{{ messages[0].role }}!", TURNS, is_asked=True) == "user!"


def test_an_expression_without_end_is_refused(limited):
    sandbox.try_patterns([r"(.*\.)?(layers\.\d+\.q_proj)$"], ["model.layers.0.q_proj"])
    with pytest.raises(sandbox.TemplateError, match=r"takes more than"):
        sandbox.try_patterns([r"([\w.]|[\w.])*!"], ["model.layers.0.self_attn.q_proj" * 4])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_nothing_of_python(template, limited, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = []
    with suppress(sandbox.TemplateError):
        shown.append(transformers(template))
    with suppress(RefusedError):
        shown.append(rendering.render(template, TURNS, is_asked=True))
    assert set(shown) <= {""}
    assert list(tmp_path.iterdir()) == []
