from __future__ import annotations

import pytest

from edgezoo_core import authoring, recipe
from edgezoo_core.authoring import layers
from edgezoo_core.errors import RecipeError
from edgezoo_core.recipe import FORMATS
from edgezoo_core.types import Recipe

INT8, INT4, BLOCK32 = (FORMATS[n] for n in ("dynamic_int8", "dynamic_int4", "dynamic_int4_block32"))


def decoder(
    *, tied: bool = False, gated: bool = True, num_layers: int = 2, embedding_dim: int = 64
):
    """Returns a decoder small enough to look through: width 64, feed-forward 96."""
    norm = layers.NormalizationConfig(type=layers.NormalizationType.RMS_NORM)
    block = layers.TransformerBlockConfig(
        attn_config=layers.AttentionConfig(num_heads=4, head_dim=16, num_query_groups=2),
        ff_config=layers.FeedForwardConfig(
            type=layers.FeedForwardType.GATED if gated else layers.FeedForwardType.SEQUENTIAL,
            activation=layers.ActivationConfig(layers.ActivationType.SILU),
            intermediate_size=96,
        ),
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
    )
    return authoring.decoder(
        layers.ModelConfig(
            vocab_size=128,
            num_layers=num_layers,
            max_seq_len=64,
            embedding_dim=embedding_dim,
            block_configs=block,
            final_norm_config=norm,
            lm_head_share_weight_with_embedding=tied,
        )
    )


@pytest.fixture(scope="module")
def module():
    return decoder()


def formats(plan):
    return {(r.part, r.layer): r.format for r in plan.rules}


def test_every_weight_has_one_rule_per_operator(module):
    plan = recipe.meet(recipe.resolve("dynamic_int8"), module, "fake")
    assert plan.name == "dynamic_int8"
    in_blocks = [(p, i) for i in (0, 1) for p in ("qkv", "o", "gate", "up", "down")]
    places = [(r.part, r.layer) for r in plan.rules]
    assert sorted(places, key=str) == sorted(
        [("embedding", None), ("lm_head", None), *in_blocks], key=str
    )
    assert {r.format for r in plan.rules} == {INT8}
    lookups = [r.parameter for r in plan.rules if r.operator == "EMBEDDING_LOOKUP"]
    assert lookups == ["tok_embedding.weight"]


def test_rules_name_parameters_and_shapes_of_the_module(module):
    plan = recipe.meet(recipe.resolve("none"), module, "fake")
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.ndim == 2}
    assert {r.parameter: r.shape for r in plan.rules} == shapes
    by_place = {(r.part, r.layer): r.shape for r in plan.rules}
    assert by_place["qkv", 0] == ((4 + 2 * 2) * 16, 64)
    assert by_place["o", 1] == (64, 64)
    assert by_place["gate", 0] == by_place["up", 0] == (96, 64)
    assert by_place["down", 0] == (64, 96)


def test_linear_recipe_keeps_the_embedding(module):
    met = formats(recipe.meet(recipe.resolve("dynamic_int8_linear"), module, "fake"))
    assert met.pop(("embedding", None)) is None
    assert set(met.values()) == {INT8}


def test_layer_beats_part_and_part_beats_default(module):
    asked = Recipe("mine", INT8, {"qkv": INT4, "o": None}, {1: {"qkv": None}})
    met = formats(recipe.meet(asked, module, "fake"))
    assert (met["qkv", 0], met["qkv", 1]) == (INT4, None)
    assert (met["o", 0], met["o", 1]) == (None, None)
    assert (met["up", 0], met["up", 1]) == (INT8, INT8)


def test_negative_layer_counts_from_the_end(module):
    asked = Recipe("mine", INT8, {}, {-1: {"down": None}, -2: {"up": INT4}})
    met = formats(recipe.meet(asked, module, "fake"))
    assert (met["down", 0], met["down", 1]) == (INT8, None)
    assert (met["up", 0], met["up", 1]) == (INT4, INT8)


def test_layer_named_from_both_ends_adds_up(module):
    asked = Recipe("mine", None, {}, {1: {"up": INT8}, -1: {"up": INT4, "down": INT4}})
    met = formats(recipe.meet(asked, module, "fake"))
    assert (met["up", 1], met["down", 1]) == (INT8, INT4)


