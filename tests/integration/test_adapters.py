"""Adapters merged as rows stream through, against peft's merge_and_unload.

Bit for bit; where the product is made in windows, as for tensors of over WHOLE_BYTES, only AVX-512
kernels give the same bits, and the tests allow the last ones to differ (WINDOW_TOLERANCE).
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from edgezoo_core import adapter_merging
from edgezoo_core.adapter_merging import AdapterSet, bind_adapters
from edgezoo_core.adapters import EXACT_ROWS, Adapter, open_adapter
from edgezoo_core.conversion.rows import chunks
from edgezoo_core.errors import CheckpointError

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
#: Of the greatest value in a tensor: a few roundings of float32. Measured with AVX2: 2.5e-7.
WINDOW_TOLERANCE = 2.0**-20


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=384,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def save(base: Any, tmp_path: Path) -> Callable[..., Path]:
    """Saves an adapter of random A and B as peft saves it: `save(name, **config)`."""

    def make(name: str = "adapter", **config: Any) -> Path:
        settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], **config}
        settings.setdefault("init_lora_weights", False)
        torch.manual_seed(len(name))
        with warnings.catch_warnings():  # peft says that it saves embeddings, too
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
            model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def by_peft(base: Any, folders: dict[Path, float]) -> dict[str, torch.Tensor]:
    """The state dict after peft has merged, scaling as its scale_layer does."""
    names = [folder.name for folder in folders]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, *others = folders
        model = peft.PeftModel.from_pretrained(copy.deepcopy(base), first, adapter_name=names[0])
        for folder in others:
            model.load_adapter(folder, adapter_name=folder.name)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for folder, weight in folders.items():
                    if folder.name in layer.scaling:
                        layer.scaling[folder.name] *= weight
        merged = model.merge_and_unload(adapter_names=names)
    return merged.state_dict()


def bind(base: Any, *adapters: Adapter, **options: Any) -> AdapterSet:
    shapes = {name: tuple(t.shape) for name, t in base.state_dict().items()}
    return bind_adapters(adapters, shapes, source="org/base@c0ffee", **options)


def streamed(base: Any, adapters: AdapterSet, height: int) -> dict[str, torch.Tensor]:
    state = {name: t.clone() for name, t in base.state_dict().items()}
    for name, whole in state.items():
        if adapters.touches(name):
            for start, stop in chunks(len(whole), height):
                adapters.merge(name, start, whole[start:stop])
    return state


def assert_same(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if torch.equal(ours.view(torch.int32), theirs.view(torch.int32)):
        return
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    tolerance = 0 if adapter_merging.WHOLE_BYTES else WINDOW_TOLERANCE
    assert error <= tolerance, f"{name}: error {error}, tolerance {tolerance}"
    assert tolerance, f"{name}: a zero has another sign"


def assert_as_peft(base: Any, folders: dict[Path, float], height: int = 100) -> AdapterSet:
    adapters = bind(base, *(open_adapter(f, weight) for f, weight in folders.items()))
    ours, theirs = streamed(base, adapters, height), by_peft(base, folders)
    assert ours.keys() == theirs.keys()
    before = base.state_dict()
    for name, tensor in theirs.items():
        assert_same(name, ours[name], tensor)
        assert adapters.touches(name) == (not torch.equal(tensor, before[name])), name
    return adapters


PLAIN: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "rank-and-alpha-patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 8, "proj": 3},
        "alpha_pattern": {"model.layers.0.self_attn.k_proj": 11, ".*down_proj": 5},
    },
    "rslora": {"use_rslora": True, "r": 7, "alpha_pattern": {"up_proj": 3}},
    "regex-and-head": {"target_modules": r".*layers\.1.*(q_proj|up_proj)|lm_head"},
    "some-layers": {"layers_to_transform": [1], "lora_alpha": 2.5},
    "gaussian": {"init_lora_weights": "gaussian", "target_modules": ["embed_tokens"]},
    "embedding-and-head": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "biased-without-biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("limit", [adapter_merging.WHOLE_BYTES, 0], ids=["whole", "windows"])
@pytest.mark.parametrize("name", PLAIN)
def test_bits_are_those_of_peft(
    base: Any, save: Any, name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_merging, "WHOLE_BYTES", limit)
    folder = save(**{"target_modules": LINEAR, **PLAIN[name]})
    if name == "gaussian":  # peft starts an embedding's A at 0
        weights = load_file(folder / WEIGHTS)
        key = "base_model.model.model.embed_tokens.lora_embedding_A"
        save_file({**weights, key: torch.randn_like(weights[key])}, folder / WEIGHTS)
    assert_as_peft(base, {folder: 1.0})


def test_two_adapters_with_weights_add_in_order(base: Any, save: Any) -> None:
    one = save("one", target_modules=LINEAR, r=8)
    three = save("three", target_modules=["q_proj", "embed_tokens"], lora_alpha=3)
    assert_as_peft(base, {one: 0.7, three: -1.3})
    assert_as_peft(base, {three: -1.3, one: 0.7})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_adapter_dtype_is_raised_to_float32_as_peft_does(base: Any, save: Any, dtype: Any) -> None:
    folder = save(target_modules=LINEAR)
    save_file({k: v.to(dtype) for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    assert_as_peft(base, {folder: 1.0})


def test_saved_embedding_and_modules_to_save_replace_the_weight(base: Any, save: Any) -> None:
    folder = save(target_modules=["embed_tokens"], modules_to_save=["lm_head"])
    weights = load_file(folder / WEIGHTS)
    for name in ("model.embed_tokens.base_layer.weight", "lm_head.weight"):
        weights[f"base_model.model.{name}"].mul_(1.01)
    save_file(weights, folder / WEIGHTS)
    assert_as_peft(base, {folder: 1.0})
    with pytest.raises(CheckpointError, match="no weight scales"):
        open_adapter(folder, 0.5)
    other = save("other", modules_to_save=["lm_head"])
    both = bind(base, open_adapter(folder), open_adapter(other))
    with pytest.raises(CheckpointError, match=r"different weight each in place of lm_head\.weight"):
        streamed(base, both, 100)


def test_pytorch_file(base: Any, save: Any) -> None:
    folder = save(target_modules=LINEAR)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    assert_as_peft(base, {folder: 1.0})


@pytest.mark.parametrize("limit", [adapter_merging.WHOLE_BYTES, 0], ids=["whole", "windows"])
@pytest.mark.parametrize("height", [1, 7, 100, 128, 512, 4000])
def test_large_layer_in_chunks_of_any_height(
    tmp_path: Path, height: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_merging, "WHOLE_BYTES", limit)
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(576, 1500, bias=False))
    config = peft.LoraConfig(r=16, lora_alpha=24, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(net), config)
    model.save_pretrained(tmp_path)
    adapters = bind(net, open_adapter(tmp_path))
    ours = streamed(net, adapters, height)
    assert_same("0.weight", ours["0.weight"], model.merge_and_unload().state_dict()["0.weight"])


def test_chunks_leave_no_short_remainder() -> None:
    assert chunks(1500, 512) == [(0, 512), (512, 1500)]
    assert chunks(1024, 512) == [(0, 512), (512, 1024)]
    assert chunks(99, 512) == [(0, 99)]
    assert EXACT_ROWS == 128


def test_rows_may_come_in_any_order(base: Any, save: Any) -> None:
    adapters = bind(base, open_adapter(save(target_modules=LINEAR)))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = streamed(base, adapters, 1000)[name]
    state = base.state_dict()[name].clone()
    for start, stop in ((150, 176), (0, 50), (50, 150)):
        adapters.merge(name, start, state[start:stop])
    assert torch.equal(state, expected)
    with pytest.raises(ValueError, match="no rows 170 to 346"):
        adapters.merge(name, 170, state)
    with pytest.raises(ValueError, match="bfloat16"):
        adapters.merge(name, 0, state.bfloat16())
    norm = torch.ones(64)
    adapters.merge("model.norm.weight", 0, norm)
    assert torch.equal(norm, torch.ones(64))


def test_leading_model_may_be_absent_from_the_checkpoint(base: Any, save: Any) -> None:
    adapter = open_adapter(save())
    inner = {name.removeprefix("model."): tuple(t.shape) for name, t in base.state_dict().items()}
    adapters = bind_adapters([adapter], inner, source="org/inner")
    assert adapters.touches("layers.1.self_attn.q_proj.weight")
    assert not adapters.touches("layers.1.self_attn.k_proj.weight")


def test_record_is_json_and_says_what_was_read(base: Any, save: Any) -> None:
    folder = save(rank_pattern={"q_proj": 2})
    adapter = open_adapter(folder, 0.5, "org/adapter@abc")
    (record,) = json.loads(json.dumps(bind(base, adapter).record()))
    assert record["source"] == "org/adapter@abc"
    assert (record["weight"], record["r"], record["lora_alpha"]) == (0.5, 4, 6)
    assert record["rank_pattern"] == {"q_proj": 2}
    assert [f["name"] for f in record["files"]] == [CONFIG, WEIGHTS]
    assert all(len(f["sha256"]) == 64 for f in record["files"])
    assert (record["adapted_weights"], record["replaced_weights"]) == (2, 0)


@pytest.mark.parametrize(
    ("base_name", "revision", "warning"),
    [
        ("org/base", None, None),
        ("/home/me/base/", None, None),
        (None, None, None),
        ("org/base", "main", None),
        ("org/other", None, "was trained on org/other, and is merged into org/base@c0ffee"),
        ("org/base", "1234", "was trained on revision 1234"),
    ],
)
def test_warns_of_another_base(
    base: Any, save: Any, caplog: Any, base_name: Any, revision: Any, warning: str | None
) -> None:
    folder = save()
    edit(folder, base_model_name_or_path=base_name, revision=revision)
    with caplog.at_level(logging.WARNING):
        bind(base, open_adapter(folder))
    assert (warning or "") in caplog.text
    assert bool(warning) == bool(caplog.records)


def edit(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is True: DoRA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"future_field": 3}, "future_field is 3: edgezoo does not know"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "6"}, "lora_alpha is '6'"),
        ({"lora_alpha": float("nan")}, "it holds NaN"),
        ({"rank_pattern": {"(": 3}}, "no regular expression"),
        ({"rank_pattern": {"q_proj": 2.5}}, "'q_proj' is 2.5"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
        ({"modules_to_save": ["score"]}, "the weights lack: score"),
        ({"r": 5}, r"A \[4, 64\] and B \[64, 4\] are not \[5, in\]"),
    ],
)
def test_config_that_cannot_be_merged_is_refused(save: Any, fields: Any, message: str) -> None:
    folder = save()
    edit(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(folder)


@pytest.mark.parametrize(
    "fields", [{"future_field": None}, {"future_flag": False}, {"init_lora_weights": "eva"}]
)
def test_fields_that_change_nothing_are_accepted(save: Any, fields: Any) -> None:
    folder = save()
    edit(folder, **fields)
    open_adapter(folder)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.lora_magnitude_vector.weight": (64,)}, "lora_magnitude_vector"),
        ({f"{Q}.lora_B.bias": (64,)}, r"lora_B\.bias"),
        ({f"{Q}.base_layer.bias": (64,)}, r"base_layer\.bias"),
        ({f"{Q}.lora_A.default.weight": (4, 64)}, r"lora_A\.default\.weight"),
        (
            {"model.layers.0.self_attn.q_proj.lora_A.weight": (4, 64)},
            r"more than .*: model\.layers",
        ),
        ({f"{Q}.lora_A.weight": (4, 64, 1)}, r"A \[4, 64, 1\]"),
        ({f"{Q}.lora_B.weight": None}, "q_proj has lora_A, and not an A and a B"),
        ({"base_model.model.model.norm.weight": (64,)}, r"replaces model\.norm\.weight \[64\]"),
    ],
)
def test_tensors_that_are_no_plain_lora_are_refused(save: Any, tensors: Any, message: str) -> None:
    folder = save()
    weights = load_file(folder / WEIGHTS)
    for name, shape in tensors.items():
        weights.pop(name, None)
        if shape:
            weights[name] = torch.ones(shape)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(folder)


def test_what_peft_itself_saves_of_other_kinds_is_refused(save: Any) -> None:
    with pytest.raises(CheckpointError, match="use_dora"):
        open_adapter(save("dora", use_dora=True))
    folder = save("nan")
    weights = load_file(folder / WEIGHTS)
    weights[f"{Q}.lora_A.weight"][0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="A holds NaN or infinity"):
        open_adapter(folder)
    with pytest.raises(CheckpointError, match="weight inf"):
        open_adapter(save("inf"), float("inf"))


def test_damaged_or_absent_files(save: Any, tmp_path: Path) -> None:
    folder = save()
    (folder / WEIGHTS).write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(CheckpointError, match="no readable adapter"):
        open_adapter(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model\.safetensors nor"):
        open_adapter(folder)
    torch.save({"a": open}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="no readable adapter"):
        open_adapter(folder)
    (folder / CONFIG).write_text("[")
    with pytest.raises(CheckpointError, match="is not JSON"):
        open_adapter(folder)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: No such file"):
        open_adapter(tmp_path / "nowhere")


def test_adapter_of_another_model_is_refused(base: Any, save: Any) -> None:
    adapter = open_adapter(save(target_modules=["q_proj", "lm_head"]))
    shapes = {name: tuple(t.shape) for name, t in base.state_dict().items()}
    name = "model.layers.1.self_attn.q_proj.weight"
    wrong = {**shapes, name: (64, 96), "lm_head.weight": (400, 64)}
    found = r"lm_head\.weight: found \[384, 64\], expected \[400, 64\].*expected \[64, 96\]"
    with pytest.raises(CheckpointError, match=found):
        bind_adapters([adapter], wrong, source="org/base")
    wrong = {n.replace("q_proj", "qu_proj"): s for n, s in shapes.items()}
    near = r"no tensor model\.layers\.0\.self_attn\.q_proj\.weight \(nearest: .*0.*qu_proj\.weight"
    with pytest.raises(CheckpointError, match=near):
        bind_adapters([adapter], wrong, source="org/base")
    both = {**{n: s for n, s in shapes.items() if n != name}, f"model.{name}": (64, 64)}
    both[name.removeprefix("model.")] = (64, 64)
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.1"):
        bind_adapters([adapter], both, source="org/base")


@pytest.mark.parametrize(
    ("config", "module"),
    [
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["embed_tokens"]}, r"model\.embed_tokens"),
        ({"modules_to_save": ["embed_tokens"]}, r"model\.embed_tokens"),
    ],
)
def test_tied_embeddings_are_not_untied(base: Any, save: Any, config: Any, module: str) -> None:
    adapter = open_adapter(save(**config))
    bind(base, adapter, tied=False)
    with pytest.raises(CheckpointError, match=f"changes {module}, .* tied to the embedding"):
        bind(base, adapter, tied=True)
    shapes = {n: tuple(t.shape) for n, t in base.state_dict().items() if n != "lm_head.weight"}
    with pytest.raises(CheckpointError, match="tied to the embedding"):
        bind_adapters([adapter], shapes, source="org/tied")
