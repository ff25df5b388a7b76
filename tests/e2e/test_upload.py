"""Files to the loopback hub through the real huggingface_hub: whole, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from edgezoo_core.publishing.card import MARK

TOKEN = "hf_writewritewritewritewritewritewri"
READER = "hf_readreadreadreadreadreadreadreadr"
REPO = "acme/tiny-litert"
README = f"---\nlicense: mit\n---\n{MARK}\n\n# tiny\n".encode()
MODEL = bytes(range(256)) * 400
BUNDLE = b"LITERTLM" + MODEL[::-1]
FILES = {
    "README.md": README,
    "tiny.litertlm": BUNDLE,
    "tiny.manifest.json": b"{}\n",
    "tiny.tflite": MODEL,
}

PUBLISH = """
import json, logging, sys, traceback
from pathlib import Path
job = json.load(sys.stdin)
logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)
from dataclasses import asdict
from edgezoo_core.errors import PublishError
from edgezoo_core.publishing import upload
from edgezoo_core.publishing.upload import File, publish
upload.TIMEOUT_S = job["timeout_s"]
files = [File(p.name, p if p.suffix != ".json" else p.read_bytes())
         for p in sorted(Path(job["folder"]).iterdir())]
try:
    answer = asdict(publish(job["repo"], files, "Add tiny", **job["options"]))
except PublishError as e:
    answer = {"error": e.message, "remedy": e.remedy}
    traceback.print_exc()
import huggingface_hub, httpx2
print(json.dumps(answer))
"""

DOWNLOAD = """
import json, sys
from huggingface_hub import snapshot_download
print(json.dumps(snapshot_download(sys.argv[1], revision=sys.argv[2])))
"""


def variables(hub, home, token, **others):
    """What a process of a user's machine sees."""
    foreign = ("HF_", "HUGGING", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    kept = {n: v for n, v in os.environ.items() if not n.upper().startswith(foreign)}
    found = {**kept, **hub.environment(home), "HOME": str(home), **others}
    return found | ({"HF_TOKEN": token} if token else {})


@pytest.fixture
def publish(hub, tmp_path):
    """Publishes files as a process of its own; all that it says goes to `publish.said`."""
    hub.tokens |= {TOKEN, READER}
    hub.uploads.writers[TOKEN] = {"acme"}
    home = tmp_path / "home"

    def run(files=FILES, repo=REPO, token=TOKEN, timeout_s=60, **options):
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", PUBLISH],
            input=json.dumps(
                {"folder": str(folder), "repo": repo, "timeout_s": timeout_s, "options": options}
            ),
            capture_output=True,
            text=True,
            check=False,
            env=variables(hub, home, token),
        )
        assert done.returncode == 0, done.stderr
        run.said += done.stdout + done.stderr
        return json.loads(done.stdout)

    run.said = ""
    return run


def contents(hub, revision="main", repo=REPO):
    """What everybody sees."""
    entry = hub.repos[repo]
    files = entry.commits[entry.branches.get(revision, revision)]
    return {n: f.content for n, f in files.items() if n != ".gitattributes"}


def asked(hub, method, part):
    return [r for r in hub.requests if r.method == method and part in r.path]


def test_what_was_published_comes_down_the_same(hub, publish, tmp_path):
    answer = publish()
    commit = hub.repos[REPO].branches["main"]
    assert answer == {
        "repo": REPO,
        "url": f"{hub.url}/{REPO}/commit/{commit}",
        "commit": commit,
        "is_pull_request": False,
        "sent": sorted(FILES),
    }
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, REPO, "main"],
        capture_output=True,
        text=True,
        check=True,
        env=variables(hub, tmp_path / "other", None),
    )
    folder = Path(json.loads(done.stdout))
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix} == FILES


def test_all_files_come_in_one_commit(hub, publish):
    publish()
    assert len(asked(hub, "POST", "/commit/")) == 1
    assert len(hub.repos[REPO].commits) == 2, "the repo's first, and ours"
    last_put = max(i for i, r in enumerate(hub.requests) if r.method == "PUT")
    commit = next(i for i, r in enumerate(hub.requests) if "/commit/" in r.path)
    assert last_put < commit


def test_the_token_goes_to_the_hub_alone(hub, publish):
    hub.uploads.chunk_size = 1 << 16
    hub.uploads.confirms_elsewhere = True
    publish()
    origins = {r.host for r in hub.requests if r.token}
    assert origins == {urlsplit(hub.url).netloc}
    elsewhere = [r for r in hub.requests if r.host != urlsplit(hub.url).netloc]
    assert any("/confirms/" in r.path for r in elsewhere)
    assert any("/puts/" in r.path for r in elsewhere)
    assert TOKEN not in publish.said


def test_the_token_does_not_follow_a_redirect(hub, publish):
    hub.uploads.leads_away = True
    publish()
    led = [r for r in asked(hub, "POST", "/objects/batch") if r.host.startswith("localhost")]
    assert led
    assert not any(r.token for r in led)


