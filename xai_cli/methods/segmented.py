"""Methods that hide whole segments of the picture and give each one value: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from xai_cli.methods.contract import Attribution, Evidence
from xai_cli.methods.fills import still
from xai_cli.methods.masking import Masking, Visible, taken
from xai_cli.methods.perturbation import Perturbation
from xai_cli.methods.sampling import Estimate, checks_of
from xai_cli.options import Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, device

    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.methods.contract import Needs


@dataclass(frozen=True)
class Segments:
    """The segments of the pictures of a batch.

    Attributes:
        labels: `(B, h, w)` on the device, the number of each pixel's segment, from 0 on.
        sizes: pixels of each segment of each picture, `(P_b,)` on the CPU.
        places: of each picture the mean `[x, y]` of each segment, in pixels of the map.
        names: what the file that gave them calls them, of each picture one per segment; None if no file did.
    """

    labels: Tensor
    sizes: tuple[Tensor, ...]
    places: tuple[list[list[float]], ...]
    names: tuple[list[Any], ...] | None = None

    @classmethod
    def of(cls, found: Sequence[NDArray[np.integer]], device: device, names: tuple[list[Any], ...] | None) -> Segments:
        """Those of the labels `(h, w)` of each picture."""
        import torch

        labels = [torch.from_numpy(each.astype("int64")) for each in found]
        sizes = tuple(each.flatten().bincount() for each in labels)
        places = tuple(_centres(each, size) for each, size in zip(labels, sizes, strict=True))
        return cls(torch.stack(labels).to(device), sizes, places, names)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many segments each picture has."""
        return tuple(map(len, self.sizes))

    def visible(self, present: Sequence[Tensor]) -> Visible:
        """What is seen if of picture b, in sample s, the segments are there where `present[b][s]` `(P_b,)` is 1."""
        # (B, P, S) with room for the most segments and samples, of which those of other pictures know nothing.
        most = (max(map(len, present)), max(self.counts))
        table = present[0].new_zeros(len(present), *most[::-1], device=self.labels.device)
        for row, each in enumerate(present):
            table[row, : each.shape[1], : len(each)] = each.T
        flat = self.labels.flatten(1)

        def visible(rows: Tensor, samples: Tensor) -> Tensor:
            seen = table[rows, :, samples].gather(1, taken(flat, rows))
            return seen.unflatten(1, (1, *self.labels.shape[1:]))

        return visible

    def means(self, pictures: Tensor) -> Tensor:
        """The pictures `(B, C, h, w)` with each segment in the mean of its colours."""
        import torch

        made = torch.empty_like(pictures)
        for row, count in enumerate(self.counts):
            # In float64, on the CPU: the mean of one colour is that colour, and sums do not depend on threads.
            flat, labels = pictures[row].flatten(1).cpu().double(), self.labels[row].flatten().cpu()
            sums = flat.new_zeros(len(flat), count).index_add_(1, labels, flat)
            made[row] = (sums / self.sizes[row])[:, labels].view_as(made[row])
        return made


