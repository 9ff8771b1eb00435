"""The words: what the report says of a run."""

from __future__ import annotations

import msgspec
import pytest

from edgewise.records.candidate import Candidate, Fuse, HalveWeights, Prune, Quantize, RunOptions
from edgewise.records.certificate import Certificate
from edgewise.records.findings import Change, Decline
from edgewise.records.measurements import LayerCost, Ratio
from edgewise.records.run import Run
from edgewise.report import account, comparison
from edgewise.report.charts import Point
from edgewise.report.figures import latency_figure, pareto_figure, with_front
from edgewise.report.layers import TOP, layer_section
from edgewise.report.proof import claim, proof_section
from edgewise.report.quantities import MINUS, NONE, TIMES
from edgewise.report.view import page
from edgewise.report.words import Terms, cleaned, compared, described, faster, visible


def certificate_of(run: Run) -> Certificate:
    certificate = run.ladder[run.chosen].certificate
    assert certificate is not None
    return certificate


def with_certificate(run: Run, **changes: object) -> Run:
    """The same run with another certificate of its default."""
    ladder = list(run.ladder)
    new = msgspec.structs.replace(certificate_of(run), **changes)
    ladder[run.chosen] = msgspec.structs.replace(ladder[run.chosen], certificate=new, certified=new.passed)
    return msgspec.structs.replace(run, ladder=tuple(ladder))


def with_speed(run: Run, value: float, low: float, high: float) -> Run:
    ladder = list(run.ladder)
    speed = Ratio(value=value, low=low, high=high, confidence=0.95, rounds=20)
    ladder[run.chosen] = msgspec.structs.replace(ladder[run.chosen], speedup=speed)
    return msgspec.structs.replace(run, ladder=tuple(ladder))


class TestWords:
    def test_a_candidate_in_words(self) -> None:
        options = RunOptions(threads=2, precision="bf16", graph_optimization="off")
        steps = (Fuse(), Quantize(ranges="entropy"), HalveWeights())
        assert described(Candidate(steps=steps, backend="openvino", options=options)) == (
            "OpenVINO; fused; int8 weights and activations (entropy ranges); weights stored as fp16; bf16 arithmetic; "
            "run as written; 2 threads"
        )
        assert described(Candidate(steps=(), backend="other", options=RunOptions())) == (
            "other; the model as it came; 1 thread"
        )

    @pytest.mark.parametrize(
        ("step", "said"),
        [
            (Quantize(scheme="w4a16", ranges="mse"), "4-bit weights and 16-bit activations (mse ranges)"),
            (Quantize(scheme="w4g32"), "4-bit weights in groups of 32, float activations"),
            (Prune(time=0.7), "pruned, aiming at 70 % of the time"),
            (
                Prune(time=0.7, recovered=True),
                "pruned, aiming at 70 % of the time, then trained on the model's own answers",
            ),
            (
                Quantize(scheme="w8", rounding="second-order"),
                "8-bit weights, float activations (second-order rounding)",
            ),
        ],
    )
    def test_schemes_in_words(self, step: Quantize | Prune, said: str) -> None:
        whole = described(Candidate(steps=(step,), backend="ort", options=RunOptions()))
        assert whole == f"ONNX Runtime; {said}; 1 thread"

    @pytest.mark.parametrize(
        ("ratio", "said"),
        [
            ((2.41, 2.3, 2.5), (f"2.41{TIMES}", "faster")),
            ((0.8, 0.7, 0.9), (f"1.25{TIMES}", "slower")),
            ((1.01, 0.97, 1.05), (f"1.01{TIMES}", "the speed: no measurable difference")),
        ],
    )
    def test_speed(self, ratio: tuple[float, float, float], said: tuple[str, str]) -> None:
        value, low, high = ratio
        assert faster(Ratio(value=value, low=low, high=high, confidence=0.95, rounds=9)) == said

    def test_comparisons(self) -> None:
        assert compared(4, 1, "smaller", "larger") == f"4.00{TIMES} smaller"
        assert compared(1, 4, "smaller", "larger") == f"4.00{TIMES} larger"
        assert compared(1000, 1001, "smaller", "larger") == "equal"
        assert compared(0, 5, "smaller", "larger") == NONE

    def test_invisible_characters_are_shown(self) -> None:
        assert visible("a\x00b\u202ec\ud800") == "a\\u0000b\\u202ec\\ud800"
        assert visible("ünïcødé 層 🙂\n") == "ünïcødé 層 🙂\n"

    def test_cleaning_changes_names_alone(self, any_run: Run) -> None:
        clean = cleaned(any_run)
        assert cleaned(clean) == clean
        assert len(clean.declines) == len(any_run.declines)
        assert clean.ladder[0].latency == any_run.ladder[0].latency