def test_large_files_go_in_parts_where_the_hub_asks_for_it(hub, publish):
    hub.uploads.chunk_size = 1 << 16
    publish()
    assert contents(hub) == FILES
    assert len(asked(hub, "PUT", "part=2")) == 2


def test_a_proposal_leaves_the_branch_as_it_is(hub, publish):
    hub.publish(REPO, {"README.md": README})
    answer = publish(token=READER, pull_request=True)
    assert answer["url"] == f"{hub.url}/{REPO}/discussions/1"
    assert answer["is_pull_request"]
    assert contents(hub) == {"README.md": README}
    assert contents(hub, "refs/pr/1") == FILES
    assert answer["sent"] == sorted(FILES.keys() - {"README.md"})


def test_the_same_again_makes_no_commit(hub, publish):
    first = publish()
    before = len(hub.requests)
    again = publish()
    assert again == {**first, "sent": []}
    assert {r.method for r in hub.requests[before:]} == {"GET"}


@pytest.mark.parametrize("name", ["tiny.tflite", "tiny.manifest.json"])
def test_files_of_other_content_are_replaced_only_by_force(hub, publish, name):
    publish()
    changed = {**FILES, name: b"another"}
    answer = publish(changed)
    assert answer["error"] == f"{REPO} has other files of these names: {name}"
    assert "--force" in answer["remedy"]
    assert contents(hub) == FILES
    assert publish(changed, force=True)["sent"] == [name]
    assert contents(hub) == changed


def test_a_readme_of_somebody_else_is_kept(hub, publish):
    hub.publish(REPO, {"README.md": b"# written by hand\n"})
    assert "README.md" in publish()["error"]
    assert contents(hub) == {"README.md": b"# written by hand\n"}


def test_a_readme_of_ours_is_renewed(hub, publish):
    publish()
    assert publish({**FILES, "README.md": README + b"More.\n"})["sent"] == ["README.md"]


def test_a_change_in_between_is_not_overwritten(hub, publish):
    hub.publish(REPO, {"notes.txt": b"mine"})
    hub.uploads.meanwhile = lambda: hub.publish(REPO, {"README.md": b"# by hand\n"})
    assert publish()["error"] == f"{REPO} was changed by somebody else meanwhile"
    assert contents(hub) == {"README.md": b"# by hand\n"}


@pytest.mark.parametrize("answers", [[503], [0]], ids=["503", "connection closed"])
def test_a_passing_fault_of_the_storage_is_tried_again(hub, publish, answers):
    hub.uploads.put_answers = list(answers)
    publish()
    assert contents(hub) == FILES


def test_a_failed_upload_shows_nothing_and_a_rerun_sends_the_rest(hub, publish):
    hub.uploads.put_answers = [200, 403]
    answer = publish()
    assert answer["error"].startswith(f"the upload to {REPO} failed (status 403")
    assert "nothing of it is to be seen yet" in answer["remedy"]
    assert contents(hub) == {}
    hub.requests.clear()
    assert "error" not in publish()
    assert contents(hub) == FILES
    assert len(asked(hub, "PUT", "/puts/")) == 1


def test_a_failed_commit_shows_nothing_and_a_rerun_sends_no_large_file(hub, publish):
    hub.uploads.commit_answers = [500]
    answer = publish()
    assert answer["error"] == f"the upload to {REPO} failed (status 500: out of order)"
    assert contents(hub) == {}
    hub.requests.clear()
    publish()
    assert contents(hub) == FILES
    assert asked(hub, "PUT", "/puts/") == []


@pytest.mark.parametrize(
    ("options", "error", "remedy"),
    [
        ({"token": None}, "needs a token of the hub, and there is none", "hf auth login"),
        ({"token": "hf_unknown"}, "the hub does not accept your token", "hf auth login"),
        ({"token": READER}, "your token may not write to acme/tiny-litert", "--pull-request"),
        ({"repo": "acme/no--way"}, "'acme/no--way' is no valid repo name", "write org/name"),
        ({"repo": "acme/taken"}, "the name acme/taken is taken", "choose another name"),
    ],
    ids=["no token", "unknown token", "reader", "bad name", "taken"],
)
def test_what_the_hub_refuses_is_told(hub, publish, options, error, remedy):
    hub.uploads.taken.add("acme/taken")
    answer = publish(**options)
    assert error in answer["error"]
    assert remedy in answer["remedy"]
    assert asked(hub, "PUT", "") == []
    assert "hf_unknown" not in publish.said


def test_a_hub_that_is_gone_is_told(hub, publish):
    hub.stop()
    answer = publish()
    assert answer["error"].startswith(f"the upload to {REPO} failed: the hub cannot be reached (")
    hub.stop = lambda: None  # the fixture stops it, too


def test_a_hub_whose_answer_trickles_in_is_told(hub, hub_server, publish):
    hub.faults["api"] = iter([hub_server.Fault(trickles="head")])
    answer = publish(timeout_s=1)
    assert answer["error"] == f"the upload to {REPO} failed: the hub sends next to nothing"
    assert answer["remedy"].startswith("run the command again")
    assert "error" not in publish()
