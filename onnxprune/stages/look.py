"""A look at the data, before anything is calibrated on them."""

from __future__ import annotations

from onnxprune.intake.preview import Preview, contact_sheet, labels_of, unscaled, views_of
from onnxprune.stages.load import Loaded


def looked_at(loaded: Loaded, *, pictures: bool) -> tuple[Preview, bytes]:
    """(what the data look like, a PNG with some of the images, empty unless that is asked for).

    Raises UsageError where there are no images to show.
    """
    samples = loaded.fit
    views = views_of(loaded.parts, loaded.figures)
    seen = Preview(
        loaded.source.path,
        samples.origin,
        samples.prepared,
        loaded.data_sha256,
        loaded.count,
        views,
        labels_of(loaded.parts),
        (*loaded.doubts, *unscaled(views, loaded.doubts)),
        loaded.notes,
    )
    return seen, contact_sheet(samples, loaded.figures) if pictures else b""
