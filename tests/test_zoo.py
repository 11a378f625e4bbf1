"""Networks and methods: every cell is done or refused in one line, as the committed table says."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from torch import Tensor

from robattr.attributions import METHODS, integrated_gradients, lrp
from robattr.models import Classifier


def load_zoo() -> ModuleType:
    """``book/zoo.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("zoo", REPOSITORY / "book" / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module  # dataclasses look for the module that they are in
    spec.loader.exec_module(module)
    return module


zoo = load_zoo()
RECORD: dict[str, Any] = json.loads(zoo.RECORD.read_text(encoding="utf-8"))
BY_KEY = {network.key: network for network in zoo.NETWORKS}
# Of each kind, those that take half a minute: hard activations and gates, attention in windows and over all tokens,
# layer normalization, blocks that are no shortcuts.
SOME = [
    "torchvision mobilenet_v3_small",
    "torchvision maxvit_t",
    "torchvision shufflenet_v2_x0_5",
    "timm convnext_atto",
    "timm vit_tiny_patch16_224",
]


def images(network: Any) -> Tensor:
    return torch.rand(2, 3, network.side, network.side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("key", SOME)
def test_a_network_gives_what_the_table_says(key: str) -> None:
    found = zoo.cells(BY_KEY[key])
    assert zoo.failures({"networks": {key: found}}) == []
    assert found == RECORD["networks"][key], "methods or layers have changed: make zoo"


def test_the_table_has_every_network_and_every_method() -> None:
    assert list(RECORD["networks"]) == list(BY_KEY)
    assert RECORD["methods"] == list(METHODS), "methods have changed: make zoo"
    for row in RECORD["networks"].values():
        assert list(row["methods"]) == list(METHODS)
        assert all(list(cell) == list(zoo.USES) for cell in row["methods"].values())
    assert zoo.failures(RECORD) == []


def test_what_needs_no_rule_goes_through_every_network() -> None:
    for key, row in RECORD["networks"].items():
        for method in ("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad"):
            assert set(row["methods"][method].values()) == {zoo.DONE}, (key, method)
        assert row["training"] == zoo.DONE, key


def test_a_refusal_names_the_layer() -> None:
    for key, row in RECORD["networks"].items():
        for method, cell in row["methods"].items():
            for said in set(cell.values()) - {zoo.DONE}:
                assert "\n" not in said
                assert method not in ("deeplift", "lrp", "deep_taylor") or "(" in said or " in " in said, (key, said)


def test_the_page_shows_the_record() -> None:
    text = zoo.PAGE.read_text(encoding="utf-8")
    assert text == zoo.page(text, RECORD), "the table is another: make zoo"
    with pytest.raises(ValueError, match="has no line '<!-- make zoo -->'"):
        zoo.page("# Networks\n", RECORD)


def test_what_is_neither_done_nor_refused_is_told() -> None:
    """An outcome that is wrong is a failure; a refusal is one line."""

    def raises(error: Exception) -> Any:
        def run() -> None:
            raise error

        return run

    assert zoo.outcome(lambda: None) == zoo.DONE
    assert zoo.outcome(raises(ValueError(f"no rule for x, which y.0.1 (Z) calls; a; take {zoo.OTHERS}"))) == (
        "no rule for x, which y.0.1 (Z) calls; a"
    )
    # Numbers differ from one processor to another; those of names and paths do not.
    said = "image 0 sums to -1.5e+07, conv2d of layer 3.1.bias gives nan; it is 0.25, of 8."
    assert zoo.outcome(raises(ValueError(said))) == (
        "image … sums to …, conv2d of layer 3.1.bias gives …; it is …, of …."
    )
    for error in (ValueError("two\nlines"), ValueError(""), RuntimeError("raw"), AssertionError("the map is zero")):
        row = {"methods": {"lrp": dict.fromkeys(zoo.USES, zoo.outcome(raises(error)))}, "training": zoo.DONE}
        assert len(zoo.failures({"networks": {"a": row}})) == 3


@pytest.mark.parametrize("wrong", ["nan", "zero", "elsewhere"])
def test_a_wrong_map_does_not_pass(wrong: str) -> None:
    model, x = Classifier(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)),
        mean=(0.0,) * 3, std=(1.0,) * 3, name="linear", input_size=(3, 2, 2), num_classes=5,
    ).eval(), torch.rand(2, 3, 2, 2)  # fmt: skip

    def method(model: Any, z: Tensor, target: Any, *, create_graph: bool = False) -> Tensor:
        return {"nan": z * torch.nan, "zero": z * 0, "elsewhere": z[:1]}[wrong]

    with pytest.raises(AssertionError, match="the map"):
        zoo.RUNS["map"](model, x, method)


def test_integrated_gradients_are_complete_on_a_vision_transformer() -> None:
    """The logit is analytic on the path from black, so the error of Gauss and Legendre falls with every node."""
    network = BY_KEY["timm vit_tiny_patch16_224"]
    model, x = zoo.built(network).double(), images(network).double()
    with torch.no_grad():
        change = (model(x) - model(torch.zeros_like(x)))[:, 1]

    def missed(steps: int) -> float:
        return float((integrated_gradients(model, x, 1, steps=steps).flatten(1).sum(1) - change).abs().max())

    few, more, many = missed(2), missed(16), missed(48)
    assert many < more < few
    assert many < 1e-3 * float(change.abs().max())


@pytest.mark.parametrize("rule", ["epsilon", "epsilon-plus", "alpha2-beta1"])
def test_relevance_in_a_regnet_does_not_explode(rule: Any) -> None:
    """Sums of branches share relevance: doubling it in each of 22 blocks once made -1e25 of a logit of -0.01."""
    network = BY_KEY["torchvision regnet_x_400mf"]
    model, x = zoo.built(network).double(), images(network).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.zero_()  # type: ignore[union-attr]
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        model.normalize.mean.zero_()
        logit = model(x)[:, 1]
    r = lrp(model, x, 1, rule=rule)
    # What the stabilizers of 1e-6 keep, which lrp itself allows, and no factor of two.
    assert ((r.flatten(1).sum(1) - logit).abs() <= 0.1 * (r.abs().flatten(1).sum(1) + logit.abs())).all()
    assert (r.abs().flatten(1).sum(1) < 1e4 * logit.abs()).all()
