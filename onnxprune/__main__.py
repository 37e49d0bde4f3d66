"""`python -m onnxprune`."""

from __future__ import annotations

import sys

from onnxprune.cli import main

sys.exit(main())
