"""onnxruntime-genai's builder for Gemma 3, whose rotary settings transformers 5 keeps by kind of layer.

    python benchmarks/gemma3_builder.py -i FOLDER -o OUT -p fp32 -e cpu -c CACHE

The builder (0.18.0) reads one set of settings, and the base of the layers with a window by the name that it had before:
without this it ends with "KeyError: 'rope_type'". It takes the options of `onnxruntime_genai.models.builder`.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the builder on settings in the form that it reads."""
    found = importlib.util.find_spec("onnxruntime_genai")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps onnxruntime-genai")
    # The builder imports its parts as top-level modules.
    sys.path.insert(0, str(Path(found.origin).parent / "models"))
    model = importlib.import_module("builders.gemma").Gemma3Model
    own = model.__init__

    def told(self: object, config: Any, *rest: Any) -> None:
        config = copy.deepcopy(config)
        kinds = config.rope_parameters
        config.rope_local_base_freq = kinds["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(kinds["full_attention"])
        own(self, config, *rest)

    model.__init__ = told
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
