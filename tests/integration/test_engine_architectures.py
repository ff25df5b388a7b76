"""Every decoder that litert-torch ships, in its small fake size, through both engines."""

from __future__ import annotations

import importlib

import engines
import numpy as np
import pytest
import same_graph
import torch
from litert_torch.generative.quantize import quant_recipes
from litert_torch.quantize.translate_recipe import quantize_model, translate_to_ai_edge_recipe

from edgezoo_core import defaults, recipe
from edgezoo_core.shapes import SignatureOptions

EXAMPLES = "litert_torch.generative.examples"
KV_SLOTS = 32
DECODE = SignatureOptions((4,), KV_SLOTS, "transposed", True)
#: Falcon's ALiBi knows one layout only.
BIASED = SignatureOptions((4,), KV_SLOTS, "default", True)
#: Gemma's windows are cut out of a mask that the module holds.
BUILT_IN = SignatureOptions((4,), KV_SLOTS, "default", False)
#: Name -> module of the examples, class, function of its fake configuration, layers, shapes.
#: With five layers a model is stamped; those with one have no two blocks that differ.
ARCHITECTURES = {
    "llama": ("llama.llama", "Llama", "get_fake_model_config", 5, DECODE),
    "tiny_llama": ("tiny_llama.tiny_llama", "TinyLlama", "get_fake_model_config", 1, DECODE),
    "amd_llama": ("amd_llama_135m.amd_llama_135m", "AmdLlama", "get_fake_model_config", 1, DECODE),
    "smollm": ("smollm.smollm", "SmolLM", "get_fake_model_config", 1, DECODE),
    "smollm2": ("smollm.smollm", "SmolLM2", "get_fake_model_config_v2", 1, DECODE),
    "qwen2.5": ("qwen.qwen", "Qwen", "get_fake_model_config", 1, DECODE),
    "qwen3": ("qwen.qwen3", "Qwen3", "get_fake_model_config", 5, DECODE),
    "hammer": ("hammer.hammer", "Hammer", "get_fake_model_config", 1, DECODE),
    "deepseek": ("deepseek.deepseek", "DeepSeekDistillQwen", "get_fake_model_config", 1, DECODE),
    "falcon": ("falcon.falcon", "Falcon", "get_fake_model_config", 1, BIASED),
    "openelm": ("openelm.openelm", "OpenELM", "get_fake_model_config", 2, DECODE),
    "phi2": ("phi.phi2", "Phi2", "get_fake_model_config", 1, DECODE),
    "phi3.5": ("phi.phi3", "Phi3_5Mini", "get_fake_model_config", 1, DECODE),
    "phi4": ("phi.phi4", "Phi4Mini", "get_fake_model_config", 1, DECODE),
    "gemma1": ("gemma.gemma1", "Gemma1", "get_fake_model_config", 1, DECODE),
    "gemma3": ("gemma3.decoder", "Decoder", "get_fake_decoder_config_1b", 2, BUILT_IN),
    "paligemma": ("paligemma.decoder", "Decoder", "get_fake_decoder_config", 1, DECODE),
    "qwen_vl": ("qwen_vl.decoder", "Decoder", "get_fake_decoder_config", 1, DECODE),
}
GEMMA2 = ("gemma.gemma2", "Gemma2", "get_fake_model_config", 2, BUILT_IN)


def author(path, class_name, configure, layers, options):
    example = importlib.import_module(f"{EXAMPLES}.{path}")
    config = getattr(example, configure)()
    config.num_layers = layers
    config.vocab_size = 160
    if not config.embedding_scale:
        config.embedding_dim = 128
    with torch.device("meta"):
        module = getattr(example, class_name)(config, 0)
    # Gemma 2 and 3 tie in their own way, whatever the configuration says.
    if config.lm_head_share_weight_with_embedding or "gemma" in path:
        module.lm_head.weight = module.tok_embedding.weight
    module.build_mask_cache(0 if options.mask_as_input else KV_SLOTS)
    return module.eval()


def both_engines(architecture, folder, count):
    options = architecture[-1]
    return engines.of_module(
        lambda: author(*architecture),
        lambda module: defaults.signatures(module, options)[-count:],
        folder,
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_same_file_as_litert_torch(name, tmp_path):
    # Prefill, which is traced like decode, only where the module has a forward of its own.
    both = both_engines(ARCHITECTURES[name], tmp_path, 2 if name == "gemma3" else 1)
    assert {t.block_scope is not None for t in both.traced} == {both.depth > 4}
    both.compare(recipe.meet(recipe.resolve("dynamic_int8"), both.module, name))


def test_soft_cap_of_gemma2_is_folded_into_the_head(tmp_path):
    both = both_engines(GEMMA2, tmp_path, 2)
    both.compare(recipe.meet(recipe.resolve("none"), both.module, "gemma2"))
    decode = both.traced[-1].graph(both.depth)
    head = next(c for c in decode.constants.values() if c.operation)
    assert (head.parameter, head.operation) == ("tok_embedding.weight", "*")
    assert head.operand == np.float32(1) / np.float32(30)

    # Our own path over litert-torch knows no folded weight, so the quantizer itself is the oracle.
    streamed = both.streamed(recipe.meet(recipe.resolve("dynamic_int8"), both.module, "gemma2"))
    config = translate_to_ai_edge_recipe(quant_recipes.full_dynamic_recipe().generative_recipe)
    expected = tmp_path / "expected.tflite"
    expected.write_bytes(quantize_model(both.float_file.read_bytes(), config))
    assert same_graph.differences(streamed, expected) == []
    found, wanted = engines.outputs(streamed), engines.outputs(expected)
    assert np.isfinite(wanted["decode logits"]).all()
    assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in wanted.items()}
