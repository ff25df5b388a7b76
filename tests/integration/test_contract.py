"""The runtime's contract held against the runtime: what check passes runs, what it refuses fails.

Faults of single rules are in tests/unit/test_contract.py, on graphs without operators.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import litert_lm
import pytest
from click.testing import CliRunner
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from edgezoo_core import bundle, contract, zoo
from edgezoo_core.artifact import Artifact
from edgezoo_core.bundle import exchange, rendering, sections
from edgezoo_core.bundle.turns import RefusedError
from edgezoo_core.cli import main
from edgezoo_core.contract import mending
from edgezoo_core.errors import ArtifactError
from edgezoo_core.shapes import Shapes

# Tokenizers and templates of small models, as the tests of bundles have them.
_spec = importlib.util.spec_from_file_location(
    "bundles", Path(__file__).with_name("test_bundle.py")
)
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)

SLOTS = 160
#: Family -> layout, mask, prefill lengths; two are those of test_bundle.py, out of its cache.
MODELS = {
    "tinyllama": ("transposed", True, (8, 128)),
    "gemma": ("default", True, (4, 16)),
    "phi2": ("default", False, (4, 16)),
}
TEMPLATES = {"tinyllama": bundles.ZEPHYR, "gemma": bundles.GEMMA, "phi2": bundles.CHATML}
#: Asks a bundle questions; a process of its own, which an abort of the runtime may end.
ASK = """
import json, sys, litert_lm
litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
path, own_sampler, *questions = sys.argv[1:]
greedy = litert_lm.SamplerConfig(top_k=1, temperature=0.0) if own_sampler == "greedy" else None
with litert_lm.Engine(path, cache_dir=":nocache") as engine:
    with engine.create_conversation(sampler_config=greedy) as talk:
        answers = [talk.send_message(q, max_output_tokens=12).to_json() for q in questions]
print(json.dumps(["".join(p["text"] for p in a["content"]) for a in answers]))
"""
QUESTIONS = ("Hm", "Tell me more")


@pytest.fixture(scope="module", autouse=True)
def quiet_runtime():
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)


@pytest.fixture(scope="module")
def built(save_model, tmp_path_factory):
    """Bundles a small random model of a family: its path, and the folder with its texts."""
    made = {}

    def build(family):
        if family not in made:
            layout, mask, lengths = MODELS[family]
            saved = save_model(family, vocab_size=400, tie_word_embeddings=False)
            folder = tmp_path_factory.mktemp(family)
            shapes = Shapes(lengths, SLOTS, layout, mask)
            converted = zoo.convert(
                str(saved.folder), recipe="none", shapes=shapes, output=folder, with_bundle=False
            ).artifact
            texts = folder / "texts"
            bundles.save_tokenizer(texts, TEMPLATES[family], adds_bos=family != "phi2")
            path = folder / "b.litertlm"
            bundle.build(Artifact(converted.path, None), texts, path)
            made[family] = (path, texts)
        return made[family]

    return build


@pytest.fixture(scope="module")
def sound(built):
    """TinyLlama's bundle, its texts, and what it answers."""
    path, texts = built("tinyllama")
    answers = ask(path)
    assert answers
    return path, texts, answers


@pytest.fixture
def copy(sound, tmp_path):
    """The same in a file of the test's own."""
    path = tmp_path / "copy.litertlm"
    path.write_bytes(sound[0].read_bytes())
    return path


