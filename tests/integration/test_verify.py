"""A verification catches what was broken on purpose, in the part that should catch it."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgezoo_core import artifact, certificate, compiler, sources, zoo
from edgezoo_core.errors import ArtifactError, VerificationError
from edgezoo_core.recipe import resolve
from edgezoo_core.shapes import Shapes

SHAPES = Shapes(prefill_lengths=(4, 16), kv_cache_length=64)
LLAMA = "llama-multi-head-biased-odd"
RUNTIMES = ("litert", "tensorflow")

# Plugins that are wrong: the graph computes something else.

PLUGIN = """
from edgezoo_core import hookimpl

@hookimpl
def author(model, config):
    from edgezoo_core import authoring
    from {module} import {file} as right
    c = right.model_config(config)
    {author}
    return authoring.decoder(c)

@hookimpl
def tensor_names(config, names):
    import dataclasses
    from {module} import {file} as right
    n = right.tensor_names(config, names)
    {names}
    return n
"""
#: Fault -> the small model, what is done to its configuration, to its names.
FAULTS = {
    "query and key": (
        LLAMA,
        "pass",
        "n.attn_query_proj, n.attn_key_proj = n.attn_key_proj, n.attn_query_proj",
    ),
    "gate and up": (LLAMA, "pass", "n.ff_gate_proj, n.ff_up_proj = n.ff_up_proj, n.ff_gate_proj"),
    "epsilon": (
        LLAMA,
        "c.block_config(0).post_attention_norm_config.epsilon = 1e-6",
        "pass",
    ),
    "rope base": (
        LLAMA,
        "c.block_config(0).attn_config.rope = authoring.Rope(10000.0, 1.0)",
        "pass",
    ),
    "embedding scale": ("gemma-multi-query", "c.embedding_scale = None", "pass"),
    "activation": (
        "phi-multi-head",
        "a = c.block_config(0).ff_config.activation; a.type = type(a.type).GELU_QUICK",
        "pass",
    ),
}


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Installs a wrong plugin: `faulty(family, author, names)`."""
    site = tmp_path / "site"
    module = f"faulty_{tmp_path.name.replace('-', '_')}"

    def install(family, author="pass", names="pass"):
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[edgezoo]\nfaulty = {module}\n")
        package = site / module
        package.mkdir()
        right = f"edgezoo_{family}"
        body = PLUGIN.format(module=right, file=family, author=author, names=names)
        (package / "__init__.py").write_text(body)
        architecture = {"tinyllama": "Llama", "gemma": "Gemma", "phi2": "Phi"}[family]
        (package / "models.toml").write_text(
            "schema = 1\nhook_api = 1\nfamily = 'faulty'\n"
            f"architectures = ['{architecture}ForCausalLM']\n"
            "[[models]]\nid = 'wrong'\ntitle = 'Wrong'\ncheckpoint = 'acme/wrong'\n"
            "license = 'mit'\nparameters = 1\ncontext_length = 2048\nrecipes = ['none']\n"
            "default_recipe = 'none'\n"
        )
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()

    yield install
    sys.modules.pop(module, None)


def lora(folder, output, seed=1):
    """Saves a random adapter for a model, large enough to matter."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **settings))
        model.save_pretrained(output)
    return output


def convert(folder, output, recipe="none", **options):
    made = zoo.convert(str(folder), recipe=recipe, shapes=SHAPES, output=output, **options)
    return made.artifact.path


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_structure_catches_a_wrong_plugin(fault, faulty, save_case, tmp_path):
    case, *changes = FAULTS.get(fault, (LLAMA,))
    saved = save_case(case)
    faulty(saved.family, *changes)
    path = convert(saved.folder, tmp_path, family="faulty")
    report = certificate.verify(path)
    print(report.structure, report.outputs.loss)
    assert report.structure.passes == (fault == "none")
    assert report.weights.passes  # each row is what its source is: the graph is what is wrong
    assert report.passes == (fault == "none")
    if fault in ("query and key", "epsilon", "rope base", "embedding scale"):
        assert report.structure.diverges == "layer 0"
    if fault in ("gate and up", "activation"):
        assert report.structure.diverges == "layer 1"  # behind the first layer's cache


def test_authored_reference_cannot_see_a_wrong_plugin(faulty, save_case, tmp_path):
    # Which is why it is not the default.
    case, *changes = FAULTS["rope base"]
    saved = save_case(case)
    faulty(saved.family, *changes)
    report = certificate.verify(
        convert(saved.folder, tmp_path, family="faulty"), reference="authored"
    )
    assert report.reference == "authored"
    assert report.passes


# Files that are wrong: the rows are another model's.


@pytest.fixture(scope="module")
def converted(save_case, tmp_path_factory):
    saved = save_case(LLAMA)
    return saved, convert(saved.folder, tmp_path_factory.mktemp("int8"), "dynamic_int8")


def layout(saved, recipe="dynamic_int8"):
    """The file's own program."""
    source = sources.obtain(str(saved.folder))
    with compiler.open_cache() as cache:
        compiled = compiler.compile_job(
            source.job(resolve(recipe), SHAPES), source.plugin, source.checkpoint, cache, jobs=1
        )
    compiled.head.close()
    return {m.parameter: m for m in compiled.program.matrices}


