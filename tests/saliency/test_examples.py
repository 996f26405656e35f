"""The table of methods: it has the names that everybody knows, and every method's example is true."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn

from study import metrics
from study.saliency import REGISTRY, PixelOptions, saliency_maps


class TwoChannels(nn.Module):
    """The last activation map is the rectified image; the first class's logit is the difference of channel means."""

    def __init__(self) -> None:
        super().__init__()
        self.rectify = nn.ReLU()
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))

    def features(self, x_NCHW: Tensor) -> Tensor:
        return self.rectify(x_NCHW)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.features(x_NCHW).mean((2, 3)))


def test_names_and_titles_are_those_that_need_no_torch() -> None:
    assert list(REGISTRY) == list(metrics.METHODS)
    for name, method in REGISTRY.items():
        assert metrics.METHODS[name] in (type(method).__doc__ or "").splitlines()[0], name


@pytest.mark.parametrize("name", REGISTRY)
def test_the_example_is_true(name: str) -> None:
    known = {
        "network": TwoChannels(), "x_NCHW": torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]]),
        "classes_N": torch.tensor([0]), "saliency_maps": saliency_maps, "PixelOptions": PixelOptions,
    }  # fmt: skip
    cls = type(REGISTRY[name])
    (example,) = [test for test in doctest.DocTestFinder().find(cls, globs=known) if test.name == cls.__name__]
    assert any(name in part.source for part in example.examples)
    assert doctest.DocTestRunner().run(example).failed == 0
