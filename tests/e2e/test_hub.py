"""The real huggingface_hub client against a hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save

REPO = "acme/tiny"
TOKEN = "hf_secretsecretsecretsecretsecretsecr"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TEXTS = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b'{"version": "1.0"}'}
#: What repos hold besides, and no conversion reads.
NOT_NEEDED = (
    ".gitattributes",
    "README.md",
    "consolidated.00.pth",
    "flax_model.msgpack",
    "modeling_evil.py",
    "onnx/model.onnx",
    "optimizer.pt",
    "original/model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "training_args.bin",
)
#: More than the client reads at once (10 MiB), so that a broken transfer leaves a part behind.
LARGE = 12 << 20


def weights(name="weight", seed=0, elements=256):
    generator = torch.Generator().manual_seed(seed)
    return save({name: torch.randn(elements, generator=generator)})


def model(seed=0, elements=256):
    return {**TEXTS, "model.safetensors": weights(seed=seed, elements=elements)}


def sharded(weight_map=None):
    weight_map = weight_map or {"first": SHARDS[0], "second": SHARDS[1]}
    return {
        **TEXTS,
        INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        SHARDS[0]: weights("first", 1),
        SHARDS[1]: weights("second", 2),
    }


def contents(answer):
    return {str(p.relative_to(answer.folder)): p.read_bytes() for p in answer.folder.iterdir()}


def blob(client, name, content):
    """Where the cache keeps a large file: under its sha256."""
    folder = client.home / "hub" / "models--acme--tiny"
    path = folder / "blobs" / hashlib.sha256(content).hexdigest()
    assert path.is_file(), f"{name} is not in the cache"
    return path


def flip_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


# What is fetched.


def test_pull_brings_the_model_and_its_commit(hub, client):
    commit = hub.publish(REPO, model())
    answer = client.pull(REPO)
    assert answer.error is None
    assert answer.commit == commit
    assert contents(answer) == model()
    assert answer.stages[0] == f"asking the hub for {REPO}"
    assert "downloading model.safetensors" in answer.stages


def test_second_pull_fetches_no_file_again(hub, client):
    hub.publish(REPO, model())
    first = client.pull(REPO)
    hub.requests.clear()
    assert client.pull(REPO).folder == first.folder
    assert hub.fetched() == []
    assert len(hub.requests) == 1, "one question, for the commit"


def test_sharded_pull_follows_the_index(hub, client):
    hub.publish(REPO, sharded())
    assert contents(client.pull(REPO)) == sharded()


def test_two_tensors_in_one_shard_are_one_fetch(hub, client):
    hub.publish(REPO, sharded({"first": SHARDS[0], "more": SHARDS[0], "second": SHARDS[1]}))
    client.pull(REPO)
    assert hub.fetched().count(SHARDS[0]) == 1


@pytest.mark.parametrize("files", [model(), sharded()], ids=["one file", "sharded"])
def test_only_needed_files_are_fetched(hub, client, files):
    ballast = dict.fromkeys(NOT_NEEDED, b"never asked for")
    hub.publish(REPO, {**files, **ballast})
    answer = client.pull(REPO)
    assert sorted(hub.fetched()) == sorted(files)
    assert contents(answer) == files


def test_pytorch_file_is_fetched_where_there_is_no_other(hub, client):
    hub.publish(REPO, {**TEXTS, "pytorch_model.bin": b"weights", "training_args.bin": b"not"})
    assert set(contents(client.pull(REPO))) == {*TEXTS, "pytorch_model.bin"}
    assert "training_args.bin" not in hub.fetched()


def test_pull_texts_fetches_no_weights(hub, client):
    hub.publish(REPO, sharded())
    answer = client.pull_texts(REPO)
    assert contents(answer) == TEXTS
    assert sorted(hub.fetched()) == sorted(TEXTS)


# Revisions.


def test_revision_may_be_a_branch_or_a_commit(hub, client):
    old = hub.publish(REPO, model(seed=1))
    new = hub.publish(REPO, model(seed=2))
    side = hub.publish(REPO, model(seed=3), branch="refs/pr/7")
    for revision, commit, seed in [
        ("main", new, 2),
        (old, old, 1),
        (new, new, 2),
        ("refs/pr/7", side, 3),
    ]:
        answer = client.pull(REPO, revision)
        assert answer.commit == commit
        assert contents(answer) == model(seed=seed)


def test_branch_that_moved_is_pulled_anew(hub, client):
    hub.publish(REPO, model(seed=1))
    client.pull(REPO)
    new = hub.publish(REPO, model(seed=2))
    assert client.pull(REPO).commit == new
    assert contents(client.pull(REPO, is_offline=True)) == model(seed=2)


def test_unknown_revision(hub, client):
    hub.publish(REPO, model())
    answer = client.pull(REPO, "v9")
    assert answer.error == "acme/tiny has no revision 'v9'"
    assert answer.remedy == f"choose a branch, tag or commit from {hub.url}/{REPO}/commits"


# Damage on the way.


def test_broken_transfer_is_resumed(hub, client):
    files = model(elements=LARGE // 4)
    hub.publish(REPO, files)
    hub.cut_once["model.safetensors"] = 11 << 20
    answer = client.pull(REPO)
    assert contents(answer) == files
    ranges = [r.headers.get("range") for r in hub.requests if r.path.startswith("/storage/")]
    assert ranges == [None, f"bytes={11 << 20}-"]
    assert hub.sent_bytes < 1.1 * LARGE, "nothing was sent twice"


def test_transfer_that_stays_broken_is_reported_and_a_rerun_succeeds(hub, client):
    files = model(elements=LARGE // 4)
    hub.publish(REPO, files)
    hub.cut_after["model.safetensors"] = 11 << 20
    answer = client.pull(REPO)
    assert answer.error == (
        f"the download of {REPO}@main failed: the hub's storage at localhost broke the connection"
        " off (tried 5 times)"
    )
    assert answer.remedy.startswith("run the command again: it continues where this one stopped")
    assert "not in the cache" in client.pull(REPO, is_offline=True).error
    hub.cut_after.clear()
    assert contents(client.pull(REPO)) == files


def test_rerun_after_the_process_was_killed(hub, client, mortal_driver):
    files = model(elements=LARGE // 4)
    hub.publish(REPO, files)
    hub.held.add("model.safetensors")
    mortal_driver.start(client.job("pull", REPO))
    assert hub.is_waiting.wait(timeout=30)
    mortal_driver.kill()
    hub.held.clear()
    hub.release.set()
    assert "not in the cache" in client.pull(REPO, is_offline=True).error
    assert contents(client.pull(REPO)) == files


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model"])
def test_flipped_byte_is_found_and_the_copy_removed(hub, client, name):
    files = {**model(), "tokenizer.model": b"sentencepiece"}
    hub.publish(REPO, files)
    hub.flipped.add(name)
    answer = client.pull(REPO)
    stated = hashlib.sha256(files[name]).hexdigest()
    assert answer.error.startswith(f"{REPO}: {name} has sha256 ")
    assert f"the hub states {stated}" in answer.error
    assert answer.remedy == "run the command again to download it afresh"
    assert not list((client.home / "hub").rglob(name))
    assert not list((client.home / "hub").rglob(stated))
    hub.flipped.clear()
    assert contents(client.pull(REPO)) == files


def test_flipped_byte_is_found_where_the_cache_has_no_symlinks(hub, client):
    hub.publish(REPO, model())
    hub.flipped.add("model.safetensors")
    no_symlinks = {"HF_HUB_DISABLE_SYMLINKS": "1"}
    assert "has sha256" in client.pull(REPO, **no_symlinks).error
    assert not list((client.home / "hub").rglob("model.safetensors"))
    hub.flipped.clear()
    assert contents(client.pull(REPO, **no_symlinks)) == model()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model"])
def test_byte_that_flipped_in_the_cache_is_found_offline(hub, client, name):
    files = {**model(), "tokenizer.model": b"sentencepiece"}
    hub.publish(REPO, files)
    client.pull(REPO)
    flip_last_byte(blob(client, name, files[name]))
    answer = client.pull(REPO, is_offline=True)
    assert f"{name} has sha256" in answer.error
    assert answer.remedy == "run the command again to download it afresh"
    assert contents(client.pull(REPO)) == files


def test_byte_that_flipped_in_the_cache_is_found_online(hub, client):
    hub.publish(REPO, model())
    client.pull(REPO)
    flip_last_byte(blob(client, "model.safetensors", model()["model.safetensors"]))
    assert "model.safetensors has sha256" in client.pull(REPO).error
    assert contents(client.pull(REPO)) == model()


# Who may read.


def test_gated_repo_without_a_token(hub, client):
    hub.publish(REPO, model(), is_gated=True)
    answer = client.pull(REPO)
    assert answer.error == f"{REPO} is gated, and you are not logged in"
    assert answer.remedy == f"accept the licence on {hub.url}/{REPO}, then run: hf auth login"


def test_gated_repo_with_the_token_of_a_stranger(hub, client):
    hub.publish(REPO, model(), is_gated=True)
    hub.tokens.add(TOKEN)
    answer = client.pull(REPO, token=TOKEN)
    assert answer.error == f"{REPO} is gated, and your account has no access"
    assert answer.remedy == f"accept the licence on {hub.url}/{REPO}, then run: hf auth login"


def test_gated_repo_with_the_token_of_a_member(hub, client):
    hub.publish(REPO, model(), is_gated=True)
    hub.tokens.add(TOKEN)
    hub.members.add(TOKEN)
    assert contents(client.pull(REPO, token=TOKEN)) == model()


def test_token_that_the_hub_does_not_know(hub, client):
    hub.publish(REPO, model())
    answer = client.pull(REPO, token=TOKEN)
    assert answer.error == f"the hub does not accept your token (asked for {REPO})"
    assert answer.remedy == "run: hf auth login (or correct HF_TOKEN)"


@pytest.mark.parametrize("token", [None, TOKEN], ids=["no token", "good token"])
def test_missing_repo(hub, client, token):
    hub.tokens.add(TOKEN)
    answer = client.pull("acme/none", token=token)
    assert answer.error == "the hub has no model acme/none, or it is private"
    assert answer.remedy == "check the spelling; for a private one, run: hf auth login"


def test_name_that_no_repo_can_have(client):
    answer = client.pull("acme/a/b")
    assert answer.error == "'acme/a/b' is no valid repo name"
    assert answer.remedy.startswith("write org/name")


# The hub away.


def test_offline_without_a_cache(hub, client):
    hub.publish(REPO, model())
    answer = client.pull(REPO, is_offline=True)
    assert answer.error == f"the hub cannot be reached, and {REPO}@main is not in the cache"
    assert "unset HF_HUB_OFFLINE" in answer.remedy
    assert hub.requests == []


@pytest.mark.parametrize("files", [model(), sharded()], ids=["one file", "sharded"])
def test_offline_with_a_cache(hub, client, files):
    commit = hub.publish(REPO, files)
    client.pull(REPO)
    hub.requests.clear()
    for revision in ("main", commit):
        answer = client.pull(REPO, revision, is_offline=True)
        assert answer.commit == commit
        assert contents(answer) == files
    assert hub.requests == []


def test_offline_with_texts_alone_in_the_cache(hub, client):
    commit = hub.publish(REPO, model())
    client.pull_texts(REPO)
    assert client.pull_texts(REPO, is_offline=True).commit == commit
    assert "is not in the cache" in client.pull(REPO, is_offline=True).error


def test_adapter_and_no_more(hub, client):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": weights()}
    commit = hub.publish(REPO, {**files, "README.md": b"", "adapter_model.bin": b"pickle"})
    for is_offline in (False, True):
        answer = client.pull_adapter(REPO, is_offline=is_offline)
        assert answer.commit == commit
        assert contents(answer) == files
    flip_last_byte(blob(client, "adapter", files["adapter_model.safetensors"]))
    assert "damaged copy was removed" in client.pull_adapter(REPO, is_offline=True).error
    assert "is not in the cache" in client.pull_adapter(REPO, is_offline=True).error
    assert contents(client.pull_adapter(REPO)) == files


def test_repo_without_an_adapter(hub, client):
    hub.publish(REPO, model())
    answer = client.pull_adapter(REPO)
    assert "no PEFT adapter (adapter_config.json and adapter_model.safetensors)" in answer.error
    assert answer.remedy == "name the repo of an adapter"


def test_offline_with_a_shard_missing(hub, client):
    hub.publish(REPO, sharded())
    folder = client.pull(REPO).folder
    (folder / SHARDS[1]).unlink()
    assert "is not in the cache" in client.pull(REPO, is_offline=True).error


def test_offline_with_what_another_tool_fetched(hub, client):
    hub.publish(REPO, {**model(), "README.md": b"not fetched"})
    assert client.hf_download(REPO).error is None
    assert contents(client.pull(REPO, is_offline=True)) == model()


def test_dead_hub_with_a_cache(hub, client):
    commit = hub.publish(REPO, model())
    client.pull(REPO)
    hub.stop()
    answer = client.pull(REPO)
    assert answer.commit == commit
    assert contents(answer) == model()


def test_dead_hub_without_a_cache(hub, client):
    hub.stop()
    answer = client.pull(REPO)
    assert answer.error.startswith("the hub cannot be reached ([Errno 111] Connection refused)")
    assert answer.error.endswith(f", and {REPO}@main is not in the cache")
    assert "check HF_ENDPOINT" in answer.remedy


def test_hub_out_of_order_with_a_cache(hub, client):
    hub.publish(REPO, model())
    client.pull(REPO)
    hub.unavailable.add("api")
    assert contents(client.pull(REPO)) == model()


def test_hub_out_of_order_without_a_cache(hub, client):
    hub.publish(REPO, model())
    hub.unavailable.add("api")
    assert "is not in the cache" in client.pull(REPO).error


def test_storage_out_of_order(hub, client):
    hub.publish(REPO, model())
    hub.unavailable.add("storage")
    answer = client.pull(REPO)
    assert answer.error == (
        f"the download of {REPO}@main failed: the hub's storage at localhost answers with status"
        " 503 (tried 5 times)"
    )
    assert answer.remedy.startswith("run the command again")


# Repos that do not hold together.


@pytest.mark.parametrize("path", ["../evil.safetensors", "/tmp/evil.safetensors", "a/../../evil"])
def test_index_that_leaves_the_repo(hub, client, path):
    hub.publish(REPO, {**sharded({"first": path}), "evil.safetensors": weights()})
    answer = client.pull(REPO)
    assert f"names {path!r}, which is outside of the checkpoint" in answer.error
    assert "tampered with" in answer.remedy
    assert not any("evil" in r.path for r in hub.requests)
    assert not list(client.home.rglob("*evil*"))


def everything(folder):
    """All there is in a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.safetensors",
        "/tmp/evil.safetensors",
        "evil//config.json",
        "evil\0.safetensors",
        "evil\x1b[2J.json",
        "evil\u202etxt.json",
        "",
        7,
    ],
    ids=ascii,
)
def test_list_with_a_name_that_no_file_has(hub, client, name):
    commit = hub.publish(REPO, {**model(), "evil.safetensors": weights()})
    hub.also_listed.append({"rfilename": name, "size": 8, "blobId": "0" * 40})
    before = everything(client.home.parent)
    answer = client.pull(REPO)
    assert answer.error == (
        f"{REPO}@{commit}: the hub's list holds names that no file of a repo has: {name!a}"
    )
    assert "tampered with" in answer.remedy
    assert len(hub.requests) == 1
    written = everything(client.home.parent) - before
    assert {Path(name).name for name in written} == {"streams.txt"}


