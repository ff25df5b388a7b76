"""The kit itself: a sound plugin passes it, and each broken one fails the check that is meant."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_site import FakeSite

from edgezoo_core.cards import CAPABILITIES
from edgezoo_core.testkit.checks import CHECKS
from edgezoo_core.testkit.examination import Examination, asked_of, examine

#: Architecture files of the sound plugins that are broken here.
LLAMA, GEMMA = "tinyllama", "gemma"
HEAD = """
from edgezoo_core import hookimpl


@hookimpl
def author(model, config):
    from edgezoo_core import authoring
    from edgezoo_mutant import architecture

    return authoring.decoder(architecture.model_config(config))


@hookimpl
def tensor_names(config, names):
    from edgezoo_mutant import architecture

    return architecture.tensor_names(config, names)
"""
CARD = """
schema = 1
hook_api = 1
family = "mutant"
architectures = ["ARCHITECTURE"]

[conformance]
capabilities = CAPABILITIES
# One layer is traced in half the time, and no mutant here needs two.
config = { num_hidden_layers = 1 }

[[models]]
id = "mutant-1b"
title = "Mutant 1B"
checkpoint = "mutants/mutant-1b"
license = "mit"
parameters = 1000000000
context_length = 2048
recipes = ["none", "dynamic_int8"]
default_recipe = "dynamic_int8"
"""
LOAD = """

@hookimpl
def load(module, checkpoint, tensor_names):
    import dataclasses
    from edgezoo_core import mapping

    weights = mapping.map_parameters(module, checkpoint, tensor_names)
    first = "transformer_blocks.0."
"""
RECIPE = """

@hookimpl
def quant_recipe(model, module, recipe):
    import dataclasses
    from edgezoo_core import recipe as recipes
    from edgezoo_core.types import QuantPlan, WeightFormat

    plan = recipes.meet(recipe, module, model.source)
"""
SIGNATURES = """

@hookimpl
def signatures(module, options):
    import dataclasses
    from edgezoo_core import defaults

    given = defaults.signatures
"""
CODE_HEAD = """

import torch
from edgezoo_core.architecture import Decoder

"""
ALL = '["prefill_lengths", "int4", "transposed_kv", "mask_input", "long_context"]'


@dataclass(frozen=True)
class Mutant:
    """A plugin with one fault.

    Attributes:
        caught_by: The check that must fail.
        saying: A part of what it must find.
        base: The plugin whose architecture file it has.
        replacing: In the architecture file, old text to new.
        hooks: In the module with the hooks, old text to new.
        card: In the card, old text to new.
        more: Appended to the module with the hooks.
        code: Appended to the architecture file.
        claims: Its capabilities.
    """

    caught_by: str
    saying: str
    base: str = LLAMA
    replacing: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, str] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)
    more: str = ""
    code: str = ""
    claims: str = "[]"


def wrapped(which: str, answer: str) -> str:
    """A signatures hook that spoils the answers of some signatures."""
    return f"""{SIGNATURES}
    import torch

    class Spoilt(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, tokens, input_pos, kv_cache, mask=None):
            usual = self.module
            return {answer}

    def spoilt(signature):
        return dataclasses.replace(signature, module=Spoilt(signature.module).eval())

    return [spoilt(s) if {which} else s for s in given(module, options)]
