"""What `inspect` says of files of both engines, held against the schema's own object API."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from click.testing import CliRunner
from litert_lm_builder import litertlm_builder
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from edgezoo_core import artifact, decoder, inspection, zoo
from edgezoo_core.cli import main
from edgezoo_core.conversion import graph
from edgezoo_core.errors import ArtifactError
from edgezoo_core.inspection import places
from edgezoo_core.inspection.places import Place
from edgezoo_core.shapes import Shapes

MIXED = """
default = "dynamic_int8"
embedding = "weight_only_int8"
feedforward = "dynamic_int4_block32"
o = "none"
[layers.-1]
attention = "dynamic_int4"
[layers.0]
qkv = "fp16"
"""
#: (model, recipe, engine).
FILES = (
    ("llama-grouped", "mixed", "streaming"),
    ("llama-grouped", "none", "litert"),
    ("llama-multi-query-tied", "dynamic_int4_block32", "streaming"),
    ("llama-multi-query-tied", "dynamic_int8_linear", "streaming"),
    ("llama-multi-head-biased-odd", "dynamic_int8", "streaming"),
    ("llama-multi-head-biased-odd", "dynamic_int8", "litert"),
    ("gemma-grouped-odd", "weight_only_int8", "streaming"),
    ("phi-grouped-odd", "fp16", "streaming"),
)
TIED = ("llama-multi-query-tied", "dynamic_int4_block32", "streaming")
MIXED_FILE = FILES[0]
LITERT_NONE = FILES[1]


@pytest.fixture(scope="module")
def convert(save_case, tmp_path_factory):
    """Converts a model of FILES, once."""
    made = {}

    def run(case, recipe, engine):
        key = (case, recipe, engine)
        if key not in made:
            folder = tmp_path_factory.mktemp("converted")
            if recipe == "mixed":
                recipe = str(folder / "mixed.toml")
                (folder / "mixed.toml").write_text(MIXED)
            made[key] = zoo.convert(
                str(save_case(case).folder),
                recipe=recipe,
                shapes=Shapes((4, 16), 32, "transposed", True),
                output=folder,
                engine=engine,
                with_bundle=False,
            ).artifact
        return made[key]

    return run


@pytest.fixture
def bare(convert, tmp_path):
    """Copies a file without its manifest: `bare(key)`."""

    def copy(key=MIXED_FILE):
        return shutil.copy(convert(*key).path, tmp_path / "bare.tflite")

    return copy


def rewritten(path, change):
    """Writes a file anew, with what `change` does to the schema's ModelT."""
    model = flatbuffer_utils.read_model(str(path))
    change(model)
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    return path


def outer_buffers(path):
    """Start and size of each constant behind the flatbuffer."""
    with decoder.mapped(path) as model:
        buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
        return sorted({(b.Offset(), b.Size()) for b in buffers if b.Offset() > 1})


def scale_bytes(model):
    """Bytes of all scales and zero points, as the object API reads them."""
    spans, buffers = set(), set()
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            found = tensor.quantization
            if found is None:
                continue
            for values in (found.min, found.max, found.scale, found.zeroPoint):
                if values is not None:  # a view of the file: signatures may share one
                    spans.add((values.ctypes.data, values.nbytes))
            if isinstance(found.details, schema.BlockwiseQuantizationT):
                buffers.add(subgraph.tensors[found.details.scales].buffer)
    return sum(size for _, size in spans) + sum(len(model.buffers[b].data) for b in buffers)


@pytest.mark.parametrize("key", FILES, ids="-".join)
def test_bytes_add_up_and_are_what_the_object_api_reads(key, convert):
    path = convert(*key).path
    (account,) = inspection.inspect(path).models
    found = account.bytes
    print(found)
    assert found.total == path.stat().st_size
    model = graph.read(path)
    weights = {u.weight.buffer for u in graph.weight_uses(model) if u.weight}
    assert found.weights == sum(len(model.buffers[b].data) for b in weights)
    assert found.weights == sum(w.size_bytes for w in account.weights)
    assert found.scales == scale_bytes(model)
    held = sum(len(b.data) for b in model.buffers if b.data is not None)
    described = sum(len(model.buffers[m.buffer].data) for m in model.metadata)
    blocks = found.weights + found.constants + found.scales
    assert blocks >= held - described
    outer = outer_buffers(path)
    gaps = path.stat().st_size - outer[0][0] - sum(size for _, size in outer) if outer else 0
    assert found.padding == gaps
    assert found.graph > 0


