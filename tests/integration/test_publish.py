"""What is examined before a file is published, and what its card says."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from edgezoo_core import artifact, contract, publishing, recipe, recipe_writing, reproduction, zoo
from edgezoo_core import hub as hubs
from edgezoo_core.cli import main
from edgezoo_core.contract.report import rule
from edgezoo_core.errors import EdgezooError, PublishError
from edgezoo_core.publishing import Decisions, card, licences, prepare
from edgezoo_core.shapes import Shapes

# Tokenizers and templates of small models, as the tests of bundles have them.
_spec = importlib.util.spec_from_file_location(
    "bundles", Path(__file__).with_name("test_bundle.py")
)
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)

EDGEZOO = Path(sys.executable).with_name("edgezoo")
TOKEN = "hf_writewritewritewritewritewritewri"
REPO = "me/tiny-litert"
MIT = Decisions(licence="mit")


def certificate(digest, *, kl=0.01, max_kl=0.06, structure=2e-6, largest=0.999, passes=True):
    """What `edgezoo verify` keeps; figures as of a sound file."""
    graph = {"relative_difference": structure, "bound": 2e-5, "diverges": "", "passes": True}
    loss = {"mean_kl": kl, "p99_kl": 0.05, "top1": 0.95, "top5": 0.9}
    loss |= {"reference_perplexity": 17.4, "subject_perplexity": 17.6}
    return {
        "sha256": digest,
        "reference": "transformers",
        "runtime": "litert",
        "text": "the carried sample",
        "tokens": 160,
        "structure": graph if structure is not None else None,
        "weights": {"matrices": 17, "largest": largest, "worst": "", "bad": [], "passes": True},
        "outputs": {"loss": loss, "max_kl": max_kl, "passes": True},
        "passes": passes,
    }


@pytest.fixture(scope="module")
def converted(save_model, tmp_path_factory):
    """A small model with its bundle, converted from a folder that has a licence."""
    saved = save_model("tinyllama", vocab_size=400, tie_word_embeddings=False)
    bundles.save_tokenizer(saved.folder, bundles.ZEPHYR)
    (saved.folder / "LICENSE").write_text("MIT License\n")
    shapes = Shapes((8, 128), 160, "transposed", True)
    output = tmp_path_factory.mktemp("converted") / "tiny.tflite"
    zoo.convert(str(saved.folder), recipe="dynamic_int8", shapes=shapes, output=output)
    return output, saved.folder


@pytest.fixture
def model(converted, tmp_path):
    """The same in a folder of the test's own, with a certificate."""
    path = tmp_path / "tiny.tflite"
    for source in converted[0].parent.iterdir():
        os.link(source, tmp_path / source.name)
    amend(path, verification=certificate(manifest(path)["artifact"]["sha256"]))
    return path


def manifest(path):
    return json.loads(artifact.manifest_path(path).read_text())


def amend(path, **changes):
    found = {**manifest(path), **changes}
    artifact.manifest_path(path).unlink()  # a link to the file of all tests
    artifact.write_manifest(path, {k: v for k, v in found.items() if v is not None})


def texts(ready):
    return {f.name: f.content.decode() for f in ready.files if isinstance(f.content, bytes)}


# The certificate.


def test_certified_file_is_ready_with_bundle_manifest_card_and_licence(model, converted):
    ready = prepare(model, REPO, MIT)
    assert [f.name for f in ready.files] == [
        *("LICENSE", "README.md", "tiny.litertlm", "tiny.manifest.json", "tiny.tflite"),
    ]
    assert texts(ready)["LICENSE"] == "MIT License\n"
    assert "and it passes" in ready.card
    assert ready.message == "Add tiny.litertlm, tiny.tflite"


def test_bundle_alone_is_certified_by_the_model_in_it(model):
    ready = prepare(model.with_suffix(".litertlm"), REPO, MIT)
    assert "tiny.tflite" not in {f.name for f in ready.files}
    assert "and it passes" in ready.card


