"""The runtime's contract on graphs without operators: each rule fires, and only where it should."""

from __future__ import annotations

import json
import random
import struct

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema
from litert_lm_builder import litertlm_builder
from litert_lm_builder.runtime.proto import llm_metadata_pb2
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from edgezoo_core import contract
from edgezoo_core.bundle import exchange, metadata, sections
from edgezoo_core.contract import manifest, mending
from edgezoo_core.decoder import KvCache
from edgezoo_core.errors import ArtifactError

SLOTS, HEADS, DIM, VOCABULARY = 160, 2, 8, 300
DTYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}
LAYOUTS = {
    "default": ((1, SLOTS, HEADS, DIM), (1, SLOTS, HEADS, DIM)),
    "transposed": ((1, HEADS, SLOTS, DIM), (1, HEADS, DIM, SLOTS)),
}


def signatures(layout="transposed", mask=True):
    """Signature -> its inputs and outputs: name -> dtype and shape."""
    made = {}
    for name, length in (("prefill_8", 8), ("prefill_64", 64), ("decode", 1)):
        caches = {
            f"kv_cache_{kind}_{layer}": ("float32", shape)
            for kind, shape in zip("kv", LAYOUTS[layout], strict=True)
            for layer in (0, 1)
        }
        inputs = {"tokens": ("int32", (1, length)), "input_pos": ("int32", (length,)), **caches}
        if mask:
            inputs["mask"] = ("float32", (1, 1, length, SLOTS))
        made[name] = (inputs, dict(caches))
    made["decode"][1]["logits"] = ("float32", (1, 1, VOCABULARY))
    return made