def copied(path, folder):
    shutil.copy(artifact.manifest_path(path), folder)
    return Path(shutil.copy(path, folder))


def claims(path, saved):
    """Lets a file's manifest say that it was made from another model's folder."""
    where = artifact.manifest_path(path)
    manifest = json.loads(where.read_text())
    manifest["checkpoint"]["folder"] = str(saved.folder)
    for file in manifest["checkpoint"]["files"]:
        content = (saved.folder / file["name"]).read_bytes()
        file["sha256"] = hashlib.sha256(content).hexdigest()
    where.write_text(json.dumps(manifest))


def test_sound_file_passes_and_says_so(converted, tmp_path):
    _, path = converted
    path = copied(path, tmp_path)
    report = certificate.verify(path)
    assert report.passes
    assert report.structure.relative_difference < 1e-5
    assert 0.9 < report.weights.largest <= 1
    assert 0 < report.outputs.loss.mean_kl < 0.05
    kept = artifact.read(path).manifest["verification"]
    assert kept["passes"]
    assert kept["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert kept["outputs"]["loss"]["mean_kl"] == report.outputs.loss.mean_kl
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_bound_of_the_user(converted, tmp_path):
    _, path = converted
    path = copied(path, tmp_path)
    report = certificate.verify(path, max_kl=1e-9, with_structure=False)
    assert not report.passes
    assert not report.outputs.passes
    assert report.weights.passes
    assert report.structure is None


def shift_scales(path, matrix):
    with path.open("r+b") as file:
        file.seek(matrix.scales_offset)
        scales = np.frombuffer(file.read(4 * matrix.rows), np.float32)
        file.seek(matrix.scales_offset)
        file.write(np.roll(scales, 1).tobytes())


def exchange_rows(path, matrix):
    with path.open("r+b") as file:
        file.seek(matrix.offset)
        first, second = file.read(matrix.columns), file.read(matrix.columns)
        file.seek(matrix.offset)
        file.write(second + first)


def flip_a_code(path, matrix):
    with path.open("r+b") as file:
        file.seek(matrix.offset + 5 * matrix.columns + 3)
        code = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([code ^ 0x04]))


@pytest.mark.parametrize("damage", [shift_scales, exchange_rows, flip_a_code])
def test_weights_catch_damaged_rows(damage, converted, tmp_path):
    saved, path = converted
    path = copied(path, tmp_path)
    name = "transformer_blocks.1.ff.w2.weight"
    damage(path, layout(saved)[name])
    report = certificate.verify(path, with_structure=False)
    assert not report.weights.passes
    assert [b for b in report.weights.bad if b.startswith(f"{name} row")]
    assert len(report.weights.bad) == 1


def transposed(tensors):
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name] = tensors[name].T.contiguous()
    return "transformer_blocks.1.atten_func.output_projection.weight"


def without_bias(tensors):
    tensors["model.layers.2.mlp.down_proj.bias"].zero_()
    return "transformer_blocks.2.ff.w2.bias"


def another_norm(tensors):
    tensors["model.norm.weight"] *= 1.001
    return "final_norm.weight"


@pytest.mark.parametrize("change", [transposed, without_bias, another_norm])
def test_weights_catch_another_model(change, converted, tmp_path):
    saved, _ = converted
    folder = tmp_path / "other"
    shutil.copytree(saved.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    parameter = change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = convert(folder, tmp_path, "dynamic_int8")
    claims(path, saved)
    report = certificate.verify(path, with_structure=False)
    assert not report.weights.passes
    assert [b.split(" row")[0] for b in report.weights.bad] == [parameter]


@pytest.mark.parametrize("recipe", ["fp16", "dynamic_int4", "weight_only_int8"])
def test_every_format_is_read(recipe, save_case, tmp_path):
    saved = save_case("gemma-multi-query")
    name = tmp_path / "r.toml"
    name.write_text(f"name = 'r'\ndefault = '{recipe}'\n")
    path = convert(saved.folder, tmp_path, str(name))
    report = certificate.verify(path, with_structure=False)
    assert report.weights.passes
    assert report.weights.largest > 0.5


@pytest.mark.parametrize("recipe", ["none", "fp16", "dynamic_int8", "dynamic_int4_block32"])
def test_file_of_litert_torchs_own_path_is_read_row_by_row(recipe, save_case, tmp_path):
    """It keeps the same rows elsewhere, and what the graphs share once for each."""
    saved = save_case("gemma-multi-query")
    ours = convert(saved.folder, tmp_path / "streaming", recipe)
    path = convert(saved.folder, tmp_path / "litert", recipe, engine="litert")
    report = certificate.verify(path, with_structure=False)
    assert report.passes
    assert report.weights.matrices >= certificate.verify(ours).weights.matrices
    name = "transformer_blocks.1.ff.w2.weight"
    matrix = layout(saved, recipe)[name]
    width = matrix.size_bytes // matrix.rows
    rows = ours.read_bytes()[matrix.offset :][: 2 * width]
    content = path.read_bytes()
    assert content.count(rows) >= 1
    path.write_bytes(content.replace(rows, rows[width:] + rows[:width]))
    report = certificate.verify(path, with_structure=False)
    assert {b.split(" row")[0] for b in report.weights.bad} == {name}


def test_another_graph_is_no_proof(converted, tmp_path):
    _, path = converted
    path = copied(path, tmp_path)
    where = artifact.manifest_path(path)
    manifest = json.loads(where.read_text())
    manifest["options"]["prefill_lengths"] = [4]
    where.write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match=r"another graph than this version makes: signat"):
        certificate.verify(path, with_structure=False)


