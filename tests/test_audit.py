"""Audits of toy networks, in seconds: what is measured, what the page says, how one stops and goes on."""

from __future__ import annotations

import hashlib
import html.parser
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from robattr import attacks, attributions, data, metrics, models
from robattr.attacks import MEASURES, TopK
from robattr.attributions import Target, gradient, heatmap
from robattr.cli import main
from robattr.data import ImageSet
from robattr.models import Classifier
from robattr.pages import report
from robattr.studies import audit, records
from robattr.studies.audit import Audit, Audited, Cost, make_plan, top_pixels

METHODS = ("gradient", "input_x_gradient", "refusing")
SIDE = 16


def refusing(model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False) -> Tensor:
    """A method without a map."""
    raise ValueError("toys have no map")


@pytest.fixture(scope="module", autouse=True)
def _methods() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attributions.METHODS, "refusing", refusing)
        yield


class Ticking:
    """A clock that goes on by a little whenever somebody looks: a test that waits for nothing, the same anywhere.

    A pass of the network looks once, so time is counted in passes.
    """

    def __init__(self, tick: float) -> None:
        self.time = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.time += self.tick
        return self.time


class Small(nn.Module):
    """A smooth network with two layers of convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.softplus(self.first(x), beta=3)
        h = nn.functional.softplus(self.second(h), beta=3)
        out: Tensor = self.head(h.mean((2, 3)))
        return out


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    small = Small().eval()
    for parameter in small.parameters():
        parameter.data.mul_(3)
    made = Classifier(small, mean=[0.5] * 3, std=[0.25] * 3, name="small", input_size=(3, SIDE, SIDE), num_classes=4)
    return made.eval()


def pictures(model: Classifier, n: int = 8, wrong: int = 2) -> ImageSet:
    """Images of 8 bits whose labels are what the model predicts, but for the last ones."""
    levels = torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    x = levels.float().div_(255)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[n - wrong :] = (labels[n - wrong :] + 1) % 4
    return ImageSet(x, labels, ("a", "b", "c", "d"), "toy", "test", {"prepared": "drawn at random"})


def config(minutes: float = 0.5, methods: tuple[str, ...] = METHODS) -> Audit:
    return Audit(methods=methods, minutes=minutes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """An audit with time enough."""
    model = network()
    return audit.audit(
        model, pictures(model), config(), tmp_path_factory.mktemp("audit") / "report", now=Ticking(0.004)
    )


# --- what is measured ------------------------------------------------------------------------------------------------


def test_the_worst_is_at_least_as_bad_as_every_attack_and_every_image_counts(done: Audited) -> None:
    """By construction, and in the lines: no attack is below the worst of any image in any measure."""
    compared = 0
    for line in done.lines:
        method, attack, _, measure = (*line.quantity.split("/"), "", "", "")[:4]
        if measure not in MEASURES or attack in ("noise", "worst") or line.epsilon is None or method not in METHODS:
            continue
        assert line.values is not None
        sign = -1 if measure == "center_shift" else 1
        for size in {"8", line.quantity.split("/")[2]}:  # what is found in the smaller ball lies in the other one too
            worst = done[f"{method}/worst/{size}/{measure}"].values
            assert worst is not None
            for mine, theirs in zip(worst, line.values, strict=False):
                assert sign * mine <= sign * theirs
                compared += 1
    assert compared > 150
    plan = done.description["plan"]
    assert done["gradient/worst/8/success"].n == plan["images"] == 6


@pytest.mark.parametrize("size", [8, 2])
def test_no_attack_of_the_package_finds_more_within_the_plan(done: Audited, size: int) -> None:
    """The attacks that a user calls, at the plan's own steps, rounded to 8 bits, and measured outside of the audit."""
    model, plan = network(), done.description["plan"]
    chosen = pictures(model).images[:6]
    each = plan["methods"]["gradient"]
    step = each["step" if size == 8 else "smaller_step"]
    options: dict[str, Any] = {
        "epsilon": size / 255, "step": step / 255, "iterations": each["iterations"], "batch_size": 6
    }  # fmt: skip
    k = top_pixels(SIDE, SIDE)
    with torch.no_grad():
        labels = model(chosen).argmax(1)
    before = heatmap(gradient(model, chosen, labels))
    for objective in (TopK(k), attacks.MassCenter()):
        found = attacks.iterative_attack(model, chosen, objective=objective, **options)
        rounded = (found.images * 255).round() / 255
        with torch.no_grad():
            same = model(rounded).argmax(1) == labels
        after = heatmap(gradient(model, rounded, labels))
        shares = torch.where(same, metrics.topk_intersection(before, after, k), 1.0)
        worst = torch.tensor(done[f"gradient/worst/{size}/topk_intersection"].values)
        # A pixel may change its place by rounding: another batch sums in another order.
        assert (worst <= shares + 1.01 / k).all()
        shift = torch.where(same, metrics.center_shift(before, after), 0.0)
        assert (torch.tensor(done[f"gradient/worst/{size}/center_shift"].values) >= shift - 1e-3).all()


