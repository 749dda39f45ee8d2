"""Logits become masks: what interpolation, pycocotools and segment-anything's figures would give, at less cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from segment_anything.utils.amg import calculate_stability_score
from torch.nn.functional import interpolate

from labelmill.operators.engines.segmentation import masks as module
from labelmill.operators.engines.segmentation.masks import Axis, masks

CPU = torch.device("cpu")


def padded(low: int, side: int, height: int, width: int) -> tuple[tuple[int, int], Axis, Axis]:
    """SAM's two stages: up to the model's side, padding off, then to the image."""
    scale = side / max(height, width)
    high, wide = int(height * scale + 0.5), int(width * scale + 0.5)
    rows, columns = (
        Axis(low, ((side, kept), (pixels, pixels)), CPU) for kept, pixels in ((high, height), (wide, width))
    )
    return (high, wide), rows, columns


def reference(logits: torch.Tensor, side: int, kept: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """As segment-anything's `Sam.postprocess_masks`."""
    large = interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
    return interpolate(large[..., : kept[0], : kept[1]], size, mode="bilinear", align_corners=False)[:, 0]


def blobs(count: int, low: int) -> torch.Tensor:
    """Round hills of logits here and there, some beyond the border."""
    rng = np.random.default_rng(count)
    y, x = torch.meshgrid(torch.arange(low), torch.arange(low), indexing="ij")
    hills = [
        radius - ((y - top) ** 2 + (x - left) ** 2).sqrt()
        for top, left, radius in zip(*rng.uniform(0, low, (2, count)), rng.uniform(2, low / 3, count), strict=True)
    ]
    return torch.stack(hills).float()


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (37, 211), (1500, 20), (64, 64), (21, 13), (3, 200)])
@pytest.mark.parametrize("kind", ["blobs", "noise", "everywhere"])
def test_the_masks_of_two_stages_of_interpolation(size: tuple[int, int], kind: str) -> None:
    low, side = 64, 256
    logits = {
        "blobs": blobs(6, low),
        "noise": 3 * torch.randn(3, low, low, generator=torch.Generator().manual_seed(0)),
        "everywhere": torch.full((2, low, low), 4.0),
    }[kind]
    kept, rows, columns = padded(low, side, *size)
    wanted = reference(logits, side, kept, size)
    found = masks(logits, torch.ones(len(logits)), rows, columns)
    encoded = coco_mask.encode(np.asfortranarray((wanted > 0).byte().permute(1, 2, 0).numpy()))
    for mask, theirs, own in zip(found, encoded, wanted, strict=True):
        assert mask is not None
        pixels = coco_mask.decode({"size": list(size), "counts": mask.counts}) > 0
        sure = (own.abs() > 1e-4).numpy()
        assert (pixels == (own > 0).numpy())[sure].all()
        if sure.all():
            assert mask.counts == theirs["counts"].decode()
        stability = calculate_stability_score(own, 0.0, 1.0).nan_to_num(nan=0.0)
        assert mask.stability == pytest.approx(float(stability), abs=1e-4)
        y, x = np.nonzero(pixels)
        assert mask.box == ((x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else None)


def test_one_stage_and_several_masks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = blobs(7, 32)
    rows, columns = Axis(32, ((100, 100),), CPU), Axis(32, ((75, 75),), CPU)
    wanted = interpolate(logits[:, None], (100, 75), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(rows.weights @ logits @ columns.weights.T, wanted, atol=1e-4, rtol=0)
    alone = masks(logits, torch.ones(7), rows, columns)
    assert alone == [masks(each[None], torch.ones(1), rows, columns)[0] for each in logits]


def test_a_gpu_takes_several_masks_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.cat([blobs(5, 32), torch.full((1, 32, 32), -9.0), blobs(2, 32)])
    rows, columns = Axis(32, ((100, 100),), CPU), Axis(32, ((75, 75),), CPU)
    alone = masks(logits, torch.ones(8), rows, columns)
    for pixels in (1, 3 * 7500, 1 << 26):
        monkeypatch.setattr(module, "_together", lambda *given, pixels=pixels: max(1, pixels // 7500))
        together = masks(logits, torch.ones(8), rows, columns)
        assert [mask and mask.counts for mask in together] == [mask and mask.counts for mask in alone]
        assert [mask and mask.box for mask in together] == [mask and mask.box for mask in alone]


def test_only_what_is_near_the_mask_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = module._stability
    monkeypatch.setattr(module, "_stability", lambda part: (seen.append(part.numel()), inner(part))[1])
    logits = torch.full((2, 64, 64), -7.0)
    logits[0, 10:14, 20:30] = 5.0
    rows, columns = Axis(64, ((640, 640),), CPU), Axis(64, ((640, 640),), CPU)
    masks(logits, torch.ones(2), rows, columns)
    assert 40 * 100 < seen[0] < 70 * 130
    assert seen[1] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_rle_is_pycocotools_s(height: int, width: int, random: object) -> None:
    rng = np.random.default_rng(random.randrange(1 << 30))  # type: ignore[attr-defined]
    logits = torch.from_numpy(rng.choice([-5.0, 5.0], (4, height, width)).astype(np.float32))
    logits[0], logits[1] = 5.0, -5.0
    found = masks(logits, torch.ones(4), *(Axis(side, ((side, side),), CPU) for side in (height, width)))
    theirs = coco_mask.encode(np.asfortranarray((logits > 0).byte().permute(1, 2, 0).numpy()))
    assert [mask and mask.counts for mask in found] == [each["counts"].decode() for each in theirs]


def test_what_is_not_finite_is_none_and_spoils_no_other() -> None:
    logits = blobs(4, 32)
    rows, columns = Axis(32, ((50, 50),), CPU), Axis(32, ((50, 50),), CPU)
    good = masks(logits, torch.ones(4), rows, columns)
    logits[1, 3, 3], logits[2, 0, 0] = torch.nan, torch.inf
    found = masks(logits, torch.tensor([1.0, 1.0, 1.0, torch.nan]), rows, columns)
    assert found == [good[0], None, None, None]
    assert masks(logits[:0], torch.ones(0), rows, columns) == []
