"""Imports that need torchvision, where its compiled operators may not fit the installed torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_torchvision_operators() -> Iterator[None]:
    """Inside, `import torchvision` passes over operators that torch does not know; its networks do not use them."""
    import torch

    register = torch.library.register_fake

    def register_known(op: Any, *args: Any, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *args, **options)

    torch.library.register_fake = register_known
    try:
        yield
    finally:
        torch.library.register_fake = register