class TestTerms:
    def test_points(self, typical: Run) -> None:
        terms = Terms.of(typical)
        assert (terms.loss(0.0062), terms.lost, terms.value(0.9436)) == ("0.62 points", "top1 lost", "94.36 %")

    def test_relative(self, typical: Run) -> None:
        run = with_certificate(typical, relative=True)
        run = msgspec.structs.replace(
            run, data=msgspec.structs.replace(run.data, metric="rmse"), ladder=run.ladder[2:], chosen=0
        )
        terms = Terms.of(run)
        assert (terms.loss(0.0062), terms.lost, terms.value(12.34567)) == ("0.62 %", "rmse lost", "12.35")

    def test_flips(self, without_labels: Run) -> None:
        terms = Terms.of(without_labels)
        assert (terms.loss(0.0077), terms.lost) == ("0.77 % of answers", "answers changed")

    def test_without_a_certificate_the_metric_decides(self, nothing_helped: Run) -> None:
        assert Terms.of(nothing_helped).unit == "points"
        data = msgspec.structs.replace(nothing_helped.data, metric="rmse")
        scored = nothing_helped.outcomes[0].accuracy
        assert scored is not None
        high = msgspec.structs.replace(nothing_helped.outcomes[0], accuracy=msgspec.structs.replace(scored, value=12.0))
        assert Terms.of(msgspec.structs.replace(nothing_helped, data=data, outcomes=(high,))).unit == "%"


class TestHeadline:
    def test_typical(self, typical: Run) -> None:
        tiles = comparison.tiles(typical, Terms.of(typical))
        assert [(tile.value, tile.label, tile.tone) for tile in tiles] == [
            (f"2.77{TIMES}", "faster", "good"),
            ("1.52 ms", "median latency", "plain"),
            (f"3.52{TIMES}", "smaller", "good"),
            ("≤ 0.62", "points of top1 lost", "good"),
        ]
        assert tiles[0].details[0] == f"95 % interval 2.69{TIMES} to 2.85{TIMES}"
        assert tiles[3].details == (
            "with 95 % confidence, from 3,450 samples",
            "observed 0.2 points; asked for ≤ 1 point",
        )

    def test_nothing_helped(self, nothing_helped: Run) -> None:
        tiles = comparison.tiles(nothing_helped, Terms.of(nothing_helped))
        assert [tile.value for tile in tiles] == [f"1{TIMES}", "4.22 ms", "3.41 MB", "0"]
        assert {tile.tone for tile in tiles} == {"plain"}

    def test_without_labels(self, without_labels: Run) -> None:
        tile = comparison.tiles(without_labels, Terms.of(without_labels))[3]
        assert (tile.value, tile.label) == ("≤ 0.77 %", "answers changed")

    def test_no_gain_is_not_shown_as_one(self, typical: Run) -> None:
        run = with_speed(typical, 1.02, 0.98, 1.05)
        tile = comparison.tiles(run, Terms.of(run))[0]
        assert (tile.label, tile.tone) == ("the speed: no measurable difference", "plain")

    def test_an_uncertified_default_warns(self, typical: Run) -> None:
        run = with_certificate(typical, passed=False, upper=0.0123)
        shown = page(run)
        assert (shown.status, shown.status_text) == ("failed", "Not certified")
        assert (shown.tiles[3].value, shown.tiles[3].tone) == ("≤ 1.23", "warn")

    def test_a_default_without_certificate_says_unknown(self, typical: Run) -> None:
        ladder = tuple(msgspec.structs.replace(rung, certificate=None, certified=False) for rung in typical.ladder)
        shown = page(msgspec.structs.replace(typical, ladder=ladder))
        assert (shown.status, shown.tiles[3].value) == ("failed", "unknown")


