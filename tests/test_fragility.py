"""Networks under every attack: what is measured, what is kept, and grids of both kinds of grids."""

from __future__ import annotations

import inspect
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from arithmetic import gamma
from conftest import PATIENCE_S
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from robattr import attacks, data, metrics, models
from robattr.attributions import METHODS, gradient, heatmap
from robattr.studies import fragility, grids
from robattr.studies.fragility import ATTACKS, Fragility, attacked, every_attack
from robattr.studies.grids import Network
from robattr.studies.trainings import Training

SMALL = Fragility(
    dataset="digits",
    images=6,
    attributions=("gradient", "integrated_gradients"),
    attribution_steps=2,
    epsilons=(4.0, 16.0),
    k=5,
    step=4,
    iterations=3,
    adversarial_images=20,
    adversarial_epsilon=8,
    rescaled=4,
)


@pytest.fixture(scope="module")
def model() -> models.Classifier:
    return models.build("digits-cnn", activation="softplus", beta=3.0, seed=1).requires_grad_(False)


@pytest.fixture(scope="module")
def measured(model: models.Classifier) -> grids.Measured:
    return fragility.measure(model, SMALL, device="cpu")


def test_every_attack_has_an_objective_of_its_own() -> None:
    """Random signs have none: what they choose by is that of top-k."""
    mask = torch.ones(8, 8, dtype=torch.bool)
    names = [name for name in get_args(fragility.AttackName) if name != "random-sign"]
    assert len({type(fragility.attack_objective(name, 5, mask)) for name in names}) == len(names)


def test_every_attack_is_measured_on_every_image(measured: grids.Measured, model: models.Classifier) -> None:
    per_image = {"success", "topk_intersection", "rank_correlation", "cosine", "center_shift"}
    per_image |= {"probability", "attacked_probability", "iterate"}
    for method in SMALL.attributions:
        for attack in ATTACKS:
            for epsilon in ("4", "16"):
                start = f"{method}/{attack}/{epsilon}/"
                found = {name.removeprefix(start) for name in measured.values if name.startswith(start)}
                more = {"mass_before", "mass_after"} if attack == "targeted" else set()
                if method == "gradient":
                    more |= {"first_order", "relative_change"}
                assert found == per_image | more
                assert all(len(measured.values[start + name]) == 6 for name in found)
    # One of them by hand.
    x = data.load("digits", "test", limit=20, seed=0).images[:6]
    found = attacks.iterative_attack(
        model, x, objective=attacks.TopK(5), epsilon=16 / 255, step=4 / 255, iterations=3, beta=None
    )
    before, after = (heatmap(gradient(model, z, found.prediction)) for z in (x, found.images))
    by_hand = metrics.topk_intersection(before, after, 5).double()
    np.testing.assert_allclose(measured.values["gradient/top-k/16/topk_intersection"], by_hand, atol=1e-6)
    (change,) = (
        torch.linalg.vector_norm((there - here).flatten(1), dim=1) / torch.linalg.vector_norm(here.flatten(1), dim=1)
        for here, there in [[gradient(model, z, found.prediction).double() for z in (x, found.images)]]
    )
    np.testing.assert_allclose(measured.values["gradient/top-k/16/relative_change"], change, rtol=1e-5)
    # To first order: the remainder falls with the square of epsilon, the change itself only with epsilon.
    gap = {
        e: np.median(
            abs(
                measured.values[f"gradient/random-sign/{e}/first_order"]
                - measured.values[f"gradient/random-sign/{e}/relative_change"]
            )
        )
        for e in (4, 16)
    }
    assert gap[4] < gap[16] / 4
    assert measured.dimension == 64
    assert measured.dataset["name"] == "digits"


