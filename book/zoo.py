"""Networks and methods: which maps, attacks and certificates there are, found by making each of them.

``make zoo`` builds each network small, with random weights, runs every method of it on two random images and keeps what
came out in ``results/networks.json`` and in the table of ``book/networks.md``. The tests run some of the networks again
and fail where the outcome is another, or where a cell is neither done nor refused in one line.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robattr import attacks, regularizers, smoothing
from robattr._files import write_text
from robattr._text import between_marks
from robattr.attributions import METHODS, Attribution, Target
from robattr.attributions.calls import OTHERS
from robattr.models import Classifier, softplus_surrogate
from robattr.pages.figures.style import METHODS as NAMES

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "networks.json"
PAGE = ROOT / "book" / "networks.md"
USES = ("map", "attack", "certificate")
DONE = "done"
CLASSES = 5
EPSILON = 8 / 255

# Means of fewer points, so that the whole table takes minutes; nothing in it depends on how many there are.
FEWER: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4},
    "smoothgrad": {"samples": 2},
    "layer_integrated_gradients": {"steps": 8},
}


@dataclass(frozen=True)
class Network:
    """How a network is built at its smallest: a library's name and the side of its images."""

    library: str
    name: str
    side: int = 32
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.library} {self.name}"


WITHOUT_AUX = {"init_weights": False, "aux_logits": False}
NETWORKS = (
    Network("torchvision", "squeezenet1_1", 48),
    Network("torchvision", "resnet18", 48),
    Network("torchvision", "googlenet", 48, WITHOUT_AUX),
    Network("torchvision", "inception_v3", 75, WITHOUT_AUX),
    Network("torchvision", "densenet121", 48),
    Network("torchvision", "mobilenet_v2", 48),
    Network("torchvision", "mobilenet_v3_small", 48),
    Network("torchvision", "shufflenet_v2_x0_5", 48),
    Network("torchvision", "regnet_x_400mf", 48),
    Network("torchvision", "regnet_y_400mf", 48),
    Network("torchvision", "efficientnet_b0", 48),
    Network("torchvision", "efficientnet_v2_s", 48),
    Network("torchvision", "convnext_tiny", 64),
    Network("torchvision", "vit_b_16", options={"image_size": 32}),
    Network("torchvision", "swin_t", 64),
    Network("torchvision", "swin_v2_t", 64),
    Network("torchvision", "maxvit_t"),
    Network("timm", "resnet10t", 48),
    Network("timm", "tf_efficientnet_lite0", 48),
    Network("timm", "efficientnet_b0", 48),
    Network("timm", "mobilenetv3_small_050", 48),
    Network("timm", "mobilenetv4_conv_small_035", 48),
    Network("timm", "convnext_atto", 64),
    Network("timm", "convnextv2_atto", 64),
    Network("timm", "vit_tiny_patch16_224", options={"img_size": 32}),
    Network("timm", "deit_tiny_patch16_224", options={"img_size": 32}),
    Network("timm", "swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 4}),
)


def built(network: Network) -> Classifier:
    """The network with random weights, in evaluation mode, made so that each of its layers counts.

    Batch statistics are those of random images; heads and scales of blocks that begin at zero, or near it, do not.
    """
    side = network.side
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _made(network)
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.1)
            if name.endswith(("gamma", "layer_scale")) and parameter.abs().max() < 0.01:
                nn.init.ones_(parameter)
        momenta = [(each, each.momentum) for each in made.modules() if isinstance(each, nn.BatchNorm2d)]
        for module, _ in momenta:
            module.momentum = 1.0
        made.train()
        for module in made.modules():
            if type(module).__name__ in ("Dropout", "DropPath", "StochasticDepth"):
                module.eval()
        with torch.no_grad():
            made((_images(32, side) - 0.5) / 0.25)
    for module, momentum in momenta:
        module.momentum = momentum
    for module in made.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False
    return Classifier(
        made, mean=(0.5,) * 3, std=(0.25,) * 3, name=network.name, input_size=(3, side, side), num_classes=CLASSES
    ).eval()


def _made(network: Network) -> nn.Module:
    made: nn.Module
    if network.library == "timm":
        import timm

        made = timm.create_model(network.name, num_classes=CLASSES, **network.options)
    else:
        import torchvision

        if network.name == "maxvit_t":  # its sizes are fixed: a smaller one of the same blocks
            return torchvision.models.MaxVit(
                (32, 32), 8, 2, block_channels=[8, 16], block_layers=[1, 1], head_dim=4, stochastic_depth_prob=0.0,
                num_classes=CLASSES,
            )  # fmt: skip
        made = torchvision.models.get_model(network.name, weights=None, num_classes=CLASSES, **network.options)
    return made