BROKEN = {
    "never verified": (None, "it was never verified"),
    "another file": (certificate("0" * 64), "does not speak of this file"),
    "no digest": ({"passes": True}, "does not speak of this file"),
    "loosened": ({"kl": 1.0, "max_kl": 10.0}, r"its mean KL is 1.00e\+00 nats \(allowed 0.06\)"),
    "not a number": ({"kl": None}, "its certificate is damaged"),
    "no structure": ({"structure": None}, "its graph was not examined"),
    "graph": ({"structure": 1e-3}, "its graph differs by 1.0e-03"),
    "weights": ({"largest": 1.5}, "some of its weights"),
    "failed": ({"passes": False}, "it does not pass"),
    "damaged": ({"kl": "low"}, "its certificate is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_certificate_that_does_not_stand_counts_as_none(model, name):
    found, why = BROKEN[name]
    if found is not None and "sha256" not in found and name != "no digest":
        found = certificate(manifest(model)["artifact"]["sha256"], **found)
    amend(model, verification=found)
    with pytest.raises(PublishError, match=f"is not certified: .*{why}") as e:
        prepare(model, REPO, MIT)
    assert f"edgezoo verify {model}" in e.value.remedy
    ready = prepare(model, REPO, replace(MIT, is_uncertified=True))
    assert "**This file is not certified:" in ready.card
    assert "and it passes" not in ready.card


@pytest.mark.parametrize("suffix", [".tflite", ".litertlm"])
def test_changed_file_is_refused_whatever_is_said(model, suffix):
    changed = model.with_suffix(suffix)
    content = bytearray(changed.read_bytes())
    content[-9] ^= 1
    changed.unlink()
    changed.write_bytes(content)
    with pytest.raises(PublishError, match="is not what its manifest describes"):
        prepare(model, REPO, replace(MIT, is_uncertified=True))


def test_what_the_runtime_would_refuse_is_refused(model, monkeypatch):
    @rule("always", "error", why="it would not load", remedy="none")
    def always(subject):
        """Nothing passes."""
        yield "something"

    monkeypatch.setattr(contract, "RULES", (*contract.RULES, always))
    with pytest.raises(PublishError, match=r"LiteRT-LM would refuse .*always: something"):
        prepare(model, REPO, MIT)
    assert "`always`" in prepare(model, REPO, replace(MIT, is_uncertified=True)).card


# The card.


def test_front_matter_is_what_the_hub_reads(model):
    ready = prepare(model, REPO, replace(MIT, base_model="acme/base"))
    data = ModelCard(ready.card).data
    assert (data.license, data.library_name) == ("mit", "litert-lm")
    assert (data.base_model, data.base_model_relation) == ("acme/base", "quantized")
    assert data.pipeline_tag == "text-generation"
    assert {"edgezoo", "litert"} <= set(data.tags)


def test_licence_that_the_hub_does_not_know_is_named(model):
    accepted = Decisions(licence="acme-1.0", is_licence_accepted=True)
    front = yaml.safe_load(prepare(model, REPO, accepted).card.split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "acme-1.0")


def test_tensors_of_each_format_are_counted(model):
    places = {f"layers.{i}.up": "dynamic_int8" for i in range(3)}
    amend(model, recipe={"name": "mixed", "weights": {**places, "embedding": "fp16"}})
    card = prepare(model, REPO, MIT).card
    assert "`mixed`: 3 weight tensors in `dynamic_int8`, 1 weight tensor in `fp16`;" in card


def test_command_of_the_card_makes_the_same_file(model, converted, monkeypatch, tmp_path):
    ready = prepare(model, REPO, MIT)
    (line,) = [t for t in ready.card.splitlines() if t.startswith("edgezoo convert ")]
    monkeypatch.chdir(converted[1].parent)
    options = ["--output", str(tmp_path / "again.tflite"), "--no-bundle"]
    done = CliRunner().invoke(main, [*shlex.split(line)[1:], *options])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again.tflite").read_bytes() == model.read_bytes()


def test_published_manifest_reproduces_and_says_nothing_of_the_machine(
    model, converted, monkeypatch, tmp_path
):
    amend(
        model,
        verification={**manifest(model)["verification"], "text": str(tmp_path / "my.txt")},
        config={"warnings": [f"{converted[1]}/config.json: odd"]},
    )
    ready = prepare(model, REPO, MIT)
    for name, text in texts(ready).items():
        for private in (str(converted[1].parent), str(tmp_path), str(Path.home()) + "/"):
            assert private not in text, name
    public = json.loads(texts(ready)["tiny.manifest.json"])
    assert public["checkpoint"]["folder"] == f"./{converted[1].name}"
    assert public["verification"]["text"] == "my.txt"
    published = tmp_path / "published.manifest.json"
    published.write_text(json.dumps({**public, "config": manifest(converted[0])["config"]}))
    monkeypatch.chdir(converted[1].parent)
    assert reproduction.reproduce(published).passes


HOSTILE = "a`b</code><script>alert(1)</script>|[x](http://evil)"
LINES = f"{HOSTILE}\n\n# Heading\n---\nlicense: mit\n"


def test_foreign_text_stays_text(model):
    found = manifest(model)
    found["signatures"][0]["name"] = HOSTILE
    found["verification"]["text"] = LINES
    found["checkpoint"]["folder"] = f"/srv/{HOSTILE}"
    found["adapters"] = [{"source": HOSTILE, "weight": 1.0, "files": []}]
    found["model"]["family"] = "tinyllama; rm -rf ~ #"
    amend(model, **found)
    ready = prepare(model, REPO, MIT)
    assert set(yaml.safe_load(ready.card.split("---\n")[1])) == {
        *("library_name", "license", "pipeline_tag", "tags"),
    }
    body = ready.card.split("---\n", 2)[2]
    tokens = [t for block in MarkdownIt().enable("table").parse(body) for t in flat(block)]
    html = [t.content.strip() for t in tokens if t.type.startswith("html")]
    assert html == [card.MARK]
    links = {t.attrGet("href") for t in tokens if t.type == "link_open"}
    assert not any("evil" in link for link in links)
    headings = [t for t in tokens if t.type == "heading_open"]
    assert len(headings) == 6, "one title, five parts"
    (line,) = [t for t in body.splitlines() if t.startswith("edgezoo convert ")]
    assert "tinyllama; rm -rf ~ #" in shlex.split(line)


def flat(token):
    return [token, *(inner for child in token.children or () for inner in flat(child))]


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": {}},
        {"checkpoint": {"repo": "no repo", "commit": "main", "folder": None, "files": []}},
        {"versions": {"torch": "2; rm -rf ~"}},
        {"adapters": [{}]},
    ],
)
def test_manifest_that_is_none_is_told(model, changes):
    amend(model, **changes)
    with pytest.raises(EdgezooError) as e:
        prepare(model, REPO, MIT)
    assert "convert the model again" in e.value.remedy