@pytest.mark.parametrize("baseline", ["network-zero", "own-mean"])
@pytest.mark.parametrize("method", [*fragility.FROM_BASELINE])
def test_both_maps_start_at_the_baseline_of_the_clean_image(method: str, baseline: Any) -> None:
    """By hand: both maps from the gray of the clean image, or of CIFAR-10; and not from black."""
    model = models.build("lenet", activation="softplus", beta=3.0, seed=1).eval().requires_grad_(False)
    x = data.load("cifar10-samples", limit=3, seed=0).images
    config = Fragility(
        attributions=(method,), attribution_baseline=baseline, attribution_steps=4, iterations=2, step=4, k=20
    )
    values, moved = fragility.attack_images(model, config, x, method, "top-k", 8.0)
    gray = torch.stack([torch.stack([c.mean() for c in image]) for image in x])[:, :, None, None]
    if baseline == "network-zero":
        gray = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
    y = model(x).argmax(1)
    options: dict[str, Any] = {} if method == "deeplift" else {"steps": 4}
    one, two = (METHODS[method](model, z, y, **options, baseline=gray) for z in (x, moved))
    expected = metrics.topk_intersection(heatmap(one), heatmap(two), 20).double()
    np.testing.assert_allclose(values["topk_intersection"], expected, atol=1e-6)
    np.testing.assert_allclose(values["cosine"], metrics.cosine(heatmap(one), heatmap(two)).double(), atol=1e-5)
    black = config.model_copy(update={"attribution_baseline": "black"})
    assert values["cosine"] != fragility.attack_images(model, black, x, method, "top-k", 8.0)[0]["cosine"]


@pytest.mark.parametrize("model", [torch.nn.Sequential(), models.build("digits-cnn")])
def test_a_network_that_subtracts_nothing_has_no_zero_but_black(model: torch.nn.Module) -> None:
    config = Fragility(attributions=("deeplift",), attribution_baseline="network-zero")
    with pytest.raises(
        ValueError, match=r"(Sequential|Classifier) subtracts nothing from images: accepted is a network"
    ):
        config.method("deeplift", model, torch.zeros(1, 3, 4, 4))


def test_every_method_with_a_baseline_takes_one() -> None:
    with_one = {name for name, method in METHODS.items() if "baseline" in inspect.signature(method).parameters}
    assert set(fragility.FROM_BASELINE) == with_one


def test_a_baseline_is_refused_where_no_method_has_one() -> None:
    with pytest.raises(ValidationError, match="attribution_baseline is own-mean; gradient have none"):
        Fragility(attributions=("gradient",), attribution_baseline="own-mean")


def test_attacks_do_more_than_chance() -> None:
    model = _trained(models.build("digits-cnn", activation="relu", seed=1))
    changes = {"images": 20, "attributions": ("gradient",), "epsilons": (32.0,), "iterations": 10, "beta": (3.0, 30.0)}
    config = SMALL.model_copy(update=changes | {"adversarial_images": 0, "rescaled": 0})
    found = fragility.measure(model, config, device="cpu").values
    mean = {a: found[f"gradient/{a}/32/topk_intersection"].mean() for a in ATTACKS}
    assert mean["top-k"] < mean["random-sign"] - 0.1
    far = {a: found[f"gradient/{a}/32/center_shift"].mean() for a in ATTACKS}
    assert far["mass-center"] > 2 * far["random-sign"]
    assert (found["gradient/targeted/32/mass_after"] - found["gradient/targeted/32/mass_before"]).mean() > 0.01


def test_doubled_logits_double_the_distance_and_keep_the_cosine(measured: grids.Measured) -> None:
    v = measured.values
    assert len(v["plain/cosine"]) == 4
    # Powers of two are exact in floating point.
    np.testing.assert_array_equal(v["rescaled/l2_distance"], 2 * v["plain/l2_distance"])
    np.testing.assert_allclose(v["rescaled/cosine"], v["plain/cosine"], rtol=0, atol=1e-12)