@pytest.mark.parametrize("key", FILES, ids="-".join)
def test_names_alone_tell_what_the_manifest_says(key, convert, bare):
    expected = convert(*key).manifest["recipe"]["weights"]
    found = inspection.inspect(bare(key))
    assert found.recipe is None
    assert found.notes == ()
    told = {str(p): w.format for w in found.models[0].weights for p in w.places}
    assert told == expected


def test_stored_forms_are_told(convert):
    (account,) = inspection.inspect(convert(*MIXED_FILE).path).models
    weights = {str(p): w for w in account.weights for p in w.places}
    forms = {n: (w.dtype, w.granularity, w.mode) for n, w in weights.items()}
    assert forms["embedding"] == ("int8", "per channel", "float")
    assert forms["lm_head"] == ("int8", "per channel", "dynamic")
    assert forms["layers.0.qkv"] == ("float16", None, "float")
    assert forms["layers.0.o"] == ("float32", None, "float")
    assert forms["layers.1.qkv"] == ("int4", "per channel", "dynamic")
    assert forms["layers.1.gate"] == ("int4", "block 32", "dynamic")
    gate = weights["layers.1.gate"]
    assert (gate.shape, gate.size_bytes) == ((256, 128), 256 * 128 // 2)
    assert gate.scale_bytes >= 2 * 256 * 128 // 32


def test_a_tied_weight_of_several_signatures_counts_once(convert):
    (account,) = inspection.inspect(convert(*TIED).path).models
    tied = [w for w in account.weights if w.places[0].part == "embedding"]
    assert [[str(p) for p in w.places] for w in tied] == [["embedding", "lm_head"]]
    assert tied[0].operators == ("EMBEDDING_LOOKUP", "FULLY_CONNECTED")
    assert tied[0].size_bytes == 403 * 128 // 2
    assert len(account.weights) == 1 + 2 * 5


def test_norms_and_biases_have_their_places(convert):
    key = ("llama-multi-head-biased-odd", "dynamic_int8", "streaming")
    (account,) = inspection.inspect(convert(*key).path).models
    others = {str(p) for c in account.constants if not c.is_weight for p in c.places}
    parts = ("qkv.bias", "o.bias", "gate.bias", "up.bias", "down.bias", "norm")
    assert others == {"norm"} | {f"layers.{i}.{part}" for i in range(3) for part in parts}
    layers = account.by_layer()
    assert list(layers) == [0, 1, 2]
    assert {count for count, _ in layers.values()} == {5 + 5 + 2}


def test_operators_are_those_of_the_graph(convert):
    path = convert(*MIXED_FILE).path
    (account,) = inspection.inspect(path).models
    model = graph.read(path)
    assert sum(account.operators().values()) == sum(len(g.operators) for g in model.subgraphs)
    by_name = {g.signature: g for g in account.subgraphs if g.signature}
    assert list(by_name) == ["prefill_4", "prefill_16", "decode"]
    assert by_name["decode"].operators["FULLY_CONNECTED"] == 11
    assert by_name["decode"].operators["STABLEHLO_COMPOSITE odml.rms_norm"] == 5
    assert account.signatures["decode"].outputs["logits"].shape == (1, 1, 384)


@pytest.mark.parametrize(
    ("scope", "operator", "place"),
    [
        ("a/TransformerBlock_12/x.GatedFeedForward_ff/torch.Linear_w1;1", "FULLY_CONNECTED",
         Place("gate", 12)),
        ("a/TransformerBlock_1/x.SequentialFeedForward_ff/torch.Linear_w1;", "FULLY_CONNECTED",
         Place("up", 1)),
        ("a/TransformerBlock_3/Gated_ff/Linear_w3;;a/TransformerBlock_3/Gated_ff/Linear_w1;2",
         "FULLY_CONNECTED", Place("up", 3)),
        ("b.LlamaModel_model/b.LlamaDecoderLayer_7/b.LlamaAttention_self_attn/Linear_k_proj;",
         "FULLY_CONNECTED", Place("qkv", 7)),
        ("b.LlamaModel_model/Embedding_embed_tokens;3", "EMBEDDING_LOOKUP",
         Place("embedding", None)),
        ("b/Linear_lm_head", "FULLY_CONNECTED", Place("lm_head", None)),
        ("StatefulPartitionedCall:0", "FULLY_CONNECTED", Place(None, None)),
    ],
)  # fmt: skip
def test_places_of_names(scope, operator, place):
    assert places.of_weight(scope, operator) == place


def test_runs_of_layers():
    assert places.runs([5, 0, 1, 2, 2, 7, 8]) == "0-2, 5, 7-8"


def test_what_names_do_not_tell_is_grouped_by_shape(bare):
    def strip(model):
        for subgraph in model.subgraphs:
            for number, tensor in enumerate(subgraph.tensors):
                tensor.name = f"t{number}".encode()

    path = rewritten(bare(LITERT_NONE), strip)
    found = inspection.inspect(path)
    (account,) = found.models
    assert account.bytes.total == path.stat().st_size
    placed = {str(p) for w in account.weights for p in w.places}
    assert placed == {"embedding", "lm_head"}  # their operators and shapes tell
    assert re.search("10 of 12 weights belong; they are grouped by shape", found.notes[0])
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert re.search(r"^\? +- +none +float32 +\[256, 128\] +6 ", done.output, re.MULTILINE)


def test_the_manifest_is_believed_if_it_is_the_files(convert, tmp_path):
    converted = convert(*MIXED_FILE)
    path = shutil.copy(converted.path, tmp_path / "x.tflite")
    manifest = json.loads(json.dumps(converted.manifest))
    manifest["recipe"]["name"] = "mine"
    manifest["recipe"]["weights"]["layers.0.down"] = "another"
    beside = artifact.manifest_path(path)
    beside.write_text(json.dumps(manifest))
    found = inspection.inspect(path)
    assert found.recipe == "mine"
    told = {str(p): w.format for w in found.models[0].weights for p in w.places}
    assert (told["layers.0.down"], told["layers.0.o"]) == ("another", "none")
    manifest["recipe"]["weights"]["layers.9.down"] = "none"
    beside.write_text(json.dumps(manifest))
    assert "layers.9.down" in inspection.inspect(path).notes[0]
    manifest["artifact"]["size_bytes"] += 1
    for foreign in (json.dumps(manifest), "{", "[]"):
        beside.write_text(foreign)
        found = inspection.inspect(path)
        assert found.recipe is None
        assert found.notes == ("x.manifest.json is of another file, and was not read",)


@pytest.fixture
def bundle(bare, tmp_path):
    """A bundle with two models and metadata."""
    message = llm_metadata_pb2.LlmMetadata(max_num_tokens=32)
    message.start_token.token_ids.ids.append(1)
    message.stop_tokens.add().token_ids.ids.append(2)
    message.stop_tokens.add().token_str = "<end>\x1b[31m"
    message.jinja_prompt_template = "{{ x }}"
    (tmp_path / "llm.pb").write_bytes(message.SerializeToString())
    builder = litertlm_builder.LitertLmFileBuilder()
    builder.add_system_metadata(
        litertlm_builder.Metadata("author", "x", litertlm_builder.DType.STRING)
    )
    builder.add_llm_metadata(str(tmp_path / "llm.pb"))
    kinds = litertlm_builder.TfLiteModelType
    builder.add_tflite_model(str(bare(TIED)), kinds.EMBEDDER)
    shutil.copy(tmp_path / "bare.tflite", tmp_path / "other.tflite")
    builder.add_tflite_model(str(bare(LITERT_NONE)), kinds.PREFILL_DECODE)
    path = tmp_path / "both.litertlm"
    with path.open("wb") as file:
        builder.build(file)
    return path


def test_bundle_adds_up_and_says_what_its_metadata_says(bundle):
    found = inspection.inspect(bundle)
    around = found.bundle
    sizes = [s.size_bytes for s in around.sections]
    assert sum(sizes) + around.header_bytes + around.padding_bytes == bundle.stat().st_size
    assert [s.kind for s in around.sections] == ["LlmMetadataProto", "TFLiteModel", "TFLiteModel"]
    assert [m.model_type for m in found.models] == ["tf_lite_embedder", "tf_lite_prefill_decode"]
    for model in found.models:
        assert model.bytes.total == sizes[model.section]
    assert around.start_token == (1,)
    assert around.stop_tokens == ((2,), "<end>\x1b[31m")
    assert (around.prompts, around.max_num_tokens) == ("jinja", 32)


def test_models_of_a_bundle_are_what_they_are_alone(bundle, tmp_path):
    bundled = inspection.inspect(bundle).models[1]
    (alone,) = inspection.inspect(tmp_path / "bare.tflite").models
    assert bundled.constants == alone.constants
    assert bundled.bytes == alone.bytes


def test_json_has_all(convert):
    path = convert(*MIXED_FILE).path
    done = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert set(told) == {"path", "size_bytes", "recipe", "models", "bundle", "notes"}
    (model,) = told["models"]
    assert model["bytes"]["total"] == told["size_bytes"] == path.stat().st_size
    cache = model["signatures"]["decode"]["inputs"]["kv_cache_k_0"]
    assert cache == {"dtype": "float32", "shape": [1, 2, 37, 32]}
    gates = [c for c in model["constants"] if c["places"] == ["layers.0.gate"]]
    assert gates[0]["format"] == "dynamic_int4_block32"
    assert gates[0]["granularity"] == "block 32"
    assert model["layers"]["0"]["tensors"] == 7
    assert sum(d["size_bytes"] for d in model["dtypes"].values()) == (
        model["bytes"]["weights"] + model["bytes"]["constants"]
    )
    assert sum(model["operators"].values()) == sum(
        sum(g["operators"].values()) for g in model["subgraphs"]
    )


def test_tables_are_short_and_complete(convert):
    done = CliRunner().invoke(main, ["inspect", str(convert(*MIXED_FILE).path)])
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "in, out kv_cache_k_0-1 float32 [1, 2, 37, 32]" in lines
    assert any(re.match(r"gate 0-1 dynamic_int4_block32 int4, block 32 \[256, 128\] 2 ", line)
               for line in lines)  # fmt: skip
    assert any(line.startswith("qkv 0 fp16 float16 ") for line in lines)
    assert any(line.startswith("qkv 1 dynamic_int4 int4, per channel ") for line in lines)
    assert any(re.match(r"total .* 100.0%", line) for line in lines)
    assert len(lines) < 90


def test_a_foreign_name_cannot_command_the_terminal(bare, bundle):
    def poison(model):
        model.signatureDefs[0].signatureKey = b"prefill\x1b[2J\r"
        model.signatureDefs[0].inputs[0].name = b"in\x07"
        for code in model.operatorCodes:
            code.customCode = b"op\x1b]0;x"

    path = rewritten(bare(LITERT_NONE), poison)
    for file in (path, bundle):
        done = CliRunner().invoke(main, ["inspect", str(file)])
        assert done.exit_code == 0, done.output
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b]", done.stdout)
        assert r"\x1b" in done.stdout


