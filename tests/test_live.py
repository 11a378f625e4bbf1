"""Networks in the page: the script's numbers are those of PyTorch."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from torch import Tensor, nn

from robattr import attacks, attributions, data, models, smoothing
from robattr.models import Classifier
from robattr.pages import figures

SCRIPT = REPOSITORY / "book" / "_static" / "live-network.js"
# Both sides compute in float64 with the same weights of 16 bits and the same mean and std. Sums of some thousand terms,
# seven layers deep, lose a few of the sixteen digits; the page promises four.
CLOSE = 1e-5


def compute(program: str, **values: Any) -> Any:
    """What a program returns that has the script's functions as ``live`` and its values as ``given``."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js is installed")
    source = (
        f"const live = require({json.dumps(str(SCRIPT))}); const given = JSON.parse(require('fs').readFileSync(0));"
    )
    source += f"console.log(JSON.stringify((() => {{ {program} }})()));"
    done = subprocess.run(
        [node, "-e", source], input=json.dumps(values), capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def subject(name: str, activation: Any, beta: float = 3.0) -> tuple[Classifier, Tensor]:
    """A network with weights of 16 bits, in float64, and an image."""
    model = models.build(name, activation=activation, beta=beta, seed=1)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().double()
    image = torch.rand(1, *model.input_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return model.double(), image


def apart(found: Any, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    difference = (torch.tensor(found, dtype=torch.float64) - wanted.flatten()).abs().max()
    return float(difference / wanted.abs().max().clamp_min(1e-300))


NETWORKS = [
    ("lenet-narrow", "softplus"),
    ("lenet-narrow", "relu"),
    ("digits-cnn", "softplus"),
    ("digits-mlp", "softplus"),
    ("linear", "relu"),
]


@pytest.mark.parametrize(("name", "activation"), NETWORKS)
def test_logits_gradient_and_second_derivative_are_those_of_pytorch(name: str, activation: str) -> None:
    model, x = subject(name, activation)
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = compute(
        "const network = new live.Network(given.network); const x = Float64Array.from(given.x);"
        "const first = network.gradient(x);"
        "const second = network.curvature(x, first.label, Float64Array.from(given.along));"
        "return {logits: [...network.logits(x)], label: first.label, gradient: [...first.gradient],"
        " again: [...second.gradient], product: [...second.product]};",
        network=figures.live_network(model), x=x.flatten().tolist(), along=along.flatten().tolist(),
    )  # fmt: skip
    x.requires_grad_()
    logits = model(x)
    label = int(logits.argmax())
    (gradient,) = torch.autograd.grad(logits[0, label], x, create_graph=True)
    bends = gradient.requires_grad
    product = torch.autograd.grad((gradient * along).sum(), x, materialize_grads=True)[0] if bends else 0 * x.detach()
    assert found["label"] == label
    assert apart(found["logits"], logits.detach()) < CLOSE
    assert apart(found["gradient"], gradient.detach()) < CLOSE
    assert found["again"] == found["gradient"]
    assert apart(found["product"], product) < CLOSE
    assert bool(product.any()) == (activation == "softplus")


@pytest.mark.parametrize(("l2", "epsilon", "step"), [(False, 8 / 255, 1 / 255), (True, 0.2, 0.05)])
def test_an_attack_climbs_along_the_slope_of_pytorch_and_stays_in_its_ball(
    l2: bool, epsilon: float, step: float
) -> None:
    model, x = subject("digits-cnn", "softplus", 10.0)
    k = 10
    found = compute(
        "const network = new live.Network(given.network);"
        "const attack = new live.Attack(network, Float64Array.from(given.x), given);"
        "const iterates = [];"
        "for (let i = 0; i < 12; i++) {"
        " const slope = attack.slope(attack.now); const { image, mass } = attack.now;"
        " iterates.push({image: [...image], mass, slope: [...slope]}); attack.advance(); }"
        "return {iterates, label: attack.label, top: [...attack.top], best: attack.best && attack.best.mass,"
        " last: [...attack.now.image]};",
        network=figures.live_network(model), x=x.flatten().tolist(), k=k, epsilon=epsilon, step=step, l2=l2,
    )  # fmt: skip
    label = int(model(x).argmax())
    reference = attributions.heatmap(attributions.gradient(model, x, label))
    score = attacks.TopK(k).prepare(reference, slice(0, 1))
    assert found["label"] == label
    assert set(found["top"]) == set(reference.flatten().topk(k).indices.tolist())
    masses = []
    for before, after in zip(found["iterates"], [*found["iterates"][1:], {"image": found["last"]}], strict=True):
        image = torch.tensor(before["image"], dtype=torch.float64).view_as(x).requires_grad_()
        d = score(attributions.heatmap(attributions.gradient(model, image, label, create_graph=True)))
        (slope,) = torch.autograd.grad(d.sum(), image)
        assert abs(before["mass"] + float(d.detach())) < CLOSE
        assert apart(before["slope"], slope) < CLOSE
        moved = torch.tensor(after["image"], dtype=torch.float64).view_as(x)
        # Steps are whole, but where a value leaves the ball or [0, 1].
        if l2:
            change = image.detach() + step * slope / slope.norm() - x
            wanted = (x + change * (epsilon / change.norm()).clamp(max=1)).clamp(0, 1)
            assert (moved - wanted).abs().max() < CLOSE * step
            assert float((moved - x).norm()) <= epsilon
        else:
            wanted = (image.detach() + step * slope.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
            clear = slope.abs() > CLOSE * slope.abs().max()
            assert ((moved - wanted).abs()[clear] < 1e-12).all()
            assert (moved - x).abs().max() <= epsilon + 1e-15
        masses.append(before["mass"])
    assert found["best"] < masses[0], "the attack does not climb"


def test_what_is_certified_is_no_more_than_the_package_certifies_from_the_same_numbers() -> None:
    model, x = subject("digits-cnn", "softplus", 3.0)
    sigma, choose, samples, alpha = 0.1, 20, 60, 0.05
    found = compute(
        "const network = new live.Network(given.network); const x = Float64Array.from(given.x);"
        "const smoothing = new live.Smoothing(network, x, 3, given);"
        "while (smoothing.advance()) ;"
        "const bounds = smoothing.bounds();"
        "return {...bounds, direction: [...smoothing.direction], rows: smoothing.rows.map((row) => [...row]),"
        " cosines: [0.1, 0.5, 5].map((shift) => live.spectralCosine(bounds.meanNorm, bounds.spread, shift))};",
        network=figures.live_network(model), x=x.flatten().tolist(), sigma=sigma, choose=choose, samples=samples,
        alpha=alpha, seed=4,
    )  # fmt: skip
    rows, direction = (np.array(found[name]) for name in ("rows", "direction"))
    assert rows.shape == (samples, x.numel())
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, rtol=0, atol=1e-12)
    apart_rows = rows - direction
    exact = float(np.linalg.eigvalsh(apart_rows @ apart_rows.T / samples)[-1])
    limit = (1 + float(np.linalg.norm(direction))) ** 2
    # The script has no more than n^(1/256) times the eigenvalue.
    low, high = (
        float(smoothing.spread_upper_bound(exact * factor, samples, alpha / 2, limit=limit))
        for factor in (1.0, samples ** (1 / 256))
    )
    assert min(low, 1) * (1 - 1e-9) <= found["spread"] <= min(high, 1) * (1 + 1e-9)
    along = rows @ direction / np.linalg.norm(direction)
    assert 0 < found["meanNorm"] < along.mean()
    # Chernoff's bound holds with equality: n kl = ln(1 / risk).
    q, p = (1 - along.mean()) / 2, (1 - found["meanNorm"]) / 2
    divergence = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    assert abs(samples * divergence - np.log(2 / alpha)) < 1e-6
    for shift, cosine in zip((0.1, 0.5, 5.0), found["cosines"], strict=True):
        kappa = np.expm1(shift**2) * found["spread"] / found["meanNorm"] ** 2
        assert cosine == pytest.approx(np.sqrt(1 - kappa) if kappa < 1 else -1, rel=1e-12)
        best = float(smoothing.certified_cosine_spectral(found["meanNorm"], found["spread"], shift, bound=1.0))
        assert cosine <= max(best, -1) + 1e-9


def test_the_cosines_beside_a_certificate_are_those_of_pytorch() -> None:
    """Of gradients at a picture and at what an attack made of it, and of their means over the same noise."""
    model, x = subject("digits-cnn", "softplus", 3.0)
    sigma, choose, samples = 0.1, 4, 12
    found = compute(
        "const network = new live.Network(given.network); const x = Float64Array.from(given.x);"
        "const attack = new live.Attack(network, x, given); for (let i = 0; i < 5; i++) attack.advance();"
        "const images = [x, attack.now.image];"
        "const smoothed = images.map((image) => new live.Smoothing(network, image, attack.label, given));"
        "smoothed.forEach((each) => { while (each.advance()) ; });"
        "const draw = live.normal(live.uniform(given.seed));"
        "return {image: [...attack.now.image], label: attack.label,"
        " plain: live.cosine(attack.gradient, attack.now.gradient),"
        " smooth: live.cosine(...smoothed.map((s) => s.mean)),"
        " noise: Array.from({length: x.length * (given.choose + given.samples)}, draw)};",
        network=figures.live_network(model), x=x.flatten().tolist(), k=10, epsilon=0.5, step=0.2, l2=True,
        sigma=sigma, choose=choose, samples=samples, alpha=0.05, seed=4,
    )  # fmt: skip
    moved = torch.tensor(found["image"], dtype=torch.float64).view_as(x)
    noise = torch.tensor(found["noise"], dtype=torch.float64).view(-1, *x.shape[1:])
    assert float((moved - x).norm()) == pytest.approx(0.5, rel=0.05)

    def unit(images: Tensor) -> Tensor:
        gradients = attributions.gradient(model, images, found["label"]).flatten(1)
        return gradients / gradients.norm(dim=1, keepdim=True)

    plain = torch.cosine_similarity(unit(x), unit(moved)).item()
    means = [unit(each + sigma * noise).mean(0, keepdim=True) for each in (x, moved)]
    smooth = torch.cosine_similarity(*means).item()
    assert found["plain"] == pytest.approx(plain, abs=CLOSE)
    assert found["smooth"] == pytest.approx(smooth, abs=CLOSE)
    assert plain < 1 - 1e-3  # or there would be nothing to compare


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_an_eigenvalue_is_bounded_from_above_and_closely(n: int) -> None:
    generator = np.random.default_rng(n)
    rows = generator.normal(size=(n, 5)) * 10.0 ** generator.uniform(-3, 3)
    gram = rows @ rows.T
    found = compute(
        "return live.largestEigenvalue(Float64Array.from(given.gram), given.n);", gram=gram.ravel().tolist(), n=n
    )
    exact = float(np.linalg.eigvalsh(gram)[-1])
    assert exact * (1 - 1e-9) <= found <= exact * n ** (1 / 256) * (1 + 1e-9)
    zero = compute("return live.largestEigenvalue(new Float64Array(given.n ** 2), given.n);", n=n)
    assert zero == 0


def test_numbers_of_sixteen_bits_are_read_exactly() -> None:
    values = np.array([0, 1, -1, 65504, -65504, 2**-24, -(2**-14), 0.1, 1 / 3, 1023 / 1024], dtype="<f2")
    text = base64.b64encode(values.tobytes()).decode()
    assert compute("return [...live.halves(given.text)];", text=text) == values.astype(float).tolist()


def test_noise_has_the_moments_of_a_normal_law_and_depends_on_its_seed() -> None:
    found = compute(
        "const draw = live.normal(live.uniform(given.seed)); const other = live.normal(live.uniform(given.seed + 1));"
        "return [Array.from({length: 20000}, draw), Array.from({length: 3}, other)];",
        seed=5,
    )
    values, n = np.array(found[0]), 20_000
    # Six standard errors of a mean, a variance and a fourth moment of normal numbers.
    assert abs(values.mean()) < 6 / np.sqrt(n)
    assert abs((values**2).mean() - 1) < 6 * np.sqrt(2 / n)
    assert abs((values**4).mean() - 3) < 6 * np.sqrt(96 / n)
    assert found[0][:3] != found[1]


class Own(nn.Sequential):
    """A network of the layers that a test wants."""


def classifier(*layers: nn.Module) -> Classifier:
    return Classifier(Own(*layers), mean=(0.0,), std=(1.0,), name="own", input_size=(1, 8, 8), num_classes=2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 2, 3, dilation=2),
        nn.Conv2d(1, 2, (3, 1)),
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 2, 3, bias=False),
        nn.MaxPool2d(3, stride=2),
        nn.Tanh(),
        nn.BatchNorm2d(1),
    ],
)
def test_a_layer_that_the_script_lacks_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"layer 0 is {type(layer).__name__}.*accepted are Conv2d"):
        figures.live_network(classifier(layer, nn.Flatten(), nn.LazyLinear(2)))


