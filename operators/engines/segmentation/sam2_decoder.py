"""The mask decoder of SAM 2 and 3 for many prompts of one image, on a CPU, in float32.

transformers' own copies the image's embedding for every prompt, and projects each copy before and after every
attention. But prompts have few tokens, and the copies are the same until the first layer has changed them. So that
layer's projections are made once for all prompts, and later ones are made of tokens rather than of the image's cells,
which comes to the same because they are linear. What is computed stays, but for rounding.

This file imports torch, so it is imported where a model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class MaskDecoder(nn.Module):
    """Takes the place of transformers' Sam2MaskDecoder and Sam3TrackerMaskDecoder.

    Args:
        decoder: The model's, whose weights it shares.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self.conv_s0, self.conv_s1 = decoder.conv_s0, decoder.conv_s1  # the image encoder ends with them
        self._enlarge = [_as_product(conv) for conv in (decoder.upscale_conv1, decoder.upscale_conv2)]

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_positional_embeddings: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
        high_resolution_features: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the model's decoder, for one image.

        Args:
            image_embeddings: (1, d, h, w).
            image_positional_embeddings: (1, d, h, w).
            sparse_prompt_embeddings: (1, n, t, d): the tokens of each prompt.
            dense_prompt_embeddings: (1, d, h, w), the same for all prompts.
            multimask_output: Whether to give each prompt's several masks, or one.
            high_resolution_features: (1, d / 8, 4 h, 4 w) and (1, d / 4, 2 h, 2 w).

        Returns:
            Logits (1, n, masks, 4 h, 4 w) and predicted IoU (1, n, masks).
        """
        decoder = self.decoder
        cells, position = _cells(image_embeddings + dense_prompt_embeddings), _cells(image_positional_embeddings)
        finest, finer = high_resolution_features
        image = _Image(decoder.transformer, cells, position)
        details = [_by_cell(finer, 1) + self._enlarge[0][1], _by_cell(finest, 2) + self._enlarge[1][1]]
        first = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        found, promised = [], []
        for prompt in sparse_prompt_embeddings[0]:
            tokens, seen = image.decode(torch.cat([first, prompt]))
            found.append(self._masks(seen, details, tokens[2 : len(first)]))
            promised.append(tokens[1])
        masks = _by_row(torch.stack(found), *image_embeddings.shape[-2:])[None]
        predicted = decoder.iou_prediction_head(torch.stack(promised))[None]
        if multimask_output:
            return masks[:, :, 1:], predicted[..., 1:]
        if decoder.dynamic_multimask_via_stability:
            chosen: tuple[torch.Tensor, torch.Tensor] = decoder._dynamic_multimask_via_stability(masks, predicted)
            return chosen
        return masks[:, :, :1], predicted[..., :1]

    def _masks(self, cells: torch.Tensor, details: Sequence[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """The logits of each mask token (masks, cells · 16), each cell's together, see `_by_cell`."""
        decoder, norm = self.decoder, self.decoder.upscale_layer_norm
        finer = (cells @ self._enlarge[0][0] + details[0]).unflatten(1, (4, -1))
        finer = decoder.activation(
            nn.functional.layer_norm(finer, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        )
        finest = decoder.activation(finer.flatten(0, 1) @ self._enlarge[1][0] + details[1].flatten(0, 1))
        heads = zip(decoder.output_hypernetworks_mlps, tokens, strict=True)
        return torch.stack([head(token) for head, token in heads]) @ finest.view(16 * len(cells), -1).T


class _Image:
    """One image's embedding, and what prompts make of it.

    Args:
        transformer: The model's.
        cells: (c, d).
        position: (c, d).
    """

    def __init__(self, transformer: Any, cells: torch.Tensor, position: torch.Tensor) -> None:
        self._transformer, self._cells, self._position = transformer, cells, position
        self._places = places = cells + position
        layer = transformer.layers[0]
        to_token = layer.cross_attn_token_to_image
        self._keys = _split(to_token, to_token.k_proj(places)).transpose(1, 2)
        self._values = _split(to_token, to_token.v_proj(cells))
        self._queries = _split(layer.cross_attn_image_to_token, layer.cross_attn_image_to_token.q_proj(places)).mT

    def decode(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a prompt's tokens (t, d) become, and the image's cells (c, d) to them."""
        tokens, cells, places = prompt, self._cells, self._places
        for index, layer in enumerate(self._transformer.layers):
            if layer.skip_first_layer_pe:
                tokens = layer.layer_norm1(_among(layer.self_attn, tokens, tokens))
            else:
                tokens = layer.layer_norm1(tokens + _among(layer.self_attn, tokens + prompt, tokens))
            attention = layer.cross_attn_token_to_image
            asked = _split(attention, attention.q_proj(tokens + prompt)) * attention.scaling
            if index:
                seen = _look(attention, asked, places, cells)
            else:
                seen = (asked @ self._keys).softmax(dim=-1) @ self._values
            tokens = layer.layer_norm2(tokens + attention.o_proj(_join(seen)))
            tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
            attention = layer.cross_attn_image_to_token
            offered = _split(attention, attention.k_proj(tokens + prompt)) * attention.scaling
            scores = _ask(attention, offered, places) if index else offered @ self._queries
            cells = layer.layer_norm4(cells + _tell(attention, scores, tokens))
            places = cells + self._position
        attention = self._transformer.final_attn_token_to_image
        asked = _split(attention, attention.q_proj(tokens + prompt)) * attention.scaling
        seen = attention.o_proj(_join(_look(attention, asked, places, cells)))
        return self._transformer.layer_norm_final_attn(tokens + seen), cells


# ---------------------------------------------------------------- attention; e = d of a head


def _split(attention: Any, projected: torch.Tensor) -> torch.Tensor:
    """(n, heads · e) as (heads, n, e)."""
    return projected.unflatten(1, (attention.num_attention_heads, -1)).transpose(0, 1)


def _join(seen: torch.Tensor) -> torch.Tensor:
    """(heads, n, e) as (n, heads · e)."""
    return seen.transpose(0, 1).flatten(1)


def _by_head(attention: Any, projection: Any) -> torch.Tensor:
    """The weight of a projection to heads: (heads, e, d)."""
    weight: torch.Tensor = projection.weight.unflatten(0, (attention.num_attention_heads, -1))
    return weight


def _among(attention: Any, asking: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Self-attention (t, d) of tokens."""
    found: torch.Tensor = attention(query=asking[None, None], key=asking[None, None], value=tokens[None, None])[0]
    return found[0, 0]


def _look(attention: Any, asked: torch.Tensor, places: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """What tokens see in an image, by head: (heads, t, e).

    What the bias of the keys adds is the same for all cells, and so adds nothing.

    Args:
        attention: From tokens to the image.
        asked: (heads, t, e): the tokens' queries.
        places: (c, d): what keys are made of.
        cells: (c, d): what values are made of.
    """
    heads, tokens, _ = asked.shape
    wanted = (asked @ _by_head(attention, attention.k_proj)).flatten(0, 1)
    summed = ((wanted @ places.T).softmax(dim=-1) @ cells).view(heads, tokens, -1)
    bias = attention.v_proj.bias.view(heads, 1, -1)
    return summed @ _by_head(attention, attention.v_proj).mT + bias


def _ask(attention: Any, offered: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The scores (heads, t, c) of tokens' keys (heads, t, e) for the queries that cells (c, d) make."""
    heads, tokens, _ = offered.shape
    wanted = (offered @ _by_head(attention, attention.q_proj)).flatten(0, 1)
    constant = (offered @ attention.q_proj.bias.view(heads, -1, 1)).flatten(0, 1)
    return torch.addmm(constant, wanted, places.T).view(heads, tokens, -1)


def _tell(attention: Any, scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What the image's cells see in tokens (t, d), by scores (heads, t, c): (c, d)."""
    values = _split(attention, attention.v_proj(tokens))
    told = values @ attention.o_proj.weight.unflatten(1, (len(values), -1)).permute(1, 2, 0)
    told[0] += attention.o_proj.bias  # a cell's shares of each head's tokens sum up to 1
    return scores.softmax(dim=1).flatten(0, 1).T @ told.flatten(0, 1)


# ---------------------------------------------------------------- maps


def _cells(image: torch.Tensor) -> torch.Tensor:
    """(1, d, h, w) as (h · w, d)."""
    return image[0].flatten(1).T.contiguous()


def _as_product(conv: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A transposed convolution that makes 2 x 2 cells of each, as a matrix (d, 4 · d') and a bias (4 · d')."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), conv.bias.repeat(4)


def _by_cell(image: torch.Tensor, times: int) -> torch.Tensor:
    """A map that is 2 or 4 times as fine as the cells, with what lies in each cell together.

    Args:
        image: (1, d, h · 2^times, w · 2^times).
        times: How often each cell was divided by 2 x 2.

    Returns:
        (h · w, 4 · d) after one division, (h · w, 4, 4 · d) after two.
    """
    parts = image[0].unflatten(2, (-1, *[2] * times)).unflatten(1, (-1, *[2] * times))  # d, h, 2, …, w, 2, …
    if times == 1:
        return parts.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
    return parts.permute(1, 4, 2, 5, 3, 6, 0).flatten(4).flatten(2, 3).flatten(0, 1)


def _by_row(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """From (n, masks, cells · 16), each cell's together, to (n, masks, 4 h, 4 w)."""
    parts = masks.view(*masks.shape[:2], height, width, 2, 2, 2, 2)
    return parts.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5).flatten(2, 4)