def test_other_runtime_says_nearly_the_same(converted, tmp_path):
    _, path = converted
    path = copied(path, tmp_path)
    reports = [certificate.verify(path, runtime=r, with_structure=False) for r in RUNTIMES]
    assert [r.runtime for r in reports] == list(RUNTIMES)
    assert all(r.passes for r in reports)
    ours, theirs = (r.outputs.loss.mean_kl for r in reports)
    assert 0.3 < ours / theirs < 3


@pytest.mark.parametrize("reference", ["transformers", "authored"])
def test_adapters_are_part_of_the_source(reference, save_case, tmp_path):
    saved = save_case("llama-grouped")
    adapter = lora(saved.folder, tmp_path / "adapter")
    path = convert(saved.folder, tmp_path, "dynamic_int8", adapters=[f"{adapter}=0.5"])
    report = certificate.verify(path, reference=reference)
    print(report)
    assert report.passes
    assert report.structure.relative_difference < 1e-5
    # Without them the same file is not its source any more.
    where = artifact.manifest_path(path)
    manifest = json.loads(where.read_text())
    del manifest["adapters"]
    where.write_text(json.dumps(manifest))
    assert not certificate.verify(path, reference=reference, with_structure=False).weights.passes


def test_adapter_that_changed(save_case, tmp_path):
    saved = save_case("llama-grouped")
    adapter = lora(saved.folder, tmp_path / "adapter")
    path = convert(saved.folder, tmp_path, adapters=[str(adapter)])
    lora(saved.folder, adapter, seed=2)
    with pytest.raises(VerificationError, match=r"adapter has changed.*adapter_model"):
        certificate.verify(path)


# The reference.


@pytest.mark.parametrize("name", ["gemma-multi-query", "phi-multi-head", "llama-multi-query-tied"])
def test_references_agree_with_transformers(name, save_case, tmp_path):
    from edgezoo_core.compiler import workers

    saved = save_case(name)
    tokens = torch.randint(384, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    for kind in ("transformers", "authored"):
        folder = tmp_path / kind
        folder.mkdir()
        job = sources.obtain(str(saved.folder)).job(resolve("none"), Shapes()).to_json()
        request = {
            "job": job,
            "kind": kind,
            "adapters": [],
            "tokens": tokens,
            "start": 5,
            "folder": str(folder),
            "prompts": [tokens[:5]],
            "answers": [tokens[5:9]],
            "vocabulary": None,
        }
        (answer,) = workers.run("refer", [request])
        expected = saved.logits(tokens)
        found = torch.from_numpy(np.load(folder / "logits.npy"))
        torch.testing.assert_close(found, expected[4:], rtol=1e-4, atol=1e-4)
        chosen = expected[4:8].argmax(-1).tolist()
        same = next((i for i in range(4) if chosen[i] != tokens[5 + i]), 4)
        assert answer.result["same_tokens"] == [[same, 4]]


# What cannot be verified.


def test_file_without_a_manifest(converted, tmp_path):
    _, path = converted
    alone = Path(shutil.copy(path, tmp_path))
    with pytest.raises(ArtifactError, match="no manifest that names its source"):
        certificate.verify(alone)


def test_source_that_changed(converted, save_model, tmp_path):
    saved, path = converted
    path = copied(path, tmp_path)
    folder = tmp_path / "changed"
    shutil.copytree(saved.folder, folder)
    where = artifact.manifest_path(path)
    manifest = json.loads(where.read_text())
    manifest["checkpoint"]["folder"] = str(folder)
    where.write_text(json.dumps(manifest))
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    with pytest.raises(VerificationError, match=r"changed since.*generation_config\.json"):
        certificate.verify(path)
