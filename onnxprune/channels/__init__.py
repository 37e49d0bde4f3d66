"""The channel graph: which channels of a model stand or fall together, and why the rest cannot be removed."""

from onnxprune.channels.groups import AxisRef, ChannelGraph, Group, PinnedAxis, build
from onnxprune.channels.labels import Pinned

__all__ = ["AxisRef", "ChannelGraph", "Group", "Pinned", "PinnedAxis", "build"]