def test_accuracy_under_attack_is_that_of_the_attack_library(model: models.Classifier) -> None:
    trained = _trained(model)
    config = SMALL.model_copy(update={"attacks": (), "rescaled": 0, "adversarial_images": 60})
    before = torch.random.get_rng_state()
    values = fragility.measure(trained, config, device="cpu").values
    assert torch.equal(before, torch.random.get_rng_state())
    drawn = data.load("digits", "test", limit=60, seed=0)
    clean = trained(drawn.images).argmax(1) == drawn.labels
    np.testing.assert_array_equal(values["accuracy/clean"], clean.double())
    stood = values["accuracy/adversarial"].astype(bool)
    assert not stood[~clean.numpy()].any()  # what is wrong already does not stand
    assert 0 < stood.sum() < clean.sum()
    import foolbox  # loaded already, with its warnings silenced

    wrapped = foolbox.models.pytorch.PyTorchModel(trained, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.deepfool.LinfDeepFoolAttack(steps=20)
    _, _, fooled = attack(wrapped, drawn.images, drawn.labels, epsilons=8 / 255)
    assert not (torch.from_numpy(stood) & fooled).any()
    # Nothing is stronger than a larger ball.
    wider = fragility.measure(trained, config.model_copy(update={"adversarial_epsilon": 64.0}), device="cpu").values
    assert wider["accuracy/adversarial"].sum() < stood.sum()


def _trained(model: models.Classifier) -> models.Classifier:
    import copy

    model = copy.deepcopy(model).requires_grad_(True)
    drawn = data.load("digits", "train", limit=600)
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(model(drawn.images), drawn.labels).backward()
        adam.step()
    return model.requires_grad_(False).eval()


def test_a_stopped_measurement_goes_on(
    model: models.Classifier, measured: grids.Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"adversarial_images": 0, "rescaled": 0})
    first = fragility.measure(model, config, device="cpu", folder=tmp_path, max_batch=4).values
    parts = sorted(tmp_path.glob("*.json"))
    # Attacks, epsilons and parts: of four images, and of two with two points an image.
    assert len(parts) == 4 * 2 * (2 + 3)
    parts[0].unlink()
    for part, text in zip(parts[1:], ("{half", "{}", "[]", "null", '{"sha256": 1}'), strict=False):
        part.write_text(text)
    # One bit of one number.
    parts[6].write_text(re.sub(r'("cosine": \[)(\d)', lambda m: m[1] + str(int(m[2]) ^ 1), parts[6].read_text()))
    calls = []
    real = fragility.attack_images
    monkeypatch.setattr(fragility, "attack_images", lambda *args: calls.append(args) or real(*args))
    second = fragility.measure(model, config, device="cpu", folder=tmp_path, max_batch=4).values
    assert len(calls) == 7
    # The first part is what it is alone, bit by bit. In one batch of all, clean images give the same to rounding, and
    # attacked ones need not: where a slope is nearly zero rounding turns its sign, and the pixel moves by two steps.
    four = fragility.measure(model, config.model_copy(update={"images": 4}), device="cpu", max_batch=4).values
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
        np.testing.assert_array_equal(values[:4], four[name], err_msg=name)
    clean = [name for name in first if name.endswith("/probability")]
    assert len(clean) == 2 * len(ATTACKS) * 2
    for name in clean:  # logits of size 5 at most, from sums of 9, 144 and 512 products
        bound = 2 * 5 * gamma(9 + 144 + 512, torch.float32)
        np.testing.assert_allclose(first[name], measured.values[name], rtol=bound, err_msg=name)