def test_recipe_file_says_what_was_applied(tmp_path):
    text = 'name = "mixed"\ndefault = "dynamic_int8"\nembedding = "fp16"\n[layers.1]\nup = "none"\n'
    (tmp_path / "mixed.toml").write_text(text)
    asked = recipe.read(tmp_path / "mixed.toml")
    places = {"embedding": "fp16", "lm_head": "dynamic_int8"}
    for layer in range(3):
        for part in ("qkv", "o", "gate", "up", "down"):
            is_kept = (layer, part) == (1, "up")
            places[f"layers.{layer}.{part}"] = "none" if is_kept else "dynamic_int8"
    name, written = recipe_writing.recipe_file({"recipe": {"name": "mixed", "weights": places}})
    assert name == "mixed.toml"
    (tmp_path / name).write_text(written)
    again = recipe.read(tmp_path / name)
    assert (again.name, again.layers) == ("mixed", asked.layers)
    for part in ("embedding", "lm_head", "qkv", "o", "gate", "up", "down"):
        assert again.parts[part] == asked.parts.get(part, asked.default)
    assert recipe_writing.recipe_file({"recipe": {"name": "fp16", "weights": places}}) is None


def test_no_figures_no_speed_and_figures_of_this_file_only(model, tmp_path):
    assert "## Speed" not in prepare(model, REPO, MIT).card
    spread = {"median": 12.5, "low": 1, "high": 20, "samples": []}
    files = [
        {"path": "/home/me/other.tflite", "engine": "interpreter", "size_bytes": 1},
        {"path": f"/x/{model.name}", "engine": "interpreter", "size_bytes": model.stat().st_size},
    ]
    keys = ("prefill_per_s", "decode_per_s", "first_token_s")
    points = [
        {"subject": i, "threads": 2, "point": {"prefill": 128}, "context": 128}
        | {key: {**spread, "median": 10.5 + i} for key in keys}
        for i in (0, 1)
    ]
    machine = {"system": "Linux", "architecture": "x86_64", "cores": 2, "versions": {}}
    figures = tmp_path / "bench.json"
    found = {"files": files, "points": points, "runs": 5, "machine": machine}
    figures.write_text(json.dumps(found))
    text = prepare(model, REPO, replace(MIT, benchmark=figures)).card
    assert "| `tiny.tflite` | `interpreter` | 2 | 128 | 128 | 11.5 | 11.5 | 11.50 |" in text
    assert "10.5" not in text
    assert "/home/me" not in text
    for broken in ("[]", json.dumps({**found, "points": points[:1]}), "{"):
        figures.write_text(broken)
        with pytest.raises(PublishError, match=r"bench\.json"):
            prepare(model, REPO, replace(MIT, benchmark=figures))


# Licences.


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("Apache-2.0", None),
        ("cc-by-nc-4.0", None),
        ("gemma", "sets a condition"),
        ("llama3.2", "sets a condition"),
        ("cc-by-nc-nd-4.0", "forbids it"),
        ("acme-1.0", "is not one that edgezoo knows"),
        ("other", "names no licence"),
        (None, "names no licence"),
    ],
)
def test_licence_decides(name, refusal):
    found = licences.find(name)
    if refusal is None:
        licences.refuse(found, is_accepted=False)
        return
    with pytest.raises(PublishError, match=refusal) as e:
        licences.refuse(found, is_accepted=False)
    if found.condition:
        assert found.source in e.value.message
    if found.name != "unknown":
        assert "--accept-licence" in e.value.remedy
        licences.refuse(found, is_accepted=True)
    else:
        with pytest.raises(PublishError):
            licences.refuse(found, is_accepted=True)