@pytest.mark.parametrize("name", ["..\\evil.safetensors", "C:evil.safetensors"])
def test_name_that_some_system_understands_otherwise(hub, client, name):
    commit = hub.publish(REPO, {**TEXTS, name: weights()})
    answer = client.pull(REPO)
    assert answer.error == f"{REPO}@{commit}: {name!a} is no name that a file has on every system"
    assert answer.remedy
    assert not any("evil" in r.path for r in hub.requests)
    # Where it is not needed, it is no hindrance.
    hub.publish(REPO, {**model(), name: weights()})
    assert contents(client.pull(REPO)) == model()


@pytest.mark.parametrize("commit", ["../../../../evil", "main", "A" * 40, ""])
def test_commit_that_is_none(hub, client, commit):
    hub.publish(REPO, model())
    hub.stated_commits["api"] = commit
    answer = client.pull(REPO)
    assert answer.error == f"what answers in place of the hub names no commit of {REPO}"
    assert "HF_ENDPOINT" in answer.remedy
    assert not list(client.home.parent.rglob("*evil*"))
    assert len(hub.requests) == 1


@pytest.mark.parametrize("size", [-1, "8"])
def test_size_that_is_none(hub, client, size):
    commit = hub.publish(REPO, model())
    hub.also_listed.append({"rfilename": "notes.txt", "size": size, "blobId": "0" * 40})
    answer = client.pull(REPO)
    assert answer.error == f"{REPO}@{commit}: notes.txt has a size of {size!a} by the hub's list"


