"""Bundles of small models, held against transformers and against LiteRT-LM itself."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import litert_lm
import pytest
import sentencepiece
from litert_lm_builder import litertlm_core, litertlm_peek
from litert_lm_builder.runtime.proto import executor_metadata_pb2, llm_metadata_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgezoo_core import artifact, bundle, zoo
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.errors import ArtifactError
from edgezoo_core.runtime import Session
from edgezoo_core.shapes import Shapes

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation"
    " roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")
CHATML_WITH_DEFAULT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are \"helpful\".<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}")
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
#: Suffixes that begin with a newline, which LiteRT-LM's own template loses.
ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% else %}"
    "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
#: The system message becomes part of the first user turn: prefixes cannot say that.
MERGED = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set lead = messages[0]['content'].strip() + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set lead = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + (lead if loop.first else '')"
    " + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
#: A method of mappings, which minijinja does not have.
UNREADABLE = MERGED.replace("messages[0]['content'].strip()", "messages[0].get('content')")

#: A statement that LiteRT-LM's minijinja is built without.
BROKEN_OFF = MERGED.replace("{% endfor %}", "{% if loop.last %}{% break %}{% endif %}{% endfor %}")
#: In LiteRT-LM only what is undefined is none.
NONE_IS_SOMETHING = "{% set tools = none %}{% if tools is not none %}Tools!{% endif %}" + MERGED

TEMPLATES = {
    "gemma": (GEMMA, "generated_jinja"),
    "zephyr": (ZEPHYR, "generated_jinja"),
    "chatml": (CHATML, "generated_jinja"),
    "nothing-after-stop": (PLAIN, "prompt_templates"),
    "chatml-with-default": (CHATML_WITH_DEFAULT, "generated_jinja"),
    "llama-3": (LLAMA_3, "generated_jinja"),
    "alpaca": (ALPACA, "generated_jinja"),
    "merged": (MERGED, "source_jinja"),
}
TURNS = ("user", "assistant", "user", "assistant", "user")
TEXTS = ("Who is there?", "It is I.", "  And {{ who }}\n {% else %} \n", "Nobody.\n\nSee?", "Ok 12")
SPECIAL = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)


@pytest.fixture(scope="module", autouse=True)
def quiet_runtime():
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)


@pytest.fixture(scope="module")
def convert(save_model, tmp_path_factory):
    """Converts a small random model: `convert(family, layout, mask)`."""
    made = {}

    def run(family="tinyllama", layout="transposed", mask=True):
        key = (family, layout, mask)
        if key not in made:
            # A tied random head would say the last token again and again.
            saved = save_model(family, vocab_size=400, tie_word_embeddings=False)
            shapes = Shapes((4, 16), 256, layout, mask)
            folder = tmp_path_factory.mktemp("converted")
            made[key] = zoo.convert(
                str(saved.folder), recipe="none", shapes=shapes, output=folder
            ).artifact
        return made[key]

    return run


@pytest.fixture
def model(convert, tmp_path):
    """A converted model with its manifest, in a folder of the test's own."""
    converted = convert()
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (converted.path, artifact.manifest_path(converted.path)):
        shutil.copy(path, folder)
    return artifact.read(folder / converted.path.name)


def save_tokenizer(folder, template=None, *, adds_bos=True, bos="<s>", eos="</s>"):
    """Saves a tokenizer of single bytes with the special tokens of all families."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = dict.fromkeys(["<unk>", bos, eos, *SPECIAL])
    tokens = [*names, *letters]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in names])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def sections(path):
    """Kind of section -> its bytes, read with the builder's own reader."""
    header = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
    content = path.read_bytes()
    table = header.SectionMetadata()
    objects = [table.Objects(i) for i in range(table.ObjectsLength())]
    names = litertlm_core.SECTION_DATA_TYPE_TO_STRING_MAP
    return {names[o.DataType()]: content[o.BeginOffset() : o.EndOffset()] for o in objects}


def metadata(path):
    message = llm_metadata_pb2.LlmMetadata()
    message.ParseFromString(sections(path)["LlmMetadataProto"])
    return message


def build(model, texts, name="out.litertlm"):
    return bundle.build(model, texts, model.path.with_name(name))


