"""What may be lost: read, held against what was found; and which formats should be tried next."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from edgezoo_core.errors import RecipeError
from edgezoo_core.recipe import read
from edgezoo_core.searching import mixture, solver, trials
from edgezoo_core.searching.options import Measured, Option
from edgezoo_core.searching.promise import Promise, parse_bytes, parse_share
from edgezoo_core.searching.trials import Trial
from edgezoo_core.types import Recipe
from edgezoo_core.verification.exam import Lost

FORMATS = ("dynamic_int4_block32", "dynamic_int8", "weight_only_int8", "fp16")
#: Bytes of a file that are no weights.
REST = 1000


def some_groups(count, seed):
    """Groups as models have them: losses fall from format to format, by very different factors."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        size, loss = chance.randint(100, 4000), 10 ** chance.uniform(-4, -1)
        losses = (loss, loss / 10, loss / 40, loss / 1000)
        sizes, works = (size * 9 // 16, size, size, 2 * size), (0.5, 1.0, 3.9, 3.9)
        options = tuple(
            Option(fmt, found_loss, found_size, work * size)
            for fmt, found_loss, found_size, work in zip(FORMATS, losses, sizes, works, strict=True)
        )
        name = f"layers.{number}.down"
        found.append(Measured(name, number, ("down",), (), options))
    return found


def lost(mean_kl, perplexity=10.0):
    return Lost(2056, mean_kl, 0.9, perplexity, 10.0)


def tried(groups, promise, solution, ratio):
    """A file that loses `ratio` times what was predicted."""
    found = lost(solution.loss * ratio, 10 * math.exp(solution.loss * ratio))
    size = solution.size_bytes + REST
    formats = tuple(o.format for o in solution.chosen)
    return Trial(
        Recipe("it", None),
        formats,
        solution.loss,
        solution.cost,
        size,
        found,
        promise.is_kept(found, size),
    )


def search(groups, promise, ratio):
    found = []
    while solution := trials.following(groups, promise, found):
        found.append(tried(groups, promise, solution, ratio))
    return found, trials.best(found, promise)


@pytest.mark.parametrize(
    ("text", "size"),
    [("700MB", 700_000_000), ("1.5 GB", 1_500_000_000), ("80000000", 80_000_000), ("9k", 9000)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5", 0.5), ("2.5 %", 0.025)])
def test_shares(text, share):
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "-1", "0", "MB", "1TB", "1e9", "much", "\u0661MB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "-1%", "0%", "%", "nan"])
def test_what_is_no_share(text):
    with pytest.raises(ValueError, match="is no share"):
        parse_share(text)


def test_something_must_be_promised():
    with pytest.raises(RecipeError, match="nothing is promised"):
        Promise()


@pytest.mark.parametrize(
    ("promise", "name"),
    [
        (Promise(max_kl=0.05), "kl0.05"),
        (Promise(max_ppl_increase=0.01, max_bytes=7 * 10**8, prefer="speed"), "ppl1_700MB_fast"),
        (Promise(max_kl=1e-7, max_bytes=10**13), "kl1e-07_1e07MB"),
    ],
)
def test_recipe_of_a_promise_has_a_name_that_a_file_may_have(promise, name, tmp_path):
    assert promise.name == name
    path = tmp_path / "r.toml"
    path.write_text(f'name = "{name}"\n')
    assert read(path).name == name


def test_every_limit_counts():
    promise = Promise(max_kl=0.01, max_ppl_increase=0.02, max_bytes=1000)
    assert promise.is_kept(lost(0.009, 10.1), 1000)
    assert not promise.is_kept(lost(0.011, 10.1), 1000)
    assert not promise.is_kept(lost(0.009, 10.3), 1000)
    assert not promise.is_kept(lost(0.009, 10.1), 1001)
    assert not promise.is_kept(lost(math.nan), 1000)
    assert promise.share(lost(0.005, 10.2)) == pytest.approx(1.0)
    # A file that happens to read the text better has lost nothing of it.
    assert promise.share(lost(0.005, 9.0)) == pytest.approx(0.5)


@pytest.mark.parametrize("objective", ["loss", "size", "speed"])
@pytest.mark.parametrize("seed", range(5))
def test_solver_finds_what_trying_all_finds(objective, seed):
    groups = some_groups(5, seed)
    for second in (solver.EXACT, solver.BALANCED):
        usual = solver.total([g.options[1] for g in groups])
        limits = (1.5 * usual.loss, int(0.9 * usual.size_bytes))

        def cost(found, usual=usual, second=second):
            loss = found.loss / usual.loss
            size, work = found.size_bytes / usual.size_bytes, found.work / usual.work
            first = {"loss": loss, "size": size, "speed": work}[objective]
            return first + second * (size if objective == "speed" else work)

        for max_loss, max_bytes in ((None, None), (limits[0], None), (None, limits[1])):
            found = solver.solve(groups, objective, max_loss, max_bytes, second)
            assert found is not None
            best = min(
                cost(t)
                for t in map(solver.total, itertools.product(*(g.options for g in groups)))
                if (max_loss is None or t.loss <= max_loss * (1 + 1e-6))
                and (max_bytes is None or t.size_bytes <= max_bytes)
            )
            assert found.cost == pytest.approx(cost(found))
            assert found.cost <= best * (1 + 1e-3)
            assert max_loss is None or found.loss <= max_loss * (1 + 1e-6)
            assert max_bytes is None or found.size_bytes <= max_bytes


def test_solver_says_what_cannot_be():
    groups = some_groups(4, 0)
    assert solver.solve(groups, "size", max_loss=1e-9) is None
    assert solver.solve(groups, "loss", max_bytes=10) is None


def test_solver_is_quick_with_many_groups():
    groups = some_groups(400, 1)
    found = solver.solve(groups, "size", 0.5, None, solver.BALANCED)
    assert found is not None
    assert found.loss <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("prefer", ["size", "speed"])
def test_search_uses_up_what_it_may_lose(ratio, prefer):
    groups = some_groups(60, 2)
    promise = Promise(max_kl=0.3, prefer=prefer)
    found, best = search(groups, promise, ratio)
    assert best.is_kept
    assert best.lost.mean_kl >= 0.9 * promise.max_kl
    assert len(found) <= 3


def test_preferences_differ():
    groups = some_groups(60, 3)
    small, fast = (
        search(groups, Promise(max_kl=0.02, prefer=prefer), 1.0)[1] for prefer in ("size", "speed")
    )

    def work(trial):
        return sum(
            next(o.work for o in g.options if o.format == f)
            for g, f in zip(groups, trial.formats, strict=True)
        )

    assert small.size_bytes <= fast.size_bytes
    assert work(fast) <= work(small)
    assert (small.size_bytes, work(small)) != (fast.size_bytes, work(fast))


def test_file_fits_the_size_with_all_that_is_no_weight():
    groups = some_groups(60, 4)
    least = solver.least(groups, "size").size_bytes
    promise = Promise(max_bytes=least + REST + 20_000)
    found, best = search(groups, promise, 1.3)
    assert best.is_kept
    assert not found[0].is_kept  # what is no weight was not known yet
    assert promise.max_bytes - best.size_bytes < 5000


def test_best_of_what_keeps_nothing_is_taken():
    groups = some_groups(20, 5)
    _, best = search(groups, Promise(max_kl=1e-9), 1.0)
    assert not best.is_kept
    assert set(best.formats) == {"fp16"}
    _, best = search(groups, Promise(max_bytes=10), 1.0)
    assert not best.is_kept
    assert set(best.formats) == {"dynamic_int4_block32"}
    # The size is kept first, and as little is lost as then can be.
    usual = solver.total([g.options[1] for g in groups])
    both = Promise(max_kl=1e-9, max_bytes=usual.size_bytes + REST)
    _, best = search(groups, both, 1.0)
    assert not best.is_kept
    assert best.size_bytes <= both.max_bytes


def test_curve_falls_to_the_right():
    groups = some_groups(30, 6)
    _, best = search(groups, Promise(max_kl=0.1), 2.0)
    curve = trials.curve(groups, best)
    assert len(curve) > 10
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in itertools.pairwise(curve))
    size, loss = min(curve, key=lambda point: abs(point[0] - best.size_bytes))
    assert loss <= 1.5 * best.lost.mean_kl
    assert abs(size - best.size_bytes) < 0.1 * size


def test_mixture_says_what_each_part_has():
    groups = [
        Measured("embedding", None, ("embedding", "lm_head"), ("final_norm",), ()),
        Measured("layers.1.gate+up", 1, ("gate", "up"), ("layers.1.post_attention_norm",), ()),
    ]
    known = {
        "dynamic_int8": {"final_norm": (1,), "layers.1.post_attention_norm": (2,)},
        "fp16": {"layers.1.post_attention_norm": (3,)},
    }
    found = mixture.recipe("it", groups, ("dynamic_int8", "fp16"), known)
    assert {part: fmt.name for part, fmt in found.parts.items()} == {
        "embedding": "dynamic_int8",
        "lm_head": "dynamic_int8",
    }
    assert {part: fmt.name for part, fmt in found.layers[1].items()} == {
        "gate": "fp16",
        "up": "fp16",
    }
    assert found.folds == {"final_norm": (1,), "layers.1.post_attention_norm": (3,)}
    assert found.is_compensated