def test_file_of_another_commit(hub, client):
    hub.publish(REPO, model())
    hub.stated_commits["resolve"] = "../../../../evil"
    answer = client.pull(REPO)
    assert "says nothing of acme/tiny: config.json that a hub would say" in answer.error
    assert not list(client.home.parent.rglob("*evil*"))


def test_index_that_names_a_missing_shard(hub, client):
    files = sharded()
    del files[SHARDS[1]]
    commit = hub.publish(REPO, files)
    answer = client.pull(REPO)
    assert answer.error == f"{REPO}@{commit}: {INDEX} names {SHARDS[1]}, which the repo lacks"
    assert "another --revision" in answer.remedy


def test_repo_without_weights(hub, client):
    commit = hub.publish(REPO, {**TEXTS, "onnx/model.onnx": b"onnx"})
    answer = client.pull(REPO)
    assert answer.error.startswith(f"{REPO}@{commit}: no weights: ")
    assert answer.remedy == "name a folder or repo that holds a model"


# The token.


def traces(home, secret):
    """Files below a folder that hold the secret, in their contents or their names."""
    found = [p for p in home.rglob("*") if secret in p.name]
    return found + [p for p in home.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


def test_token_goes_to_the_hub_alone(hub, client):
    hub.publish(REPO, sharded())
    hub.tokens.add(TOKEN)
    client.pull(REPO, token=TOKEN)
    origins = {"hub": urlsplit(hub.url).netloc, "storage": urlsplit(hub.storage_url).netloc}
    at_hub = [r for r in hub.requests if r.host == origins["hub"]]
    at_storage = [r for r in hub.requests if r.host == origins["storage"]]
    assert len(at_hub) + len(at_storage) == len(hub.requests)
    assert [r.token for r in at_hub] == [TOKEN] * len(at_hub)
    assert {r.method for r in at_hub} == {"GET", "HEAD"}
    assert len(at_storage) == len(SHARDS)
    for request in at_storage:
        assert TOKEN not in f"{request.path} {dict(request.headers)}"


def test_token_is_written_nowhere(hub, client):
    hub.publish(REPO, model(), is_gated=True)
    hub.tokens.add(TOKEN)
    told = [client.pull("acme/none", token=TOKEN), client.pull(REPO, "v9", token=TOKEN)]
    told.append(client.pull(REPO, token=TOKEN))  # a stranger
    hub.members.add(TOKEN)
    hub.flipped.add("model.safetensors")
    told.append(client.pull(REPO, token=TOKEN))
    hub.flipped.clear()
    hub.unavailable.add("storage")
    told.append(client.pull(REPO, token=TOKEN))
    hub.unavailable.clear()
    hub.cut_once["model.safetensors"] = 100
    good = client.pull(REPO, token=TOKEN, HF_DEBUG="1")
    hub.tokens.clear()
    told.append(client.pull(REPO, token=TOKEN))
    assert all(answer.error for answer in told)
    assert good.error is None
    for answer in told:
        assert TOKEN not in f"{answer}"
    logs = client.streams.read_text()
    assert "HTTP Request: GET" in logs, "the logs were not captured"
    assert "Traceback" in logs, "the exceptions were not captured"
    assert traces(client.home, TOKEN) == []


# The hub of these tests itself.


def test_loopback_hub_answers_what_the_client_can_ask(hub, monkeypatch):
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    names = [f"part/{n:03}.txt" for n in range(120)]
    hub.publish(REPO, {**model(), **{n: n.encode() for n in names}})
    api = HfApi(endpoint=hub.url, token=False)
    tree = {f.path: f for f in api.list_repo_tree(REPO, recursive=True)}
    assert sorted(tree) == sorted([*model(), *names]), "a listing of several pages"
    content = model()["model.safetensors"]
    assert tree["model.safetensors"].lfs.sha256 == hashlib.sha256(content).hexdigest()
    (info,) = api.get_paths_info(REPO, ["config.json", "no such file"])
    assert info.size == len(TEXTS["config.json"])
    metadata = api.get_safetensors_metadata(REPO)
    assert metadata.parameter_count == {"F32": 256}


def test_loopback_hub_serves_a_folder(hub, client, tmp_path):
    folder = tmp_path / "published"
    (folder / "onnx").mkdir(parents=True)
    for name, content in model().items():
        Path(folder, name).write_bytes(content)
    hub.publish(REPO, folder)
    assert contents(client.pull(REPO)) == model()