class TestTable:
    def test_typical(self, typical: Run) -> None:
        lines = {line.name: line for line in comparison.lines(typical, Terms.of(typical))}
        median = lines["Latency, median"]
        assert median.after is not None
        assert median.change is not None
        assert (median.before.text, median.after.text, median.change.text) == (
            "4.22 ms",
            "1.52 ms",
            f"2.77{TIMES} faster",
        )
        assert lines["Cold start"].before.sub == "112 ms + 38.0 ms + 6.01 ms"
        energy = lines["Energy of one inference"]
        assert energy.before.text == "not measured"
        assert energy.note == "not measurable here: no powercap counter is readable"
        assert lines["top1 (select)"].before.sub == "93.13 % to 95.67 %"
        proven = lines["top1 (certify)"].change
        assert proven is not None
        assert (proven.text, proven.sub) == ("at most 0.62 points lost", "observed 0.2 points")

    def test_untouched_has_one_column(self, nothing_helped: Run) -> None:
        assert all(
            x.after is None and x.change is None for x in comparison.lines(nothing_helped, Terms.of(nothing_helped))
        )

    def test_what_was_not_scored_says_so(self, without_labels: Run) -> None:
        lines = {line.name: line for line in comparison.lines(without_labels, Terms.of(without_labels))}
        assert lines["agreement (select)"].before.text == "not measured"
        assert lines["agreement (select)"].note == "no value was recorded on the select split"
        assert lines["Answers changed"].before.text == "0 %"


class TestCertificate:
    def test_passed(self, typical: Run) -> None:
        assert claim(certificate_of(typical), Terms.of(typical)) == (
            "With 95 % confidence, top1 drops by at most 0.62 points on data like these samples."
        )

    def test_failed_says_what_would_do(self, typical: Run) -> None:
        proof = next(p for p in proof_section(typical, Terms.of(typical)).proofs if p.status == "failed")
        assert proof.claim == (
            "The bound asked for (1 point) was not shown. What the samples do support: with 95 % confidence, "
            "top1 drops by at most 1.34 points on data like these samples."
        )
        assert proof.sentences[-1] == (
            "About 9,800 certify samples would show 1 point if the observed drop is the true one: 6,350 more than "
            "there were."
        )

    def test_failed_where_no_number_of_samples_would_do(self, typical: Run) -> None:
        run = with_certificate(typical, passed=False, upper=0.02, samples_needed=None)
        proof = proof_section(run, Terms.of(run)).proofs[0]
        assert proof.sentences[-1] == "No number of samples would show 1 point if the observed drop is the true one."

    def test_an_upper_bound_just_above_the_one_asked_for_does_not_look_equal(self, typical: Run) -> None:
        run = with_certificate(typical, passed=False, upper=0.010001, samples_needed=3600)
        assert "at most 1.01 points" in proof_section(run, Terms.of(run)).proofs[0].claim

    def test_sample_by_sample(self, typical: Run) -> None:
        run = with_certificate(typical, worse=1, better=0)
        said = " ".join(proof_section(run, Terms.of(run)).proofs[0].sentences)
        assert "1 sample was right only before, 0 samples were right only after" in said
        assert "Method: betting confidence sequence (Waudby-Smith and Ramdas, 2024). Its level holds" in said

    def test_label_free_warns_of_reuse_and_of_another_machine(self, without_labels: Run) -> None:
        section = proof_section(without_labels, Terms.of(without_labels))
        proof = section.proofs[0]
        assert proof.claim == "With 95 % confidence, the answer changes on at most 0.77 % of inputs like these samples."
        assert "opened by 2 earlier runs" in proof.warnings[0]
        assert "another instruction set (0123456789abcdef)" in proof.warnings[1]
        assert "its level is approximate" in " ".join(proof.sentences)
        assert "Right only before" not in dict(proof.numbers)
        assert section.untested == ("openvino int8-mse bf16",)

    def test_a_metric_without_right_and_wrong_says_so(self, typical: Run) -> None:
        run = with_certificate(typical, worse=None, better=None)
        proof = proof_section(run, Terms.of(run)).proofs[0]
        assert dict(proof.numbers)["Right only before"] == "not defined for this metric"
        assert "Sample by sample" not in " ".join(proof.sentences)

    def test_the_default_comes_first(self, typical: Run) -> None:
        proofs = proof_section(typical, Terms.of(typical)).proofs
        assert [proof.chosen for proof in proofs] == [True, False, False]
        assert ("Lower bound", f"{MINUS}0.22 points") in proofs[0].numbers

    def test_nothing_to_prove(self, nothing_helped: Run) -> None:
        section = proof_section(nothing_helped, Terms.of(nothing_helped))
        assert section.chart_wide is None
        assert "nothing to prove" in section.intro[0]


