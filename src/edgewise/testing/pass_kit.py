"""What every pass has to do.

A pass's test subclasses the kit and names the pass, and builds models in which it has work to do::

    class TestFoldBatchNorm(PassKit):
        pass_class = FoldBatchNorm
        sites = (lambda: graphs.conv_net(),)
"""

# ruff: noqa: S101 - these are tests, which ship so that passes made elsewhere can run them

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from edgewise.passes.agreement import difference, tolerance
from edgewise.passes.apply import apply, with_shapes
from edgewise.passes.contract import interface, signature
from edgewise.passes.protocol import Findings, Pass
from edgewise.records.tensors import Outputs
from edgewise.testing.graphs import branching_net, random_feeds
from edgewise.testing.random_graphs import random_network


def run_reference(model: ir.Model, seed: int = 0) -> Outputs:
    """Return the outputs of `model` on random inputs, by ONNX's reference evaluator."""
    proto = ir.to_proto(model)
    outputs = ReferenceEvaluator(onnx.load_from_string(proto.SerializeToString())).run(
        None, dict(random_feeds(model, seed=seed))
    )
    return {value.name: array for value, array in zip(proto.graph.output, outputs, strict=True)}


def assert_same_function(before: ir.Model, after: ir.Model, *, seed: int = 0) -> None:
    """Fail unless both models give the same outputs, but for the order of the arithmetic."""
    reason = difference(run_reference(before, seed), run_reference(after, seed), tolerance(before))
    assert reason is None, reason


class PassKit:
    """Tests of one pass.

    Attributes:
        pass_class: Makes the pass without arguments.
        sites: Make models in which the pass changes something.
        seeds: Random networks that it has to keep the function of.
    """

    pass_class: ClassVar[Callable[[], Pass]]
    sites: ClassVar[tuple[Callable[[], ir.Model], ...]] = ()
    seeds: ClassVar[range] = range(2)

    def models(self) -> list[ir.Model]:
        """Return new models of the kit: those with sites, random ones, and one with bodies."""
        made = [site() for site in self.sites] + [random_network(seed) for seed in self.seeds] + [branching_net()]
        return [with_shapes(model) for model in made]

    def test_changes_every_site(self) -> None:
        """A model with a site is changed, or the sites are none."""
        for site in self.sites:
            _, findings = apply(with_shapes(site()), self.make())
            assert findings.changes, "the pass found nothing to do in a model that it names as a site"

    def test_leaves_the_input_alone(self) -> None:
        """The model that came in is as it was."""
        for model in self.models():
            before = signature(model)
            apply(model, self.make())
            assert signature(model) == before

    def test_keeps_the_interface(self) -> None:
        """Names, types and shapes of inputs and outputs stay."""
        for model in self.models():
            after, _ = apply(model, self.make())
            assert interface(after) == interface(model)

    def test_keeps_the_function(self) -> None:
        """The outputs stay, up to rounding."""
        for model in self.models():
            after, _ = apply(model, self.make())
            assert_same_function(model, after)

    def test_is_idempotent(self) -> None:
        """A second application has nothing to do, and declines what the first declined."""
        for model in self.models():
            after, first = apply(model, self.make())
            again, second = apply(after, self.make())
            assert not second.changes, second.changes
            assert signature(again) == signature(after)
            assert [decline.reason for decline in second.declines] == [decline.reason for decline in first.declines]

    def test_says_where_and_what(self) -> None:
        """Every change and decline bears the pass's name, a node and a clause."""
        for model in self.models():
            _, findings = apply(model, self.make())
            self._check_words(findings)

    def test_is_named_after_its_module(self) -> None:
        """The name in findings leads to the file."""
        made = self.make()
        assert type(made).__module__.rpartition(".")[2] == made.name

    def make(self) -> Pass:
        """Return a new instance of the pass."""
        if not hasattr(type(self), "pass_class"):
            pytest.skip("the kit itself names no pass")
        return type(self).pass_class()

    def _check_words(self, findings: Findings) -> None:
        name = self.make().name
        for change in findings.changes:
            assert change.stage == name
            assert change.what
        for decline in findings.declines:
            assert decline.stage == name
            assert decline.node
            assert decline.operator
            assert decline.reason
            assert not decline.reason.endswith(".")
