"""The experts that go as a whole, as --drop-experts says: gone before anything else is looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import onnx

from onnxprune.calibration.experts_used import use_of
from onnxprune.config import PruneConfig
from onnxprune.data.samples import Samples
from onnxprune.errors import UsageError
from onnxprune.graph import external, tensor_files
from onnxprune.normalise.unfused.facts import Measured
from onnxprune.normalise.unfused.site import Unknown
from onnxprune.numerics.arrays import Doubles
from onnxprune.options import first_of, nearest
from onnxprune.plan import ExpertsPlan
from onnxprune.report.summary import ExpertsRow
from onnxprune.surgery import mixtures
from onnxprune.surgery.mixtures import Mixture, mixtures_of
from onnxprune.verification.unchosen import never_chosen

DROP_EXPERTS = "--drop-experts"
_SHOWN = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class DroppedExperts:
    """What became of the mixtures of a model.

    whole: the model with all experts, which is what the result is compared with. rows: the mixtures that lost some.
    routers: of each, the tensor of its logits, and how many products each of these takes.
    types: ONNX's numbers of the element types of their logits. notes: on what went, and what stays.
    """

    whole: onnx.ModelProto
    rows: tuple[ExpertsRow, ...]
    routers: tuple[tuple[str, int], ...]
    types: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """By name of a mixture, its experts that stay."""
        return {r.name: r.kept for r in self.rows}

    @property
    def planned(self) -> tuple[ExpertsPlan, ...]:
        """The same, for a plan."""
        return tuple(ExpertsPlan(r.name, r.experts, r.kept) for r in self.rows)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """How many experts each mixture has, before and after."""
        kept = self.kept
        return tuple((m.count, len(kept.get(m.name, range(m.count)))) for m in mixtures_of(self.whole))

    def cut(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """A model with these mixtures, without the experts that went."""
        return mixtures.without_experts(proto, self.kept)

    def masked(self) -> onnx.ModelProto:
        """The model with all experts, of which those that went are never chosen."""
        own = {r.name: (r.experts, r.kept) for r in self.rows}
        kept = {e: own[m.name] for m in mixtures_of(self.whole) if m.name in own for e in m.compared}
        return never_chosen(self.whole, kept, self.types)


def without_experts(
    proto: onnx.ModelProto, samples: Samples, settings: PruneConfig, planned: Sequence[ExpertsPlan] | None = None
) -> tuple[onnx.ModelProto, DroppedExperts | None]:
    """The model without the experts that go, and which these are; None where none are to go.

    planned: what a plan keeps, which is not measured again. Raises UsageError where none can go, or not so many.
    """
    if not settings.drop_experts:
        return proto, None
    there = mixtures_of(proto)
    if not there and planned is not None:
        raise UsageError(
            "the plan is of another model: it takes experts out of mixtures (MoE, QMoE), and here are none; make a new "
            "plan"
        )
    if not there:
        raise UsageError(
            f"{DROP_EXPERTS} is about models with the operators MoE or QMoE outside of bodies, and here are none: "
            "leave it out"
        )
    types = _types(proto, [proto.graph.node[k].input[i] for m in there for k, i in m.compared], samples)
    notes: tuple[str, ...] = ()
    if planned is None:
        rows, notes = _chosen(proto, there, samples, settings, types)
    else:
        rows = _planned(there, planned)
        notes = _told_of_sharing(there, {r.name for r in rows})
    by_name = {m.name: m for m in there}
    own = [by_name[r.name] for r in rows]
    routers = tuple((proto.graph.node[m.node].input[1], m.width) for m in own)
    dropped = DroppedExperts(whole=proto, rows=rows, routers=routers, types=types, notes=())
    narrow = dropped.cut(proto)
    saved = external.model_bytes(proto) - external.model_bytes(narrow)
    said = (
        f"{DROP_EXPERTS}: {_number(sum(len(r.gone) for r in rows), 'expert')} went from "
        f"{_number(len(rows), 'mixture')}, which saves {saved} "
        "bytes of weights; each position still goes to as many experts, so MACs stay but for those of routers; a ratio "
        "counts what is left then"
    )
    if external.embedded_bytes(narrow) >= external.LARGE_BYTES:
        narrow = tensor_files.outside(narrow)
    return narrow, replace(dropped, notes=(*notes, said))


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _types(proto: onnx.ModelProto, logits: Sequence[str], samples: Samples) -> dict[str, int]:
    """ONNX's numbers of the element types, as far as they can be told."""
    facts, types = Measured(proto, samples.example(), logits, ()), dict[str, int]()
    for name in logits:
        with suppress(Unknown):
            types[name] = facts.type_of(name)
    return types


def _planned(mixtures: Sequence[Mixture], planned: Sequence[ExpertsPlan]) -> tuple[ExpertsRow, ...]:
    counts = {m.name: m for m in mixtures if not m.stays}
    kept = {p.name: p.kept for p in planned}
    rows = []
    for p in planned:
        m = counts.get(p.name)
        if m is None or m.count != p.count:
            raise UsageError(f"the plan's mixture {p.name!r} ({p.count} experts) is not in this model; make a new plan")
        if len(p.kept) < m.chosen:
            raise UsageError(
                f"the plan keeps {_number(len(p.kept), 'expert')} of {p.name!r}, which sends each position to "
                f"{m.chosen}; make a new plan"
            )
        other = next((s for s in m.shares if kept.get(s) != p.kept), None)
        if other is not None:
            raise UsageError(
                f"the plan keeps other experts of {p.name!r} than of {other!r}, and these share weights; "
                "make a new plan"
            )
        rows.append(_row(m, [e for e in range(m.count) if e not in p.kept]))
    return tuple(rows)