class TestAccount:
    def test_reasons_that_differ_in_names_are_one_group(self, typical: Run) -> None:
        whole, many, one = account.declines(typical)
        assert (whole.sites[0].node, whole.title[:11]) == ("the whole model", "the machine")
        assert (many.count, many.title) == (14, "`…` has 2 readers")
        assert many.sites[3].text == "`/layer0/3/Conv_output_0` has 2 readers"
        assert (one.count, one.sites[0].operator, one.sites[0].text) == (1, "Softmax", "")
        # The same decline by a candidate and by the run is one site.
        assert one.sites[0].who == "ort int8-mse"

    def test_a_decline_of_many_candidates_names_some(self, typical: Run) -> None:
        decline = Decline(stage="quantize", node="n", operator="Op", reason="why")
        outcomes = tuple(msgspec.structs.replace(x, declines=(decline,)) for x in typical.outcomes)
        (group,) = account.declines(msgspec.structs.replace(typical, declines=(), outcomes=outcomes))
        assert group.count == 1
        assert group.sites[0].who == "ort untouched, ort fused, ort fp16-weights and 9 more"

    def test_long_lists_say_how_much_is_left_out(self, typical: Run) -> None:
        changes = tuple(Change(stage="s", node=f"n{i}", what="did it") for i in range(1000))
        (group,) = account.changes(msgspec.structs.replace(typical, changes=changes))
        assert (group.count, len(group.sites), group.left_out, group.title) == (1000, 200, 800, "did it")

    def test_counts_in_words(self, typical: Run, nothing_helped: Run) -> None:
        assert page(typical).changes_say == "59 changes by 3 passes, in run order."
        assert page(typical).declines_say == "16 sites left as they were, for 3 reasons."
        assert page(nothing_helped).changes_say.startswith("No pass changed anything")


class TestLayers:
    def test_the_costly_ones_by_name_and_the_rest_in_sum(self, typical: Run) -> None:
        table = layer_section(typical).tables[0]
        assert len(table.rows) == TOP + 1
        assert table.rows[-1].node == "the other 49 layers"
        times = sorted((layer.time_us or 0 for layer in typical.ladder[2].layers), reverse=True)
        assert table.rows[0].time == f"{times[0]:.1f} µs"
        assert table.total.share == "100 %"

    def test_one_layer_too_many_is_named(self, typical: Run) -> None:
        rung = msgspec.structs.replace(typical.ladder[2], layers=typical.ladder[2].layers[: TOP + 1])
        run = msgspec.structs.replace(typical, ladder=(typical.ladder[0], rung), chosen=1)
        assert not any(row.summed for row in layer_section(run).tables[0].rows)

    def test_without_times_there_is_no_column_of_them(self, nothing_helped: Run) -> None:
        section = layer_section(nothing_helped)
        assert (section.tables[0].timed, section.tables[0].bar, section.legend) == (False, None, ())
        assert section.tables[0].says == "Sorted by multiply-accumulates: the runtime gave no time for any layer."

    def test_costs_that_are_all_zero(self, nothing_helped: Run) -> None:
        zero = LayerCost(node="", operator="", macs=0, weight_bytes=0, activation_bytes=0, time_us=0.0)
        rung = msgspec.structs.replace(nothing_helped.ladder[0], layers=(zero, zero))
        table = layer_section(msgspec.structs.replace(nothing_helped, ladder=(rung,))).tables[0]
        assert (table.rows[0].node, table.rows[0].time, table.rows[0].share) == ("(no name)", "0 µs", NONE)
        assert table.bar is None

    def test_layers_without_a_time_are_counted(self, nothing_helped: Run) -> None:
        one = LayerCost(node="a", operator="Conv", macs=1, weight_bytes=1, activation_bytes=0, time_us=5.0)
        other = msgspec.structs.replace(one, time_us=None)
        rung = msgspec.structs.replace(nothing_helped.ladder[0], layers=(one, other))
        table = layer_section(msgspec.structs.replace(nothing_helped, ladder=(rung,))).tables[0]
        assert table.says.endswith("1 layer without a time.")
        assert table.rows[1].time == NONE


