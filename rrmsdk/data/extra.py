"""Images from elsewhere that share the training batches: compared with the data set, and given ids of their own."""

from __future__ import annotations

from dataclasses import replace

import torch

from rrmsdk.data.split import Split, Whole
from rrmsdk.errors import DataError, MismatchError


def mixed_in(extra: Whole, own: Whole) -> Split:
    """The train split of `extra`; its ids follow the last id of `own`.

    Raises:
        MismatchError: other classes (by number, where one of the two does not name them), size or channels.
        DataError: they are the images of `own`.
    """
    if len(extra.labels) != len(own.labels) or (extra.named and own.named and extra.labels != own.labels):
        raise MismatchError(
            f"labels: data set '{own.name}' has {_shown(own)}, extra '{extra.name}' {_shown(extra)}. Both need the same"
            " classes in the same order"
        )
    ours, theirs = own.train.pixels, extra.train.pixels
    for what, place in (("input size", -1), ("channels", 1)):
        if ours.shape[place] != theirs.shape[place]:
            raise MismatchError(
                f"{what}: data set '{own.name}' has {ours.shape[place]}, extra '{extra.name}' {theirs.shape[place]}"
            )
    if torch.equal(ours, theirs):
        raise DataError(
            f"extra '{extra.name}' holds the very images of '{own.name}', those held out for validation too; "
            "give other images"
        )
    first = 1 + max(int(split.ids.max()) for split in (own.train, own.test))
    return replace(extra.train, ids=first + torch.arange(len(extra.train)))


def _shown(whole: Whole) -> str:
    few = ", ".join(whole.labels[:4]) + (", ..." if len(whole.labels) > 4 else "")
    return f"{len(whole.labels)} classes ({few})"
