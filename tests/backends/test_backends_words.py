"""Runtimes' words, cut down."""

from __future__ import annotations

import pytest

from edgewise.backends.words import refused, trimmed
from edgewise.errors import BackendError, ResourceError

ORT = "[ONNXRuntimeError] : 1 : FAIL : Fatal error: example.com:Frobnicate(-1) is not a registered function/op"
OPENVINO = """Exception from src/inference/src/cpp/core.cpp:105:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted.
Summary:
-- No conversion rule found for operations: example.com.Frobnicate
To facilitate the conversion of unsupported operations, refer to Frontend Extension documentation: https://docs
"""
REWRITING = """Exception from src/core/src/pass/graph_rewrite.cpp:298:
[LSTMCellDecomposition] END: node: opset4::LSTMCell -> (f32[?,100]) CALLBACK HAS THROWN: Exception from src/u.cpp:294:
Unsupported activation function


"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (ORT, "Fatal error: example.com:Frobnicate(-1) is not a registered function/op."),
        (OPENVINO, "No conversion rule found for operations: example.com.Frobnicate."),
        (REWRITING, "Unsupported activation function."),
        ("", "It gave no reason."),
        ("Ends in a dot.", "Ends in a dot."),
    ],
)
def test_what_is_left_is_the_reason(words: str, expected: str) -> None:
    assert trimmed(words) == expected


def test_long_words_are_cut_at_a_word() -> None:
    cut = trimmed("word " * 200)
    assert len(cut) <= 310
    assert cut == f"{'word ' * 59}word ."


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Failed to allocate memory for buffer")]
)
def test_running_out_of_memory_is_the_users_to_fix(error: Exception) -> None:
    made = refused("A runtime", "running the model", error)
    assert isinstance(made, ResourceError)
    assert made.hint is not None


def test_anything_else_is_the_backends() -> None:
    made = refused("A runtime", "running the model", RuntimeError(ORT))
    assert isinstance(made, BackendError)
    assert made.message.startswith("A runtime failed at running the model. In its own words: Fatal error")