class TestFigures:
    def test_the_front_has_what_nothing_beats(self) -> None:
        def point(x: float, y: float, kind: str = "measured") -> Point:
            return Point(x=x, y=y, x_range=None, y_range=None, kind=kind, label="", tip="")

        points = [point(1, 0.5), point(2, 0.7), point(2, 0.6), point(3, 0.7), point(0.5, 0.9, "rejected")]
        assert [p.front for p in with_front(points, down=False)] == [True, True, False, False, False]
        assert [p.front for p in with_front(points, down=True)] == [True, False, False, False, False]

    def test_what_cannot_be_drawn_is_counted(self, typical: Run) -> None:
        figure = pareto_figure(typical, Terms.of(typical))
        assert figure.caption[-1].startswith("Not drawn: 2 candidates")
        assert [(key.text, key.detail) for key in figure.legend] == [
            ("chosen", "1"),
            ("original", "1"),
            ("on the ladder", "2"),
            ("measured", "5"),
            ("rejected", "1"),
        ]

    def test_a_rejected_candidate_carries_its_reason(self, typical: Run) -> None:
        wide = pareto_figure(typical, Terms.of(typical)).wide
        assert wide is not None
        assert "drop of 2.9 points on the select split</title>" in wide

    def test_without_accuracy_the_loss_is_drawn(self, without_labels: Run) -> None:
        figure = pareto_figure(without_labels, Terms.of(without_labels))
        assert figure.title == "answers changed against latency"
        assert figure.wide is not None
        assert "up is better" in figure.wide

    def test_the_cut_off_tail_is_told(self, typical: Run) -> None:
        assert "The slowest single run took 13.1 ms; the axis ends before it." in latency_figure(typical).caption


class TestPage:
    def test_facts(self, typical: Run) -> None:
        shown = page(typical)
        assert shown.started == "2026-11-22 16:31 UTC"
        assert shown.took == "12 candidates tried in 3 min 12 s"
        assert ("Input", "input: float32 [1, 3, 32, 32]") in shown.model_facts
        assert ("Frequency governor", "not readable here") in shown.machine_facts
        assert ("Load when recorded", "0.42 on 2 processors") in shown.machine_facts
        assert [key[2] for key in shown.splits.keys] == ["300", "1,250", "3,450"]

    def test_a_busy_machine_is_told(self, hostile: Run) -> None:
        facts = dict(page(hostile).machine_facts)
        assert "other work was running" in facts["Load when recorded"]
        assert facts["Instruction sets"] == "none that matter"

    def test_a_time_that_is_none_is_shown_as_it_came(self, typical: Run) -> None:
        assert page(msgspec.structs.replace(typical, started="yesterday")).started == "yesterday"

    def test_candidates(self, typical: Run) -> None:
        lines = page(typical).candidates
        assert [line.fate for line in lines].count("rejected") == 3
        last = lines[-1]
        assert (last.median, last.speed.text, last.accuracy.text, last.drop) == (NONE, NONE, NONE, NONE)
        assert last.reason == "11 times slower than the original in a first look"
