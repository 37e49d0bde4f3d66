"""Answers, by measurement, to the reviews of 'Greedy Optimization Provably Wins the Lottery' (NeurIPS 2020).

    python -m benchmarks.paper KIT [--only SECTION ...] [--quick] [--again] --output docs

KIT holds `kit.py` (with `for_model(path, split)`), trained models under `models/` and their data. Every section
writes its rows to OUTPUT/paper/results.json as they come, so that a run can be interrupted and taken up again; what
is there is not measured twice, unless --again is given. OUTPUT/paper.md and the figures beside the results are then
made from the results alone (with --only render: from those that are there). Needs matplotlib (the extra `bench`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.paper import ablation, algebra, alone, batchnorm, convergence, scaling
from benchmarks.paper.networks import Kit
from benchmarks.paper.records import Records
from onnxprune.threads import one_blas_thread

SECTIONS: dict[str, Callable[[Kit, Records, bool], None]] = {
    algebra.EQUIVALENCE: algebra.measure_equivalence,
    algebra.INTERVAL: algebra.measure_interval,
    algebra.PARAMETERS: algebra.measure_parameters,
    convergence.SECTION: convergence.measure_all,
    convergence.CONSTANTS: convergence.constants_all,
    alone.SECTION: alone.measure_all,
    convergence.COMBINED: convergence.combining_all,
    scaling.SECTION: scaling.measure_all,
    batchnorm.SECTION: batchnorm.measure_all,
    ablation.SECTION: ablation.measure_all,
}


def main() -> None:
    """Measure, then write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "render"], default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="fewer layers, runs and samples")
    parser.add_argument("--again", action="store_true", help="forget what these sections have measured before")
    parser.add_argument("--output", type=Path, required=True, help="folder of paper.md")
    args = parser.parse_args()
    records = Records(args.output / "paper" / "results.json")
    kit = Kit(args.kit)
    with one_blas_thread():
        for name, measure in SECTIONS.items():
            if name in args.only:
                if args.again:
                    records.forget(name)
                measure(kit, records, args.quick)
    from benchmarks.paper.document import write  # matplotlib is needed here alone

    records.read()
    write(records, args.output)


if __name__ == "__main__":
    main()