def test_weights_that_sixteen_bits_do_not_hold_are_refused() -> None:
    model = classifier(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        next(model.network.parameters())[0, 0] = 1e5
    with pytest.raises(ValueError, match="65,504"):
        figures.live_network(model)


@pytest.mark.parametrize(("wrong", "said"), [({"k": 65}, "k is 65"), ({"epsilon": 3}, "epsilon is 3")])
def test_choices_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    model = classifier(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ValueError, match=said):
        figures.attack_in_page(
            {"a": model}, torch.rand(2, 1, 8, 8), class_names=["a", "b"], label="maps", **({"k": 5} | wrong)
        )


def test_names_from_outside_are_text() -> None:
    model = classifier(nn.Flatten(), nn.Linear(64, 2))
    evil = "<img src=x onerror=alert(1)>"
    page = figures.attack_in_page(
        {evil: model}, torch.rand(1, 1, 8, 8), class_names=[evil, "</script>"], label=evil, k=5
    )
    assert "<img src=x" not in page.partition('<script type="application/json">')[0]
    assert page.count("</script>") == 1


def written(folder: Path, *, drawable: bool, **options: Any) -> Path:
    """A page with an attack on digits, as the book has it."""
    model = models.build("digits-cnn", activation="softplus", beta=10.0, seed=1)
    images = data.load("digits", limit=3).images
    few = {"choose": 5, "samples": 15} | options
    attack = figures.attack_in_page(
        {"one": model, "other": models.build("digits-cnn", activation="softplus", beta=3.0, seed=2)}, images,
        class_names="0123456789", label="an attack", k=10, iterations=6, drawable=drawable, **few,
    )  # fmt: skip
    static = REPOSITORY / "book" / "_static"
    scripts = "".join(
        f"<script src='{(static / name).as_uri()}'></script>" for name in ("live-network.js", "live-attack.js")
    )
    style = f"<link rel=stylesheet href='{(static / 'book.css').as_uri()}'>"
    path = folder / "page.html"
    path.write_text(f"<!doctype html><html lang=en>{style}<body>{attack}{scripts}</body></html>", encoding="utf-8")
    return path


def opened(chromium: Any, path: Path, complaints: list[str]) -> Any:
    page = chromium.new_page(viewport={"width": 390, "height": 900})
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.goto(path.as_uri())
    return page


def test_a_reader_attacks_and_smooths_by_keyboard_on_a_phone(chromium: Any, tmp_path: Path) -> None:
    complaints: list[str] = []
    page = opened(chromium, written(tmp_path, drawable=True), complaints)
    said = page.locator(".live-values")
    page.wait_for_function("document.querySelector('.live-values').textContent.startsWith('The network says')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    before = page.locator("canvas[data-view=attacked]").evaluate("canvas => canvas.toDataURL()")
    page.locator("[data-picture='1']").focus()
    page.keyboard.press("Enter")
    assert page.locator("[aria-pressed=true]").get_attribute("data-picture") == "1"
    page.locator("[data-do=attack]").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('.live-values').textContent.startsWith('6 of 6 steps')")
    assert "top pixels are left" in said.text_content()
    assert page.locator("canvas[data-view=attacked]").evaluate("canvas => canvas.toDataURL()") != before
    page.locator("[data-do=smooth]").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('.live-values').textContent.startsWith('Smoothed over')")
    assert "ertified" in said.text_content()  # or that nothing is
    page.locator("select[data-name=network]").select_option("other")
    page.wait_for_function("document.querySelector('.live-values').textContent.startsWith('The network says')")
    assert complaints == []
    page.close()


def test_a_reader_draws_a_digit_with_keys_and_with_a_finger(chromium: Any, tmp_path: Path) -> None:
    complaints: list[str] = []
    page = opened(chromium, written(tmp_path, drawable=True), complaints)
    page.locator("[data-picture=drawn]").click()
    paper = page.locator("canvas[data-view=image]")
    bright = (
        "canvas => canvas.getContext('2d').getImageData(0, 0, 8, 8).data.filter((v, i) => i % 4 < 1 && v > 200).length"
    )
    assert paper.evaluate(bright) == 0
    paper.focus()
    for key in ("Space", "ArrowDown", "Space"):
        page.keyboard.press(key)
    assert paper.evaluate(bright) == 2
    frame = paper.bounding_box()
    page.mouse.move(frame["x"] + 3, frame["y"] + 3)
    page.mouse.down()
    page.mouse.up()
    assert paper.evaluate(bright) == 3
    page.locator("[data-do=reset]").click()
    assert paper.evaluate(bright) == 0
    assert complaints == []
    page.close()


def test_a_reader_sees_the_certificate_below_what_an_attack_leaves(chromium: Any, tmp_path: Path) -> None:
    """On a phone, by keyboard: attack in a ball of lengths, smooth, and compare."""
    complaints: list[str] = []
    options = {
        "norm": "l2",
        "epsilons": (0.01, 0.3),
        "epsilon": 0.3,
        "step": 0.1,
        "sigma": 0.6,
        "choose": 30,
        "samples": 200,
    }
    page = opened(chromium, written(tmp_path, drawable=False, **options), complaints)
    starts = "word => document.querySelector('.live-values').textContent.startsWith(word)"
    page.wait_for_function(starts, arg="The network says")
    assert "an l2 length of at most 0.3." in page.locator(".live-values").text_content()
    assert page.locator("select[data-name=epsilon] option").all_inner_texts() == ["0.01", "0.3"]
    for button, word in (("attack", "6 of 6 steps"), ("smooth", "Smoothed over")):
        page.locator(f"[data-do={button}]").focus()
        page.keyboard.press("Enter")
        page.wait_for_function(starts, arg=word)
    said = page.locator(".live-values").text_content()
    numbers = re.search(
        r"cosine of ([\d.]+) between the gradients, and of ([\d.]+) between the smoothed ones, estimated from these "
        r"samples\. .*"
        r"at least ([\d.]+) between the expectations, which these estimate\.",
        said,
    )
    assert numbers, said
    plain, smooth, bound = map(float, numbers.groups())
    assert 0 < bound <= smooth <= 1
    assert plain < 1  # the attack did something
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
    page.close()