def build_elsewhere(model, folder):
    """Builds the bundle in a folder of its own, and leaves the manifest alone."""
    return bundle.build(replace(model, manifest=None), folder / "texts", folder / "b.litertlm")


def conversations():
    """Conversations that end with a question, with and without a system message."""
    for length in (1, 3, 5):
        for shift in range(len(TEXTS)):
            texts = [TEXTS[(i + shift) % len(TEXTS)] for i in range(length)]
            turns = [{"role": r, "content": t} for r, t in zip(TURNS, texts, strict=False)]
            yield turns
            yield [{"role": "system", "content": " Be brief. "}, *turns]


def rendered_by_transformers(tokenizer, conversation):
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError:
        return None
    return text.removeprefix("<s>")


def rendered_by_litert_lm(engine, conversation):
    *before, last = conversation
    with engine.create_conversation(messages=before) as talk:
        # It answers "" where the template raises.
        return talk.render_message_to_string(last) or None


@pytest.mark.parametrize("name", TEMPLATES)
def test_litert_lm_renders_what_transformers_renders(name, model, tmp_path):
    template, kind = TEMPLATES[name]
    tokenizer = save_tokenizer(tmp_path / "texts", template)
    built = build(model, tmp_path / "texts")
    assert built.prompts.kind == kind
    seen = 0
    with litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine:
        for conversation in conversations():
            expected = rendered_by_transformers(tokenizer, conversation)
            assert rendered_by_litert_lm(engine, conversation) == expected, conversation
            seen += expected is not None
        ids = tokenizer(ZEPHYR + GEMMA, add_special_tokens=False)["input_ids"]
        assert engine.tokenize(ZEPHYR + GEMMA) == ids
    assert seen == (15 if name == "gemma" else 30)


AFFIXES = {
    "gemma": (
        ("<start_of_turn>user\n", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        ("", ""),
        "<end_of_turn>",
    ),
    "zephyr": (
        ("<|user|>\n", "</s>\n"),
        ("<|assistant|>\n", "</s>\n"),
        ("<|system|>\n", "</s>\n"),
        "</s>",
    ),
    "chatml": (
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", "<|im_end|>\n"),
        ("<|im_start|>system\n", "<|im_end|>\n"),
        "<|im_end|>",
    ),
}
AFFIXES["chatml-with-default"] = AFFIXES["chatml"]


@pytest.mark.parametrize("name", AFFIXES)
def test_prefixes_suffixes_and_the_end_of_a_turn(name, model, tmp_path):
    tokenizer = save_tokenizer(tmp_path / "texts", TEMPLATES[name][0])
    built = build(model, tmp_path / "texts")
    about = metadata(built.path)
    *roles, end = AFFIXES[name]
    found = about.prompt_templates
    for expected, affixes in zip(roles, (found.user, found.model, found.system), strict=True):
        assert (affixes.prefix, affixes.suffix) == expected
    assert about.HasField("jinja_prompt_template") == (built.prompts.kind == "generated_jinja")
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)}
    assert [list(t.token_ids.ids) for t in about.stop_tokens] == [[i] for i in sorted(ends)]
    assert about.max_num_tokens == 256
    assert about.llm_model_type.WhichOneof("model_type") == "generic_model"


@pytest.mark.parametrize(
    "template", [UNREADABLE, "{{ strftime_now('%Y') }}" + UNREADABLE, BROKEN_OFF, NONE_IS_SOMETHING]
)
def test_a_template_that_cannot_be_carried_over_is_told(template, model, tmp_path, caplog):
    save_tokenizer(tmp_path / "texts", template)
    with caplog.at_level(logging.WARNING, logger="edgezoo_core"):
        built = build(model, tmp_path / "texts")
    assert built.prompts.kind == "none"
    assert "chat template" in caplog.text
    about = metadata(built.path)
    assert not about.HasField("prompt_templates")
    assert not about.HasField("jinja_prompt_template")


def test_no_date_is_frozen_into_a_bundle(model, tmp_path):
    template = CHATML_WITH_DEFAULT.replace("You are", "' + strftime_now('%Y') + ' you are")
    save_tokenizer(tmp_path / "texts", template)
    built = build(model, tmp_path / "texts")
    assert built.prompts.kind == "source_jinja"
    assert "strftime_now" in metadata(built.path).jinja_prompt_template