def write_tflite(path, found):
    """Writes a .tflite with these signatures and no operator."""
    model = schema.ModelT(version=3, subgraphs=[], signatureDefs=[], buffers=[schema.BufferT()])
    for index, (name, (inputs, outputs)) in enumerate(found.items()):
        graph = schema.SubGraphT(name=name, tensors=[], inputs=[], outputs=[], operators=[])
        signature = schema.SignatureDefT(
            signatureKey=name, subgraphIndex=index, inputs=[], outputs=[]
        )
        for tensors, numbers, maps in (
            (inputs, graph.inputs, signature.inputs),
            (outputs, graph.outputs, signature.outputs),
        ):
            for tensor, (dtype, shape) in tensors.items():
                maps.append(schema.TensorMapT(name=tensor, tensorIndex=len(graph.tensors)))
                numbers.append(len(graph.tensors))
                free = any(size < 0 for size in shape)
                graph.tensors.append(
                    schema.TensorT(
                        shape=[max(size, 1) for size in shape],
                        shapeSignature=list(shape) if free else None,
                        type=DTYPES[dtype],
                        name=tensor,
                    )
                )
        model.subgraphs.append(graph)
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def tokenizer_json():
    """A tokenizer of single bytes that puts <s> before a text."""
    tokens = ["<s>", "</s>", "<u>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in tokens[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer.to_str()


def llm_metadata():
    message = llm_metadata_pb2.LlmMetadata(max_num_tokens=SLOTS)
    message.llm_model_type.generic_model.SetInParent()
    message.start_token.token_ids.ids.append(0)
    message.stop_tokens.add().token_ids.ids.append(1)
    message.suppress_tokens.ids.extend(range(259, VOCABULARY))
    message.prompt_templates.user.prefix = "<u>"
    message.prompt_templates.model.suffix = "</s>"
    return message


class Parts:
    """What a bundle is made of, to be changed before it is written."""

    def __init__(self, folder):
        self.folder = folder
        self.signatures = signatures()
        self.llm = llm_metadata()
        self.executor = None
        self.tokenizer = tokenizer_json()
        self.kind = "litertlm"

    def describe(self, key_axis=2, value_axis=3):
        """Adds ExecutorMetadata."""
        self.executor = sections.new_message(sections.EXECUTOR_METADATA)
        cache = KvCache(2, SLOTS, SLOTS, key_axis, value_axis)
        self.executor.ParseFromString(metadata.executor(cache))
        return self.executor.llm_executor_metadata.state_buffers

    def write(self):
        model = write_tflite(self.folder / "model.tflite", self.signatures or {})
        if self.kind == "tflite":
            return model
        builder = litertlm_builder.LitertLmFileBuilder()
        if self.llm is not None:
            builder.add_llm_metadata(self._file("llm.pb", self.llm.SerializeToString()))
        if self.executor is not None:
            content = self.executor.SerializeToString()
            builder.add_executor_metadata(self._file("executor.pb", content))
        if self.tokenizer is not None:
            builder.add_hf_tokenizer(self._file("tokenizer.json", self.tokenizer.encode()))
        if self.signatures is not None:
            builder.add_tflite_model(str(model), litertlm_builder.TfLiteModelType.PREFILL_DECODE)
        builder.add_generic_binary_data(self._file("extra.bin", b"what nobody knows"))
        path = self.folder / "bundle.litertlm"
        with path.open("wb") as file:
            builder.build(file)
        return path

    def _file(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path)


def verdicts(report):
    return {outcome.rule: outcome.verdict for outcome in report.outcomes}


def violated(report):
    return {finding.rule: finding.severity for finding in report.findings}


SOUND = [
    (layout, mask, described)
    for layout in LAYOUTS
    for mask in (True, False)
    for described in (True, False)
    if mask or described or layout == "transposed"  # LiteRT-LM mistakes the heads for the slots
]


@pytest.mark.parametrize(("layout", "mask", "described"), SOUND)
def test_sound_bundles_pass(layout, mask, described, parts):
    parts.signatures = signatures(layout, mask)
    if described:
        parts.describe(*((1, 1) if layout == "default" else (2, 3)))
    report = contract.check(parts.write())
    assert violated(report) == {}
    assert report.passes
    unchecked = {o.rule: o.reason for o in report.outcomes if o.verdict == "not checked"}
    source = ("tokenizer-ids", "stop-tokens", "chat-template")
    assert unchecked.keys() == {*source, *(() if described else ("executor-metadata",))}
    assert all("--source" in unchecked[rule] for rule in source)


def test_the_names_of_other_converters_pass(parts):
    """token_ids, positions, attn_mask, a mask of bool, caches k_cache_…: LiteRT-LM knows them."""
    names = {"tokens": "token_ids", "input_pos": "positions", "mask": "attn_mask"}
    for name, (inputs, outputs) in parts.signatures.items():
        parts.signatures[name] = tuple(
            {
                names.get(n, n.replace("kv_cache_k", "k_cache").replace("kv_cache_v", "v_cache")): t
                for n, t in tensors.items()
            }
            for tensors in (inputs, outputs)
        )
        inputs = parts.signatures[name][0]
        inputs["attn_mask"] = ("bool", inputs["attn_mask"][1])
    assert violated(contract.check(parts.write())) == {}


def test_a_separate_embedder_and_free_shapes_pass(parts):
    for inputs, _ in parts.signatures.values():
        inputs["embeddings"] = ("float32", (1, inputs.pop("tokens")[1][1], 16))
    path = parts.write()
    assert violated(contract.check(path)) == {"embedder": "error"}
    contents = sections.open_bundle(path)
    (model,) = contents.models()
    item = sections.Item("model_type", sections.EMBEDDER, "String")
    embedder = sections.Section(9, sections.MODEL, model.code, model.begin, model.end, (item,))
    both = sections.Contents(
        path, (*contents.sections, embedder), contents.system, contents.preamble
    )
    exchange.write(both, [], path.with_name("both.litertlm"))
    assert violated(contract.check(path.with_name("both.litertlm"))) == {}
    for inputs, outputs in parts.signatures.values():
        for tensors in (inputs, outputs):
            for n, (dtype, shape) in tensors.items():
                if n.startswith("kv_cache") or n == "mask":
                    tensors[n] = (dtype, tuple(-1 if size == SLOTS else size for size in shape))
    found = verdicts(contract.check(parts.write()))
    assert {found[r] for r in ("kv-capacity", "smallest-prefill", "mask-form")} == {"not checked"}


def rename(old, new):
    def change(parts):
        parts.signatures = {new if n == old else n: s for n, s in parts.signatures.items()}

    return change


def tensor(signature, name, *form, role=0):
    def change(parts):
        tensors = parts.signatures[signature][role]
        if form:
            tensors[name] = form
        else:
            del tensors[name]

    return change


def only(*names):
    def change(parts):
        parts.signatures = {n: parts.signatures[n] for n in names}

    return change


def clash(parts, *, with_adapter):
    inputs, outputs = parts.signatures["prefill_8"]
    extra = {"lora_r16": ("float32", (1, 16))} if with_adapter else {}
    parts.signatures["prefill_8_lora_r16"] = ({**inputs, **extra}, outputs)


def large_prefill(parts):
    inputs, _ = parts.signatures["prefill_64"]
    inputs |= {"tokens": ("int32", (1, 128)), "input_pos": ("int32", (128,))}
    inputs["mask"] = ("float32", (1, 1, 128, SLOTS))
    del parts.signatures["prefill_8"]


def prime_prefill(parts):
    inputs, _ = parts.signatures["prefill_8"]
    inputs |= {"tokens": ("int32", (1, 13)), "input_pos": ("int32", (13,))}
    inputs["mask"] = ("float32", (1, 1, 13, SLOTS))


def undescribed(parts):
    parts.signatures = signatures("default", mask=False)


def buffer(change):
    def describe(parts):
        change(parts.describe())

    return describe


def one_less(buffers):
    del buffers[-1]


def none_left(buffers):
    del buffers[:]


def axes(value):
    def change(buffers):
        for found in buffers:
            if value is None:
                found.ClearField("sequence_axis")
            else:
                found.sequence_axis = value

    return change


def llm(change):
    return lambda parts: change(parts.llm)


def stop_text(text):
    def change(message):
        del message.stop_tokens[:]
        if text:
            message.stop_tokens.add().token_str = text

    return change


def start_ids(*ids):
    def change(message):
        message.start_token.token_ids.ids[:] = ids
        message.start_token.token_ids.SetInParent()

    return change


def jinja(text):
    def change(message):
        message.jinja_prompt_template = text

    return llm(change)


def dropped(name):
    return lambda parts: setattr(parts, name, None)


TURNS = (
    "{% for m in messages %}{{ m.content[0].text }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)
FAULTS = {
    "decode misspelt": (rename("decode", "decode_1"), {"decode-name": "error"}),
    "prefill misspelt": (rename("prefill_8", "fill_8"), {"smallest-prefill": "warning"}),
    "no prefill": (only("decode"), {"prefill-name": "error"}),
    "prefill with an adapter": (
        lambda parts: clash(parts, with_adapter=True),
        {"prefill-clash": "error"},
    ),
    "prefill twice": (
        lambda parts: clash(parts, with_adapter=False),
        {"prefill-clash": "warning"},
    ),
    "a prefill of a prime length": (prime_prefill, {"prefill-length": "warning"}),
    "no small prefill": (only("prefill_64", "decode"), {"smallest-prefill": "warning"}),
    "prefill of most of the cache": (large_prefill, {"smallest-prefill": "error"}),
    "tokens of 64 bits": (
        tensor("prefill_8", "tokens", "int64", (1, 8)),
        {"token-tensors": "error"},
    ),
    "tokens of one dimension": (
        tensor("decode", "tokens", "int32", (1,)),
        {"token-tensors": "error", "position-tensors": "error"},
    ),
    "no tokens in prefill": (tensor("prefill_8", "tokens"), {"token-tensors": "error"}),
    "no tokens": (tensor("decode", "tokens"), {"token-tensors": "error"}),
    "positions of 64 bits": (
        tensor("prefill_8", "input_pos", "int64", (8,)),
        {"position-tensors": "error"},
    ),
    "fewer positions than tokens": (
        tensor("prefill_8", "input_pos", "int32", (4,)),
        {"position-tensors": "error", "mask-form": "error"},
    ),
    "no positions": (tensor("decode", "input_pos"), {"position-tensors": "error"}),
    "mask of integers": (
        tensor("prefill_8", "mask", "int32", (1, 1, 8, SLOTS)),
        {"mask-form": "error"},
    ),
    "mask of two dimensions": (
        tensor("prefill_64", "mask", "float32", (64, SLOTS)),
        {"mask-form": "error"},
    ),
    "mask of another length": (
        tensor("prefill_64", "mask", "float32", (1, 1, 64, 80)),
        {"mask-form": "error"},
    ),
    "mask in decode alone": (tensor("prefill_8", "mask"), {"mask-form": "error", "kv-capacity": 0}),
    "an input of its own": (
        tensor("prefill_8", "temperature", "float32", (1,)),
        {"known-inputs": "error"},
    ),
    "logits of two dimensions": (
        tensor("decode", "logits", "float32", (1, VOCABULARY), role=1),
        {"logits-form": "error"},
    ),
    "no logits": (tensor("decode", "logits", role=1), {"logits-form": "error"}),
    "a cache that is not given back": (
        tensor("prefill_8", "kv_cache_v_1", role=1),
        {"cache-tensors": "error"},
    ),
    "a cache of another shape": (
        tensor("prefill_8", "kv_cache_k_0", "float32", (1, HEADS, 80, DIM), role=1),
        {"cache-tensors": "error"},
    ),
    "default layout, no mask, no ExecutorMetadata": (undescribed, {"kv-capacity": "error"}),
    "sequence_axis of the heads": (buffer(axes(1)), {"kv-capacity": "error"}),
    "no sequence_axis": (buffer(axes(None)), {"executor-metadata": "error", "kv-capacity": 0}),
    "sequence_axis beyond": (buffer(axes(7)), {"executor-metadata": "error"}),
    "a cache that is not described": (buffer(one_less), {"executor-metadata": "error"}),
    "no cache is described": (buffer(none_left), {"executor-metadata": "error"}),
    "a state buffer of two names": (
        buffer(lambda b: setattr(b[0], "decode_input_name", "other")),
        {"executor-metadata": "error"},
    ),
    "a state buffer of no type": (
        buffer(lambda b: setattr(b[0], "type", 0)),
        {"executor-metadata": "error"},
    ),
    "max_num_tokens 0": (
        llm(lambda m: setattr(m, "max_num_tokens", 0)),
        {"max-num-tokens": "warning"},
    ),
    "no LlmMetadata": (dropped("llm"), {"llm-metadata": "error"}),
    "no model": (dropped("signatures"), {"model-section": "error"}),
    "no model type": (llm(lambda m: m.ClearField("llm_model_type")), {"model-type": "warning"}),
    "a model type without template": (
        llm(lambda m: m.llm_model_type.lfm2.SetInParent()),
        {"model-type": "error"},
    ),
    "GREEDY": (llm(lambda m: setattr(m.sampler_params, "type", 3)), {"sampler-type": "error"}),
    "no tokenizer": (dropped("tokenizer"), {"tokenizer": "error"}),
    "no sound tokenizer": (lambda p: setattr(p, "tokenizer", "{}"), {"tokenizer": "error"}),
    "a longer vocabulary": (
        tensor("decode", "logits", "float32", (1, 1, 258), role=1),
        {"vocabulary": "error"},
    ),
    "ids beyond it": (
        llm(lambda m: m.ClearField("suppress_tokens")),
        {"suppress-tokens": "warning"},
    ),
    "another start token": (llm(start_ids(5)), {"start-token": "error"}),
    "no start token": (llm(lambda m: m.ClearField("start_token")), {"start-token": "error"}),
    "a start token without id": (llm(start_ids()), {"start-token": "error"}),
    "a start token that is a word": (
        llm(lambda m: setattr(m.start_token, "token_str", "<s")),
        {"start-token": "error"},
    ),
    "no stop token": (llm(stop_text("")), {"stop-tokens": "error"}),
    "an unknown stop token": (
        llm(lambda m: m.stop_tokens[0].token_ids.ids.append(999)),
        {"stop-tokens": "warning"},
    ),
    "text and a list": (
        jinja("{% for m in messages %}{{ 'x' + m.content }}{% endfor %}"),
        {"template-renders": "error"},
    ),
    "a method of mappings": (jinja("{{ messages[0].get('role') }}"), {"template-renders": "error"}),
    "an endless template": (
        jinja("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"),
        {"template-renders": "error"},
    ),
    "a template that forgets": (
        jinja("{{ messages | length }}" + TURNS),
        {"template-grows": "error", "later-turns": "warning"},
    ),
    "text behind the stop token": (
        jinja(TURNS.replace("</s>", "</s>{{ 1 }}")),
        {"later-turns": "warning"},
    ),
    "the start token twice": (jinja("<s>" + TURNS), {"start-token-once": "error"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_rule_fires(fault, parts):
    change, expected = FAULTS[fault]
    change(parts)
    report = contract.check(parts.write())
    found = violated(report)
    # What follows from a fault may be found as well, where the table says 0.
    assert found | {rule: 0 for rule in expected if expected[rule] == 0} == expected
    for finding in report.findings:
        assert finding.found
        assert finding.why
        assert finding.remedy
    assert report.passes == ("error" not in found.values())


def test_every_rule_is_shown_to_fire():
    # The rest needs a source: tests/integration/test_contract.py.
    sourced = {"tokenizer-ids", "chat-template", "embedder"}
    fired = {rule for _, expected in FAULTS.values() for rule in expected}
    assert fired | sourced == {rule.name for rule in contract.RULES}


def test_a_tflite_alone(parts):
    parts.kind = "tflite"
    report = contract.check(parts.write())
    found = verdicts(report)
    assert report.format == "tflite"
    assert {found["decode-name"], found["kv-capacity"], found["mask-form"]} == {"passes"}
    reasons = {o.reason for o in report.outcomes if o.verdict == "not checked"}
    assert any("bundle it" in reason for reason in reasons)
    undescribed(parts)
    # A bundle may yet say how long the cache is.
    assert violated(contract.check(parts.write())) == {"kv-capacity": "warning"}


def test_start_and_stop_tokens_by_their_text(parts):
    parts.llm.start_token.token_str = "<s>"
    stop_text("</s>")(parts.llm)
    assert violated(contract.check(parts.write())) == {}


def test_a_template_that_writes_the_start_token_needs_no_other(parts):
    jinja("<s>" + TURNS)(parts)
    parts.llm.ClearField("start_token")
    assert violated(contract.check(parts.write())) == {}


def test_two_tokenizers(parts):
    path = parts.write()
    contents = sections.open_bundle(path)
    other = exchange.Part(sections.SENTENCEPIECE, b"no model")
    exchange.write(contents, [other], path.with_name("two.litertlm"))
    report = contract.check(path.with_name("two.litertlm"))
    assert [f.severity for f in report.findings] == ["warning", "error"]


def test_escapes_in_names_do_not_reach_the_terminal(parts):
    rename("decode", "\x1b[31mdecode")(parts)
    rename("prefill_8", "prefill\x1b]0;x\x07")(parts)
    del parts.signatures["prefill\x1b]0;x\x07"][0]["tokens"]
    jinja("{{ raise_exception('\x1b[2J') }}")(parts)
    report = contract.check(parts.write())
    texts = [f.found for f in report.findings] + [o.reason or "" for o in report.outcomes]
    assert len(report.findings) >= 2
    assert all(text.isprintable() for text in texts)
    json.dumps(report.to_json())


# Files that are damaged, or lie.


@pytest.mark.parametrize("length", [0, 5, 9, 30, 33, 200, 16384, 20000])
def test_a_truncated_bundle_is_refused(length, parts):
    path = parts.write()
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError) as e:
        contract.check(path)
    assert e.value.remedy


@pytest.mark.parametrize(
    ("offset", "value"),
    [(24, 0), (24, 33), (24, 1 << 40), (8, 9), (0, 0x4C4C)],
)
def test_a_header_that_lies_is_refused(offset, value, parts):
    path = parts.write()
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = struct.pack("<Q", value)
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        contract.check(path)


def test_a_damaged_header_never_ends_in_a_traceback(parts):
    path = parts.write()
    sound = path.read_bytes()
    end = int.from_bytes(sound[24:32], "little")
    chance = random.Random(3)
    refused = 0
    for _ in range(300):
        content = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(32, end)] = chance.randrange(256)
        path.write_bytes(content)
        try:
            contract.check(path)
        except ArtifactError:
            refused += 1
    assert refused > 50


def test_a_damaged_graph_never_ends_in_a_traceback(parts):
    parts.kind = "tflite"
    path = parts.write()
    sound = path.read_bytes()
    chance = random.Random(4)
    refused = 0
    for _ in range(300):
        content = bytearray(sound)
        content[chance.randrange(8, len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            contract.check(path)
        except ArtifactError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("length", [3, 1 << 20, 1 << 60])
def test_a_compressed_tokenizer_that_lies_is_told(length, parts):
    path = parts.write()
    (section,) = sections.open_bundle(path).tokenizers()
    content = bytearray(path.read_bytes())
    content[section.begin : section.begin + 8] = struct.pack("<Q", length)
    path.write_bytes(content)
    assert violated(contract.check(path))["tokenizer"] == "error"


def test_no_such_file_and_another_kind_of_file(tmp_path):
    with pytest.raises(ArtifactError, match="No such file"):
        contract.check(tmp_path / "none")
    (tmp_path / "text").write_text("not a model at all")
    with pytest.raises(ArtifactError, match=r"\.tflite"):
        contract.check(tmp_path / "text")


# Mending without the source.

MENDED = (
    "default layout, no mask, no ExecutorMetadata",
    "sequence_axis of the heads",
    "no sequence_axis",
    "a cache that is not described",
    "no cache is described",
    "max_num_tokens 0",
    "no model type",
    "GREEDY",
    "ids beyond it",
)


@pytest.mark.parametrize("fault", MENDED)
def test_what_needs_no_source_is_mended(fault, parts):
    FAULTS[fault][0](parts)
    parts.llm.channels.add().channel_name = "thought"
    path = parts.write()
    before = sections.open_bundle(path)
    model = path.read_bytes()[before.models()[0].begin : before.models()[0].end]
    report = mending.mend(path)
    assert report.findings == []
    assert FAULTS[fault][1].keys() & set(report.mended)
    after = sections.open_bundle(path)
    (section,) = after.models()
    assert path.read_bytes()[section.begin : section.end] == model
    assert section.items == before.models()[0].items
    (extra,) = after.of_kind("GenericBinaryData")
    assert path.read_bytes()[extra.begin : extra.end] == b"what nobody knows"
    # What no rule speaks of stays, but for the name under which LiteRT-LM caches the file.
    assert after.message(sections.LLM_METADATA).channels[0].channel_name == "thought"
    assert [i.key for i in after.system] == [i.key for i in before.system]
    assert after.system != before.system
    assert contract.check(path).passes


def test_mending_is_repeatable_and_leaves_a_sound_file_alone(parts, tmp_path):
    FAULTS["max_num_tokens 0"][0](parts)
    path = parts.write()
    other = tmp_path / "other.litertlm"
    other.write_bytes(path.read_bytes())
    mending.mend(path)
    mending.mend(other)
    once = path.read_bytes()
    assert once == other.read_bytes()
    assert mending.mend(path).mended == ()
    assert path.read_bytes() == once


@pytest.mark.parametrize("fault", ["decode misspelt", "no stop token", "no LlmMetadata"])
def test_what_cannot_be_mended_is_left_alone(fault, parts):
    FAULTS[fault][0](parts)
    path = parts.write()
    before = path.read_bytes()
    report = mending.mend(path)
    assert not report.passes
    assert report.mended == ()
    assert path.read_bytes() == before


def test_what_a_file_does_not_tell_hinders_no_other_mending(parts):
    """No tokenizer, and shapes that are settled at run time."""
    for faults in (("no tokenizer", "max_num_tokens 0", "GREEDY"), ("no sequence_axis", "GREEDY")):
        other = Parts(parts.folder)
        for fault in faults:
            FAULTS[fault][0](other)
        for inputs, _ in other.signatures.values():
            inputs["mask"] = ("float32", (1, 1, -1, -1))
        path = other.write()
        assert mending.mend(path).mended == ("sampler-type",)
        path.with_suffix(".manifest.json").write_text("{}")


def test_a_tflite_cannot_be_mended(parts):
    parts.kind = "tflite"
    with pytest.raises(ArtifactError, match="no bundle") as e:
        mending.mend(parts.write())
    assert "edgezoo bundle" in e.value.remedy


def test_a_full_disk_leaves_the_bundle_whole(parts, monkeypatch):
    FAULTS["max_num_tokens 0"][0](parts)
    path = parts.write()
    before = path.read_bytes()

    def full(contents, new, output):
        output.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange, "write", full)
    with pytest.raises(ArtifactError, match="No space left"):
        mending.mend(path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*partial"))


def test_the_manifest_beside_a_bundle_is_renewed(parts):
    FAULTS["max_num_tokens 0"][0](parts)
    path = parts.write()
    recorded = {"file": path.name, "sha256": "old", "size_bytes": 1, "max_num_tokens": 0}
    plain = {"schema": 1, "artifact": {"file": "m.tflite", "size_bytes": 1, "sha256": "old"}}
    beside = path.with_suffix(".manifest.json")
    beside.write_text(json.dumps({**plain, "bundle": recorded, "created": "kept"}))
    mending.mend(path)
    found = json.loads(beside.read_text())
    assert found["created"] == "kept"
    assert found["bundle"]["max_num_tokens"] == SLOTS
    assert found["bundle"]["size_bytes"] == path.stat().st_size
    assert found["bundle"]["sha256"] != "old"
    beside.write_text(json.dumps({**plain, "bundle": {**recorded, "file": "other"}}))
    assert manifest.beside(path) is None
    beside.write_text("[]")
    assert manifest.beside(path) is None