"""


ONE_TOKEN_ON = "usual((tokens + 1) % 160, input_pos, kv_cache, mask)"

MUTANTS = {
    # The card.
    "another family in the card": Mutant(
        "card-valid", "'mutants'", card={'family = "mutant"': 'family = "mutants"'}
    ),
    "an unknown recipe in the card": Mutant(
        "card-valid",
        "no recipe is called 'dynamic_int9'",
        card={'["none", "dynamic_int8"]': '["none", "dynamic_int8", "dynamic_int9"]'},
    ),
    "an unknown capability in the card": Mutant(
        "card-valid", "did you mean `mask_input`?", claims='["mask_as_input"]'
    ),
    "an architecture that nobody knows": Mutant(
        "reference-known",
        "transformers has no LlamaForCausalLMs",
        card={"LlamaForCausalLM": "LlamaForCausalLMs"},
    ),
    # The package.
    "a heavy import": Mutant(
        "import-light",
        "brings numpy",
        hooks={
            "from edgezoo_core import hookimpl": "import numpy\nfrom edgezoo_core import hookimpl"
        },
    ),
    "an import that ends the process": Mutant(
        "import-light", "ends the process", more="\nraise SystemExit(0)\n"
    ),
    "an import that fails": Mutant(
        "import-light", "ModuleNotFoundError", more="\nimport not_there_at_all\n"
    ),
    "a misspelt hook": Mutant(
        "hooks-known",
        "did you mean tensor_names?",
        hooks={"def tensor_names(config": "def tensor_name(config"},
    ),
    "a hook with a default": Mutant(
        "hooks-known",
        "argument names must not have a default",
        hooks={"(config, names)": "(config, names=frozenset())"},
    ),
    "an argument that no hook has": Mutant(
        "hooks-known",
        "did you mean config?",
        hooks={"def author(model, config)": "def author(model, configs)"},
    ),
    "a wrapper": Mutant(
        "hooks-known",
        "is a wrapper",
        hooks={"@hookimpl\ndef author": "@hookimpl(wrapper=True)\ndef author"},
    ),
    "no tensor names": Mutant(
        "hooks-known", "does not answer tensor_names", more="\ndel tensor_names\n"
    ),
    # The author.
    "an author that returns a list": Mutant(
        "author-on-meta",
        "returned a list, expected Module",
        hooks={"return authoring.decoder(architecture.model_config(config))": "return []"},
    ),
    "parameters off meta": Mutant(
        "author-on-meta",
        "parameters are not on meta",
        hooks={"model_config(config))": 'model_config(config)).to_empty(device="cpu")'},
    ),
    "training mode": Mutant(
        "author-on-meta",
        "training mode",
        hooks={"model_config(config))": "model_config(config)).train()"},
    ),
    "one part in training mode": Mutant(
        "author-on-meta",
        "training mode: final_norm",
        hooks={
            "return authoring.decoder(architecture.model_config(config))": (
                "made = authoring.decoder(architecture.model_config(config))\n"
                "    made.final_norm.train()\n    return made"
            )
        },
    ),
    "a context typed in": Mutant(
        "context-length",
        "max_position_embeddings is 256, but max_seq_len is 128",
        replacing={
            'config.integer("max_position_embeddings", 2048)': (
                'min(128, config.integer("max_position_embeddings", 2048))'
            )
        },
    ),
    # The tensors.
    "tensor names that are a list": Mutant(
        "tensors-mapped",
        "returned a list, expected TensorNames",
        hooks={"return architecture.tensor_names(config, names)": "return [*names]"},
    ),
    "q and k swapped": Mutant(
        "tensors-mapped",
        "wrong shape of model.layers.0.self_attn.k_proj.weight",
        replacing={
            "return hub_names(": (
                'return hub_names(attn_query_proj="model.layers.{}.self_attn.k_proj",'
                ' attn_key_proj="model.layers.{}.self_attn.q_proj", '
            )
        },
    ),
    "two norms from one tensor": Mutant(
        "tensors-mapped",
        "unexpected model.layers.0.post_attention_layernorm.weight",
        replacing={
            "return hub_names(": (
                'return hub_names(post_attn_norm="model.layers.{}.input_layernorm", '
            )
        },
    ),
    "one tensor twice, and another hidden": Mutant(
        "tensors-mapped",
        "rows of model.layers.0.input_layernorm.weight are used more than once",
        more=LOAD
        + """
    norm = weights[first + "pre_atten_norm.weight"]
    other = weights[first + "post_atten_norm.weight"]
    expected = {**norm.expected, **other.expected}
    weights[first + "post_atten_norm.weight"] = dataclasses.replace(norm, expected=expected)
    return weights
""",
    ),
    "a norm left out": Mutant(
        "tensors-mapped",
        "unexpected model.layers.0.post_attention_layernorm.weight",
        replacing={"            post_attention_norm_config=norm,\n": ""},
    ),
    "a load hook that forgets a parameter": Mutant(
        "tensors-mapped",
        "not covered final_norm.weight",
        more=LOAD + "    del weights['final_norm.weight']\n    return weights\n",
    ),
    "a load hook that gives another shape": Mutant(
        "tensors-mapped",
        "final_norm.weight",
        more=LOAD
        + """
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    return {**weights, "final_norm.weight": embedding}
""",
    ),
    "a load hook that returns a list": Mutant(
        "tensors-mapped",
        "returned a list, expected Mapping",
        more=LOAD + "    return list(weights)\n",
    ),
    "a load hook that hides what is missing": Mutant(
        "tensor-removed",
        "model.norm.weight removed: nobody noticed",
        more=LOAD
        + """
    def is_there(tensor):
        return set(tensor.expected) <= set(checkpoint.tensors)

    def there(tensor):
        same = (w for w in weights.values() if w.shape == tensor.shape)
        return tensor if is_there(tensor) else next(filter(is_there, same))

    return {name: there(tensor) for name, tensor in weights.items()}