def test_a_large_file_is_not_read(bare):
    path = bare()
    content = bytearray(path.read_bytes())
    start, _ = outer_buffers(path)[-1]
    model = schema.Model.GetRootAs(content)
    index = next(i for i in range(model.BuffersLength()) if model.Buffers(i).Offset() == start)
    huge = 6 << 30
    flatbuffer_utils.update_packed_buffer(model.Buffers(index), offset=start, size=huge)
    path.write_bytes(content)
    os.truncate(path, start + huge)
    script = (
        "import sys; from pathlib import Path; from edgezoo_core import inspection\n"
        "found = inspection.inspect(Path(sys.argv[1]))\n"
        "print(found.models[0].bytes.total)\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    total, peak_kb = map(int, done.stdout.split())
    assert total == path.stat().st_size > 6 << 30
    print(f"{peak_kb / 1024:.0f} MB")
    assert peak_kb < 200 * 1024


def test_what_is_no_such_file_is_told(bare, tmp_path):
    path = bare()
    for name, content, words in (
        ("missing.tflite", None, "no such file"),
        ("text.tflite", b"Hello, world", "no .tflite"),
        ("empty.tflite", b"", "no sound .tflite"),
        ("cut.tflite", path.read_bytes()[: path.stat().st_size // 2], "cut.tflite"),
        ("header.litertlm", b"LITERTLM" + bytes(3), "header.litertlm"),
    ):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ArtifactError, match=words):
            inspection.inspect(file)
        done = CliRunner().invoke(main, ["inspect", str(file)])
        assert done.exit_code == 1
        assert "Fix:" in done.stderr


def test_damage_never_crashes(bare):
    path = bare()
    content = path.read_bytes()
    random = np.random.default_rng(5)
    head = outer_buffers(path)[0][0]
    for _ in range(40):
        damaged = bytearray(content)
        for position in random.integers(8, head, 6):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        with suppress(ArtifactError):
            inspection.inspect(path)


def test_graph_asks_for_model_explorer(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_explorer", None)
    done = CliRunner().invoke(main, ["inspect", str(bare()), "--graph"])
    assert done.exit_code == 1
    assert "pip install ai-edge-model-explorer" in done.stderr


def test_graph_shows_a_file_or_the_model_out_of_a_bundle(bundle, tmp_path, monkeypatch):
    shown = []

    def visualize(path):
        shown.append((path, Path(path).read_bytes()))

    monkeypatch.setitem(sys.modules, "model_explorer", SimpleNamespace(visualize=visualize))
    alone = tmp_path / "bare.tflite"
    for file in (alone, bundle):
        done = CliRunner().invoke(main, ["inspect", str(file), "--graph"])
        assert done.exit_code == 0, done.output
    assert shown[0] == (str(alone), alone.read_bytes())
    assert shown[1][1] == alone.read_bytes()  # the language model, not the first one
    assert not Path(shown[1][0]).exists()