def test_without_a_chat_template_none_is_made_up(model, tmp_path):
    save_tokenizer(tmp_path / "texts")
    built = build(model, tmp_path / "texts")
    about = metadata(built.path)
    assert not about.HasField("prompt_templates")
    assert not about.HasField("jinja_prompt_template")
    with litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine:
        message = {"role": "user", "content": " Once upon"}
        assert rendered_by_litert_lm(engine, [message]) == " Once upon"


@pytest.mark.parametrize(
    ("adds_bos", "template", "expected"),
    [
        (True, ZEPHYR, 1),  # the tokenizer prepends it, the template does not
        (False, GEMMA, 1),  # the other way round
        (True, GEMMA, 1),
        (False, CHATML, None),
        (False, None, None),
    ],
)
def test_start_token_only_where_it_is_put(adds_bos, template, expected, model, tmp_path):
    save_tokenizer(tmp_path / "texts", template, adds_bos=adds_bos)
    built = build(model, tmp_path / "texts")
    with litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine:
        assert engine.bos_token_id == built.start_token == expected


def test_a_turn_that_begins_with_the_start_tokens_text_is_no_start_token(model, tmp_path):
    # SmolLM2 calls <|im_start|> its bos_token, and puts none before a text.
    tokenizer = save_tokenizer(tmp_path / "texts", CHATML, adds_bos=False, bos="<|im_start|>")
    assert tokenizer.bos_token == "<|im_start|>"
    built = build(model, tmp_path / "texts")
    assert built.start_token is None
    assert built.prompts.turns.user.prefix == "<|im_start|>user\n"


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, None),
        ({"do_sample": False, "temperature": 0.3}, (1.0, 1, 1.0)),
        ({"eos_token_id": 2}, (1.0, 1, 1.0)),
        ({"do_sample": True}, (1.0, 50, 1.0)),
        ({"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.25}, (0.5, 7, 0.25)),
        ({"do_sample": True, "top_k": 0}, (1.0, 400, 1.0)),
    ],
)
def test_sampler_defaults_are_those_of_transformers(generation, expected, model, tmp_path):
    save_tokenizer(tmp_path / "texts", CHATML)
    if generation is not None:
        (tmp_path / "texts" / "generation_config.json").write_text(json.dumps(generation))
    built = build(model, tmp_path / "texts")
    about = metadata(built.path)
    assert about.HasField("sampler_params") == (expected is not None)
    if expected:
        drawn = about.sampler_params
        assert (drawn.temperature, drawn.k, drawn.p) == expected
    with (  # whatever they are, the runtime takes them
        litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine,
        engine.create_conversation() as talk,
    ):
        talk.send_message("Say it", max_output_tokens=2)


