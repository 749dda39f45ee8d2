"""Two layers of transformers' Grounding DINO in fewer steps: what they compute stays, but for rounding.

Most of the model's time on a CPU goes into the layers of its encoder, which see every cell of the feature maps, some
18,000 of an image. This file imports torch, so it is imported where a model is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Attended = tuple[torch.Tensor, None]
"""What was attended to, and no attention weights: nobody reads them."""

_LEAST = -50_000
"""Scores are not let below this distance from the highest: as in the model, which thinks of half precision."""

_QUERIES = 1024
"""Queries whose samples are computed at a time: what is in between stays in the processor's cache."""


def simplify(model: Any, device: torch.device) -> None:
    """Put the layers of this file in place of a loaded model's.

    Args:
        model: transformers' GroundingDinoForObjectDetection or MMGroundingDinoForObjectDetection.
        device: Where it will run. A GPU samples feature maps fast as it is.
    """
    for layer in model.model.encoder.layers:
        layer.fusion_layer.attn = Fusion(layer.fusion_layer.attn)
        deformable = layer.deformable_layer
        if isinstance(deformable.activation_fn, nn.ReLU):
            deformable.activation_fn = nn.ReLU(inplace=True)
        if device.type == "cpu":
            deformable.self_attn = Sampling(deformable.self_attn)
    if device.type == "cpu":
        for layer in model.model.decoder.layers:
            layer.encoder_attn = Sampling(layer.encoder_attn)


class Fusion(nn.Module):
    """The attention between image and text, both ways (GLIP, Li et al. 2022).

    The model projects every cell of the image to queries and values four times as wide, and what it finds back. But a
    caption has few tokens, and all projections are linear: a token's key is projected back instead, once for all cells,
    and cells are summed up before they are projected. With t tokens and h heads, a cell costs 3 · h · t · d products
    in place of 12 · d².

    Args:
        attention: The model's layer, whose weights it shares.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        vision_features: torch.Tensor,
        text_features: torch.Tensor,
        vision_attention_mask: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
    ) -> tuple[Attended, Attended]:
        """As the model's layer.

        Args:
            vision_features: (b, cells, d).
            text_features: (b, t, d).
            vision_attention_mask: bool (b, cells), true where padding is.
            text_attention_mask: bool (b, t), the same.

        Returns:
            What the cells saw in the text (b, cells, d), and the tokens in the image (b, t, d).
        """
        own, heads = self.attention, self.attention.num_heads
        batch, tokens, _ = text_features.shape
        with torch.autocast(vision_features.device.type, enabled=False):
            text = text_features.float()
            key = own.text_proj(text).view(batch, tokens, heads, -1) * own.scale
            value = own.values_text_proj(text).view(batch, tokens, heads, -1)
            asked = torch.einsum("bthe,hed->bhtd", key, _by_head(own.vision_proj.weight, heads)).flatten(1, 2)
            least = torch.einsum("bthe,he->bht", key, own.vision_proj.bias.view(heads, -1)).flatten(1, 2)
            told = torch.einsum("bthe,dhe->bhtd", value, own.out_vision_proj.weight.unflatten(1, (heads, -1)))
        scores = torch.baddbmm(least[..., None], asked, vision_features.transpose(1, 2)).view(batch, heads, tokens, -1)
        scores = (scores - scores.max()).clamp(min=_LEAST)
        of_text = (scores - scores.amax(dim=-1, keepdim=True)).clamp(min=_LEAST)
        if vision_attention_mask is not None:
            of_text = of_text.masked_fill(vision_attention_mask[:, None, None], float("-inf"))
        if text_attention_mask is not None:
            scores = scores.masked_fill(text_attention_mask[:, None, :, None], float("-inf"))
        to_text = scores.softmax(dim=2).flatten(1, 2).transpose(1, 2)
        seen_by_cells = to_text @ told.flatten(1, 2).to(to_text.dtype) + own.out_vision_proj.bias
        summed = (of_text.softmax(dim=-1).flatten(1, 2) @ vision_features).view(batch, heads, tokens, -1)
        with torch.autocast(vision_features.device.type, enabled=False):
            weights = _by_head(own.values_vision_proj.weight, heads)
            seen = torch.einsum("bhtd,hed->bthe", summed.float(), weights).flatten(2) + own.values_vision_proj.bias
            seen_by_tokens = own.out_text_proj(seen)
        return (seen_by_cells, None), (seen_by_tokens, None)


def _by_head(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """A projection's weight (h · e, d) as (h, e, d)."""
    return weight.unflatten(0, (heads, -1))


