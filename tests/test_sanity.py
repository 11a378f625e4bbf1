"""Sanity checks of maps: they find a map that is not about the network, and pass one that is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robattr import metrics, models, sanity
from robattr.attributions import Target, gradient, heatmap


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def edges(model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False) -> Tensor:
    """A map that asks the network nothing: differences of neighboring pixels."""
    return x - x.roll(1, 3)


def test_a_map_that_asks_the_network_nothing_stays_the_same(images: Tensor) -> None:
    found = sanity.cascade(models.build("lenet", seed=1), images, 0, k=100, attribution=edges)
    assert (found.rank_correlation == 1).all()
    assert (found.topk_intersection == 1).all()
    assert found.ssim.min() > 1 - 1e-5


def test_a_gradient_does_not_survive_its_network(images: Tensor) -> None:
    model = models.build("lenet", seed=1)
    found = sanity.cascade(model, images, 0, k=100, stages=4)
    assert found.rank_correlation.shape == (4, 3)
    before = heatmap(gradient(model, images, 0))
    assert torch.equal(found.rank_correlation[-1], metrics.spearman(before, found.maps))
    assert (found.rank_correlation[-1] < 0.9).all()
    # Every layer that has parameters is randomized once, the last ones first.
    order = [name for group in found.stages for name in group]
    assert order == sanity.layers(model, images)[::-1]
    assert len(set(order)) == len(order)


def test_layers_come_in_the_order_of_their_calls(images: Tensor) -> None:
    class Backward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.first = nn.Conv2d(3, 4, 3)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.last(self.first(x).mean((2, 3)))

    assert sanity.layers(Backward().eval(), images) == ["", "first", "last"]

    class Attends(nn.Module):
        """out_proj of an attention layer is a module that is never called."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.mean(1)[:, :4, :4]
            return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))

    assert sanity.layers(Attends().eval(), images) == ["attention", "attention.out_proj", "head"]
    with pytest.raises(ValueError, match="has no parameters"):
        sanity.layers(nn.Flatten().eval(), images)


def test_randomized_values_are_the_same_values_elsewhere(images: Tensor) -> None:
    model = models.build("lenet", seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = sanity.layers(model, images)
    one, two = sanity.randomized(model, names), sanity.randomized(model, names[:1])
    for name, value in one.state_dict().items():
        assert torch.equal(before[name], model.state_dict()[name])  # the model itself is left alone
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
    first = f"{names[0]}.weight"
    assert not torch.equal(one.state_dict()[first], before[first])
    assert torch.equal(one.state_dict()[first], two.state_dict()[first])  # whatever else is randomized
    assert not torch.equal(sanity.randomized(model, names, seed=1).state_dict()[first], one.state_dict()[first])
    assert torch.equal(two.state_dict()[f"{names[-1]}.weight"], before[f"{names[-1]}.weight"])


def test_shuffled_maps_share_nothing_but_their_values() -> None:
    """What the measures say at chance: k of P pixels are shared in the mean, and ranks are uncorrelated."""
    maps = torch.rand(200, 32, 32, generator=torch.Generator().manual_seed(0))
    moved = sanity.shuffled(maps)
    assert torch.equal(moved.flatten(1).sort(1).values, maps.flatten(1).sort(1).values)
    shares = metrics.topk_intersection(maps, moved, 100)
    # Hypergeometric: mean k / P, and a variance below the binomial one; five standard errors of the mean.
    p = 100 / 1024
    assert abs(float(shares.mean()) - p) < 5 * (p * (1 - p) / 100 / 200) ** 0.5
    # Ranks of independent orders: variance 1 / (P - 1).
    assert abs(float(metrics.spearman(maps, moved).mean())) < 5 / (1023 * 200) ** 0.5
    assert torch.equal(sanity.shuffled(maps[5:6]), moved[5:6])  # a batch is its single maps
    assert not torch.equal(sanity.shuffled(maps, seed=1), moved)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": 0}, "stages is 0"),
        ({"k": 2000}, "k must be from 1 to 1024"),
        ({"target": 10}, "target has class 10"),
    ],
)
def test_refusals(images: Tensor, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sanity.cascade(models.build("lenet"), images, **{"target": 0, "k": 100, **options})
    with pytest.raises(ValueError, match="heatmaps have shape"):
        sanity.shuffled(images)
