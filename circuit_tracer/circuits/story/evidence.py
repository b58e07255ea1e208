"""What interventions say of a story's sentences, and when it counts as speaking for one.

| sentence | what is done | holds if |
|---|---|---|
| answer | nothing | the target has the weight that the graph gives it, to `SAME` |
| chains | all features of the chains are taken out at once | as "carries", and the change is outside of what random groups do |
| reads | each source is taken out by itself; a token, of the frozen net | of each, at least `PART` of what the graph predicts |
| carries | the group is taken out at once | of the target's logit, at least `PART` of what the graph predicts |
| contrast | another prompt's group is put in its place (contrast.py) | the most probable token is the other prompt's answer |

Of what the graph predicts: in its direction, and so large or larger. Taken out means: what it wrote is not written, and the
real model reacts, attention and norms too. "What random groups do" is the middle 90 % of the effects of groups of as many
features (`interventions/validation/groups.py`), all of which may be compared with what a group does.
"""

from __future__ import annotations

from circuit_tracer.circuits.story.scene import Scene
from circuit_tracer.circuits.story.story import Done, Evidence, Measurement, Quantity
from circuit_tracer.circuits.story.words import percent
from circuit_tracer.graph.validation import GroupEffect, GroupLink, GroupTest
from circuit_tracer.graph.words import feature_noun

SAME = 0.01
PART = 0.5
CHAINS = "all groups of the chains"  # as a group that is taken out


class Tested:
    """The groups of a scene as `measure_groups` found them, by title. quantity: what is measured of the target."""

    def __init__(self, scene: Scene, test: GroupTest, quantity: Quantity) -> None:
        self.scene, self.test, self.quantity = scene, test, quantity
        self.linear: Quantity = (
            "logit" if quantity == "probability" else quantity
        )  # what edges into the target add up to
        self.effects = {effect.name: effect for effect in test.effects}
        self.target = scene.titles[scene.answer]

    def answer(self) -> Evidence:
        """Of the clean run."""
        clean = self.test.clean
        if self.quantity != "probability":  # of which the graph says no more than this
            row = Measurement("clean run", (), self.target, self.quantity, clean, clean)
            return Evidence(f"The clean run gives {clean:.3g}.", True, (row,))
        told = float(self.scene.graph.targets.weight[self.scene.first_target])
        row = Measurement("clean run", (), self.target, self.quantity, told, clean, told)
        text = f"The clean run gives it {percent(clean)}; the most probable token is {_token(self.test.top)}."
        return Evidence(text, abs(clean - told) <= SAME, (row,))

    def chains(self) -> Evidence | None:
        """Of all their features."""
        effect = self.effects.get(CHAINS)
        if effect is None or effect.measured["live"] is None:
            return None
        circuit = self.test.circuit["constrained"]
        text = (
            f"Without the {effect.n_features} {feature_noun(self.scene.graph)}s of these groups {self._left(effect)}. With "
            f"nothing but the groups spoken of here, attention as it was, it is {self._amount(circuit.only)} (with nothing "
            f"at all {self._amount(circuit.nothing)})."
        )
        worth = self._worth(effect)
        return Evidence(text, _as_said(worth[1]) and self._stands_out(effect), worth)

    def reads(self, place: int) -> Evidence | None:
        """Of a group, or the output, without each of its sources."""
        rows, texts = [], []
        for link in self.scene.sources(place):
            effect = self.effects.get(self.scene.titles[link.source])
            row = None if effect is None else self._onto(effect, place)
            if row is None:
                return None
            rows.append(row)
            frozen = " in the frozen network" if row.done == "frozen ablation" else ""
            said = f"(the graph says {row.predicted:.2f})"
            texts.append(f"{row.after:.2f} without {self.scene.titles[link.source]}{frozen} {said}")
        if not rows:
            return None
        what = self.linear if place == self.scene.answer else "input"
        text = f"Its {what}, {rows[0].before:.2f} on the prompt, is {', '.join(texts)}."
        return Evidence(text, all(map(_as_said, rows)), tuple(rows))

    def carries(self, place: int) -> Evidence | None:
        """Of a group, taken out at once."""
        effect = self.effects.get(self.scene.titles[place])
        if effect is None or effect.measured["live"] is None:
            return None
        change, predicted = effect.measured["live"], effect.predicted["paths"]
        text = f"Without it {self._left(effect)}; the {self.linear} changes by {change:+.2f} (the graph says {predicted:+.2f})."
        worth = self._worth(effect)
        return Evidence(text, _as_said(worth[1]), worth)

    def _onto(self, effect: GroupEffect, place: int) -> Measurement | None:
        """What the taken-out group's loss does to a group or the output, in the real model, of tokens in the frozen network."""
        live = effect.measured["live"] is not None
        condition, by = ("live", "paths") if live else ("constrained", "edges")
        done: Done = "ablation" if live else "frozen ablation"
        nodes = tuple(effect.members)
        if place == self.scene.answer:
            before, measured, predicted = self._logit(), effect.measured[condition], effect.predicted[by]
            quantity = self.linear
        else:
            title = self.scene.titles[place]
            link: GroupLink | None = next((each for each in effect.onto if each.target == title), None)
            if link is None:
                return None
            before, measured, predicted, quantity = (
                link.clean,
                link.measured[condition],
                link.predicted[by],
                "pre-activation",
            )
        if measured is None:
            return None
        return Measurement(
            done, nodes, self.scene.titles[place], quantity, before, before + measured, before + predicted
        )

    def _worth(self, effect: GroupEffect) -> tuple[Measurement, ...]:
        """Of the target without a group: what is measured of it, and its logit."""
        left, change = effect.left["live"], effect.measured["live"]
        assert left is not None
        assert change is not None
        nodes, random, logit = tuple(effect.members), effect.random, self._logit()
        return (
            Measurement(
                "ablation", nodes, self.target, self.quantity, self.test.clean, left, None, random.left if random else None
            ),
            Measurement(
                "ablation", nodes, self.target, self.linear, logit, logit + change, logit + effect.predicted["paths"],
                logit + random.change if random else None,
            ),
        )  # fmt: skip

    def _left(self, effect: GroupEffect) -> str:
        left, top, random = effect.left["live"], effect.top["live"], effect.random
        assert left is not None
        says = "" if top is None or top == self.test.top else f" and the model says {_token(top)}"
        beside = (
            ""
            if random is None
            else f" ({random.count} random groups of its size: {self._amount(random.left)} on average)"
        )
        return f"{self.target} goes from {self._amount(self.test.clean)} to {self._amount(left)}{says}{beside}"

    def _stands_out(self, effect: GroupEffect) -> bool:
        change, random = effect.measured["live"], effect.random
        assert change is not None
        return random is None or not random.change_low <= change <= random.change_high

    def _logit(self) -> float:
        """The target's demeaned logit on the prompt, or its value; 0 where the graph does not keep it."""
        graph = self.scene.graph
        row = graph.nodes.layout.target_start + self.scene.first_target
        return 0.0 if graph.balance is None else float(graph.balance.pre_activation[row])

    def _amount(self, value: float) -> str:
        return percent(value) if self.quantity == "probability" else f"{value:.3g}"


def _as_said(row: Measurement) -> bool:
    assert row.predicted is not None
    predicted, measured = row.predicted - row.before, row.after - row.before
    return predicted * measured > 0 and abs(measured) >= PART * abs(predicted)


def _token(text: str | None) -> str:
    return "no token" if text is None else f"“{text.strip() or text}”"
