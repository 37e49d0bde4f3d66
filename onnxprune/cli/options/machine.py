"""Where the result will run, and where the work is done."""

from __future__ import annotations

from onnxprune.cli.options.names import DEFAULTS
from onnxprune.cli.options.section import Section, option, with_default
from onnxprune.cli.options.shared import CUSTOM_OPS
from onnxprune.cli.values import Choice, parse_size
from onnxprune.config import PROVIDERS
from onnxprune.targets.alignment import TARGETS

MACHINE = Section(
    "Where it runs",
    option(
        "--target",
        type=Choice(tuple(TARGETS)),
        **with_default(DEFAULTS.target),
        help="Where OUT will run. It decides what --round-to auto means; for tensorrt-* the model is also held against "
        "what TensorRT's ONNX parser accepts. --budget latency times there, unless --provider says where.",
    ),
    option(
        "--provider",
        type=Choice(PROVIDERS),
        show_default=f"{PROVIDERS[0]}; for --budget latency that of --target",
        help="Where calibration, the walks of selection and refit, trial cuts and recovery run (the checks stay on the "
        "CPU), and what --bench and --budget latency time. Not given, --budget latency is timed on what stands for "
        "--target.",
    ),
    option(
        "--jobs",
        type=int,
        **with_default(1),
        metavar="N",
        help="Processes that calibrate, select and try cuts. They share the cores of this machine: at most 4 to a "
        "core, and 8 anywhere.",
    ),
    option(
        "--scheduler",
        metavar="URL",
        show_default="none",
        help="A Dask scheduler, such as tcp://host:8786, whose workers calibrate, select and try cuts instead.",
    ),
    option(
        "--memory",
        type=parse_size,
        metavar="SIZE",
        **with_default(f"{DEFAULTS.memory >> 20}M"),
        help="What cached activations of one model may take, such as 512M or 2G.",
    ),
    option(
        "--work",
        metavar="FOLDER",
        show_default="none",
        help="A folder for what is computed on the way. The same command takes it up again after it was ended, be it "
        "killed; the folder is left there, and may take several times what the model does.",
    ),
    option(
        "--batch",
        type=int,
        **with_default(DEFAULTS.batch),
        help="Samples in the run whose time --budget latency counts.",
    ),
    option(
        "--threads",
        type=int,
        show_default="onnxruntime's own choice",
        help="Threads of onnxruntime in the run whose time --budget latency counts.",
    ),
    CUSTOM_OPS,
)