def test_kept_images_that_were_altered_are_made_again(
    model: models.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"adversarial_images": 0, "rescaled": 0, "images": 2, "attributions": ("gradient",), "keep_images": True}
    config = SMALL.model_copy(update=changes)
    first = fragility.measure(model, config, device="cpu", folder=tmp_path).tensors
    kept = sorted(tmp_path.glob("*.safetensors"))
    content = load_file(kept[0])
    save_file({"images": content["images"] + 0.5}, kept[0])
    kept[1].write_bytes(kept[1].read_bytes()[:-4])
    kept[2].unlink()
    calls = []
    real = fragility.attack_images
    monkeypatch.setattr(fragility, "attack_images", lambda *args: calls.append(args) or real(*args))
    second = fragility.measure(model, config, device="cpu", folder=tmp_path).tensors
    assert len(calls) == 3
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.elsewhere
def test_two_processes_share_the_work(
    model: models.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"adversarial_images": 0, "rescaled": 0})
    alone = fragility.measure(model, config, device="cpu", max_batch=4).values
    done: list[int] = []
    real = fragility.attack_images
    both_are_at_work = threading.Barrier(2, timeout=PATIENCE_S)

    def counted(*args: Any) -> Any:
        first = threading.get_ident() not in done
        done.append(threading.get_ident())
        if first:
            both_are_at_work.wait()
        return real(*args)

    monkeypatch.setattr(fragility, "attack_images", counted)

    # Locks are of files, and exclude threads as they do processes.
    def measure() -> dict[str, np.ndarray[Any, Any]]:
        return fragility.measure(model, config, device="cpu", folder=tmp_path, max_batch=4).values

    with ThreadPoolExecutor(2) as pool:
        both = [each.result(timeout=PATIENCE_S) for each in [pool.submit(measure), pool.submit(measure)]]
    assert len(done) == 4 * 2 * (2 + 3)  # every part once
    assert len(set(done)) == 2
    for found in both:
        for name, values in alone.items():
            np.testing.assert_array_equal(values, found[name], err_msg=name)


