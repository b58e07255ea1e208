"""What a comparison says, in sentences, and when it must not say more."""

from __future__ import annotations

from collections.abc import Sequence

from circuit_tracer.many.comparison.schema import Share, Side

UNEXPLAINED = 0.5  # share of the mass of a change above which nothing is concluded from its features


def unexplained(shares: Sequence[Share]) -> float:
    """Share of Σ|difference| over all nodes that errors and unselected features carry; 0 where nothing changes."""
    mass = {share.kind: share.mass for share in shares}
    whole = sum(mass.values())
    return (mass["error"] + mass["unselected"]) / whole if whole else 0.0


def verdict(target: str, a: Side, b: Side, shares: Sequence[Share], same: Sequence[str]) -> list[str]:
    """What changes and by what, first; then what cannot be told from it."""
    change, part = b.value - a.value, {share.kind: share for share in shares}
    if not any(share.mass for share in shares):
        return [f"Nothing differs: every node gives {target!r} the same, to the bit."]
    features = part["feature"]
    found = [
        f"{target!r} goes from {a.value:.4g} to {b.value:.4g} ({change:+.4g}): features {features.difference:+.4g}, errors "
        f"{part['error'].difference:+.4g}, tokens {part['token'].difference:+.4g}, biases {part['bias'].difference:+.4g}, "
        f"unselected {part['unselected'].difference:+.4g}.",
        f"Of features in both graphs, {features.activation:+.4g} is due to activations and {features.weight:+.4g} to weights; "
        f"features that only the second has give {features.appeared:+.4g}, those that only the first has "
        f"{features.disappeared:+.4g}.",
    ]
    lost = unexplained(shares)
    if lost > UNEXPLAINED:
        cause = (
            "the dictionary does not explain what changed (is it of the model before fine-tuning?)"
            if part["error"].mass >= part["unselected"].mass
            else "trace both graphs with more feature nodes"
        )
        found.append(
            f"No conclusion: errors and unselected features carry {lost:.0%} of all that changes; {cause}. Which features "
            "the change comes from cannot be told from these graphs."
        )
    if "dictionary" not in same:
        found.append(
            "The graphs do not say whether they were traced with one dictionary; features of two have nothing in common."
        )
    return found
