"""What was measured. A number carries its unit in its name and its conditions beside it."""

from __future__ import annotations

from edgewise.records.codec import Record


class Latency(Record, frozen=True, kw_only=True):
    """Time of one inference, warm, taken in turns with the other candidates of its group.

    Attributes:
        median_us: Median in microseconds; p90_us, p99_us and max_us likewise.
        runs: Number of timed inferences.
        rounds_us: The median of each round: what is compared, round by round, between candidates of one group.
        quantiles_us: The 0 %, 1 %, ... 100 % quantiles of all runs: the distribution, for plots.
        threads: Threads that the inference used.
        pinned: Whether the operating system kept the worker on one set of processors.
    """

    median_us: float
    p90_us: float
    p99_us: float
    max_us: float
    runs: int
    rounds_us: tuple[float, ...]
    quantiles_us: tuple[float, ...]
    threads: int
    pinned: bool


class Ratio(Record, frozen=True, kw_only=True):
    """How many times faster (or smaller) something is than what it replaces.

    Attributes:
        value: Median over the rounds of `reference / candidate`: above 1 is better.
        low: Lower end of the confidence interval.
        high: Upper end.
        confidence: Two-sided confidence level of the interval, for example 0.95.
        rounds: Number of paired rounds.
    """

    value: float
    low: float
    high: float
    confidence: float
    rounds: int


class ColdStart(Record, frozen=True, kw_only=True):
    """What the first answer costs in a fresh process.

    Attributes:
        import_ms: Importing the session code and the runtime.
        load_ms: Loading the artifact.
        first_run_ms: The first inference.
    """

    import_ms: float
    load_ms: float
    first_run_ms: float


class PeakMemory(Record, frozen=True, kw_only=True):
    """Peak resident memory of a fresh process that loads the artifact and runs it.

    Attributes:
        peak_bytes: Peak of the whole process.
        before_bytes: Peak before the artifact was loaded: interpreter, numpy and the runtime's own code.
    """

    peak_bytes: int
    before_bytes: int


class Energy(Record, frozen=True, kw_only=True):
    """Energy of one inference, or why it cannot be measured here.

    Attributes:
        joules: Joules of the processor package above idle per inference, or None.
        source: The counter that was read, or why there is none.
    """

    joules: float | None
    source: str


class Accuracy(Record, frozen=True, kw_only=True):
    """A metric with its interval.

    Attributes:
        metric: Name of the metric.
        value: The value on these samples.
        low: Lower end of the two-sided interval.
        high: Upper end.
        confidence: Level of the interval.
        method: How the interval was made, for example `Clopper-Pearson`.
        n: Number of samples.
        higher_is_better: Direction of the metric.
    """

    metric: str
    value: float
    low: float
    high: float
    confidence: float
    method: str
    n: int
    higher_is_better: bool


class LayerCost(Record, frozen=True, kw_only=True):
    """One node of a graph.

    Attributes:
        node: Its name.
        operator: Its operator type.
        macs: Multiply-accumulates of one inference.
        weight_bytes: Bytes of its constants.
        activation_bytes: Bytes that it reads and writes, without constants.
        time_us: Measured time of one inference in microseconds, or None where the backend gives none.
    """

    node: str
    operator: str
    macs: int
    weight_bytes: int
    activation_bytes: int
    time_us: float | None = None
