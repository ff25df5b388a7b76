"""The decoder that plugins build, against litert-torch's own models and transformers'."""

from __future__ import annotations

import dataclasses

import engines
import pytest
import torch
from litert_torch.generative.examples.gemma import gemma2
from litert_torch.generative.examples.gemma3 import decoder as gemma3
from litert_torch.generative.examples.tiny_llama import tiny_llama
from litert_torch.generative.layers.kv_cache import KV_LAYOUT_TRANSPOSED, KVCache
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from edgezoo_core import architecture, authoring, defaults, mapping, model, parity, recipe
from edgezoo_core.authoring import AttentionConfig, BlockConfig, Rope, layers
from edgezoo_core.checkpoint import open_folder
from edgezoo_core.conversion import shallow
from edgezoo_core.rope import Llama3Scaling
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import Model

SLOTS = 32
INPUT = SignatureOptions((8,), SLOTS, "transposed", True)
BUILT_IN = SignatureOptions((8,), SLOTS, "default", False)


def small(window=None, count=2, **model):
    """Describes a decoder with everything that a config can ask for."""
    norm = authoring.rms_norm(1e-6, zero_centered=True)
    attention = AttentionConfig(
        num_heads=4,
        head_dim=32,
        num_query_groups=2,
        rope=Rope(1e4, 1.0),
        logit_softcap=20.0,
        scale=0.25,
    )
    block = BlockConfig(
        attn_config=attention,
        ff_config=layers.FeedForwardConfig(
            type=layers.FeedForwardType.GATED,
            activation=layers.ActivationConfig(layers.ActivationType.GELU_TANH),
            intermediate_size=256,
            pre_ff_norm_config=norm,
            post_ff_norm_config=norm,
        ),
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
        norm_outputs=True,
    )
    return layers.ModelConfig(
        vocab_size=160,
        num_layers=count,
        max_seq_len=1024,
        embedding_dim=128,
        block_configs=authoring.with_windows(block, [window, None] * (count // 2)),
        final_norm_config=norm,
        final_logit_softcap=30.0,
        **model,
    )


def randomized(module):
    """Gives a module on meta random weights."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        values = torch.randn(p.shape, generator=generator)
        state[name] = 0.3 * values if p.dim() == 1 else 1.3 * values / p.shape[-1] ** 0.5
    if module.config.lm_head_share_weight_with_embedding:
        state["lm_head.weight"] = state["tok_embedding.weight"]
    module.load_state_dict(state, assign=True)
    return module.eval()


def logits(module, tokens, *, has_mask):
    length = tokens.shape[1]
    mask = torch.full((1, 1, length, length), float("-inf")).triu(1) if has_mask else None
    cache = KVCache.from_model_config(length, module.config, kv_layout=KV_LAYOUT_TRANSPOSED)
    positions = torch.arange(length, dtype=torch.int32)
    return module(tokens, positions, cache, mask=mask)["logits"]


def translated(config):
    """Says what a configuration of litert-torch's examples says in our own classes."""

    def attention(theirs):
        fields = {f.name: getattr(theirs, f.name) for f in dataclasses.fields(theirs)}
        del fields["rotary_percentage"]
        rope = Rope(fields.pop("rotary_base"), 1.0)
        return AttentionConfig(**fields, rope=rope)

    blocks = []
    for index in range(config.num_layers):
        theirs = config.block_config(index)
        fields = {f.name: getattr(theirs, f.name) for f in dataclasses.fields(theirs)}
        fields["attn_config"] = attention(theirs.attn_config)
        blocks.append(BlockConfig(**fields, norm_outputs=True))
    return dataclasses.replace(config, block_configs=blocks)


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize(
    ("theirs", "configure"),
    [
        (gemma2.Gemma2, gemma2.get_fake_model_config),
        (gemma3.Decoder, gemma3.get_fake_decoder_config_1b),
    ],
)
def test_same_as_litert_torchs_gemma(theirs, configure, has_mask):
    config = configure()
    for index in range(config.num_layers):
        config.block_config(index).attn_config.sliding_window_size = 6
    # Theirs knows windows in the mask that it holds only; Gemma 3's in both.
    if theirs is gemma2.Gemma2 and has_mask:
        config.block_configs = [config.block_configs[1]] * config.num_layers
    tokens = parity.sample_tokens(config.vocab_size)
    expected = randomized(theirs(config, tokens.shape[1]))
    ours = authoring.decoder(translated(config))
    ours.load_state_dict(expected.state_dict(), assign=True)
    ours.build_mask_cache(0 if has_mask else tokens.shape[1])
    torch.testing.assert_close(
        logits(ours, tokens, has_mask=has_mask), logits(expected, tokens, has_mask=has_mask)
    )
    if not has_mask or theirs is gemma3.Decoder:
        for block in ours.transformer_blocks:
            attention = dataclasses.replace(block.config.attn_config, sliding_window_size=None)
            block.config = dataclasses.replace(block.config, attn_config=attention)
        wider = logits(ours, tokens, has_mask=has_mask)
        assert not torch.allclose(wider, logits(expected, tokens, has_mask=has_mask), atol=1e-3)


def test_plain_model_computes_the_bits_of_litert_torchs_own():
    config = tiny_llama.get_fake_model_config()
    tokens = parity.sample_tokens(config.vocab_size)
    expected = randomized(tiny_llama.TinyLlama(config, 0))
    ours = authoring.decoder(config)
    ours.load_state_dict(expected.state_dict(), assign=True)
    assert torch.equal(logits(ours, tokens, has_mask=True), logits(expected, tokens, has_mask=True))


def test_layers_without_rope_are_those_of_smollm3(tmp_path):
    theirs = SmolLM3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
        no_rope_layers=[1, 0, 1, 0],
        pad_token_id=0,
    )
    torch.manual_seed(1)
    reference = SmolLM3ForCausalLM(theirs).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.normal_(1 if p.dim() == 1 else 0, 0.2)
    norm = authoring.rms_norm(1e-6)

    def block(rope):
        return BlockConfig(
            attn_config=AttentionConfig(num_heads=4, head_dim=16, num_query_groups=2, rope=rope),
            ff_config=layers.FeedForwardConfig(
                type=layers.FeedForwardType.GATED,
                activation=layers.ActivationConfig(layers.ActivationType.SILU),
                intermediate_size=96,
            ),
            pre_attention_norm_config=norm,
            post_attention_norm_config=norm,
        )

    config = layers.ModelConfig(
        vocab_size=128,
        num_layers=4,
        max_seq_len=64,
        embedding_dim=64,
        block_configs=[block(rope) for rope in (Rope(2e6, 1.0), None) * 2],
        final_norm_config=norm,
    )
    reference.save_pretrained(tmp_path)
    checkpoint = open_folder(tmp_path)
    ours = authoring.decoder(config)
    weights = mapping.map_parameters(ours, checkpoint, authoring.hub_names(tied=True))
    model.materialize(model.AuthoredModel(Model("x", None, "x"), ours, weights, {}, {}, ()))
    tokens = torch.randint(1, 128, (1, 24), dtype=torch.int32)
    with torch.inference_mode():
        expected = reference(tokens.long()).logits
    torch.testing.assert_close(parity.run(ours, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [INPUT, BUILT_IN], ids=["input", "built-in"])
def test_both_engines_give_the_same_file(options, tmp_path):
    def make():
        module = authoring.decoder(small(window=6))
        architecture.drop_idle_windows(module, SLOTS)
        module.build_mask_cache(0 if options.mask_as_input else SLOTS)
        return module

    both = engines.of_module(make, lambda m: defaults.signatures(m, options), tmp_path)
    both.compare(recipe.meet(recipe.resolve("dynamic_int8"), both.module, "small"))
    # The soft cap left the tied table alone: it is stored once.
    graphs = [t.graph(both.depth) for t in both.traced]
    assert not any(c.operation for g in graphs for c in g.constants.values())


def test_scaled_rope_is_stamped_like_any_other(tmp_path):
    rope = Rope(5e5, 1.0, Llama3Scaling(8.0, 1.0, 4.0, 16.0))
    config = small(count=6)
    blocks = [
        dataclasses.replace(b, attn_config=dataclasses.replace(b.attn_config, rope=rope))
        for b in config.block_configs
    ]
    config = dataclasses.replace(config, block_configs=blocks)

    def make():
        return authoring.decoder(config)

    both = engines.of_module(make, lambda m: defaults.signatures(m, INPUT)[-1:], tmp_path)
    assert all(t.block_scope for t in both.traced)
    both.compare(recipe.meet(recipe.resolve("none"), both.module, "small"))


@pytest.mark.parametrize(
    ("window", "capacity", "is_alike"), [(256, 256, True), (255, 256, False), (None, 256, True)]
)
def test_window_as_long_as_the_cache_is_none(window, capacity, is_alike):
    module = authoring.decoder(small(window=window, count=6))
    architecture.drop_idle_windows(module, capacity)
    assert shallow.is_uniform(module) == is_alike
    assert (set(architecture.windows(module.config)) == {None}) == is_alike
    # Slots that a runtime may leave out would take the numbers along that a window is cut by.
    options = SignatureOptions((8,), capacity, "transposed", True)
    mask = defaults.signatures(module, options)[-1].inputs["mask"]
    assert mask.shape[-1] == (257 if is_alike else 256)


def test_rope_stands_in_one_place():
    attention = AttentionConfig(num_heads=1, head_dim=8, num_query_groups=1, rope=Rope(5e5, 0.5))
    assert (attention.rotary_base, attention.rotary_percentage) == (5e5, 0.5)
    with pytest.raises(AttributeError, match="no setter"):
        attention.rotary_base = 1e4
    with pytest.raises(ValueError, match="rotary_base"):
        dataclasses.replace(attention, rotary_base=1e4)
    assert dataclasses.replace(attention, rope=None).rotary_percentage == 0


def test_own_forward_is_not_trusted_to_treat_layers_alike():
    class Own(authoring.Decoder):
        def _logits(self, x):
            return super()._logits(x)

    config = small(count=6)
    assert shallow.is_uniform(authoring.decoder(config))
    assert not shallow.is_uniform(authoring.decoder(config, Own))