def _chosen(
    proto: onnx.ModelProto,
    mixtures: Sequence[Mixture],
    samples: Samples,
    settings: PruneConfig,
    types: Mapping[str, int],
) -> tuple[tuple[ExpertsRow, ...], tuple[str, ...]]:
    """The mixtures that lose experts, and what there is to say of others."""
    named = _named(mixtures, settings)
    rows = {m.name: _row(m, named[m.name]) for m in mixtures if m.name in named}
    count = settings.fewer_experts
    notes: tuple[str, ...] = ()
    if count:
        others = [m for m in mixtures if m.name not in named]
        free = [m for m in others if not m.stays]
        if not free and not rows:
            raise UsageError(f"{DROP_EXPERTS}: no expert can go: {others[0].name}: {others[0].stays}")
        few = next((m for m in free if m.count - count < m.chosen), None)
        if few is not None:
            raise UsageError(
                f"{DROP_EXPERTS} {count}: each position goes to {few.chosen} of the {few.count} experts of "
                f"{few.name}, so that at most {few.count - few.chosen} can go"
            )
        use = use_of(proto, free, samples, types) if free else {}
        for m in free:
            together = np.sum([use[name].use for name in (m.name, *m.shares)], axis=0)
            rows[m.name] = _row(m, _least(together, count), use[m.name].use)
        notes = tuple(f"{DROP_EXPERTS}: all experts of {m.name} stay: {m.stays}" for m in others if m.stays)
    notes = (*notes, *_told_of_sharing(mixtures, rows.keys()))
    return tuple(rows[m.name] for m in mixtures if m.name in rows), notes


def _told_of_sharing(mixtures: Sequence[Mixture], cut: Collection[str]) -> tuple[str, ...]:
    """Which mixtures lose the same experts, as they share weights."""
    names = {tuple(sorted((m.name, *m.shares))) for m in mixtures if m.shares and m.name in cut}
    return tuple(
        f"{DROP_EXPERTS}: {first_of(n, _SHOWN)} share weights, and lose the same experts; where their inner units go "
        "too, each has weights of its own in the result"
        for n in sorted(names)
    )


def _named(mixtures: Sequence[Mixture], settings: PruneConfig) -> dict[str, list[int]]:
    """The experts that go from mixtures that patterns match, and from those that share weights with one of these.

    The last pattern that matches counts.
    """
    found: dict[str, list[int]] = {}
    by_name = {m.name: m for m in mixtures}
    for pattern, experts in settings.experts_named:
        own = [m for m in mixtures if fnmatchcase(m.name, pattern)]
        if not own:
            near = nearest(pattern.strip("*"), [m.name for m in mixtures], _SHOWN)
            hint = f"did you mean {near}?" if near else f"the first is called {mixtures[0].name!r}"
            raise UsageError(f"{DROP_EXPERTS} {pattern!r} matches no mixture of experts; {hint}")
        also = {name for m in own for name in m.shares} - {m.name for m in own}
        for m in (*own, *(by_name[name] for name in sorted(also))):
            if m.stays:
                raise UsageError(f"{DROP_EXPERTS}: no expert of {m.name} can go: {m.stays}")
            if experts[-1] >= m.count:
                raise UsageError(f"{DROP_EXPERTS}: {m.name} has the experts 0 to {m.count - 1}, and no {experts[-1]}")
            if m.count - len(experts) < m.chosen:
                raise UsageError(
                    f"{DROP_EXPERTS}: each position goes to {m.chosen} of the {m.count} experts of {m.name}, so that "
                    f"at most {m.count - m.chosen} can go, and {len(experts)} are named"
                )
            found[m.name] = list(experts)
    return found


def _least(use: Doubles, count: int) -> list[int]:
    """The experts that give least; of equal ones the last."""
    order = np.lexsort((-np.arange(use.size), use))
    return sorted(order[:count].tolist())


def _row(m: Mixture, gone: Sequence[int], use: Doubles | None = None) -> ExpertsRow:
    total = 0.0 if use is None else float(use.sum())
    return ExpertsRow(
        name=m.name,
        experts=m.count,
        kept=tuple(e for e in range(m.count) if e not in gone),
        gone=tuple(gone),
        lost=None if use is None or not total else float(use[list(gone)].sum()) / total,
    )


def told_of_experts(proto: onnx.ModelProto) -> tuple[str, ...]:
    """What an inspection says of experts that could go: mixtures that are alike in one line."""
    alike: dict[str, list[str]] = {}
    for m in mixtures_of(proto):
        text = m.stays or f"{m.count - m.chosen} of {m.count} experts can go, {m.chosen} have to stay"
        if m.shares and not m.stays:
            text += "; the same go from all that share weights"
        alike.setdefault(text, []).append(m.name)
    return tuple(
        f"mixtures of experts ({DROP_EXPERTS}): {first_of(names, _SHOWN)}: {text}" for text, names in alike.items()
    )