def test_smaller_changes_are_measured_too(done: Audited) -> None:
    """Within a quarter of epsilon: noise by hand, attacks of the plan, both sizes on the page."""
    assert audit.Audit(epsilon=8).smaller == 2
    assert audit.Audit(epsilon=3).smaller == 1
    assert audit.Audit(epsilon=1).smaller is None
    assert done.description["config"]["smaller"] == 2
    assert done.description["plan"]["methods"]["gradient"]["smaller"] == ["top-k", "mass-center"]
    for name in ("top-k", "mass-center", "worst", "noise"):
        line = done[f"gradient/{name}/2/topk_intersection"]
        assert line.epsilon == 2 / 255
        assert line.n == 6
    model, x = network(), pictures(network()).images[:6]
    with torch.no_grad():
        labels = model(x).argmax(1)
    generators = metrics.generators_of(x, 0)
    before, total = heatmap(gradient(model, x, labels)), torch.zeros(6, dtype=torch.float64)
    for _ in range(done.description["plan"]["draws"]):
        noise = torch.stack([torch.rand(x.shape[1:], generator=g) for g in generators])
        after = heatmap(gradient(model, (x + 2 / 255 * (2 * noise - 1)).clamp(0, 1), labels))
        total += metrics.cosine(before, after).double()
    mean = total / done.description["plan"]["draws"]
    # Seven digits are kept, and float32 sums of 256 products are off by 256 of its roundings at most.
    torch.testing.assert_close(
        torch.tensor(done["gradient/noise/2/cosine"].values, dtype=torch.float64), mean, rtol=0, atol=256 * 2**-23
    )
    text = re.sub("<[^>]*>", "", report.render(done))
    assert "Changes of at most 2/255 leave" in text
    assert "random noise, 2/255" in text
    assert "worst attack, 8/255" in text


def test_files_hold_what_was_measured(done: Audited) -> None:
    """Every PNG is in the ball and keeps the prediction; among those of an image is one with its worst value."""
    model = network()
    chosen = pictures(model).images
    k = top_pixels(SIDE, SIDE)
    seen = 0
    for method in ("gradient",):
        values = done[f"{method}/worst/8/topk_intersection"].values
        assert values is not None
        best: dict[int, float] = {}
        for path in done.description["files"][method]:
            index = int(re.fullmatch(r"images/gradient/(\d+)-[\w-]+\.png", path)[1])  # type: ignore[index]
            levels = np.array(Image.open(done.folder / path)).transpose(2, 0, 1)
            clean = (chosen[index] * 255).round().numpy()
            assert np.abs(levels.astype(int) - clean.astype(int)).max() <= 8
            x = torch.stack([chosen[index], torch.from_numpy(levels.copy()).float() / 255])
            with torch.no_grad():
                labels = model(x).argmax(1)
            assert labels[0] == labels[1]
            maps = heatmap(gradient(model, x, labels))
            share = float(metrics.topk_intersection(maps[:1], maps[1:], k))
            best[index] = min(best.get(index, 1.0), share)
            seen += 1
        for place, value in enumerate(values):
            assert abs(best[place] - value) <= 1.01 / k
    assert seen >= 6


def test_the_lines_are_records(done: Audited) -> None:
    lines = records.read(done.folder / "audit.jsonl")
    assert [line.quantity for line in lines] == [line.quantity for line in done.lines]
    assert not records.conflicts(lines)
    assert {line.experiment for line in lines} == {"audit"}
    assert done["correct"].value == pytest.approx(6 / 8, rel=1e-5)
    assert done["left_out/misclassified"].values == (0.0,) * 6 + (1.0,) * 2
    assert done["gradient/noise/8/cosine"].epsilon == 8 / 255
    assert done["certificate/0.15/cosine/0.05"].norm == "l2"
    again = audit.load(done.folder)
    assert again.lines == tuple(lines)
    assert [case.attack for case in again.cases] == [case.attack for case in done.cases]
    assert torch.equal(again.cases[0].after, done.cases[0].after)