def test_stop_tokens_of_every_file(model, tmp_path):
    texts = tmp_path / "texts"
    save_tokenizer(texts, GEMMA)
    (texts / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (texts / "config.json").write_text('{"eos_token_id": 11}')
    assert build(model, texts).stop_tokens == (2, 4, 7, 9, 11)


RUNS = [
    ("tinyllama", "transposed", True, ZEPHYR),
    ("tinyllama", "default", False, ZEPHYR),
    ("gemma", "default", True, GEMMA),
    ("phi2", "transposed", False, None),
    ("phi2", "default", False, CHATML),
    ("gemma", "transposed", True, GEMMA),
]


@pytest.mark.parametrize(
    ("family", "layout", "mask", "template", "slots"),
    # With a mask as an input an app may ask for fewer slots than the file has.
    [(*run, slots) for run in RUNS for slots in ([None, 131, 200] if run[2] else [None])],
)
def test_litert_lm_answers_as_the_interpreter_does(
    family, layout, mask, template, slots, convert, tmp_path
):
    converted = convert(family, layout, mask)
    tokenizer = save_tokenizer(tmp_path / "texts", template, adds_bos=family != "phi2")
    built = build_elsewhere(converted, tmp_path)
    known = tokenizers.load(tmp_path / "texts")
    # Longer than the prefill lengths, 4 and 16, and no multiple of either.
    questions = ("Hm", "Tell me all that there is to know of prefilling in pieces, would you?")
    with (
        litert_lm.Engine(str(built.path), max_num_tokens=slots, cache_dir=":nocache") as engine,
        Session(converted.path, num_threads=1) as session,
    ):
        assert session.capacity == 256
        for question in questions:
            # What `edgezoo run` reads.
            ids = known.conversation([{"role": "user", "content": question}])
            expected = list(
                session.generate(ids, 24, stop=built.stop_tokens, vocabulary=len(tokenizer))
            )
            assert len(set(expected)) > 3, "too dull an answer to tell anything"
            greedy = litert_lm.SamplerConfig(top_k=1, temperature=0.0)
            with engine.create_conversation(sampler_config=greedy) as talk:
                answer = talk.send_message(question, max_output_tokens=24)
            text = "".join(part["text"] for part in answer.to_json()["content"])
            assert text == engine.detokenize(expected)


@pytest.mark.parametrize(("family", "layout", "mask"), [run[:3] for run in RUNS])
def test_litert_lm_decodes_to_the_last_slot(family, layout, mask, convert, tmp_path):
    converted = convert(family, layout, mask)
    tokenizer = save_tokenizer(tmp_path / "texts", adds_bos=family != "phi2")
    built = build_elsewhere(converted, tmp_path)
    filled = 0
    with (
        litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine,
        Session(converted.path, num_threads=1) as session,
    ):
        for number in range(8):  # some end before, with a stop token
            question = f"{number}. Tell me all that there is to know of prefilling in pieces!"
            ids = tokenizer(question)["input_ids"]
            expected = list(
                session.generate(ids, 256, stop=built.stop_tokens, vocabulary=len(tokenizer))
            )
            greedy = litert_lm.SamplerConfig(top_k=1, temperature=0.0)
            with engine.create_conversation(sampler_config=greedy) as talk:
                answer = talk.send_message(question)
            text = "".join(part["text"] for part in answer.to_json()["content"])
            # By transformers: LiteRT-LM's own detokenize ends at a zero byte.
            said = tokenizer.decode(expected, skip_special_tokens=False)
            # The bytes of a character that is not whole at the end are held back.
            assert text.rstrip("\ufffd") == said.rstrip("\ufffd")
            filled += len(ids) + len(expected) == 256
    assert filled


@pytest.mark.parametrize(("layout", "axes"), [("transposed", (2, 3)), ("default", (1, 1))])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_executor_metadata_names_the_axis_of_the_slots(
    layout, axes, has_manifest, convert, tmp_path
):
    converted = convert("tinyllama", layout, layout == "transposed")
    if not has_manifest:
        converted = replace(converted, manifest=None)
    save_tokenizer(tmp_path / "texts")
    before = artifact.manifest_path(converted.path).read_bytes()
    built = bundle.build(converted, tmp_path / "texts", tmp_path / "b.litertlm")
    artifact.manifest_path(converted.path).write_bytes(before)
    message = executor_metadata_pb2.ExecutorMetadata()
    message.ParseFromString(sections(built.path)["ExecutorMetadataProto"])
    buffers = {b.decode_input_name: b for b in message.llm_executor_metadata.state_buffers}
    assert set(buffers) == {f"kv_cache_{kind}_{layer}" for kind in "kv" for layer in (0, 1)}
    for name, state in buffers.items():
        assert state.sequence_axis == axes["_v_" in name]
        assert state.prefill_output_name == state.decode_output_name == name


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A trained tokenizer.model, and what transformers makes of it."""
    folder = tmp_path_factory.mktemp("pieces")
    text = (Path(bundle.__file__).read_text() + "0123456789\n") * 3
    (folder / "text").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=390,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def unpacked(folder, pieces):
    """A folder as a hub's, without tokenizer.json: transformers makes the tokenizer."""
    folder.mkdir()
    shutil.copy(pieces, folder)
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>", **special}
    config["additional_special_tokens"] = ["<start_of_turn>", "<end_of_turn>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def matched(folder, pieces, *extra):
    """The same, but text that spells a control token is text, as it is in tokenizer.model."""
    made = unpacked(folder, pieces)
    content = json.loads(made.backend_tokenizer.to_str())
    symbols = ("<start_of_turn>", "<end_of_turn>")
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in symbols]
    content["post_processor"] = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<end_of_turn>"
    )
    tokenizer.add_tokens(list(extra))
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


CONTROL = "for each <start_of_turn>of 12 things\n\n  there<end_of_turn>\nna\u00efve<|tool|>"