@pytest.mark.parametrize("index", [2, -3])
def test_layer_that_the_model_lacks(module, index):
    asked = Recipe("mine", INT8, {}, {index: {"up": None}})
    with pytest.raises(RecipeError, match=f"names layer {index}, but fake has 2 layers") as e:
        recipe.meet(asked, module, "fake")
    assert e.value.remedy == "name layers from 0 to 1, or from -2 to -1"


def test_part_that_the_model_lacks(module):
    asked = Recipe("mine", INT8, {"router": None})
    with pytest.raises(RecipeError, match="recipe mine names router, which fake lacks") as e:
        recipe.meet(asked, module, "fake")
    assert "it has down, embedding, gate, lm_head, o, qkv, up" in e.value.message
    assert e.value.remedy == "remove router from the recipe"


@pytest.mark.parametrize("part", ["embedding", "lm_head"])
def test_part_that_stands_in_no_layer(module, part):
    asked = Recipe("mine", INT8, {}, {0: {part: None}})
    with pytest.raises(RecipeError, match=rf"names layers.0.{part}, which fake lacks") as e:
        recipe.meet(asked, module, "fake")
    assert e.value.remedy == f"remove layers.0.{part} from the recipe"


def test_feed_forward_without_a_gate_takes_recipes_that_name_one():
    asked = Recipe("mine", None, dict.fromkeys(("gate", "up", "down"), INT8))
    met = formats(recipe.meet(asked, decoder(gated=False), "fake"))
    assert "gate" not in {part for part, _ in met}
    assert (met["up", 0], met["down", 0], met["qkv", 0]) == (INT8, INT8, None)


def test_tied_head_has_a_rule_for_each_use():
    plan = recipe.meet(recipe.resolve("dynamic_int8_linear"), decoder(tied=True), "fake")
    uses = {r.operator: r for r in plan.rules if r.part in ("embedding", "lm_head")}
    lookup, product = uses["EMBEDDING_LOOKUP"], uses["FULLY_CONNECTED"]
    assert lookup.parameter == product.parameter
    assert (lookup.part, lookup.format) == ("embedding", None)
    assert (product.part, product.format) == ("lm_head", INT8)
    assert recipe.growth_bytes(plan) == INT8.size_bytes((128, 64))


def test_tied_head_goes_by_the_name_that_the_module_stores_it_under():
    module = decoder(tied=True)
    plan = recipe.meet(recipe.resolve("dynamic_int8"), module, "fake")
    assert {r.parameter for r in plan.rules} <= dict(module.named_parameters()).keys()


def test_block_that_divides_every_weight(module):
    plan = recipe.meet(recipe.resolve("dynamic_int4_block32"), module, "fake")
    assert {r.format for r in plan.rules} == {BLOCK32}


def test_block_that_does_not_divide_names_the_weights(module):
    asked = Recipe("mine", FORMATS["dynamic_int4_block64"])
    with pytest.raises(RecipeError, match="recipe mine: the block size does not divide") as e:
        recipe.meet(asked, module, "fake")
    misfits = e.value.message.partition("channels of ")[2]
    assert misfits == ", ".join(
        f"layers.{i}.down (96 input channels, blocks of 64)" for i in (0, 1)
    )
    assert "choose a smaller block" in e.value.remedy


def test_block_may_leave_out_the_weights_that_it_does_not_divide(module):
    asked = Recipe("mine", FORMATS["dynamic_int4_block64"], {"down": INT8})
    met = formats(recipe.meet(asked, module, "fake"))
    assert (met["down", 1], met["up", 1]) == (INT8, FORMATS["dynamic_int4_block64"])


def test_recipe_file_meets_a_model(module, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "default = 'dynamic_int8'\nattention = 'dynamic_int4'\n[layers.-1]\nattention = 'none'\n"
    )
    met = formats(recipe.meet(recipe.read(path), module, "fake"))
    assert (met["qkv", 0], met["o", 0]) == (INT4, INT4)
    assert (met["qkv", 1], met["o", 1]) == (None, None)
    assert met["up", 1] == met["lm_head", None] == INT8
