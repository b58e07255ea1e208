"""A text that is longer than the model's context, read in windows that overlap by half.

Every window begins with the tokens in front of the text that nobody reads (the special one). A token is read once, in the first
window that holds it, and behind the first window at least half a window lies before it. Letters: P positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from circuit_tracer.errors import InputError
from circuit_tracer.probes.reading import Tokens

LEAST = 8  # tokens of a window besides those in front


class Window(NamedTuple):
    """A part of a text, in which those tokens count that are read here. place: (P,) where they stand in the whole."""

    tokens: Tokens
    place: np.ndarray


def windows(text: Tokens, most: int | None) -> list[Window]:
    """Windows of at most `most` tokens (None: no limit); together they count every counted token once. Raises InputError."""
    n_pos, n_front = len(text.ids), int(np.argmax(text.counted))
    if most is not None and most < n_front + LEAST:
        raise InputError(f"a window of {most} tokens is too short; at least {n_front + LEAST} are needed")
    if most is None or n_pos <= most:
        return [Window(text, np.arange(n_pos))]
    own, read, found = most - n_front, n_front, []
    for start in range(n_front, n_pos, own // 2):
        stop = min(start + own, n_pos)
        place = np.concatenate([np.arange(n_front), np.arange(start, stop)])
        counted = text.counted[place] & (place >= read)
        if counted.any():
            ids = text.ids[torch.from_numpy(place)]
            found.append(
                Window(replace(text, ids=ids, start=text.start[place], stop=text.stop[place], counted=counted), place)
            )
        read = stop
        if stop == n_pos:
            break
    return found