def _images(n: int, side: int) -> Tensor:
    """Random colors of sixteenths, and noise: images that differ from one another in every layer of a network."""
    generator = torch.Generator().manual_seed(1)
    colors = nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size=side, mode="bilinear")
    return 0.75 * colors + 0.25 * torch.rand(n, 3, side, side, generator=generator)


def _method(name: str) -> Attribution:
    return partial(METHODS[name], **FEWER[name]) if name in FEWER else METHODS[name]


def _classes(model: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def _map(model: Classifier, x: Tensor, method: Attribution) -> None:
    found = method(model, x, _classes(model, x))
    assert found.isfinite().all(), "the map is not finite"
    assert len(found) == len(x), "the map has other rows than the images"
    assert (found.flatten(1) != 0).any(1).all(), "the map is zero"


def _attack(model: Classifier, x: Tensor, method: Attribution) -> None:
    """Small steps, because at random weights a map bends soon; at least one of them along a slope, not at random."""
    led = False

    def lead(slope: Tensor) -> None:
        nonlocal led
        led |= bool((slope.isfinite().flatten(1).all(1) & (slope != 0).flatten(1).any(1)).any())

    def watched(model: nn.Module, z: Tensor, target: Target, *, create_graph: bool = False) -> Tensor:
        if not create_graph:
            return method(model, z, target)
        start = z.clone()
        start.register_hook(lead)
        # The method differentiates by a copy, so that what comes to the start is the slope of the attack alone.
        return method(model, start.clone(), target, create_graph=True)

    found = attacks.iterative_attack(
        model, x, objective=attacks.TopK(50), epsilon=EPSILON, step=1 / 255, iterations=4, attribution=watched
    )
    assert led, "the attack has no slope"
    assert found.trace.isfinite().all(), "the attack's trace is not finite"
    assert ((found.images - x).abs() <= EPSILON).all(), "the attack left its ball"
    assert (found.trace[1:].amax(0) > found.trace[0]).any(), "the attack does not climb"


def _certificate(model: Classifier, x: Tensor, method: Attribution) -> None:
    found = smoothing.certify(
        model,
        x[:1],
        _classes(model, x[:1]),
        noise=smoothing.Ball(0.5),
        epsilon=[0.0],
        samples=8,
        choose=4,
        attribution=method,
    )
    assert found.norm.isfinite().all(), "the smoothed map is not finite"
    assert 0 < float(found.norm) <= 1 + 1e-6, "the smoothed map has a length that no mean of unit vectors has"


def _training(model: Classifier, x: Tensor) -> None:
    """One step of training by gradient alignment, of the smooth copy."""
    smooth = softplus_surrogate(model, 3.0, x[:1])
    objective = regularizers.GradientAlignment(smooth)
    noise = objective.draw(x.shape, torch.Generator().manual_seed(0), x.device)
    objective(x, torch.tensor([1, 2]), noise).total.backward()
    slopes = [p.grad for p in smooth.parameters() if p.grad is not None]
    assert slopes, "training moves nothing"
    assert all(bool(g.isfinite().all()) for g in slopes), "the gradient of a parameter is not finite"


RUNS: dict[str, Callable[[Classifier, Tensor, Attribution], None]] = {
    "map": _map,
    "attack": _attack,
    "certificate": _certificate,
}


# Numbers that stand alone, not those of a path or a type: they differ from processor to processor.
_NUMBER = re.compile(r"(?<![\w.])(?:[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|[-+]?inf)(?![\w.]*\w)", re.IGNORECASE)


def outcome(run: Callable[[], None]) -> str:
    """``done``, or the line of the refusal, less its numbers and the list of methods that need no rule."""
    try:
        run()
    except ValueError as error:
        said = str(error)
        if "\n" in said or not said:
            return f"failed: {said}"
        return _NUMBER.sub("…", said.replace(f"; take {OTHERS}", "").replace(f", {OTHERS}", ""))
    except Exception as error:
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return DONE


def cells(network: Network, methods: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """What came of each method and use, and of a step of training."""
    model = built(network)
    x = _images(2, network.side)
    found: dict[str, Any] = {
        name: {use: outcome(partial(RUNS[use], model, x, _method(name))) for use in USES}
        for name in METHODS
        if methods(name)
    }
    return {"methods": found, "training": outcome(partial(_training, model, x))}


def failures(record: dict[str, Any]) -> list[str]:
    """Cells that are neither done nor refused, a line each."""
    lines = []
    for key, row in record["networks"].items():
        said = [(f"{method}, {use}", row["methods"][method][use]) for method in row["methods"] for use in USES]
        lines += [f"{key}: {what}: {text}" for what, text in [*said, ("training", row["training"])] if "failed" in text]
    return lines


# --- the page --------------------------------------------------------------------------------------------------------

_PLACE = re.compile(r", which (.+) calls(?=;|$)")


def table(record: dict[str, Any]) -> str:
    """Networks by methods, as a table of HTML, and below it, in Markdown, why what is missing is missing."""
    columns = [*record["methods"], "training"]
    names = [NAMES.get(name, name) for name in columns]
    lines = ['<div class="networks" tabindex="0" role="region" aria-label="Networks by methods">', "<table>", "<thead>"]
    heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    lines += [f'<tr><th scope="col">Network</th>{heads}</tr>', "</thead>"]
    works = dict.fromkeys(columns, 0)
    library = ""
    for key, row in record["networks"].items():
        group, _, network = key.partition(" ")
        if group != library:
            lines += ["</tbody>"] if library else []
            lines += ["<tbody>", f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}">{escape(group)}</th></tr>']
            library = group
        cells = []
        for column in columns:
            outcomes = _outcomes(row, column)
            works[column] += set(outcomes.values()) == {DONE}
            cells.append(_cell(outcomes))
        lines.append(f'<tr><th scope="row">{escape(network)}</th>{"".join(cells)}</tr>')
    counts = "".join(f"<td>{works[column]}</td>" for column in columns)
    total = len(record["networks"])
    lines += ["</tbody>", "<tfoot>", f'<tr><th scope="row">all three, of {total}</th>{counts}</tr>', "</tfoot>"]
    return "\n".join([*lines, "</table>", "</div>", "", *_reasons(record)])


def _outcomes(row: dict[str, Any], column: str) -> dict[str, str]:
    outcomes: dict[str, str] = {"training": row["training"]} if column == "training" else row["methods"][column]
    return outcomes


def _cell(outcomes: dict[str, str]) -> str:
    done = [use for use, said in outcomes.items() if said == DONE]
    if len(done) == len(outcomes):
        kind, sign, words = "done", "●", ", ".join(done)
    elif done:
        kind, sign, words = "part", "◐", f"{', '.join(done)} only"
    else:
        kind, sign, words = "none", "–", "refused"
    return f'<td class="{kind}" title="{words}"><span role="img" aria-label="{words}">{sign}</span></td>'


def _reasons(record: dict[str, Any]) -> list[str]:
    """A line for each reason, with the methods and uses that it is of, and the networks with their layers."""
    found: dict[tuple[str, str], list[str]] = {}
    for key, row in record["networks"].items():
        said: dict[str, list[str]] = {}
        for column in (*record["methods"], "training"):
            outcomes = _outcomes(row, column)
            for reason in dict.fromkeys(each for each in outcomes.values() if each != DONE):
                uses = [use for use, each in outcomes.items() if each == reason]
                only = "" if len(uses) == len(outcomes) else f" ({', '.join(uses)})"
                said.setdefault(reason, []).append(NAMES.get(column, column) + only)
        for reason, methods in said.items():
            place = _PLACE.search(reason)
            where = f" ({place[1].replace(' (', ', ').rstrip(')')})" if place else ""
            found.setdefault((", ".join(methods), _PLACE.sub("", reason)), []).append(key + where)
    return [f"- **{methods}**: {reason}. In {'; '.join(networks)}." for (methods, reason), networks in found.items()]


def page(text: str, record: dict[str, Any]) -> str:
    """The page with the table between its two marks, ``<!-- make zoo -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the marks are not there.
    """
    return between_marks(text, "make zoo", f"\n{table(record)}\n\n", PAGE.name)


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for i, network in enumerate(NETWORKS, 1):
        print(f"{i}/{len(NETWORKS)} {network.key}", file=sys.stderr, flush=True)
        rows[network.key] = cells(network)
    record = {
        "about": "what each method gives on each network, found by running it: make zoo",
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm")},
        "methods": list(METHODS),
        "networks": rows,
    }
    wrong = failures(record)
    if wrong:
        sys.exit("\n".join(wrong))
    write_text(RECORD, json.dumps(record, indent=1) + "\n")
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), record))


if __name__ == "__main__":
    main()
