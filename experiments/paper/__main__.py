"""Answers, by measurement, to the reviews of 'Greedy Optimization Provably Wins the Lottery' (NeurIPS 2020).

    python -m experiments.paper KIT [--only SECTION ...] [--quick] [--again] --output docs
    python -m experiments.paper --bundled [--only SECTION ...] [--quick] --output FOLDER
    python -m experiments.paper --only render --output docs

--bundled measures the digit classifiers of models/ alone: the page reduced, from a clone and nothing else. KIT holds
`kit.py` (with `for_model(path, split)`), trained models under `models/` and their data. Every section writes its rows
to OUTPUT/paper/results.json as they come, so that a run can be interrupted and taken up again; what is there is not
measured twice, unless --again is given. OUTPUT/paper.md and the figures beside the results are then made from the
results alone; --only render does that with those that are there, and needs no KIT. Figures need matplotlib (the extra
`bench`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from experiments.paper import (
    ablation,
    algebra,
    alone,
    batchnorm,
    bundled,
    convergence,
    kept,
    paper_networks,
    routes,
    scaling,
)
from experiments.paper.document import write
from experiments.paper.networks import Bundled, Kit
from experiments.paper.records import Records
from onnxprune.threads import one_blas_thread

Section = Callable[[Kit, Records, bool], None]
SECTIONS: dict[str, Section] = {
    algebra.EQUIVALENCE: algebra.measure_equivalence,
    algebra.INTERVAL: algebra.measure_interval,
    algebra.PARAMETERS: algebra.measure_parameters,
    convergence.SECTION: convergence.measure_all,
    convergence.CONSTANTS: convergence.constants_all,
    kept.SECTION: kept.measure_all,
    alone.SECTION: alone.measure_all,
    convergence.COMBINED: convergence.combining_all,
    scaling.SECTION: scaling.measure_all,
    batchnorm.SECTION: batchnorm.measure_all,
    ablation.SECTION: ablation.measure_all,
    paper_networks.SECTION: paper_networks.measure_all,
    routes.SECTION: routes.measure_all,
    bundled.SECTION: bundled.measure_start,
}
# Where the bundled models can say less than a folder of many: None for what they cannot say at all.
OF_BUNDLED: dict[str, Section | None] = {
    batchnorm.SECTION: None,
    ablation.SECTION: bundled.ablate,
    paper_networks.SECTION: None,
    routes.SECTION: None,
    bundled.SECTION: None,
}


def main(given: list[str] | None = None) -> None:
    """Measure, then write the document."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kit", type=Path, nargs="?", help="not needed with --bundled, nor with --only render")
    parser.add_argument("--bundled", action="store_true", help="the models of the source instead of a KIT")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "render"], default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="fewer layers, runs and samples")
    parser.add_argument("--again", action="store_true", help="forget what these sections have measured before")
    parser.add_argument("--output", type=Path, required=True, help="folder of paper.md")
    args = parser.parse_args(given)
    if args.bundled and args.kit is not None:
        parser.error("give a KIT or --bundled, not both")
    records = Records(args.output / "paper" / "results.json")
    known = {**SECTIONS, **OF_BUNDLED} if args.bundled else SECTIONS
    chosen = {name: known[name] for name in SECTIONS if name in args.only}
    if chosen:
        if args.kit is None and not args.bundled:
            parser.error("KIT or --bundled is needed to measure; --only render works from the results alone")
        kit = Bundled() if args.bundled else Kit(args.kit)
        with one_blas_thread():
            for name, section in chosen.items():
                if section is None:
                    continue
                if args.again:
                    records.forget(name)
                section(kit, records, args.quick)
    records.read()
    write(records, args.output)


if __name__ == "__main__":
    main()