class Sampling(nn.Module):
    """Multi-scale deformable attention (Zhu et al. 2021, Deformable DETR) on a CPU.

    The model's own writes out every sample of the feature maps before it sums them up. Here each query's sum is one
    lookup, with weights, of the four cells around each sample.

    Args:
        attention: The model's layer, whose weights it shares.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention
        maps = torch.arange(attention.n_levels)
        self._map_of = maps.repeat_interleave(attention.n_points).repeat(attention.n_heads)
        offsets = attention.sampling_offsets
        self._offsets = [(offsets.weight[axis::2].contiguous(), offsets.bias[axis::2].contiguous()) for axis in (0, 1)]

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        reference_points: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        spatial_shapes_list: list[tuple[int, int]] | None = None,
        level_start_index: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> Attended:
        """As the model's layer.

        Args:
            hidden_states: (b, queries, d).
            attention_mask: bool (b, cells), false where padding is.
            encoder_hidden_states: (b, cells, d): all maps, one behind the other.
            encoder_attention_mask: Not used, nor by the model's layer.
            position_embeddings: (b, queries, d).
            reference_points: (b, queries, maps, 2 or 4), fractions of the maps: centres, and sizes.
            spatial_shapes: int64 (maps, 2): height and width of each map.
            spatial_shapes_list: The same.
            level_start_index: int64 (maps,): each one's first cell.
            output_attentions: Not used.

        Returns:
            (b, queries, d).
        """
        own = self.attention
        assert encoder_hidden_states is not None and reference_points is not None
        assert spatial_shapes is not None and level_start_index is not None
        value = own.value_proj(encoder_hidden_states)
        if attention_mask is not None and not attention_mask.all():
            value = value.masked_fill(~attention_mask[..., None], 0.0)
        queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        grid = Grid(spatial_shapes, level_start_index, self._map_of, own.n_heads)
        images = []
        for asked, cells, places in zip(queries, value.float(), reference_points.float(), strict=True):
            table = cells.reshape(len(cells) * own.n_heads, -1)
            parts = []
            for part, around in zip(asked.split(_QUERIES), places.split(_QUERIES), strict=True):
                offsets = [nn.functional.linear(part, *each).float() for each in self._offsets]
                weights = own.attention_weights(part).view(len(part), own.n_heads, -1).softmax(dim=-1).float()
                if around.shape[-1] == 4:
                    offsets = [0.5 / own.n_points * each for each in offsets]
                with torch.autocast("cpu", enabled=False):
                    parts.append(grid.sums(table, around, offsets, weights))
            images.append(torch.cat(parts))
        return own.output_proj(torch.stack(images)), None


class Grid:
    """Feature maps as one table, whose rows are cell by cell, and in each head by head.

    Args:
        shapes: int64 (maps, 2): height and width of each map.
        starts: int64 (maps,): each one's first cell.
        map_of: int64 (samples,): the map of each sample of a query, head by head.
        heads: How many.
    """

    def __init__(self, shapes: torch.Tensor, starts: torch.Tensor, map_of: torch.Tensor, heads: int) -> None:
        self._heads = heads
        self._maps = nn.functional.one_hot(map_of, len(shapes)).T.float()
        sizes = shapes.flip(1)[map_of].T  # of each sample's map: the width, the height
        self._size = sizes.float()
        self._last = (self._size - 2).clamp(min=0)
        self._more = (self._size > 1).float()
        self._step = torch.stack([torch.full_like(sizes[0], heads), sizes[0] * heads]).int()
        self._next = self._step * (sizes > 1)
        head = torch.arange(heads).repeat_interleave(len(map_of) // heads)
        self._first = (starts[map_of] * heads + head).int()

    def sums(
        self, table: torch.Tensor, around: torch.Tensor, offsets: list[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """Samples of the maps, interpolated between four cells each; beyond the maps there is 0.

        Args:
            table: float32 (cells · heads, e).
            around: float32 (queries, maps, 2 or 4): x and y, width and height as fractions of each map.
            offsets: float32 (queries, samples), of x and of y: in cells, or where `around` has sizes, in these.
            weights: float32 (queries, heads, maps · points).

        Returns:
            float32 (queries, heads · e): the samples' sums.
        """
        shape = weights.shape
        rows, shares = [], []
        for axis, offset in enumerate(offsets):
            scaled = self._maps * self._size[axis]
            if around.shape[-1] == 4:
                offset = offset * (around[..., 2 + axis] @ scaled)
            place = torch.addmm(offset, around[..., axis], scaled).sub_(0.5)
            # The two cells beside the place, or where it lies beyond the map, the two at the border, which get nothing.
            low = place.floor().clamp_(min=0).minimum(self._last[axis]).nan_to_num_(0)
            place -= low
            beside = [1 - place.abs(), (1 - (place - 1).abs()) * self._more[axis]]
            shares.append([each.clamp_(min=0).view(shape) for each in beside])
            row = low.int() * self._step[axis]
            rows.append([row.view(shape), (row + self._next[axis]).view(shape)])
        rows[1] = [each + self._first.view(shape[1:]) for each in rows[1]]
        shares[1] = [each * weights for each in shares[1]]
        index = torch.empty((*shape[:2], 4, shape[2]), dtype=torch.int32)
        share = torch.empty(index.shape)
        for corner in range(4):
            torch.add(rows[0][corner % 2], rows[1][corner // 2], out=index[:, :, corner])
            torch.mul(shares[0][corner % 2], shares[1][corner // 2], out=share[:, :, corner])
        index, share = index.view(-1, 4 * shape[2]), share.view(-1, 4 * shape[2])
        found = nn.functional.embedding_bag(index, table, mode="sum", per_sample_weights=share)
        return found.view(len(around), -1)