@dataclass(frozen=True)
class SegmentMethod(Perturbation):
    """One value per segment of the picture, from scores of the picture with some of them hidden."""

    fill: Annotated[
        Literal["segment", "mean", "black", "white", "blur", "noise", "inpaint", "image"],
        Option("What hidden pixels become: the mean colour of their segment, a colour (mean is what the model calls "
               "zero), the picture blurred, noise drawn once per picture, the mean of what is seen nearby, or another "
               "picture."),
    ] = "segment"  # type: ignore[assignment]  # fmt: skip
    segmentation: Annotated[
        Literal["slic", "quickshift", "felzenszwalb", "grid", "folder"],
        Option("How the picture is cut into segments; folder takes them from files."),
    ] = "slic"
    segments: Annotated[
        int,
        Option(
            "How many segments, about: what the picture and --segmentation allow; not used with folder.",
            min=1,
            max=4096,
        ),
    ] = 50
    segments_folder: Annotated[
        Path | None,
        Option("The segments of --segmentation folder: for cat.jpg the file cat.jpg.npy of whole numbers, or "
               "cat.jpg.png or cat.png, where each colour is a segment; of the photo's size."),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segmentation == "folder" and self.segments_folder is None:
            raise ValueError("--segmentation folder expects --segments-folder, found none; add --segments-folder PATH")
        if self.segmentation != "folder" and self.segments_folder is not None:
            raise ValueError(
                f"--segments-folder expects --segmentation folder, found --segmentation {self.segmentation}; add "
                "--segmentation folder"
            )

    def needs(self, classifier: Classifier) -> Needs:
        if self.segments_folder is not None and not self.segments_folder.is_dir():
            raise ValueError(
                f"--segments-folder expects a folder, found none at {self.segments_folder}; name one that exists"
            )
        return super().needs(classifier)

    @abstractmethod
    def estimates(self, evidence: Evidence, segments: Segments) -> list[Estimate]:
        """What is known of each picture's segments."""

    def explain(self, evidence: Evidence) -> list[Attribution]:
        import torch

        segments = evidence.common(("segments", *self._cut), lambda: self._segments(evidence))
        estimates, maps = self.estimates(evidence, segments), []
        single = torch.tensor([count == 1 for count in segments.counts])
        for rank in range(len(evidence.everyone)):
            relevance = [
                each.values[rank].to(evidence.inputs)[labels]
                for each, labels in zip(estimates, segments.labels, strict=True)
            ]
            rows = tuple(_described(each, segments, row, rank) for row, each in enumerate(estimates))
            checks = {"single_segment": single, **checks_of(estimates, rank)}
            maps.append(Attribution(torch.stack(relevance), signed=True, checks=checks, segments=rows))
        return maps

    def hidden(
        self, evidence: Evidence, segments: Segments, present: Sequence[Tensor], usual: int | None = None
    ) -> Masking:
        """The masking by tables `present[b]` `(S_b, P_b)` of what is there in each sample of each picture; where their
        lengths depend on the pictures, passes are sized by what is `usual`.
        """
        fill = still(segments.means(evidence.inputs)) if self.fill == "segment" else None
        return self.masking(evidence, segments.visible(present), [*map(len, present)], usual=usual, fill=fill)

    @property
    def _cut(self) -> tuple[object, ...]:
        return self.segmentation, self.segments, self.segments_folder

    def _segments(self, evidence: Evidence) -> Segments:
        from xai_cli.images.given_segments import given_segments
        from xai_cli.images.segments import segmented

        if self.segmentation == "folder":
            assert self.segments_folder is not None
            preprocessing, sizes = evidence.classifier.preprocessing, evidence.sizes or (None,) * len(evidence.keys)
            given = [
                given_segments(self.segments_folder, key, preprocessing, size)
                for key, size in zip(evidence.keys, sizes, strict=True)
            ]
            names = tuple(each for _, each in given)
            return Segments.of([labels for labels, _ in given], evidence.inputs.device, names)
        pixels = evidence.classifier.pixels(evidence.inputs)
        found = [segmented(picture, self.segmentation, self.segments) for picture in pixels]
        return Segments.of(found, evidence.inputs.device, None)


def with_ends(present: Tensor) -> Tensor:
    """A table `(2 + S, P)` that begins with all segments hidden, and none."""
    import torch

    ends = torch.tensor([[False], [True]]).expand(2, present.shape[1])
    return torch.cat([ends, present])


def _described(estimate: Estimate, segments: Segments, row: int, rank: int) -> dict[str, list[Any]]:
    """What a manifest row says of each segment of a picture."""
    made: dict[str, list[Any]] = {} if segments.names is None else {"name": segments.names[row]}
    made["value"] = estimate.values[rank].tolist()
    if estimate.errors is not None:
        made["error"] = estimate.errors[rank].tolist()
    return {**made, "pixels": segments.sizes[row].tolist(), "centre": segments.places[row]}


def _centres(labels: Tensor, sizes: Tensor) -> list[list[float]]:
    """The mean place `[x, y]` of each segment, in pixels of the map."""
    import torch

    height, width = labels.shape
    places = (torch.arange(width).repeat(height), torch.arange(height).repeat_interleave(width))
    sums = [labels.flatten().bincount(weights=each.double()) / sizes for each in places]
    return torch.stack(sums, dim=1).round(decimals=1).tolist()