def test_sentencepiece_where_it_gives_the_sources_ids(pieces, model, tmp_path):
    tokenizer = matched(tmp_path / "texts", pieces)
    built = build(model, tmp_path / "texts")
    assert built.tokenizer == "sentencepiece"
    assert sections(built.path)["SP_Tokenizer"] == pieces.read_bytes()
    with litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine:
        assert engine.tokenize(CONTROL) == tokenizer(CONTROL)["input_ids"]


def test_huggingface_where_one_added_token_tells_them_apart(pieces, model, tmp_path):
    tokenizer = matched(tmp_path / "texts", pieces, "<|tool|>")
    built = build(model, tmp_path / "texts")
    assert built.tokenizer == "huggingface"
    with litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine:
        assert engine.tokenize(CONTROL) == tokenizer(CONTROL)["input_ids"]


def test_huggingface_made_by_transformers_where_there_is_no_json(pieces, model, tmp_path):
    tokenizer = unpacked(tmp_path / "texts", pieces)
    assert not (tmp_path / "texts" / "tokenizer.json").exists()
    built = build(model, tmp_path / "texts")
    assert built.tokenizer == "huggingface"  # <pad> in a text is no token to tokenizer.model
    text = CONTROL + "<pad><bos> <unk>"
    with litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine:
        assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not (tmp_path / "texts" / "tokenizer.json").exists()


def test_huggingface_where_tokenizer_model_is_of_another_training(pieces, model, tmp_path):
    texts = tmp_path / "texts"
    save_tokenizer(texts)
    shutil.copy(pieces, texts)
    assert build(model, texts).tokenizer == "huggingface"
    (texts / "tokenizer.model").write_bytes(b"mistral's tekken, say")
    assert build(model, texts).tokenizer == "huggingface"


def test_bare_tokenizer_model_goes_in_as_it_is(pieces, model, tmp_path):
    texts = tmp_path / "kaggle"
    texts.mkdir()
    shutil.copy(pieces, texts)
    built = build(model, texts)
    assert (built.tokenizer, built.start_token, built.stop_tokens) == ("sentencepiece", 2, (1,))
    assert built.prompts.kind == "none"
    assert sections(built.path)["SP_Tokenizer"] == pieces.read_bytes()