def test_wrong_images_can_be_left_out(model: models.Classifier) -> None:
    trained = _trained(model)
    config = SMALL.model_copy(
        update={"images": 40, "attacks": ("random-sign",), "correct_only": True, "adversarial_images": 0, "rescaled": 0}
    )
    values = fragility.measure(trained, config, device="cpu").values
    right = int(values["correct"].sum())
    assert len(values["correct"]) == 40
    assert len(values["gradient/random-sign/4/cosine"]) == right < 40
    wrong = models.build("digits-cnn", seed=2)
    with torch.no_grad():
        list(wrong.parameters())[-1].copy_(torch.tensor([1e6] + [0.0] * 9))
    ones = config.model_copy(update={"images": 1, "seed": 1})
    if data.load("digits", "test", limit=1, seed=1).labels[0] != 0:
        with pytest.raises(ValueError, match="none of 1 images of digits is classified correctly"):
            fragility.measure(wrong, ones, device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attributions": ("gradients",)}, "attributions has gradients"),
        ({"epsilons": (0.0,)}, "numbers > 0"),
        ({"rescaled": 7}, "rescaled is 7; it is at most images, 6"),
        ({"region": (0.5, 0.0, 0.25, 1.0)}, "top < bottom"),
        ({"attacks": ("bottom-k",)}, "attacks"),
        ({"pictures": 3}, "pictures"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Fragility.model_validate(SMALL.model_dump() | change)


def test_the_target_region_is_a_share_of_the_image() -> None:
    assert SMALL.mask(8, 8).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    thin = SMALL.model_copy(update={"region": (0.99, 0.99, 1.0, 1.0)})
    assert thin.mask(8, 8).nonzero().tolist() == [[7, 7]]


def test_a_grid_takes_the_networks_of_a_grid_of_trainings(tmp_path: Path) -> None:
    (tmp_path / "trained.yaml").write_text(
        """
description: a training
training: {dataset: digits, images: 64, validation: 32, model: digits-mlp, schedule: {epochs: 1, milestones: []}}
objectives: {cross-entropy: , cosine: }
seeds: [0, 1]
alignment: {dataset: digits, frame: 2}
"""
    )
    path = tmp_path / "attacks.yaml"
    path.write_text(
        """
description: attacks
trainings: trained
networks: {published: {model: digits-cnn}}
fragility: {dataset: digits, images: 2, attacks: [random-sign], k: 5, cost: true}
but: {published: {images: 3}}
"""
    )
    grid = grids.load_grid(path)
    names = ["cross-entropy-0", "cosine-0", "cross-entropy-1", "cosine-1", "published"]
    assert [name for name, _ in grid.runs()] == names
    assert [config.images for _, config in grid.runs()] == [2, 2, 2, 2, 3]
    output = tmp_path / "attacks" / "cosine-1.json"
    assert grids.run_record(grid, "cosine-1", output, root=tmp_path / "runs")
    (found,) = grids.load_records(tmp_path / "attacks")
    assert isinstance(found.training, Training)
    assert (found.training.objective, found.training.seed, found.config.images) == ("cosine", 1, 2)
    assert found.values["cost/step"].shape == (5,)
    lines = {m.quantity: m for m in grids.measurements(found, "attacks/cosine-1")}
    signs = lines["gradient/random-sign/8/cosine"]
    assert (signs.epsilon, signs.norm, signs.n, signs.seed, signs.objective) == (8 / 255, "linf", 2, 1, "cosine")
    assert signs.model == "digits-mlp, softplus(3)"
    assert lines["cost/step"].unit == "times that of cross-entropy"
    with pytest.raises(ValueError, match="no run 'cosine-7'"):
        grids.run_record(grid, "cosine-7", output)
    path.write_text("fragility: {}\ndescription: x\ntrainings: nowhere")
    with pytest.raises((ValueError, OSError), match="nowhere"):
        grids.load_grid(path)


# --- one attack at a time, kept ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A digits network, trained for a moment: most of the images have to be classified correctly."""
    train = data.load("digits", "train")
    model = models.build("digits-cnn").train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(150):
        i = torch.randint(len(train), (128,), generator=order)
        loss = torch.nn.functional.cross_entropy(model(train.images[i]), train.labels[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


OWN = Fragility(
    dataset="digits", images=12, correct_only=True, attacks=("top-k", "targeted"), epsilons=(24.0,), k=10, step=6,
    iterations=8, beta="auto", region=(0.0, 0.0, 0.5, 0.5), keep_images=True,
)  # fmt: skip


def test_an_attack_of_a_run_is_what_the_definitions_say(weights: str, tmp_path: Path) -> None:
    network = Network(model="digits-cnn", weights=weights)
    run = grids.run(fragility.KIND, network, OWN, root=tmp_path, device="cpu", progress=False)
    assert [found.attack for found in every_attack(run)] == ["top-k", "targeted"]
    result = attacked(run, "gradient", "top-k", 24)
    images = data.load("digits", limit=12)
    model = models.build("digits-cnn", weights=weights)
    with torch.no_grad():
        correct = model(images.images).argmax(1) == images.labels
    assert result.started == 12
    assert result.wrong == int((~correct).sum())
    assert len(result) == int(correct.sum()) >= 8
    assert result.index.tolist() == correct.nonzero().flatten().tolist()
    clean, labels = images.images[correct], images.labels[correct]
    assert result.images is not None
    before, after = (heatmap(gradient(model, x, labels)) for x in (clean, result.images))
    found = result.values
    np.testing.assert_allclose(found["topk_intersection"], metrics.topk_intersection(before, after, 10))
    # A stored run keeps five digits; this one was just measured.
    np.testing.assert_allclose(found["rank_correlation"], metrics.spearman(before, after), rtol=1e-5)
    np.testing.assert_allclose(found["center_shift"], metrics.center_shift(before, after), rtol=1e-4)
    with torch.no_grad():
        attacked_probability = model(result.images).softmax(1).gather(1, labels[:, None]).squeeze(1)
    np.testing.assert_allclose(found["attacked_probability"], attacked_probability, rtol=1e-5)
    assert ((result.images.double() - clean.double()).abs() <= 24 / 255).all()
    np.testing.assert_array_equal(found["success"], found["iterate"] > 0)
    assert result.failed == int((found["iterate"] == 0).sum())
    targeted = attacked(run, "gradient", "targeted", 24).values
    assert targeted["mass_after"].mean() > targeted["mass_before"].mean() + 0.05
    with pytest.raises(ValueError, match=r"no attack lrp/top-k/24 in .* \(there are gradient/top-k/24, gradient/targ"):
        attacked(run, "lrp", "top-k", 24)


def test_an_interrupted_run_goes_on_and_leaves_nothing_half_written(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, options = Network(model="digits-cnn", weights=weights), {"device": "cpu", "progress": False}
    whole = grids.run(fragility.KIND, network, OWN, root=tmp_path / "whole", **options)
    real, calls = fragility.attack_images, []

    def interrupted(*args: Any) -> Any:
        calls.append(args[-2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fragility, "attack_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grids.run(fragility.KIND, network, OWN, root=tmp_path / "parts", **options)
    assert not [path for path in (tmp_path / "parts").iterdir() if not path.name.startswith(".")]
    found = grids.run(fragility.KIND, network, OWN, root=tmp_path / "parts", **options)
    assert calls == ["top-k", "targeted", "targeted"]
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values, err_msg=name)
    for name, images in whole.tensors.items():
        assert torch.equal(found.tensors[name], images)
    (folder,) = [path for path in (tmp_path / "parts").iterdir() if path.is_dir()]
    assert sorted(path.name for path in folder.iterdir()) == [
        "digests.json", "record.json", "record.jsonl", "tensors.safetensors",
    ]  # fmt: skip


def test_what_cannot_be_run_is_refused_in_one_line(weights: str, tmp_path: Path) -> None:
    cases = [
        (Network(model="efficientnet-lite0"), {"dataset": "cifar10-samples", "images": None}, "1000"),
        (Network(model="digits-cnn", weights=weights), {"k": 65}, "from 1 to 64, the pixels of 8 x 8"),
    ]
    for network, change, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            grids.run(
                fragility.KIND, network, OWN.model_copy(update=change), root=tmp_path, device="cpu", progress=False
            )
        assert "\n" not in str(error.value)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]


def test_maps_are_compared_in_other_ways() -> None:
    """Of one attack on color images: by hand, and what does not fit the map is left out."""
    model = models.build("lenet", activation="softplus", beta=3.0, seed=1).requires_grad_(False)
    x = data.load("cifar10-samples", limit=3, seed=0).images
    config = Fragility(dataset="cifar10-samples", images=3, k=100, step=4, iterations=2, variants=True)
    plain, _ = fragility.attack_images(model, config.model_copy(update={"variants": False}), x, "gradient", "top-k", 16)
    values, attacked = fragility.attack_images(model, config, x, "gradient", "top-k", 16)
    labels = model(x).argmax(1)
    before, after = (gradient(model, z, labels) for z in (x, attacked))
    reduced = {"": (before.abs().sum(1), after.abs().sum(1)), "_largest": (before.abs().amax(1), after.abs().amax(1))}
    reduced["_signed"] = (before.sum(1), after.sum(1))
    expected = {
        **{
            f"topk_intersection{k}{end}": metrics.topk_intersection(*maps, number)
            for end, maps in reduced.items()
            for k, number in (("", 100), ("_quarter", 25), ("_fourfold", 400))
        },
        **{f"rank_correlation{end}": metrics.spearman(*maps) for end, maps in reduced.items()},
        **{f"cosine{end}": metrics.cosine(*maps) for end, maps in reduced.items()},
    }
    assert values.keys() == plain.keys() | expected.keys()
    for name, found in expected.items():
        # Heatmaps are divided by their sum first: near ties among 1,024 pixels may fall on either side.
        atol = 0.041 if name.startswith("topk") else 1e-4
        np.testing.assert_allclose(values[name], found, atol=atol, err_msg=name)
        assert fragility.KIND.describe(f"gradient/top-k/16/{name}", config)["unit"] == (
            "share of pixels" if name.startswith("topk") else "1"
        )
    wide = config.model_copy(update={"k": 300})
    few, _ = fragility.attack_images(model, wide, x[:1], "gradient", "random-sign", 16)
    assert "topk_intersection_quarter_signed" in few
    assert "topk_intersection_fourfold" not in few, "1,200 of 1,024 pixels"
