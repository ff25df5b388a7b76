"""edgezoo new-plugin: what is drafted from small models of many families, in folders and on a hub.

A family whose every tensor is placed must compute what transformers computes; of any other it must
be said what is missing, and its checkpoints must be refused.
"""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from edgezoo_core import cards, model, parity, plugins, sources
from edgezoo_core.cli import main
from edgezoo_core.errors import EdgezooError

ROOT = Path(__file__).parents[2]
RUFF = Path(sys.executable).with_name("ruff")
EDGEZOO = Path(sys.executable).with_name("edgezoo")
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
}
MULTI_HEAD = {n: v for n, v in SIZES.items() if n != "num_key_value_heads"}
#: Families of which every tensor has a place: model_type, and what differs from SIZES.
PLACED = {
    "llama": ("llama", {}),
    "llama-biased-tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 48}),
    "gemma": ("gemma", {"head_dim": 48, "hidden_act": "gelu"}),
    "gemma2": ("gemma2", {"head_dim": 48, "sliding_window": 6, "query_pre_attn_scalar": 20}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "phi": ("phi", {}),
    "starcoder2": ("starcoder2", {"sliding_window": 6}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.1}),
    "gpt-neox": ("gpt_neox", {**MULTI_HEAD, "use_parallel_residual": False}),
    "falcon": ("falcon", {**MULTI_HEAD, "ffn_hidden_size": 192}),
}
#: Families of which something has none: model_type, changes, and words of the report.
UNPLACED = {
    "olmo2": ("olmo2", {}, ["q_norm.weight", "a norm over the whole projection"]),
    "olmo": ("olmo", {}, ["parts that no tensor was found for", "final_norm"]),
    "phi3": ("phi3", {"pad_token_id": 0}, ["gate_up_proj.weight", "gate and up in one tensor"]),
    "gpt2": ("gpt2", {"n_embd": 128, "n_head": 4, "n_layer": 2}, ["wpe", "learned positions"]),
    "gpt-neox": ("gpt_neox", MULTI_HEAD, ["post_attention_layernorm", "share one norm"]),
    "cohere": ("cohere", {"pad_token_id": 0}, ["logit_scale", "it changes the mathematics"]),
    "gemma3": ("gemma3_text", {"head_dim": 32}, ["rope_type", "one for each type of layer"]),
    "yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        ["rope_type", "yarn", "refused"],
    ),
    "gptj": ("gptj", {"n_embd": 128, "n_head": 4, "n_layer": 2, "rotary_dim": 8}, ["rotary_dim"]),
}


@dataclass(frozen=True)
class Drafted:
    """A small model in a folder, and the plugin that was drafted from it."""

    family: str
    reference: torch.nn.Module
    checkpoint: Path
    folder: Path
    report: dict
    text: str

    @property
    def package(self) -> Path:
        return self.folder / f"edgezoo_{self.family.replace('-', '_')}"

    @property
    def author(self) -> str:
        return (self.package / f"{self.package.name.removeprefix('edgezoo_')}.py").read_text()