def test_notice_that_a_licence_asks_for_goes_along(model):
    with pytest.raises(PublishError, match="gemma sets a condition"):
        prepare(model, REPO, Decisions(licence="gemma"))
    ready = prepare(model, REPO, Decisions(licence="gemma", is_licence_accepted=True))
    assert texts(ready)["NOTICE"].startswith("Gemma is provided under and subject to the Gemma")
    assert "https://ai.google.dev/gemma/terms" in ready.card


# From the command line to the hub.


@pytest.fixture
def edgezoo(hub, tmp_path):
    hub.tokens.add(TOKEN)
    hub.uploads.writers[TOKEN] = {"me"}
    variables = {**os.environ, **hub.environment(tmp_path / "home"), "HF_TOKEN": TOKEN}

    def run(*arguments, code=0):
        done = subprocess.run(
            [EDGEZOO, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=variables,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


def test_hub_source_is_published_under_the_licence_that_its_repo_states(
    hub, edgezoo, model, converted, tmp_path
):
    files = {p.name: p.read_bytes() for p in converted[1].iterdir()}
    commit = hub.publish("acme/tiny", files, card={"license": "apache-2.0"})
    found = manifest(model)
    found["checkpoint"] |= {"repo": "acme/tiny", "folder": None, "commit": commit}
    found["model"]["source"] = f"acme/tiny@{commit}"
    amend(model, **found)
    wrong = edgezoo("publish", model, REPO, "--licence", "mit", code=1)
    assert "the source's licence is apache-2.0, not mit" in wrong.stderr
    answer = json.loads(edgezoo("publish", model, REPO, "--private", "--json").stdout)
    assert answer["licence"]["name"] == "apache-2.0"
    assert sorted(answer["published"]["sent"]) == [f["name"] for f in answer["files"]]
    there = hub.repos[REPO].commits[answer["published"]["commit"]]
    assert {n: f.sha256 for n, f in there.items() if n != ".gitattributes"} == {
        f["name"]: f["sha256"] for f in answer["files"]
    }
    assert there["tiny.tflite"].content == model.read_bytes()
    text = there["README.md"].content.decode()
    assert f"https://huggingface.co/acme/tiny/tree/{commit}" in text
    assert ModelCard(text).data.base_model == "acme/tiny"
    again = edgezoo("publish", model, REPO)
    assert "has these very files already" in again.stdout


def test_dry_run_asks_no_hub(model, monkeypatch):
    def ask(repo, revision, **_):
        raise PublishError("the hub was asked", remedy="do not")

    monkeypatch.setattr(hubs, "ask", ask)
    found = manifest(model)
    found["checkpoint"] |= {"repo": "acme/tiny", "folder": None, "commit": "0" * 40}
    amend(model, **found)
    options = ["publish", str(model), REPO, "--licence", "mit"]
    done = CliRunner().invoke(main, [*options, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["published"] is None
    assert "# `tiny-litert`" in answer["card"]
    assert "tiny.litertlm" in [f["name"] for f in answer["files"]]
    # The hub knows the licence of a repo: not to have asked is no reason to refuse.
    unnamed = CliRunner().invoke(main, ["publish", str(model), REPO, "--dry-run"])
    assert unnamed.exit_code == 0, unnamed.output
    assert "the licence of acme/tiny is known once the hub is asked" in unnamed.output
    assert "the hub was asked" in CliRunner().invoke(main, options).output


def test_name_that_is_no_repo_is_told_first(edgezoo, model):
    failed = edgezoo("publish", model, "no-slash", code=1)
    assert "'no-slash' is no repo of the hub" in failed.stderr


def test_every_licence_of_the_table_is_spelt_once():
    text = (Path(licences.__file__).with_name("licences.toml")).read_text(encoding="utf-8")
    values = tomllib.loads(text)
    names = [
        *values["free"]["names"],
        *values["noncommercial"]["names"],
        *values["conditional"],
        *values["forbidden"],
    ]
    assert len(names) == len(set(names))
    assert all(n == n.lower() for n in names)


def test_core_alone_says_what_is_missing(model, monkeypatch):
    monkeypatch.setattr(publishing, "find_spec", lambda name: None)
    with pytest.raises(PublishError) as e:
        prepare(model, REPO, MIT)
    assert "edgezoo-core[convert]" in e.value.remedy