def ask(path, questions=QUESTIONS, sampler="greedy"):
    """Returns what LiteRT-LM answers, or None where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, path, sampler, *questions],
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def violated(report):
    """Rule -> severity of its gravest finding."""
    return {outcome.rule: outcome.verdict for outcome in report.outcomes if outcome.findings}


def model_bytes(path):
    (section,) = sections.open_bundle(path).models()
    return path.read_bytes()[section.begin : section.end]


def edit(path, *, llm=None, executor=None, without=(), tokenizer=None, renamed=()):
    """Changes a bundle in place."""
    contents = sections.open_bundle(path)
    parts = []
    for kind, change in ((sections.LLM_METADATA, llm), (sections.EXECUTOR_METADATA, executor)):
        if change:
            message = contents.message(kind)
            change(message)
            old = contents.of_kind(kind)
            parts.append(exchange.Part(kind, message.SerializeToString(), old))
    if tokenizer:
        old = contents.tokenizers()
        parts.append(exchange.Part(sections.HUGGINGFACE, tokenizer, old))
    kept = tuple(s for s in contents.sections if s.kind not in without)
    model = model_bytes(path)
    contents = sections.Contents(path, kept, contents.system, contents.preamble)
    edited = path.with_name("edited")
    exchange.write(contents, parts, edited)
    other = model
    for old, new in renamed:
        assert old in model
        other = other.replace(old, new)
    path.write_bytes(edited.read_bytes().replace(model, other))
    edited.unlink()


# What check passes runs.


@pytest.mark.parametrize("family", MODELS)
def test_bundles_of_every_family_pass_and_run(family, built):
    path, texts = built(family)
    report = contract.check(path, texts)
    assert violated(report) == {}
    assert {o.verdict for o in report.outcomes} == {"passes"}
    assert ask(path)


@pytest.fixture(scope="module")
def exported(save_model, tmp_path_factory):
    """What litert-torch's export_hf makes of a checkpoint."""
    from litert_torch.generative.export_hf import export

    saved = save_model("tinyllama", vocab_size=400, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("exported")
    bundles.save_tokenizer(saved.folder, bundles.CHATML)
    export.export(
        model=str(saved.folder),
        output_dir=str(folder),
        prefill_lengths=[8],
        cache_length=SLOTS,
        quantization_recipe="",
        externalize_embedder=True,
        use_bool_mask=True,
    )
    return folder / "model.litertlm", saved.folder


@pytest.mark.filterwarnings("ignore")
def test_a_bundle_of_export_hf_is_told_to_fail_fails_and_runs_once_it_is_mended(exported, tmp_path):
    """It takes over templates that add text to content, which LiteRT-LM gives as a list."""
    path, texts = exported
    assert ask(path) is None
    alone = violated(contract.check(path))
    assert alone == {"template-renders": "error", "suppress-tokens": "warning"}
    # Nor does it take the end of the template's turns for a stop token.
    found = violated(contract.check(path, texts))
    assert found == {**alone, "chat-template": "error", "stop-tokens": "error"}
    mended = tmp_path / "mended.litertlm"
    mended.write_bytes(path.read_bytes())
    assert violated(mending.mend(mended, texts)) == {}
    assert ask(mended)
    before, after = sections.open_bundle(path), sections.open_bundle(mended)
    assert [s.kind for s in after.sections] == [s.kind for s in before.sections]
    for old, new in zip(before.sections[1:], after.sections[1:], strict=True):
        assert new.items == old.items
        assert mended.read_bytes()[new.begin : new.end] == path.read_bytes()[old.begin : old.end]


def test_a_bundle_of_litert_torchs_builder(sound, tmp_path):
    """It knows no prefixes of a system message: apps that give none are not concerned."""
    from litert_torch.generative.utilities import litertlm_builder

    (tmp_path / "model.tflite").write_bytes(model_bytes(sound[0]))
    litertlm_builder.build_litertlm(
        str(tmp_path / "model.tflite"),
        str(tmp_path),
        str(tmp_path),
        SLOTS,
        user_prompt_prefix="<|user|>\n",
        user_prompt_suffix="</s>\n",
        model_prompt_prefix="<|assistant|>\n",
        model_prompt_suffix="</s>\n",
        hf_tokenizer_model_path=str(sound[1] / "tokenizer.json"),
        start_token="<s>",
        stop_tokens=["</s>"],
    )
    path = tmp_path / "model.litertlm"
    report = contract.check(path, sound[1])
    assert violated(report) == dict.fromkeys(
        ("suppress-tokens", "later-turns", "chat-template"), "warning"
    )
    assert ask(path)
    assert violated(mending.mend(path, sound[1])) == {}
    assert ask(path) == sound[2]


# What it refuses fails, or talks otherwise.


def cleared(*fields):
    def change(message):
        for field in fields:
            message.ClearField(field)

    return change


def start(token):
    def change(message):
        message.start_token.token_ids.ids[:] = [] if token is None else [token]
        message.start_token.token_ids.SetInParent()

    return change


def template(text):
    def change(message):
        message.jinja_prompt_template = text

    return change


def stop(text):
    def change(message):
        del message.stop_tokens[:]
        message.stop_tokens.add().token_str = text

    return change


def sampler(message):
    message.sampler_params.type = 3


def no_axis(message):
    for found in message.llm_executor_metadata.state_buffers:
        found.ClearField("sequence_axis")


def one_less(message):
    del message.llm_executor_metadata.state_buffers[-1]


def other_alphabet(path):
    _, texts = path.parent, path.parent / "other"
    bundles.save_tokenizer(texts, bos="<begin>")
    content = json.loads((texts / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    letters = [t for t in vocabulary if len(t) == 1]
    ids = [vocabulary[t] for t in letters]
    vocabulary.update(zip(letters, reversed(ids), strict=True))
    return json.dumps(content).encode()


ONE_TURN = "{{ messages | length }}<|user|>\n{{ messages[0].content[0].text }}"
LITERAL = "<s>{% for m in messages %}<|user|>\n{{ m.content[0].text }}</s>\n{% endfor %}"
#: What is done to the bundle, the rule that tells it, and whether LiteRT-LM fails or answers
#: otherwise.
FAULTS = {
    "another start token": ({"llm": start(7)}, "start-token", "otherwise"),
    "no start token": ({"llm": cleared("start_token")}, "start-token", "otherwise"),
    "a start token without id": ({"llm": start(None)}, "start-token", "fails"),
    "no stop token": ({"llm": cleared("stop_tokens")}, "stop-tokens", "fails"),
    "no LlmMetadata": ({"without": [sections.LLM_METADATA]}, "llm-metadata", "fails"),
    "no tokenizer": ({"without": [sections.HUGGINGFACE]}, "tokenizer", "fails"),
    "other ids": ({"tokenizer": other_alphabet}, "tokenizer-ids", "otherwise"),
    "no sequence_axis": ({"executor": no_axis}, "executor-metadata", "fails"),
    "a cache left out": ({"executor": one_less}, "executor-metadata", "fails"),
    "GREEDY": ({"llm": sampler}, "sampler-type", "fails"),
    "text and list": ({"llm": template(bundles.ZEPHYR)}, "template-renders", "fails"),
    "a break": (
        {"llm": template("{% for m in messages %}{% break %}{% endfor %}")},
        "template-renders",
        "fails",
    ),
    "it forgets": ({"llm": template(ONE_TURN)}, "template-grows", "fails"),
    "two start tokens": ({"llm": template(LITERAL)}, "start-token-once", "otherwise"),
    "no template": (
        {"llm": cleared("prompt_templates", "jinja_prompt_template")},
        "chat-template",
        "otherwise",
    ),
    "another template": (
        {"llm": template("{% for m in messages %}{{ m.content[0].text }}\n{% endfor %}")},
        "chat-template",
        "otherwise",
    ),
    "decode misspelt": ({"renamed": [(b"decode", b"dec0de")]}, "decode-name", "fails"),
    "prefill misspelt": ({"renamed": [(b"prefill_", b"prefi11_")]}, "prefill-name", "fails"),
    "no small prefill": ({"renamed": [(b"prefill_8", b"prefi11_8")]}, "smallest-prefill", "fails"),
}
#: What is not in the metadata or in the tokenizer: the graph.
UNMENDED = ("decode misspelt", "prefill misspelt", "no small prefill")


def spoil(fault, path):
    changes = dict(FAULTS[fault][0])
    if "tokenizer" in changes:
        changes["tokenizer"] = changes["tokenizer"](path)
    edit(path, **changes)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_check_refuses_fails_in_litert_lm(fault, sound, copy):
    _, texts, answers = sound
    _, rule, effect = FAULTS[fault]
    spoil(fault, copy)
    assert violated(contract.check(copy, texts))[rule] == "error"
    found = ask(copy, sampler="its own" if fault == "GREEDY" else "greedy")
    assert found is None if effect == "fails" else found not in (None, answers)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in UNMENDED])
def test_fix_makes_it_run_as_before(fault, sound, copy):
    _, texts, answers = sound
    before = model_bytes(copy)
    spoil(fault, copy)
    report = mending.mend(copy, texts)
    assert violated(report) == {}
    assert FAULTS[fault][1] in report.mended
    assert ask(copy) == answers
    assert model_bytes(copy) == before


@pytest.mark.parametrize("fault", UNMENDED)
def test_fix_leaves_alone_what_needs_a_new_conversion(fault, sound, copy):
    spoil(fault, copy)
    before = copy.read_bytes()
    report = mending.mend(copy, sound[1])
    (finding,) = [f for f in report.findings if f.rule == FAULTS[fault][1]]
    assert not finding.is_mendable
    assert "convert" in finding.remedy
    assert copy.read_bytes() == before


def test_the_default_layout_without_mask_and_executor_metadata(built, tmp_path):
    path, texts = built("phi2")
    answers = ask(path)
    copy = tmp_path / "copy.litertlm"
    copy.write_bytes(path.read_bytes())
    edit(copy, without=[sections.EXECUTOR_METADATA])
    report = contract.check(copy, texts)
    assert violated(report) == {"kv-capacity": "error"}
    assert f"the cache has {SLOTS}" in report.findings[0].found
    assert ask(copy) is None
    assert mending.mend(copy, texts).mended == ("kv-capacity",)
    assert ask(copy) == answers


def test_stop_tokens_of_the_source_that_are_left_out(sound, copy, tmp_path):
    edit(copy, llm=stop("<unk>"))
    found = violated(contract.check(copy, sound[1]))
    assert found == {"stop-tokens": "error", "later-turns": "warning"}
    assert violated(mending.mend(copy, sound[1])) == {}
    message = sections.open_bundle(copy).message(sections.LLM_METADATA)
    assert [list(t.token_ids.ids) for t in message.stop_tokens] == [[2]]


def test_a_source_whose_template_cannot_be_carried_over(sound, copy, tmp_path):
    texts = tmp_path / "texts"
    bundles.save_tokenizer(texts, bundles.UNREADABLE)
    before = copy.read_bytes()
    report = mending.mend(copy, texts)
    assert violated(report)["chat-template"] == "error"
    assert copy.read_bytes() == before


def test_a_source_without_tokenizer_is_refused(sound, tmp_path):
    with pytest.raises(ArtifactError, match="no tokenizer") as e:
        contract.check(sound[0], tmp_path)
    assert "--source" in e.value.remedy


# The rendering that check compares is the runtime's.

SNIPPETS = (
    *(template for template, _ in bundles.TEMPLATES.values()),
    bundles.UNREADABLE,
    "{{ messages }}|{{ messages | tojson }}|{{ messages[0] | items }}",
    "{% if bos_token is defined %}d{% endif %}{{ bos_token }}{{ eos_token + 'x' }}{{ pad_token }}",
    "{% set t = none %}{{ t is none }}{{ t is not none }}{{ x is none }}{{ 'is none' }} is none",
    "{{ tools is defined }}{{ tools is none }}{{ enable_thinking is defined }}",
    "{{ messages[0].get('role') }}",
    "{{ messages[0].role.upper() }}",
    "{{ 'x' + messages[0].content }}",
    "{{ ' a '.strip() }}|{{ 'xax'.strip('x') }}|{{ ' a'.lstrip() }}|{{ 'aXX'.rstrip('X') }}",
    "{{ 'a b'.split(' ')[0] }}{{ 'a b'.split(' ')[-1] }}{{ 'a b'.split(' ') }}",
    "{{ 'abc'.startswith('a') }}{{ 'abc'.endswith('b') }}{{ 'abc'.replace('a', 'z') }}",
    "{% for k, v in messages[0].items() %}{{ k }};{% endfor %}{{ ','.join(['a', 'b']) }}",
    "{% generation %}x{% endgeneration %}",
    "\n  {% if true %}\n  y\n  {% endif %}\nz\n",
    "{% set n = namespace(a='') %}{% for m in messages %}{% set n.a = m.role %}{% endfor %}{{ n }}",
    "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
    "{{ raise_exception('x') }}",
    "{{ {'b': 1, 'a': '<\u00e9>'} | tojson }}{{ true }}{{ none }}{{ [1, 2.0, 'x'] }}",
    "{{ messages[0].nope }}|{{ messages[0].nope.x }}",
    "{{ '%s-%d' | format('a', 3) }}{{ 1 / 2 }}{{ 7 // 2 }}{{ 'a' ~ 1 }}{{ 'a' * 3 }}",
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{{ '<&>' }}{{ '<&>' | e }}",
    "{{ messages | map(attribute='role') | list }}{{ messages[::-1] | length }}{{ now is number }}",
    "{{ undefined_function() }}",
    "{{ unclosed",
)


def test_templates_render_as_litert_lm_renders_them(sound):
    # In the order in which LiteRT-LM puts a message's keys; it keeps that of earlier messages.
    conversation = [
        {"content": " Hm <b>\n", "role": "user"},
        {"content": "na\u00efve {{ x }}", "role": "assistant"},
        {"content": "And?", "role": "user"},
    ]
    failed = []
    with litert_lm.Engine(str(sound[0]), cache_dir=":nocache") as engine:
        for snippet in SNIPPETS:
            with engine.create_conversation(
                messages=conversation[:-1], chat_template=snippet
            ) as talk:
                expected = talk.render_message_to_string(conversation[-1])
            try:
                found = rendering.render(snippet, conversation, is_asked=True)
            except RefusedError:
                found = ""  # as LiteRT-LM says that it failed
                failed.append(snippet)
            assert found == expected, snippet
    assert 5 < len(failed) < len(SNIPPETS) - 5


AFFIXES = [("\nA", "B \n"), ("  A ", "  "), ("{{ 'x' }}", "{# c #}"), ("$0 <", "> $1"), ("", "")]


@pytest.mark.parametrize(("prefix", "suffix"), AFFIXES)
def test_affixes_render_as_litert_lm_renders_them(prefix, suffix, sound, copy):
    def change(message):
        message.ClearField("jinja_prompt_template")
        for role in ("user", "model", "system"):
            turn = getattr(message.prompt_templates, role)
            turn.prefix, turn.suffix = prefix, suffix

    edit(copy, llm=change)
    message = llm_metadata_pb2.LlmMetadata()
    change(message)
    template = rendering.of_affixes(message.prompt_templates)
    with litert_lm.Engine(str(copy), cache_dir=":nocache") as engine:
        for conversation in list(bundles.conversations())[:16]:
            expected = bundles.rendered_by_litert_lm(engine, conversation)
            assert rendering.render(template, conversation, is_asked=True) == (expected or "")


# The command.


def invoke(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_the_command_prints_a_table_and_what_to_do(sound, copy):
    done = invoke(sound[0], "--source", sound[1])
    assert done.exit_code == 0, done.output
    assert "0 errors, 0 warnings" in done.output
    spoil("another start token", copy)
    done = invoke(copy, "--source", sound[1])
    assert done.exit_code == 3
    table, _, rest = done.output.partition("\n\n")
    assert "start-token        error" in table
    for word in ("error: start-token", "found", "why", "fix", "1 errors, 0 warnings"):
        assert word in rest
    done = invoke(copy, "--source", sound[1], "--fix")
    assert done.exit_code == 0
    assert "mended: start-token" in done.output


def test_the_command_as_json(copy):
    done = invoke(copy, "--json")
    found = json.loads(done.stdout)
    assert found["passes"]
    assert found["format"] == "litertlm"
    assert {r["rule"] for r in found["rules"]} == {rule.name for rule in contract.RULES}
    unchecked = [r for r in found["rules"] if r["verdict"] == "not checked"]
    assert unchecked
    assert all(r["reason"] for r in unchecked)


def test_the_source_comes_out_of_the_manifest(built, sound, tmp_path):
    """Beside the .tflite, and beside its bundle."""
    texts = sound[1]
    path = tmp_path / "m.litertlm"
    path.write_bytes(sound[0].read_bytes())
    manifest = {
        "schema": 1,
        "checkpoint": {"repo": None, "folder": str(texts), "commit": None},
        "artifact": {"file": "m.tflite", "size_bytes": 1, "sha256": ""},
        "bundle": {"file": path.name, "size_bytes": path.stat().st_size, "sha256": ""},
    }
    path.with_suffix(".manifest.json").write_text(json.dumps(manifest))
    assert json.loads(invoke(path, "--json").stdout)["source"] == str(texts)
    manifest["checkpoint"]["folder"] = str(tmp_path / "gone")
    path.with_suffix(".manifest.json").write_text(json.dumps(manifest))
    done = invoke(path, "--json")
    assert json.loads(done.stdout)["source"] is None
    assert "is gone" in done.stderr


def test_the_command_on_what_it_cannot_mend(sound, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(model_bytes(sound[0]))
    assert invoke(path).exit_code == 0
    done = invoke(path, "--fix")
    assert done.exit_code == 1
    assert "edgezoo bundle" in done.stderr
    path.write_bytes(b"nothing")
    done = invoke(path)
    assert done.exit_code == 1
    assert "Traceback" not in done.output


def test_the_model_is_never_held_in_memory(sound, tmp_path):
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from edgezoo_core.contract import mending\n"
        "report = mending.mend(Path(sys.argv[1]))\n"
        "assert report.mended == ('max-num-tokens',), report\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for size_mb in (0, 200):
        path = tmp_path / "large.litertlm"
        (tmp_path / "m.tflite").write_bytes(model_bytes(sound[0]))
        with (tmp_path / "m.tflite").open("rb+") as file:
            file.truncate((tmp_path / "m.tflite").stat().st_size + size_mb * 1_000_000)
        bundle.build(Artifact(tmp_path / "m.tflite", None), sound[1], path)
        edit_small(path)
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) / 1e3)
    print(f"peak {peaks[0]:.0f} MB, with 200 MB more of model {peaks[1]:.0f} MB")
    assert peaks[1] - peaks[0] < 50


def edit_small(path):
    """Makes max_num_tokens wrong without a copy of the model in this process."""
    contents = sections.open_bundle(path)
    message = contents.message(sections.LLM_METADATA)
    message.max_num_tokens = 1
    old = contents.of_kind(sections.LLM_METADATA)
    part = exchange.Part(sections.LLM_METADATA, message.SerializeToString(), old)
    exchange.write(contents, [part], path.with_name("other"))
    path.with_name("other").replace(path)