def save(kind, folder, **changes):
    """Saves a random model of a family: transformers' own."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    # Some families have their own spelling of a size: what they do not know is left out.
    known = CONFIG_MAPPING[kind]().to_dict().keys()
    fields = {n: v for n, v in {**SIZES, **changes}.items() if n in known or n in changes}
    torch.manual_seed(7)
    reference = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields))
    for parameter in reference.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 1.3 / parameter.shape[-1] ** 0.5)
        else:
            parameter.data += 0.2 * torch.randn_like(parameter)
    reference.save_pretrained(folder)
    if "hidden_act" in changes:  # transformers writes the activation as it reads it
        rewrite(folder, hidden_act=changes["hidden_act"])
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def new_plugin(*arguments, code=0):
    done = CliRunner().invoke(main, ["new-plugin", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def install(site, folder, family):
    """Puts a drafted distribution on the path, as pip would."""
    package = folder / f"edgezoo_{family.replace('-', '_')}"
    site.add(family, card=None)
    target = site.folder / package.name
    for path in package.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


@pytest.fixture
def drafted(request, site, tmp_path):
    name, (kind, changes, *_) = request.param
    family = f"new-{name}"
    checkpoint = tmp_path / "checkpoint"
    reference = save(kind, checkpoint, **changes)
    text = new_plugin(family, "--from", checkpoint, "--output", tmp_path / "text").stdout
    done = new_plugin(family, "--from", checkpoint, "--output", tmp_path / "json", "--json")
    report = json.loads(done.stdout)
    folder = Path(report["folder"])
    install(site, folder, family)
    return Drafted(family, reference, checkpoint, folder, report, text)


def cases(table):
    return pytest.mark.parametrize("drafted", list(table.items()), ids=list(table), indirect=True)


def assert_well_written(folder):
    """Checks what every drafted plugin must be, whatever it was drafted from."""
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text())
    commands = [
        # By this repo's rules; what a plugin's architecture file imports at its top is heavy.
        ("check", f"--config={ROOT / 'pyproject.toml'}", "--ignore=TID253,D101"),
        ("format", "--isolated", "--check"),
        ("format", "--isolated", "--check", "--line-length=100"),
    ]
    for command in commands:
        done = subprocess.run([RUFF, *command, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@cases(PLACED)
def test_a_family_that_is_placed_computes_what_transformers_computes(drafted):
    report = drafted.report
    assert (report["unplaced"], report["missing"], report["undecided"]) == ([], [], [])
    assert "could not be placed" not in drafted.text
    assert_well_written(drafted.folder)
    (plugin,) = (p for p in plugins.discover() if p.family == drafted.family)
    assert (plugin.state, plugin.reason) == ("ok", "")
    source = sources.obtain(str(drafted.checkpoint), family=drafted.family)
    authored = source.author()
    assert authored.warnings == ()
    module = model.materialize(authored)
    module.build_mask_cache(0)
    tokens = torch.tensor([random.Random(3).choices(range(160), k=40)], dtype=torch.int32)
    with torch.inference_mode():
        expected = drafted.reference(tokens.long()).logits[0]
    difference = float(
        (parity.run(module, tokens)[0] - expected).abs().max() / expected.abs().max()
    )
    print(f"{drafted.family}: logits differ by {difference:.1e} of the largest, allowed 2e-05")
    assert difference <= 2e-5


@cases({name: case[:2] for name, case in UNPLACED.items()})
def test_a_family_that_is_not_placed_is_said_to_be_and_refused(drafted):
    for words in UNPLACED[drafted.family.removeprefix("new-")][2]:
        assert words in drafted.text
    assert_well_written(drafted.folder)
    cards.read_family(drafted.package / "models.toml")
    with pytest.raises(EdgezooError):
        sources.obtain(str(drafted.checkpoint), family=drafted.family).author()


@cases({"gpt-neox": PLACED["gpt-neox"]})
def test_a_field_whose_default_is_something_else_must_be_there(drafted):
    config = json.loads((drafted.checkpoint / "config.json").read_text())
    del config["use_parallel_residual"]
    (drafted.checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(EdgezooError, match=r"use_parallel_residual.*absent it means True"):
        sources.obtain(str(drafted.checkpoint), family=drafted.family).author()
    card = cards.read_family(drafted.package / "models.toml")
    assert card.conformance.config == {"use_parallel_residual": False}


def test_the_card_says_what_config_and_headers_say(tmp_path):
    folder = tmp_path / "checkpoint"
    reference = save("qwen2", folder, tie_word_embeddings=True)
    rewrite(folder, _name_or_path="Acme/Tiny-Qwen_2")
    report = json.loads(new_plugin("acme", "--from", folder, "--output", tmp_path, "--json").stdout)
    card = cards.read_family(Path(report["folder"]) / "edgezoo_acme" / "models.toml")
    assert card.architectures == ("Qwen2ForCausalLM",)
    assert card.conformance.capabilities == cards.CAPABILITIES
    (entry,) = card.models.values()
    assert (entry.id, entry.checkpoint) == ("tiny-qwen_2", "Acme/Tiny-Qwen_2")
    assert (entry.license, entry.is_gated) == ("unknown", False)
    assert entry.parameters == sum(p.numel() for p in reference.parameters())
    assert entry.context_length == entry.signatures.kv_cache_length == 256
    # 192 input channels: no blocks of 128.
    assert "dynamic_int4_block32" in entry.recipes
    assert "dynamic_int4_block128" not in entry.recipes
    assert report["read"] == ["config.json", "headers of model.safetensors"]
    assert report["to_fill_in"] == ["license"]


def test_an_id_that_another_family_has_is_not_taken(tmp_path):
    save("phi", tmp_path / "checkpoint")
    rewrite(tmp_path / "checkpoint", _name_or_path="microsoft/phi-2")
    new_plugin("rival", "--from", tmp_path / "checkpoint", "--output", tmp_path)
    card = cards.read_family(tmp_path / "edgezoo-rival" / "edgezoo_rival" / "models.toml")
    assert list(card.models) == ["rival-phi-2"]


def test_without_a_source_it_is_a_plain_llama(site, tmp_path, save_model):
    done = new_plugin("plain", "--output", tmp_path)
    folder = tmp_path / "edgezoo-plain"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        ".github/workflows/test.yml",
        "README.md",
        "edgezoo_plain/__init__.py",
        "edgezoo_plain/models.toml",
        "edgezoo_plain/plain.py",
        "edgezoo_plain/py.typed",
        "pyproject.toml",
        "tests/test_plain.py",
    ]
    assert_well_written(folder)
    assert "to fill in in models.toml" in done.stdout
    assert "edgezoo plugins test plain" in done.stdout
    # tinyllama is installed beside it and claims the same architecture.
    assert "--family plain" in done.stdout
    install(site, folder, "plain")
    saved = save_model("tinyllama", attention_bias=True)
    module = model.materialize(sources.obtain(str(saved.folder), family="plain").author())
    module.build_mask_cache(0)
    tokens = parity.sample_tokens(384)
    logits = parity.run(module, tokens)[0]
    expected = saved.logits(tokens[0].tolist())
    assert float((logits - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


def test_a_folder_with_a_config_alone_is_drafted_by_the_usual_names(tmp_path):
    save("qwen2", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    done = new_plugin("bare", "--from", tmp_path / "checkpoint", "--output", tmp_path)
    assert "tensor names, not seen" in done.stdout
    assert "no weights" in done.stdout


def test_nothing_that_is_there_is_overwritten(tmp_path):
    (tmp_path / "edgezoo-mine").mkdir()
    (tmp_path / "edgezoo-mine" / "notes").write_text("mine")
    done = new_plugin("mine", "--output", tmp_path, code=1)
    assert "is there already; nothing was written" in done.stderr
    assert "Fix: " in done.stderr
    assert [p.name for p in tmp_path.rglob("*")] == ["edgezoo-mine", "notes"]


def test_what_is_not_finished_is_not_left_behind(tmp_path, monkeypatch):
    write_text = Path.write_text

    def full(path, text, **options):
        if path.name == "models.toml":
            raise OSError(28, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    done = new_plugin("unlucky", "--output", tmp_path, code=1)
    assert "No space left on device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    done = new_plugin("mine", "--output", tmp_path / "file", code=1)
    assert "cannot be written" in done.stderr


def test_without_jinja2_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = new_plugin("mine", "--output", tmp_path, code=1)
    assert "Fix: run: pip install 'edgezoo-core[testkit]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_installed_family_is_refused(tmp_path):
    done = new_plugin("gemma", "--output", tmp_path, code=1)
    assert "family gemma is installed already: edgezoo-gemma" in done.stderr


def test_a_hostile_config_does_not_become_code(tmp_path):
    folder = tmp_path / "checkpoint"
    save("llama", folder)
    evil = '"""\nimport os\nos.abort()\n"""'
    rewrite(
        folder,
        **{
            "model_type": evil,
            "_name_or_path": evil,
            evil: 1,
            "field": evil,
            "hidden_act": evil,
            "tie_word_embeddings": evil,
            "rms_norm_eps": evil,
            "layer_types": evil,
            "use_parallel_residual": evil,
            "torch_dtype": "\x1b[31m",
        },
    )
    done = new_plugin("careful", "--from", folder, "--output", tmp_path)
    assert "\x1b" not in done.output
    written = tmp_path / "edgezoo-careful"
    for path in written.rglob("*.py"):
        imported = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import)]
        assert imported == []
    assert cards.read_family(written / "edgezoo_careful" / "models.toml").architectures
    rewrite(folder, architectures=[evil])
    done = new_plugin("careful", "--from", folder, "--output", tmp_path / "more", code=1)
    assert "does not name its architecture" in done.stderr


# From a hub


@pytest.fixture
def edgezoo(hub, tmp_path):
    """The command, against the loopback hub."""

    def run(*arguments, code=0, **variables):
        done = subprocess.run(
            [EDGEZOO, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **hub.environment(tmp_path / "home"), **variables},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 24 MB in one file, and in shards."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = {**SIZES, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048}
    model = Qwen2ForCausalLM(Qwen2Config(**config))
    root = tmp_path_factory.mktemp("large")
    model.save_pretrained(root / "one")
    model.save_pretrained(root / "many", max_shard_size="9MB")
    return root


@pytest.mark.parametrize("layout", ["one", "many"])
def test_of_a_repo_only_headers_are_fetched(hub, edgezoo, large, tmp_path, layout):
    folder = large / layout
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert len(list(folder.glob("*.safetensors"))) == (1 if layout == "one" else 4)
    hub.publish("acme/tiny", folder, card={"license": "apache-2.0"})
    done = edgezoo("new-plugin", "acme", "--from", "acme/tiny@main", "--json")
    report = json.loads(done.stdout)
    print(f"{hub.sent_bytes:,} bytes of {weights:,} were fetched")
    # The first 64 KiB of each file are asked for.
    assert hub.sent_bytes < weights / 20
    assert report["unplaced"] == []
    assert report["placed"]["attn_query_proj"] == "model.layers.{}.self_attn.q_proj"
    card = cards.read_family(tmp_path / "edgezoo-acme" / "edgezoo_acme" / "models.toml")
    assert (card.models["tiny"].license, card.models["tiny"].is_gated) == ("apache-2.0", False)
    assert report["to_fill_in"] == []
    assert "edgezoo convert acme/tiny@main" in report["next"]


def test_a_repo_without_safetensors_is_drafted_by_the_usual_names(hub, edgezoo, large):
    config = (large / "one" / "config.json").read_bytes()
    hub.publish("acme/old", {"config.json": config, "pytorch_model.bin": bytes(1000)})
    done = edgezoo("new-plugin", "acme", "--from", "acme/old")
    assert "tensor names, not seen" in done.stdout
    assert "acme/old has no safetensors" in done.stdout
    assert "pytorch_model.bin" not in hub.fetched()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("acme/none", "the hub has no model acme/none"),
        ("acme/gated", "acme/gated is gated"),
        ("acme/tiny@v9", "acme/tiny has no revision 'v9'"),
        ("acme/empty", "has no config.json"),
        ("acme/damaged", "model.safetensors is no readable safetensors file"),
        ("./nowhere", "no such folder"),
        ("no-model", "no model is called 'no-model'"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(hub, edgezoo, large, tmp_path, target, message):
    config = (large / "one" / "config.json").read_bytes()
    hub.publish("acme/tiny", {"config.json": config})
    hub.publish("acme/gated", {"config.json": config}, is_gated=True)
    hub.publish("acme/empty", {"README.md": b"#"})
    hub.publish("acme/damaged", {"config.json": config, "model.safetensors": b"\xff" * 100})
    failed = edgezoo("new-plugin", "acme", "--from", target, code=1)
    assert message in failed.stderr
    assert "Fix: " in failed.stderr
    assert not (tmp_path / "edgezoo-acme").exists()


def test_without_the_hub_a_cached_repo_will_do(hub, edgezoo, large, tmp_path):
    hub.publish("acme/tiny", large / "one")
    failed = edgezoo("new-plugin", "acme", "--from", "acme/tiny", code=1, HF_HUB_OFFLINE="1")
    assert "is not in the cache" in failed.stderr
    code = "from huggingface_hub import snapshot_download as get; get('acme/tiny')"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, **hub.environment(tmp_path / "home")},
    )
    done = edgezoo("new-plugin", "acme", "--from", "acme/tiny", "--json", HF_HUB_OFFLINE="1")
    report = json.loads(done.stdout)
    assert (report["source"], report["unplaced"]) == ("acme/tiny", [])
