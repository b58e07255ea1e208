"""Arguments by their annotations: what is taken as it is, what becomes Python's own, what is refused in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.arguments import number, typed, whole
from circuit_tracer.errors import InputError, shortened


@typed
def asked(
    count: int = 3,
    share: float | None = None,
    how: Literal["this", "that"] | None = None,
    several: Iterable[int] | None = None,
    prompt: str | Tensor | Sequence[int] = "text",
    flag: bool = False,
    anything: Any = None,
) -> tuple[Any, ...]:
    return count, share, how, several, prompt, flag


@typed
@dataclass(frozen=True)
class Settings:
    rate: float = 1.0
    names: Sequence[str] = ()


TAKEN: dict[str, tuple[dict[str, Any], Any]] = {
    "numpy's whole number": ({"count": np.int64(4)}, 4),
    "a tensor of one": ({"count": torch.tensor(4)}, 4),
    "a number of numpy's": ({"share": np.float32(0.5)}, 0.5),
    "a whole number as a number": ({"share": 2}, 2.0),
    "a word": ({"how": "that"}, "that"),
    "none": ({"share": None}, None),
    "a list": ({"several": [1, 2]}, [1, 2]),
    "a range": ({"several": range(3)}, range(3)),
    "a text that is allowed": ({"prompt": "x"}, "x"),
    "numpy's truth": ({"flag": np.bool_(True)}, True),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a part of one": ({"count": 1.5}, "count is 1.5; expected a whole number"),
    "truth as a count": ({"count": True}, "count is True"),
    "a text as a count": ({"count": "3"}, "count is '3'"),
    "no number": ({"share": math.nan}, "share is nan; expected a finite number or None"),
    "infinity": ({"share": math.inf}, "share is inf"),
    "beyond any float": ({"share": 10**400}, "share is an integer of 1,329 bits"),
    "another word": ({"how": "other"}, "how is 'other'; expected 'this' or 'that' or None"),
    "a text as a list": ({"several": "12"}, "several is '12'; expected a list or None"),
    "one number as a list": ({"several": torch.tensor(1)}, "expected a list"),
    "bytes": ({"prompt": b"x"}, "prompt is b'x'; expected text or Tensor or a list"),
    "an object": ({"prompt": object()}, "expected text or Tensor or a list"),
    "a number as truth": ({"flag": 1}, "flag is 1; expected True or False"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_counts_as_one_is_taken(case: str) -> None:
    arguments, expected = TAKEN[case]
    found = asked(**arguments)[("count", "share", "how", "several", "prompt", "flag").index(next(iter(arguments)))]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_is_refused(case: str) -> None:
    arguments, expected = REFUSED[case]
    with pytest.raises(InputError) as error:
        asked(**arguments)
    assert expected in str(error.value)


def test_arguments_in_each_others_place_are_told_their_order() -> None:
    @typed
    def traced(prompt: str, count: int) -> None: ...

    with pytest.raises(InputError, match=r"prompt is 3; expected text\. The order is prompt, count"):
        traced(3, "text")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected text$"):
        traced(3, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"traced\(\) got an unexpected keyword argument 'counted'"):
        traced("text", 3, counted=3)  # type: ignore[call-arg]


def test_settings_are_checked_like_functions() -> None:
    assert Settings(np.float64(2), ["a"]).rate == 2.0
    with pytest.raises(InputError, match="names is 'a'; expected a list"):
        Settings(names="a")
    with pytest.raises(TypeError, match="unexpected"):
        Settings(other=1)  # type: ignore[call-arg]


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.binary(), st.lists(st.integers())))
def test_a_number_is_finite_or_refused(value: Any) -> None:
    for convert, kind in ((number, float), (whole, int)):
        try:
            found = convert(value, "it")
        except InputError:
            continue
        assert type(found) is kind
        assert found == value
        assert abs(found) < math.inf


class Sour:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_messages_show_a_line_at_most() -> None:
    assert len(shortened("x" * 10**6)) <= 101
    assert "\n" not in shortened(torch.zeros(9, 9))
    assert "Sour" in shortened(Sour())