def test_tokenizer_json_that_gives_other_ids_is_made_anew(model, tmp_path):
    texts = tmp_path / "texts"
    tokenizer = save_tokenizer(texts)
    altered = json.loads((texts / "tokenizer.json").read_text())
    altered["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (texts / "tokenizer.json").write_text(json.dumps(altered))
    built = build(model, texts)
    with litert_lm.Engine(str(built.path), cache_dir=":nocache") as engine:
        text = "more than four letters"
        assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_ids_beyond_the_vocabulary_are_never_chosen(model, tmp_path):
    tokenizer = save_tokenizer(tmp_path / "texts")
    built = build(model, tmp_path / "texts")
    assert list(metadata(built.path).suppress_tokens.ids) == list(range(len(tokenizer), 400))


def test_model_section_is_the_file_and_the_rest_of_the_manifest_stays(model, tmp_path):
    save_tokenizer(tmp_path / "texts", ZEPHYR)
    before = dict(model.manifest)
    built = build(model, tmp_path / "texts")
    content = built.path.read_bytes()
    assert sections(built.path)["TFLiteModel"] == model.path.read_bytes()
    after = artifact.read(model.path).manifest
    recorded = after.pop("bundle")
    assert after == before
    assert recorded["file"] == "out.litertlm"
    assert recorded["size_bytes"] == len(content)
    assert recorded["sha256"] == hashlib.sha256(content).hexdigest()
    assert recorded["tokenizer"] == "huggingface"
    assert recorded["prompt_templates"]["user"] == {"prefix": "<|user|>\n", "suffix": "</s>\n"}
    assert (recorded["start_token"], recorded["stop_tokens"]) == (1, [2])


def test_same_bytes_from_two_processes_at_different_times(pieces, model, tmp_path):
    unpacked(tmp_path / "made", pieces)
    script = (
        "import sys, time, datetime; from pathlib import Path; from edgezoo_core import artifact\n"
        "from edgezoo_core import bundle\n"
        "bundle.build(artifact.read(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "print(datetime.datetime.now().isoformat())"
    )
    contents, times = [], []
    for name in ("one.litertlm", "two.litertlm"):
        output = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-c", script, model.path, tmp_path / "made", output],
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(done.stdout)
        contents.append(output.read_bytes())
    assert times[0] != times[1]
    assert contents[0] == contents[1]
    header = litertlm_peek.read_litertlm_header(str(output), io.StringIO()).SystemMetadata()
    entries = [litertlm_peek.kvp_to_dict(header.Entries(i)) for i in range(header.EntriesLength())]
    assert [e["key"] for e in entries] == ["uuid", "creation_timestamp"]
    save_tokenizer(tmp_path / "texts", CHATML)
    other = build(model, tmp_path / "texts").path.read_bytes()
    assert entries[0]["value"].encode() in contents[0][:4096]
    assert entries[0]["value"].encode() not in other[:4096]


def test_the_model_is_never_held_in_memory(model, tmp_path):
    save_tokenizer(tmp_path / "texts")
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from edgezoo_core.artifact import Artifact\n"
        "from edgezoo_core import bundle\n"
        "model, texts, output = map(Path, sys.argv[1:])\n"
        "bundle.build(Artifact(model, None), texts, output)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for size_mb in (0, 700):
        padded = tmp_path / "padded.tflite"
        shutil.copy(model.path, padded)
        with padded.open("rb+") as file:
            file.truncate(padded.stat().st_size + size_mb * 1_000_000)
        command = [
            sys.executable,
            "-c",
            script,
            padded,
            tmp_path / "texts",
            tmp_path / "b.litertlm",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1e3)
    print(f"peak {peaks[0]:.0f} MB, with 700 MB more of model {peaks[1]:.0f} MB")
    assert peaks[1] - peaks[0] < 100


def test_a_damaged_model_is_refused(model, tmp_path):
    save_tokenizer(tmp_path / "texts")
    content = bytearray(model.path.read_bytes())
    content[-1] ^= 1
    model.path.write_bytes(content)
    with pytest.raises(ArtifactError, match="sha256"):
        build(model, tmp_path / "texts")
    assert sorted(p.suffix for p in model.path.parent.iterdir()) == [".json", ".tflite"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no sound .tflite"),
        (b"LITERTLM" + bytes(100), "no .tflite file"),
        (bytes(4) + b"TFL3" + bytes(100), r"signatures \[\]|no sound"),
    ],
)
def test_what_is_no_model_is_refused(content, match, tmp_path):
    save_tokenizer(tmp_path / "texts")
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=match) as e:
        bundle.build(artifact.read(path), tmp_path / "texts", tmp_path / "x.litertlm")
    assert e.value.remedy
    assert not (tmp_path / "x.litertlm").exists()


def test_a_model_without_decode_is_refused(tmp_path):
    import torch
    from litert_torch import convert

    convert(torch.nn.Linear(4, 4), (torch.ones(1, 4),)).export(str(tmp_path / "x.tflite"))
    save_tokenizer(tmp_path / "texts")
    with pytest.raises(ArtifactError, match=r"serving_default.*decode"):
        bundle.build(artifact.read(tmp_path / "x.tflite"), tmp_path / "texts", tmp_path / "x")


def test_no_tokenizer_and_a_broken_one_are_refused(model, tmp_path):
    with pytest.raises(ArtifactError, match="no tokenizer") as e:
        build(model, tmp_path)
    assert "--tokenizer" in e.value.remedy
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        build(model, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(model, tmp_path):
    tokenizer = save_tokenizer(tmp_path / "texts")
    tokenizer.add_tokens([f"<extra{i}>" for i in range(200)])
    tokenizer.save_pretrained(tmp_path / "texts")
    with pytest.raises(ArtifactError, match="ids"):
        build(model, tmp_path / "texts")


def test_code_of_a_checkpoint_is_not_run(model, tmp_path):
    texts = tmp_path / "texts"
    save_tokenizer(texts)
    config = json.loads((texts / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    config["chat_template"] = "{{ messages.__class__.__mro__ }}" + CHATML
    (texts / "chat_template.jinja").unlink(missing_ok=True)
    (texts / "tokenizer_config.json").write_text(json.dumps(config))
    (texts / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    built = build(model, texts)
    assert built.prompts.kind == "none"  # the sandbox refuses the template
    assert not (tmp_path / "ran").exists()
