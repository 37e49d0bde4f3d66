"""Which build of onnxruntime is installed: there should be exactly one.

Every build (for the CPU, for CUDA, DirectML, OpenVINO, …) is a distribution of its own that puts its files into the
same folder `onnxruntime`. Of two, what was installed last has overwritten the other; when one is uninstalled, it takes
the files of both. Nothing here imports onnxruntime.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from onnxprune.errors import RunError

PACKAGE = "onnxruntime"
KNOWN = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-vitisai",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "onnxruntime-training-cpu",
    "ort-nightly",
    "ort-nightly-gpu",
    "ort-nightly-directml",
)
_ANY = "pip install onnxruntime-gpu (with CUDA) or pip install onnxruntime (without)"


@dataclass(frozen=True)
class Builds:
    """The distributions by name, with their versions, and the folder that Python would import; None for none.

    whole: whether the folder has the compiled code that makes it onnxruntime.
    """

    installed: tuple[tuple[str, str], ...]
    folder: Path | None
    whole: bool

    @classmethod
    def found(cls) -> Builds:
        """Those of this environment."""
        installed = []
        for name in KNOWN:
            try:
                installed.append((name, version(name)))
            except PackageNotFoundError:
                continue
        spec = find_spec(PACKAGE)
        if spec is None:
            return cls(tuple(installed), None, False)
        folder = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
        code = any(folder.glob("capi/onnxruntime_pybind11_state*"))
        return cls(tuple(installed), folder, spec.origin is not None and code)

    def check(self) -> None:
        """Raises RunError where there is none that could run, with what mends it."""
        if self.whole:
            return
        if self.folder is None and not self.installed:
            raise RunError(f"onnxruntime is not installed: {_ANY}")
        names = [name for name, _ in self.installed]
        if len(names) == 1:
            named = f"{names[0]}=={self.installed[0][1]}"
            raise RunError(
                f"{names[0]} is installed, but its files are not: another build in the same folder was uninstalled, "
                f"and took them; pip install --force-reinstall --no-deps {named}"
            )
        if names:
            raise RunError(f"{', '.join(names)} have spoilt each other: {_mended(names)}")
        raise RunError(f"{self.folder} is what an uninstalled build of onnxruntime has left: remove it, then {_ANY}")

    def doubt(self) -> str:
        """One line where several builds lie in one folder: which of them runs, and how to mend it; else nothing."""
        if len(self.installed) < 2:
            return ""
        names = [name for name, _ in self.installed]
        runs = _runs(self.folder)
        return (
            f"{len(names)} builds of onnxruntime are in one folder ({', '.join(map(' '.join, self.installed))}): "
            f"{f'{runs} runs' if runs else 'which of them runs is a matter of luck'}, and uninstalling one would break "
            f"both; {_mended(names, runs.partition(' ')[0])}"
        )


def _runs(folder: Path | None) -> str:
    """Name and version of the build whose files lie in a folder, as it says itself; empty where it does not."""
    if folder is None:
        return ""
    try:
        text = (folder / "capi" / "build_and_package_info.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    found = dict(re.findall(r"^(package_name|__version__) = '([\w.+-]+)'$", text, flags=re.MULTILINE))
    return f"{found.get('package_name', '')} {found.get('__version__', '')}" if "package_name" in found else ""


def _mended(names: list[str], keep: str = "") -> str:
    kept = keep if keep in names else next((n for n in names if n != PACKAGE), names[0])
    return f"pip uninstall -y {' '.join(names)} && pip install {kept}"