def test_what_a_method_refuses_is_said(done: Audited) -> None:
    """The audit goes on without, and says why."""
    assert done.description["refused"] == {"refusing": "toys have no map"}
    assert not [line for line in done.lines if line.quantity.startswith("refusing")]
    assert "toys have no map" in report.render(done)


def test_a_map_that_is_the_same_everywhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold against every attack: for the first image the method is left out, for another those images are."""
    model = network()
    shown = pictures(model)

    def blank(model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False) -> Tensor:
        return 0 * gradient(model, x, target, create_graph=create_graph)

    def blank_at_two(model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False) -> Tensor:
        found = gradient(model, x, target, create_graph=create_graph)
        same = (x == shown.images[2]).flatten(1).all(1)
        return torch.where(same[:, None, None, None], torch.zeros_like(found), found)

    monkeypatch.setitem(attributions.METHODS, "blank", blank)
    monkeypatch.setitem(attributions.METHODS, "blank_at_two", blank_at_two)
    found = audit.audit(
        model, shown, config(methods=("gradient", "blank", "blank_at_two")), tmp_path / "report", now=Ticking(0.004)
    )
    assert found.description["refused"].keys() == {"blank"}
    assert "the map of blank is the same at every pixel, 0, for 1 of 1 images" in found.description["refused"]["blank"]
    assert not [line for line in found.lines if line.quantity.startswith("blank/")]
    assert found.get("gradient/worst/8/topk_intersection") is not None
    words = {(f.method, f.question): f.word for f in audit.findings(found)}
    assert words.get(("blank_at_two", "attack"), "open") != "holds"


def test_transfers_come_from_the_other_methods(done: Audited) -> None:
    assert done.get("gradient/transfer-input_x_gradient/8/success") is not None
    assert done.get("input_x_gradient/transfer-gradient/8/success") is not None


# --- the plan --------------------------------------------------------------------------------------------------------

CHEAP, DEAR = Cost(0.1, 0.2, 10**8), Cost(2.0, 5.0, 10**9)


def seconds_of(plan: Any, costs: dict[str, Cost]) -> float:
    total = 0.0
    for name, each in plan.methods.items():
        step = costs[name].step or 0.0
        walks = [attack for attack in (*each.attacks, *each.smaller) if attack != "random-sign"]
        total += plan.images * (len(walks) * each.iterations * step + costs[name].map * each.signs * bool(walks))
    return total


@pytest.mark.parametrize("smaller", [None, 2.0])
@pytest.mark.parametrize("seconds", [30, 100, 300, 600, 3000])
@pytest.mark.parametrize("costs", [{"gradient": CHEAP}, {"gradient": CHEAP, "lrp": DEAR}, {"gradient": DEAR}])
def test_a_plan_fits_into_its_minutes(seconds: float, costs: dict[str, Cost], smaller: float | None) -> None:
    plan = make_plan(costs, seconds=seconds, images=20, epsilon=8, smaller=smaller, memory=2 * 2**30)
    assert 1 <= plan.images <= 20
    first = plan.methods["gradient"]
    assert "top-k" in first.attacks
    assert first.iterations >= 5
    least = costs["gradient"].map + 5 * (costs["gradient"].step or 0)
    assert seconds_of(plan, costs) <= max(0.6 * seconds, least)
    # Gradients of so many images are in a pass of a method that takes many points, and of the certificates.
    assert plan.passes * costs["gradient"].bytes <= 2 * 2**30
    for name, each in plan.methods.items():
        assert each.batch * costs[name].bytes <= 2 * 2**30
        if each.attacks:
            # The steps can cross the ball and come back.
            assert each.iterations * each.step >= 2 * 8
            # Within the smaller ball only what is run within the other one too.
            assert set(each.smaller) <= (set() if smaller is None else set(each.attacks))
            assert each.iterations * each.smaller_step >= 2 * (smaller or 8)


def test_more_time_is_more_of_everything() -> None:
    plans = [
        make_plan({"gradient": CHEAP, "lrp": DEAR}, seconds=s, images=20, epsilon=8, smaller=2, memory=2 * 2**30)
        for s in (30, 100, 300, 1000, 3000, 60000)
    ]
    for less, more in itertools.pairwise(plans):
        assert less.images <= more.images
        assert less.sanity_images <= more.sanity_images
        assert less.certified_images <= more.certified_images
        assert less.draws <= more.draws
    assert plans[-1].images == 20
    assert len(plans[-1].methods["lrp"].attacks) == 9
    assert plans[-1].methods["lrp"].smaller == ("top-k", "mass-center")
    assert plans[0].methods["lrp"].attacks == ()


def test_top_pixels_are_those_of_the_book() -> None:
    assert top_pixels(224, 224) == 1000
    assert top_pixels(32, 32) == 100


# --- stopping and going on -------------------------------------------------------------------------------------------


def test_a_stopped_audit_goes_on(tmp_path: Path) -> None:
    """With little time it has a part, with the same command the rest; what is there is not measured again."""
    model = network()
    clock = Ticking(0.004)

    def late(line: str) -> None:
        if "mass-center" in line:
            clock.time += 1000

    short = audit.audit(model, pictures(model), config(), tmp_path, say=late, now=clock)
    assert short.description["stopped"] == "time"
    calls = 0

    def count(module: nn.Module, args: object) -> None:
        nonlocal calls
        calls += 1

    before = {path.name: (path / "digests.json").read_text() for path in (tmp_path / "parts").glob("*~*")}
    longer = audit.audit(model, pictures(model), config(), tmp_path, now=Ticking(0.0005))
    assert longer.description["stopped"] is None
    assert len(longer.lines) > len(short.lines)
    assert longer.description["plan"] == short.description["plan"]
    for name, digest in before.items():
        assert (tmp_path / "parts" / name / "digests.json").read_text() == digest
    handle = model.register_forward_pre_hook(count)
    again = audit.audit(model, pictures(model), config(), tmp_path, now=Ticking(0.0005))
    handle.remove()
    assert [line.value for line in again.lines] == [line.value for line in longer.lines]
    assert calls <= 4 * len(again.cases)  # the pictures of the worst cases are made anew


def test_ctrl_c_keeps_what_is_there(tmp_path: Path) -> None:
    model = network()
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        if "mass-center" in line:
            raise KeyboardInterrupt

    found = audit.audit(model, pictures(model), config(), tmp_path, say=interrupt, now=Ticking(0.004))
    assert found.description["stopped"] == "interrupted"
    assert found.get("gradient/top-k/8/success") is not None
    assert found.get("gradient/mass-center/8/success") is None
    assert "It was interrupted before all was measured that was planned" in report.render(found)
    assert all(re.match(r"\d+:\d\d left", line) for line in said)


def test_a_clock_that_is_over_at_once_leaves_a_page(tmp_path: Path) -> None:
    model = network()
    found = audit.audit(model, pictures(model), config(0.05), tmp_path, now=Ticking(1.0))
    assert found.description["stopped"] == "time"
    page = report.render(found)
    assert "The time was over before anything was measured" in page
    assert "that was planned" not in page


@pytest.mark.parametrize("other", ["model", "data", "minutes", "methods"])
def test_another_audit_is_not_mixed_in(done: Audited, other: str) -> None:
    model = network(seed=1 if other == "model" else 0)
    shown = pictures(model, wrong=3 if other == "data" else 2)
    asked = config(3.0 if other == "minutes" else 0.5, ("gradient",) if other == "methods" else METHODS)
    with pytest.raises(ValueError, match=r"holds the audit of another .*name another folder"):
        audit.audit(model, shown, asked, done.folder, now=Ticking(0.004))


def test_an_altered_part_is_measured_again(tmp_path: Path) -> None:
    model = network()
    first = audit.audit(model, pictures(model), config(methods=("gradient",)), tmp_path, now=Ticking(0.004))
    values = tmp_path / "parts" / "attack~gradient~top-k~0" / "values.json"
    values.write_text(values.read_text().replace("1.0", "0.0"))
    again = audit.audit(model, pictures(model), config(methods=("gradient",)), tmp_path, now=Ticking(0.004))
    assert [line.values for line in again.lines] == [line.values for line in first.lines]


@pytest.mark.parametrize(
    "kind", ["images/gradient/*.png", "audit.jsonl", "audit.json", "parts/*.safetensors", "*s.json"]
)
def test_a_flipped_bit_beside_the_report_is_noticed_and_made_good(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def again() -> Audited:
        return audit.audit(model, pictures(model), config(methods=("gradient",)), tmp_path, now=Ticking(0.004))

    model = network()
    first = again()
    images = {path: path.read_bytes() for path in tmp_path.glob("images/*/*.png")}
    file = max(tmp_path.glob(kind))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} is not what the audit wrote; the same") as error:
        audit.load(tmp_path)
    assert "\n" not in str(error.value)
    assert not caplog.messages
    assert [line.values for line in again().lines] == [line.values for line in first.lines]
    assert caplog.messages == [f"{file} is not what was written: it is made again"]
    assert {path: path.read_bytes() for path in tmp_path.glob("images/*/*.png")} == images
    assert [line.values for line in audit.load(tmp_path).lines] == [line.values for line in first.lines]


# --- networks that are not as others ---------------------------------------------------------------------------------


def test_where_nothing_is_classified_right_the_predictions_are_explained(tmp_path: Path) -> None:
    model = network()
    found = audit.audit(
        model, pictures(model, n=8, wrong=8), config(methods=("gradient",)), tmp_path, now=Ticking(0.004)
    )
    assert found.description["explained"] == "all"
    assert found["gradient/worst/8/success"].n == 8
    assert "No image is classified as it is labelled" in report.render(found)


def test_a_linear_model_has_nothing_to_attack_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)).eval()
    model = Classifier(linear, mean=[0.0] * 3, std=[1.0] * 3, name="linear", input_size=(3, SIDE, SIDE), num_classes=4)
    found = audit.audit(model, pictures(model), config(methods=("gradient",)), tmp_path, now=Ticking(0.004))
    verdicts = {each.question: each.word for each in audit.findings(found)}
    assert verdicts.get("attack") != "breaks"
    report.render(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.select([0]).images[:, :, :5, :5], "at least 7 x 7 pixels"),
        (lambda s: s.images[:, :2], "an audit takes pictures with 1 or 3 channels"),
    ],
)
def test_what_is_no_picture_is_refused(change: Callable[[ImageSet], Tensor], said: str, tmp_path: Path) -> None:
    shown = pictures(network())
    x = change(shown)
    other = ImageSet(x, shown.labels[: len(x)], shown.class_names, "toy", "test", {})
    with pytest.raises(ValueError, match=said):
        audit.audit(network(), other, config(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ("gradients",)}, "methods has 'gradients'; accepted are gradient"),
        ({"methods": ("gradient", "gradient")}, "methods has 'gradient' twice"),
        ({"minutes": 0}, "greater than 0"),
        ({"epsilon": 0.5}, "multiple of 1"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Audit(**options)


# --- verdicts --------------------------------------------------------------------------------------------------------


def lines_of(done: Audited, quantity: str, values: list[float]) -> Audited:
    """The audit with other values of one quantity."""
    changed = [
        line.model_copy(update={"values": tuple(values), "n": len(values), "value": float(np.mean(values))})
        if line.quantity == quantity
        else line
        for line in done.lines
    ]
    return Audited(done.folder, tuple(changed), done.description, done.cases)


@pytest.mark.parametrize(
    ("quantity", "values", "question", "word"),
    [
        ("gradient/worst/8/topk_intersection", [0.1, 0.2, 0.1, 0.3, 0.2, 0.1, 0.2], "attack", "breaks"),
        ("gradient/worst/8/topk_intersection", [0.9, 0.8, 0.9, 0.7, 0.8, 0.9], "attack", "holds"),
        ("gradient/worst/8/topk_intersection", [0.9, 0.1, 0.9, 0.1, 0.5, 0.6, 0.4], "attack", "open"),
        ("gradient/worst/8/topk_intersection", [0.1, 0.1, 0.1], "attack", "open"),  # too few
        ("gradient/noise/8/topk_intersection", [0.0] * 6, "noise", "no worse than noise"),
        ("gradient/noise/8/topk_intersection", [1.0] * 6, "noise", "worse than noise"),
        ("gradient/randomized/{last}/rank_correlation", [0.1, 0.2, 0.1, 0.0, 0.1], "network", "about the network"),
        ("gradient/randomized/{last}/rank_correlation", [0.9, 0.8, 0.9, 0.9, 0.9], "network", "not about the network"),
        ("gradient/insertion/map", [1.1, 1.2, 1.1, 1.2, 1.1], "pixels", "finds pixels that count"),
        ("gradient/insertion/map", [-1.0, -1.1, -1.0, -1.2, -1.1], "pixels", "finds no pixels that count"),
    ],
)
def test_words(done: Audited, quantity: str, values: list[float], question: str, word: str) -> None:
    last = len(done.description["stages"]["gradient"])
    changed = lines_of(done, quantity.format(last=last), values)
    if question == "noise":
        changed = lines_of(changed, "gradient/worst/8/topk_intersection", [0.5] * 6)
    found = [each for each in audit.findings(changed) if each.method == "gradient" and each.question == question]
    assert [each.word for each in found] == [word]
    assert word in audit.WORDS


def test_what_was_only_attacked_by_transfer_does_not_hold(done: Audited) -> None:
    """A map that nobody attacked by itself is open, however much of it is left."""
    name = "gradient/worst/8/topk_intersection"
    changed = lines_of(done, name, [0.9, 0.8, 0.9, 0.7, 0.8, 0.9])
    without = [line for line in changed.lines if not line.quantity.startswith("gradient/top-k")]
    changed = Audited(done.folder, tuple(without), done.description, done.cases)
    assert [e.word for e in audit.findings(changed) if e.method == "gradient" and e.question == "attack"] == ["open"]


# --- among the networks of the book ----------------------------------------------------------------------------------


def recorded(folder: Path, **changed: Any) -> Path:
    """A record of an attack in the form of the book's, of pictures of the toy's size."""
    grid = folder / "reference" / "grid"
    grid.mkdir(parents=True, exist_ok=True)
    values = [0.25, 0.35]
    content = {
        "experiment": "fragility",
        "dimension": 3 * SIDE * SIDE,
        "config": {"k": top_pixels(SIDE, SIDE), "attributions": ["gradient"], "epsilons": [8.0], "iterations": 50},
    }
    content["config"] |= changed  # type: ignore[operator]
    (grid / "one.json").write_text(json.dumps(content))
    context: dict[str, Any] = {
        "run": "grid/one", "experiment": "fragility", "dataset": "toys test", "model": "net", "profile": "grid",
        "seconds": 1, "device": "cpu", "hardware": "x", "versions": {}, "commit": "y", "date": "z",
    }  # fmt: skip
    line = records.of_values(
        context, "gradient/top-k/8/topk_intersection", np.asarray(values), unit="1", epsilon=8 / 255, norm="linf"
    )
    records.write(grid / "one.jsonl", [line])
    return folder / "reference"


def test_the_network_stands_among_those_that_can_be_compared(done: Audited, tmp_path: Path) -> None:
    found = audit.standing(done, audit.peers(recorded(tmp_path)))
    (one,) = found
    assert one.quantity == "gradient/top-k/8/topk_intersection"
    (peer,) = one.peers
    assert (peer.grid, peer.network, peer.dataset, peer.networks, peer.iterations) == (
        "grid",
        "net",
        "toys test",
        1,
        50,
    )
    assert peer.value == pytest.approx(0.3)
    page = report.render(done, found)
    assert "toys test" in page
    assert "30%" in page


@pytest.mark.parametrize(
    "changed", [{"k": 3}, {"epsilons": [4.0]}, {"attributions": ["lrp"]}, {"attribution_baseline": "own-mean"}]
)
def test_what_cannot_be_compared_is_not(done: Audited, tmp_path: Path, changed: dict[str, Any]) -> None:
    found = audit.standing(done, audit.peers(recorded(tmp_path, **changed)))
    assert found == []
    assert "Not comparable" in report.render(done, found)
    assert "Not compared: <code>no folder</code>" in report.render(done, "no folder")


def test_records_of_the_book_can_be_compared() -> None:
    from conftest import REPOSITORY

    there = audit.peers(REPOSITORY / "results" / "reference")
    assert {"photographs-gradient-medium", "cifar10-lenet-attacks"} <= {each.grid for each in there}


# --- the page --------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Texts of a page with the classes and attributes around them."""

    VOID = frozenset({"meta", "img", "line", "circle", "path", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, list[tuple[str, dict[str, str | None]]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((data, list(self.stack)))


@pytest.fixture(scope="module")
def page(done: Audited) -> Page:
    return Page(report.render(done))


def numbers(page: Page, kind: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    for text, around in page.texts:
        for _, attrs in around:
            if attrs.get("class") == kind:
                yield text, attrs


def test_every_number_of_the_page_is_one_of_the_lines(done: Audited, page: Page) -> None:
    """Computed here from the file, by the stated rule, and compared with what is written."""
    lines = {line["quantity"]: line for line in map(json.loads, (done.folder / "audit.jsonl").read_text().splitlines())}
    seen = 0
    for text, attrs in numbers(page, "n"):
        line = lines[str(attrs["data-q"])]
        values = np.asarray(line["values"])
        if (minus := attrs.get("data-minus")) is not None:
            other = np.asarray(lines[minus]["values"])
            n = min(len(values), len(other))
            values = values[:n] - other[:n]
        stat = attrs["data-s"]
        written = float(text.replace("%", "").replace(",", ""))
        digits = len(text.replace("%", "").strip().partition(".")[2])
        if stat in ("mean", "sum", "n"):
            value = {"mean": values.mean(), "sum": values.sum(), "n": len(values)}[str(stat)]
            # Percents and points are hundredths.
            scales = (1.0, 100.0) if stat == "mean" else (1.0,)
            assert any(abs(scale * value - written) <= 0.5001 * 10**-digits for scale in scales), (attrs, text, value)
        else:
            low, high = values.min(), values.max()
            assert "share of images" in line["unit"] or any(
                scale * low - 10**-digits <= written <= scale * high + 10**-digits for scale in (1.0, 100.0)
            ), (attrs, text)
        seen += 1
    assert seen > 60


def test_every_setting_of_the_page_is_one_of_the_description(done: Audited, page: Page) -> None:
    seen = 0
    for text, attrs in numbers(page, "c"):
        path = str(attrs["data-c"])
        if path.startswith("quantity:"):
            _, quantity, part = path.split(":")
            assert text == quantity.split("/")[int(part)]
            assert done.get(quantity) is not None
        else:
            value: Any = json.loads((done.folder / "audit.json").read_text())
            for name in path.split("/"):
                value = value[name]
            assert float(text.replace(",", "")) == float(value)
        seen += 1
    assert seen > 5


def test_no_other_number_is_on_the_page(page: Page) -> None:
    """What is left are names, words with a digit in them, and the few constants that the package defines."""
    constants = {"95%", "255", "0%", "50%", "100%", "0", "1", f"{audit.ENOUGH}", f"{100 * (1 - audit.ALPHA):g}%"}
    for text, around in page.texts:
        classes = {attrs.get("class") for _, attrs in around}
        tags = {tag for tag, _ in around}
        if "k" in classes:
            assert text in constants
        elif not classes & {"n", "c", "r"} and not tags & {"code", "style", "title"}:
            assert not re.search(r"\d", text.replace("l2", "")), text


def test_the_page_stands_alone(page: Page, done: Audited) -> None:
    text = report.render(done)
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            if name in attrs:
                assert str(attrs[name]).startswith(("data:image/", "#")), (tag, attrs)
    assert page.stack == []


def test_pictures_have_texts(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) >= 5
    assert all(len(attrs.get("alt") or "") > 10 for attrs in images)
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert drawings
    assert all(attrs.get("role") == "img" and len(attrs.get("aria-label") or "") > 20 for attrs in drawings)


def test_words_on_the_page_are_defined_there(page: Page, done: Audited) -> None:
    used = {text for text, around in page.texts for _, a in around if (a.get("class") or "").startswith("word ")}
    defined = {text for text, around in page.texts if around and around[-1][0] == "dt"}
    assert used
    assert used <= defined
    assert {each.word for each in audit.findings(done)} <= defined


def test_findings_come_first(page: Page) -> None:
    texts = [(text, around) for text, around in page.texts if any(tag == "main" for tag, _ in around) and text.strip()]
    first = next(i for i, (_, around) in enumerate(texts) if any(tag == "h2" for tag, _ in around))
    said = "".join(text for text, _ in texts[:first])
    assert "Under attack: gradient" in said
    assert "top pixels" in said


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_the_page_in_a_browser(chromium: Any, done: Audited, tmp_path: Path, width: int, scheme: str) -> None:
    path = report.write(done, path=tmp_path / "index.html")
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown = context.new_page()
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(path.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    light = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") == (scheme == "light")
    assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    context.close()


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of two classes, one of them damaged, and a file of code with a network for them."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "pictures" / "dog" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n    return nn.Sequential(\n"
        "        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)\n    )\n"
    )
    return tmp_path


def command(folder: Path, *words: str) -> Result:
    fixed = ["audit", "--model", f"{folder / 'mine.py'}:build", "--data", f"folder:{folder / 'pictures'}"]
    fixed += ["--input-size", "16"]
    return CliRunner().invoke(main, [*fixed, "--methods", "gradient", "-o", str(folder / "report"), *words])


def test_the_command_makes_a_page(folder: Path) -> None:
    result = command(folder, "--minutes", "0.3")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(folder / "report" / "index.html")
    assert "left" in result.stderr
    found = audit.load(folder / "report")
    assert found.description["unreadable"] == ["dog/broken.png"]
    assert found["left_out/unreadable"].value * found["left_out/unreadable"].n == pytest.approx(1)
    page = (folder / "report" / "index.html").read_text()
    assert "dog/broken.png" in page
    # Where the reader's files are is nobody else's business.
    for name in ("index.html", "audit.json", "audit.jsonl"):
        assert str(folder) not in (folder / "report" / name).read_text()


def test_a_normalization_that_is_outside_of_the_network(folder: Path) -> None:
    """What ``--mean`` and ``--std`` say is done to the pictures, and said on the page; other numbers, another audit."""
    words = ("--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3")
    result = command(folder, "--minutes", "0.2", *words)
    assert result.exit_code == 0, result.output
    model = models.build(
        f"{folder / 'mine.py'}:build", input_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
    ).requires_grad_(False)  # fmt: skip
    pictures = data.load(f"folder:{folder / 'pictures'}", size=16, lenient=True)
    found = audit.load(folder / "report")
    with torch.no_grad():
        right = model(pictures.images).argmax(1) == pictures.labels
    assert sorted(found["correct"].values or ()) == sorted(right.double().tolist())
    assert "mean 0.4,0.5,0.6, std 0.2,0.25,0.3" in (folder / "report" / "index.html").read_text()
    with torch.no_grad():
        bare = model.network(pictures.images)
        torch.testing.assert_close(
            model(pictures.images),
            model.network((pictures.images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
                          / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)),
        )  # fmt: skip
        assert not torch.allclose(model(pictures.images), bare)
    other = command(folder, "--minutes", "0.2", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.25,0.3")
    assert other.exit_code == 2
    assert "holds the audit of another model" in other.stderr


def test_another_file_of_code_is_another_audit(folder: Path) -> None:
    """A function may compute something else with the same layers and weights; the page says which file it was."""
    assert command(folder, "--minutes", "0.2").exit_code == 0
    code = folder / "mine.py"
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    assert audit.load(folder / "report").description["provenance"]["source"]["SHA-256 of mine.py"] == digest
    assert digest in (folder / "report" / "index.html").read_text()
    code.write_text(code.read_text() + "\n\nCHANGED = True\n")
    other = command(folder, "--minutes", "0.2")
    assert other.exit_code == 2
    assert "holds the audit of another model" in other.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mean", "0.5,0.5,0.5"), "mean and std go together"),
        (("--mean", "a,b", "--std", "1,1,1"), "--mean is 'a,b'; accepted are numbers"),
        (("--mean", "0.5", "--std", "1"), "mean is [0.5]; mine.py:build takes 3 numbers"),
        (("--mean", "0,0,0", "--std", "1,0,1"), "takes 3 numbers above 0"),
        (("--methods", "grad"), "methods has 'grad'; accepted are gradient"),
        (("--minutes", "-1"), "--minutes is -1; accepted is a number of minutes above 0"),
        (("--data", "folder:nowhere"), "there is no such folder"),
        (("--model", "efficientnet"), "efficientnet"),
    ],
)
def test_a_wrong_request_is_one_line(folder: Path, words: tuple[str, ...], said: str) -> None:
    result = command(folder, *words)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not (folder / "report").exists()


def test_a_table_is_refused_in_one_line(tmp_path: Path) -> None:
    words = ["audit", "--model", "mlp", "--data", "breast-cancer", "-o", str(tmp_path / "report")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert "an audit takes pictures" in result.stderr


def test_a_folder_without_a_picture_that_can_be_read_is_refused(folder: Path) -> None:
    for path in (folder / "pictures").rglob("*.png"):
        path.write_bytes(b"no picture")
    result = command(folder)
    assert result.exit_code == 2
    assert "no picture that can be read" in result.stderr


def test_lenient_loading_takes_what_there_is(folder: Path) -> None:
    with pytest.raises(data.DataError, match=r"broken\.png cannot be read"):
        data.load(f"folder:{folder / 'pictures'}")
    found = data.load(f"folder:{folder / 'pictures'}", limit=50, lenient=True, size=16)
    assert len(found) == 6
    assert found.provenance["unreadable"] == "dog/broken.png"
    strict = data.load("digits", limit=5)
    assert torch.equal(data.load("digits", limit=5, lenient=True).images, strict.images)
    assert len(data.load("digits", limit=10**6, lenient=True)) == 500
    assert models.known("lenet")