""",
    ),
    "a load hook that takes any name": Mutant(
        "tensor-renamed",
        "model.norm.weight renamed: nobody noticed",
        more=LOAD
        + """
    from edgezoo_core.types import RowSlice

    def found(name):
        return next((n for n in checkpoint.tensors if n.endswith(name)), name)

    def renamed(tensor):
        slices = tuple(RowSlice(found(s.name), s.start, s.stop) for s in tensor.slices)
        expected = {found(n): shape for n, shape in tensor.expected.items()}
        return dataclasses.replace(tensor, slices=slices, expected=expected)

    return {name: renamed(tensor) for name, tensor in weights.items()}
""",
    ),
    "a load hook that cuts what is too long": Mutant(
        "tensor-reshaped",
        "model.norm.weight reshaped: nobody noticed",
        more=LOAD
        + """
    def cut(tensor):
        shapes = {n: checkpoint.tensor(n).shape for n in tensor.expected}
        return dataclasses.replace(tensor, expected=shapes)

    return {name: cut(tensor) for name, tensor in weights.items()}
""",
    ),
    # What the module computes.
    "another rope base": Mutant(
        "module-equals-reference",
        "logits differ",
        replacing={
            "rope=config.rope(": "rope=__import__('dataclasses').replace(config.rope(",
            '("linear", "llama3")),': '("linear", "llama3")), theta=5e5),',
        },
    ),
    "gate and up swapped": Mutant(
        "module-equals-reference",
        "logits differ",
        replacing={
            "return hub_names(": (
                'return hub_names(ff_gate_proj="model.layers.{}.mlp.up_proj",'
                ' ff_up_proj="model.layers.{}.mlp.gate_proj", '
            )
        },
    ),
    "k and v swapped": Mutant(
        "module-equals-reference",
        "logits differ",
        replacing={
            "return hub_names(": (
                'return hub_names(attn_key_proj="model.layers.{}.self_attn.v_proj",'
                ' attn_value_proj="model.layers.{}.self_attn.k_proj", '
            )
        },
    ),
    "interleaved q, k and v": Mutant(
        "module-equals-reference",
        "logits differ",
        more=LOAD
        + """
    from edgezoo_core.types import RowSlice

    name = first + "atten_func.qkv_projection.weight"
    q, k, v = weights[name].slices
    halves = [(0, 1), (1, 2)]
    slices = tuple(
        RowSlice(s.name, a * s.stop // 2, b * s.stop // 2) for a, b in halves for s in (q, k, v)
    )
    return {**weights, name: dataclasses.replace(weights[name], slices=slices)}
""",
    ),
    "another activation": Mutant(
        "module-equals-reference",
        "logits differ",
        replacing={
            'ACTIVATIONS, "silu")': ('{**ACTIVATIONS, "silu": layers.ActivationType.GELU}, "silu")')
        },
    ),
    "no embedding scale": Mutant(
        "module-equals-reference",
        "logits differ",
        base=GEMMA,
        replacing={"        embedding_scale=math.sqrt(embedding_dim),\n": ""},
    ),
    "norms not around zero": Mutant(
        "module-equals-reference",
        "logits differ",
        base=GEMMA,
        replacing={", zero_centered=True": ""},
    ),
    "another embedding scale": Mutant(
        "module-equals-reference",
        "logits differ",
        base=GEMMA,
        replacing={"math.sqrt(embedding_dim)": "math.sqrt(2048)"},
    ),
    # The config.
    "an epsilon that is cut off": Mutant(
        "config-fields",
        "rms_norm_eps = 0.1",
        replacing={
            'config.number("rms_norm_eps", 1e-6)': 'min(1e-5, config.number("rms_norm_eps", 1e-6))'
        },
    ),
    "attention_bias ignored": Mutant(
        "config-fields",
        "attention_bias = True",
        replacing={
            'config.flag("attention_bias", False)': 'config.flag("attention_bias", False) and False'
        },
    ),
    "tie_word_embeddings ignored": Mutant(
        "config-fields",
        "tie_word_embeddings = True",
        replacing={
            'config.flag("tie_word_embeddings", False)': (
                'config.flag("tie_word_embeddings", False) and False'
            )
        },
    ),
    "key and value heads typed in": Mutant(
        "config-fields",
        "num_key_value_heads = 4",
        replacing={
            'config.integer("num_key_value_heads", num_heads)': (
                'config.integer("num_key_value_heads", num_heads) and 2'
            )
        },
    ),
    "another default than transformers'": Mutant(
        "config-fields",
        "no hidden_act",
        replacing={'ACTIVATIONS, "silu")': 'ACTIVATIONS, "relu")'},
    ),
    "scaled rope ignored": Mutant(
        "config-fields",
        "'rope_type': 'linear'",
        replacing={
            "rope=config.rope(": "rope=__import__('dataclasses').replace(config.rope(",
            '("linear", "llama3")),': '("linear", "llama3")), scaling=None),',
        },
    ),
    # Recipes and signatures.
    "a weight without a format": Mutant(
        "recipes-planned",
        "has no format",
        more=RECIPE + "    return QuantPlan(plan.name, plan.rules[1:])\n",
    ),
    "a weight with two formats": Mutant(
        "recipes-planned",
        "has 2 formats",
        more=RECIPE + "    return QuantPlan(plan.name, (*plan.rules, plan.rules[0]))\n",
    ),
    "a format that is none": Mutant(
        "recipes-planned",
        "there is no format int7",
        more=RECIPE
        + """
    wrong = WeightFormat("int7", 7, is_float=False, is_dynamic=True)
    rules = tuple(dataclasses.replace(r, format=wrong) for r in plan.rules)
    return QuantPlan(plan.name, rules)
""",
    ),
    "a recipe that is not followed": Mutant(
        "recipes-planned",
        "8 bits, asked for are 32",
        more=RECIPE + '    return recipes.meet(recipes.resolve("dynamic_int8"), module, "")\n',
    ),
    "no decode": Mutant(
        "signatures-agree",
        "there is no signature decode",
        more=SIGNATURES + "    return given(module, options)[:-1]\n",
    ),
    "a longer cache": Mutant(
        "signatures-agree",
        "kv_cache_k_0 is float32 [1, 2, 67, 64], expected float32 [1, 2, 32, 64]",
        more=SIGNATURES
        + "    longer = dataclasses.replace(options, kv_cache_length=64)\n"
        + "    return given(module, longer)\n",
    ),
    "a prefill of another length": Mutant(
        "signatures-agree",
        "nobody asked for signature prefill_16",
        more=SIGNATURES
        + "    return given(module, dataclasses.replace(options, prefill_lengths=(16,)))\n",
    ),
    # What takes a trace.
    "a layout that is not followed": Mutant(
        "transposed-kv",
        "kv_cache_k_0 is float32 [1, 2, 37, 64], expected float32 [1, 37, 2, 64]",
        more=SIGNATURES
        + "    return given(module, dataclasses.replace(options, kv_layout='transposed'))\n",
        claims='["transposed_kv"]',
    ),
    "a mask that cannot be built in": Mutant(
        "mask-input",
        "mask is too much",
        more=SIGNATURES
        + "    return given(module, dataclasses.replace(options, mask_as_input=True))\n",
        claims='["mask_input"]',
    ),
    "int4 that is claimed alone": Mutant(
        "int4",
        "no int4 here",
        more=RECIPE
        + """
    from edgezoo_core.errors import RecipeError

    if "int4" in recipe.name:
        raise RecipeError("no int4 here", remedy="choose another")
    return plan
""",
        claims='["int4"]',
    ),
    "tokens forgotten far behind": Mutant(
        "long-context",
        "logits differ",
        hooks={"model_config(config))": "model_config(config), architecture.Forgetful)"},
        code="""
class Forgetful(Decoder):
    def forward(self, tokens, input_pos, kv_cache, mask=None, lora=None, export_config=None):
        tokens = torch.where(input_pos < 80, tokens, 0)
        return super().forward(tokens, input_pos, kv_cache, mask, lora, export_config)
""",
        claims='["long_context"]',
    ),
    "one wrong prefill of two": Mutant(
        "prefill-lengths",
        "logits differ",
        more=wrapped("s.name == 'prefill_4'", ONE_TOKEN_ON),
        claims='["prefill_lengths"]',
    ),
    "a wrong decode": Mutant(
        "float32-equals-module",
        "logits differ",
        more=wrapped("s.name == 'decode'", ONE_TOKEN_ON),
    ),
    "a fold that the structure forbids": Mutant(
        "folds-exact",
        "what reads it is gate, up",
        hooks={
            "architecture.model_config(config))": (
                "architecture.model_config(config),"
                " folds=[authoring.Fold('post_attention_norm', ('gate',))])"
            )
        },
    ),
    "a fold that a forward of its own forbids": Mutant(
        "folds-exact",
        "layers.0.up cannot be folded",
        hooks={
            "architecture.model_config(config))": (
                "architecture.model_config(config), architecture.Shifted,"
                " folds=[authoring.Fold('up', ('down',))])"
            )
        },
        code="""
class Shifted(Decoder):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        for block in self.transformer_blocks:
            # Too little to show, but it is not multiplied as what the fold divides.
            block.ff.w3.register_forward_hook(lambda module, inputs, output: output + 1e-6)
""",
    ),
    "values changed as they are read": Mutant(
        "tensors-mapped",
        "its slices are 0 rows of the checkpoint",
        replacing={
            "        embedding_dim=embedding_dim,": (
                "        embedding_dim=embedding_dim,\n        embedding_scale=0.5,"
            )
        },
        more=LOAD
        + """
    doubled = checkpoint.tensor("model.embed_tokens.weight").changed(lambda t: 2 * t)
    return {**weights, "tok_embedding.weight": doubled}
""",
    ),
    "logits under another name": Mutant(
        "float32-converts",
        "output of decode: logits is missing",
        more=wrapped(
            "s.name == 'decode'",
            "{n.replace('logits', 'scores'): v"
            " for n, v in usual(tokens, input_pos, kv_cache, mask).items()}",
        ),
    ),
    "a weight that no engine finds": Mutant(
        "float32-converts",
        "final_norm",
        hooks={"model_config(config))": "model_config(config), architecture.Own)"},
        code="""
class Own(Decoder):
    def _logits(self, x):
        return super()._logits(x) + 0 * self.final_norm.weight.sum().exp()
""",
    ),
    "blocks that do not fit": Mutant(
        "recipes-planned",
        "the block size does not divide the input channels of embedding",
        card={'"dynamic_int8"]': '"dynamic_int8", "dynamic_int4_block32"]'},
        more=RECIPE
        + """
    if recipe.name == "dynamic_int4_block32":
        wide = recipes.FORMATS["dynamic_int4_block256"]
        rules = tuple(dataclasses.replace(r, format=wide) for r in plan.rules)
        return QuantPlan(plan.name, rules)
    return plan
""",
    ),
}


def install(site: FakeSite, base: str, claims: str) -> Path:
    """Installs a sound plugin of family mutant; returns the folder of its package."""
    origin = importlib.util.find_spec(f"edgezoo_{base}")
    text = (Path(origin.origin).parent / f"{base}.py").read_text(encoding="utf-8")
    architecture = {LLAMA: "LlamaForCausalLM", GEMMA: "GemmaForCausalLM"}[base]
    card = CARD.replace("ARCHITECTURE", architecture).replace("CAPABILITIES", claims)
    package = site.add("mutant", body=HEAD, card=card)
    (package / "architecture.py").write_text(text)
    return package


def spoil(package: Path, mutant: Mutant) -> None:
    """Makes a sound plugin the mutant."""
    for name, changes, more in (
        ("architecture.py", mutant.replacing, CODE_HEAD + mutant.code if mutant.code else ""),
        ("__init__.py", mutant.hooks, mutant.more),
        ("models.toml", mutant.card, ""),
    ):
        text = (package / name).read_text()
        for old, new in changes.items():
            assert old in text, f"{name} has no {old!r} any more"
            text = text.replace(old, new)
        (package / name).write_text(text + more)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_the_check_that_is_meant(site, name):
    mutant = MUTANTS[name]
    spoil(install(site, mutant.base, mutant.claims), mutant)
    with Examination(site.plugin("mutant")) as examination:
        outcome = examination.outcome(mutant.caught_by)
    assert outcome.verdict == "failed", outcome
    assert mutant.saying in "\n".join(outcome.found)


def test_sound_plugin_passes_every_check(site):
    install(site, LLAMA, ALL)
    report = examine(site.plugin("mutant"))
    assert report.passes, [o for o in report.outcomes if o.verdict != "passed"]
    caught = {mutant.caught_by for mutant in MUTANTS.values()}
    assert caught <= {outcome.check for outcome in report.outcomes}


# An architecture that transformers does not have.

REFERENCE = """

def reference(folder):
    import json
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(json.loads((folder / "config.json").read_text()))
    model = LlamaForCausalLM.from_pretrained(folder, config=config).eval()
    return lambda tokens: model(tokens).logits
"""
OWN = {
    "LlamaForCausalLM": "OwnForCausalLM",
    "config = { num_hidden_layers = 1 }": (
        'reference = "edgezoo_mutant:reference"\n'
        "config = { hidden_size = 64, intermediate_size = 96, num_hidden_layers = 1,"
        " vocab_size = 96, num_attention_heads = 4, num_key_value_heads = 2,"
        " max_position_embeddings = 64, rms_norm_eps = 0.01, rope_theta = 10000.0,"
        " attention_bias = false }"
    ),
}


@pytest.mark.parametrize(
    ("replacing", "caught_by"),
    [
        ({}, None),
        ({"rms_norm(": "rms_norm(2 * "}, "module-equals-reference"),
        ({"rms_norm(": "rms_norm(0.01 + 0 * "}, "config-fields"),
    ],
    ids=["sound", "other numbers", "a field ignored"],
)
def test_plugin_supplies_its_reference(site, replacing, caught_by):
    mutant = Mutant("", "", card=OWN, more=REFERENCE, replacing=replacing)
    spoil(install(site, LLAMA, "[]"), mutant)
    checks = ("reference-known", "tensors-mapped", "module-equals-reference", "config-fields")
    with Examination(site.plugin("mutant")) as examination:
        outcomes = [examination.outcome(check) for check in checks]
    failed = [o for o in outcomes if o.verdict == "failed"]
    assert [o.check for o in failed] == ([caught_by] if caught_by else []), failed


# What is examined, and in which order.


def test_each_architecture_of_the_card_is_examined(site):
    both = {'"LlamaForCausalLM"': '"LlamaForCausalLM", "GemmaForCausalLM"'}
    spoil(install(site, LLAMA, "[]"), Mutant("", "", card=both))
    with Examination(site.plugin("mutant")) as examination:
        assert examination.outcome("tensors-mapped").found == ("23 tensors",)
        outcome = examination.outcome("module-equals-reference")
    assert outcome.verdict == "failed"
    assert outcome.found[0].startswith("GemmaForCausalLM: logits differ")


def test_plugin_whose_card_cannot_be_read(site):
    (install(site, LLAMA, ALL) / "models.toml").write_text("schema = 1\n")
    report = examine(site.plugin("mutant"))
    assert report.named("failed") == ["card-valid"]
    assert report.named("passed") == ["import-light"]
    assert {o.found for o in report.outcomes if o.verdict == "not reached"} == {("card-valid",)}
    assert "hook_api is missing" in report.outcomes[0].found[0]


def test_module_that_crashes_is_a_finding(site):
    code = """
class Crashing(Decoder):
    def forward(self, tokens, input_pos, kv_cache, mask=None, lora=None, export_config=None):
        return tokens.not_there
"""
    hooks = {"model_config(config))": "model_config(config), architecture.Crashing)"}
    spoil(install(site, LLAMA, "[]"), Mutant("", "", hooks=hooks, code=code))
    with Examination(site.plugin("mutant")) as examination:
        outcome = examination.outcome("module-equals-reference")
    assert outcome.verdict == "failed"
    assert outcome.found == ("AttributeError: 'Tensor' object has no attribute 'not_there'",)


def test_only_claimed_capabilities_are_asked_of_a_plugin(site):
    install(site, LLAMA, '["int4"]')
    asked = asked_of(site.plugin("mutant"))
    assert [check.capability for check in asked if check.capability] == ["int4"]


def test_checks_need_only_earlier_ones():
    seen = set()
    for check in CHECKS:
        assert seen.issuperset(check.needs), check.name
        assert check.name not in seen
        assert check.capability in (None, *CAPABILITIES)
        seen.add(check.name)
    assert {check.capability for check in CHECKS} == {None, *CAPABILITIES}


def test_what_needs_a_failed_check_is_not_reached(site):
    mutant = MUTANTS["no embedding scale"]
    spoil(install(site, mutant.base, ALL), mutant)
    with Examination(site.plugin("mutant")) as examination:
        outcome = examination.outcome("config-fields")
    assert (outcome.verdict, outcome.found) == ("not reached", ("module-equals-reference",))


# The other ways to run it.


def test_pytest_runs_the_kit_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:anyio", "--pyargs", "edgezoo_core.testkit"]
    chosen = ["--edgezoo-plugin", "tinyllama", "-k", "card-valid or import-light", "-q"]
    done = subprocess.run(
        [*command, *chosen], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
