"""What a file of features must hold for its readers: records (of any maker) and the arrays of an unfinished build (ours)."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from circuit_tracer.errors import FileFormatError
from circuit_tracer.features.summary import BINS

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
Text = Annotated[str, Field(strict=True)]


class Example(BaseModel):
    """A stretch of text, and how active the feature was on each of its tokens."""

    model_config = ConfigDict(extra="allow")

    tokens: list[Text]
    tokens_acts_list: list[Number]
    train_token_ind: Count
    is_repeated_datapoint: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Example:
        if len(self.tokens) != len(self.tokens_acts_list) or self.train_token_ind >= max(len(self.tokens), 1):
            raise ValueError("tokens and tokens_acts_list are of one length, and train_token_ind is a place in them")
        return self


class Group(BaseModel):
    """Examples of one range of activations."""

    model_config = ConfigDict(extra="allow")

    quantile_name: Text
    examples: list[Example]


class FeatureRecord(BaseModel):
    """What is known of one feature; circuit-tracer's records have the first two fields alone for certain."""

    model_config = ConfigDict(extra="allow")

    index: Count
    examples_quantiles: list[Group]
    top_logits: list[Text] = []
    bottom_logits: list[Text] = []
    top_logit_values: list[Number] | None = None
    bottom_logit_values: list[Number] | None = None
    logit_spread: Number | None = None
    n_vocabulary: Count | None = None
    act_min: Number | None = None
    act_max: Number | None = None
    quantile_values: list[Number] | None = None
    histogram: list[Number] | None = None
    n_active: Count | None = None
    n_tokens: Count | None = None
    activation_frequency: Number | None = None

    @model_validator(mode="after")
    def _fits(self) -> FeatureRecord:
        for tokens, values in (
            (self.top_logits, self.top_logit_values),
            (self.bottom_logits, self.bottom_logit_values),
        ):
            if values is not None and len(tokens) != len(values):
                raise ValueError("tokens and their values are of one length")
        return self


class Offsets(BaseModel):
    """A layer of an index: record i lies from offsets[i] to offsets[i + 1]."""

    model_config = ConfigDict(extra="allow")

    filename: Text
    offsets: list[Count]

    @model_validator(mode="after")
    def _fits(self) -> Offsets:
        if any(after < before for before, after in zip(self.offsets, self.offsets[1:], strict=False)):
            raise ValueError("offsets do not ascend")
        if "/" in self.filename or "\\" in self.filename or self.filename in ("", ".", ".."):
            raise ValueError("the file lies outside of its folder")
        return self


# Arrays of a LayerSummary: type, and shape in n features, B bins; of Examples in m examples, W tokens.
_SUMMARY = {
    "feature": ("int64", "n"), "count": ("int64", "n"), "most": ("float32", "n"), "least": ("float32", "n"),
    "exponent": ("int64", "n"), "bins": ("int64", "nB"),
}  # fmt: skip
_EXAMPLES = {
    "feature": ("int64", "m"), "value": ("float32", "m"), "place": ("int64", "m"), "key": ("uint64", "m"),
    "tokens": ("int32", "mW"), "acts": ("float32", "mW"),
}  # fmt: skip


def require_summary(arrays: dict[str, np.ndarray], source: Any) -> None:
    """That these are the arrays of a layer's summary, ascending by feature and finite. Raises FileFormatError."""
    tables = {"": _SUMMARY, "top.": _EXAMPLES, "sample.": _EXAMPLES}
    expected = {f"{prefix}{name}": each for prefix, table in tables.items() for name, each in table.items()}
    if arrays.keys() != expected.keys():
        different = ", ".join(sorted(arrays.keys() ^ expected.keys()))
        raise FileFormatError(f"{source} has other arrays than it should: {different[:200]}")
    for prefix, table in tables.items():
        sizes: dict[str, int] = {"B": BINS}
        for name, (dtype, axes) in table.items():
            array = arrays[prefix + name]
            fits = array.dtype == dtype and array.ndim == len(axes)
            fits = fits and all(
                sizes.setdefault(axis, extent) == extent for axis, extent in zip(axes, array.shape, strict=True)
            )
            if not fits or not np.isfinite(array).all():
                raise FileFormatError(f"{source}: {prefix}{name} is damaged: {array.dtype} of shape {array.shape}")
        steps = np.diff(arrays[f"{prefix}feature"])
        if (steps < (0 if prefix else 1)).any() or (arrays[f"{prefix}feature"] < 0).any():
            raise FileFormatError(f"{source}: {prefix}feature does not ascend")
