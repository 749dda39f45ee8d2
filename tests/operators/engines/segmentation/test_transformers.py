"""The SAM models of transformers: as their own processors use them, and SAM as segment-anything's with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Sam2ImageProcessor,
    Sam2Processor,
    Sam3ImageProcessor,
    Sam3TrackerProcessor,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    SamImageProcessorPil,
    SamProcessor,
)

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.engines.segmentation import segment_anything, segmenter
from labelmill.operators.engines.segmentation import transformers as engine
from labelmill.operators.errors import RowError
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from labelmill.operators.segment import Segment
from tests.drawing import picture
from tests.operators.engines.segmentation.tiny_sams import (
    ORIGINAL_CARD,
    SAM,
    SAM2,
    SAM2_CARD,
    SAM3,
    SAM3_CARD,
    SAM_CARD,
    SIZES,
    boxes,
    detections,
    masks_of,
    renamed,
    run,
    segment,
    stirred,
    unnamed,
    with_weights,
)

FOLDER = ROOT / "conf" / "models"
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelCard, ModelCard]:
    """One model: segment-anything's, and transformers' with the same weights under other names."""
    folder = tmp_path_factory.mktemp("sam")
    state = stirred(segment_anything.build(ORIGINAL_CARD)).state_dict()
    save_file(state, folder / "original.safetensors")
    save_file(renamed(state), folder / "renamed.safetensors")
    return with_weights(ORIGINAL_CARD, folder / "original.safetensors"), with_weights(
        SAM_CARD, folder / "renamed.safetensors"
    )


# ---------------------------------------------------------------- two engines, one model


def test_every_weight_of_one_has_its_place_in_the_other() -> None:
    theirs = renamed(segment_anything.build(ORIGINAL_CARD).state_dict())
    ours = engine.build(SAM_CARD).state_dict()
    ours.pop("prompt_encoder.shared_embedding.positional_embedding")  # the same tensor as shared_image_embedding's
    assert {name: tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_both_engines_of_sam_agree(pair: tuple[ModelCard, ModelCard], width: int, height: int) -> None:
    image, found = picture(width, height), detections(width, height, 5)
    one, other = (segmenter.load(card) for card in pair)
    given = one.prepare(image.pixels)
    assert torch.equal(given, other.prepare(image.pixels))
    (first,), (second,) = one.encode([given]), other.encode([given])
    torch.testing.assert_close(first, second[0][0], atol=TOLERANCE, rtol=0)
    for kind, prompts in (("box", boxes(found)), ("point", boxes(found)[:, :2])):
        logits, predicted = one._predict(first, prompts, kind, (height, width))  # type: ignore[attr-defined]
        again, promised = other._predict(second, prompts, kind, (height, width))  # type: ignore[attr-defined]
        assert logits.shape == again.shape
        assert logits.std() > 1
        torch.testing.assert_close(logits, again, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(predicted, promised, atol=TOLERANCE, rtol=0)


def test_both_engines_of_sam_give_the_same_columns(pair: tuple[ModelCard, ModelCard]) -> None:
    image, found = picture(200, 90), detections(200, 90, 6)
    one, other = (run(segment(card), image, found) for card in pair)
    for name in ("predicted_iou", "stability"):
        np.testing.assert_allclose(one[name], other[name], atol=TOLERANCE if name == "predicted_iou" else 0.02)
    first, second = masks_of(one, image), masks_of(other, image)
    assert first.any()
    assert (first != second).sum() <= 0.005 * first.sum()


# ---------------------------------------------------------------- as transformers uses them


def processor_of(card: ModelCard) -> Any:
    if card.architecture == "SamModel":
        sizes = {"size": {"longest_edge": 96}, "pad_size": {"height": 96, "width": 96}}
        return SamProcessor(SamImageProcessorPil(**sizes))
    size = {"height": 64, "width": 64}
    if card.architecture == "Sam2Model":
        return Sam2Processor(Sam2ImageProcessor(size=size))
    return Sam3TrackerProcessor(Sam3ImageProcessor(size=size))


@pytest.fixture(params=[SAM_CARD, SAM2_CARD, SAM3_CARD], ids=lambda card: card.architecture)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> ModelCard:
    """SAM 2 with what a drawn one has none of: an embedding that stands for an empty memory."""
    model = engine.build(request.param)
    if request.param is SAM2_CARD:
        model.no_memory_embedding.normal_(generator=torch.Generator().manual_seed(0))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    return with_weights(request.param, tmp_path / "model.safetensors")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_agrees_with_transformers_own_processor(saved: ModelCard, width: int, height: int) -> None:
    image, found = picture(width, height), detections(width, height, 4)
    operator, model, processor = segment(saved), engine.build(saved), processor_of(saved)
    row = run(operator, image, found)
    given = processor(images=image.pixels, input_boxes=[boxes(found).tolist()], return_tensors="pt")
    sizes = given.pop("original_sizes")
    reshaped = [given.pop("reshaped_input_sizes")] if "reshaped_input_sizes" in given else []
    with torch.inference_mode():
        output = model(**given, multimask_output=False)
    (logits,) = processor.image_processor.post_process_masks(output.pred_masks, sizes, *reshaped, binarize=False)
    np.testing.assert_allclose(row["predicted_iou"], output.iou_scores[0, :, 0].numpy(), atol=TOLERANCE)
    mine, theirs = masks_of(row, image), (logits[:, 0] > 0).numpy()
    assert 0 < theirs.mean() < 1
    sure = (logits[:, 0].abs() > TOLERANCE).numpy()
    assert sure.mean() > 0.98
    assert (mine == theirs)[sure].all()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sees_what_transformers_own_processor_sees(saved: ModelCard, width: int, height: int) -> None:
    image, model = picture(width, height), segmenter.load(saved)
    theirs = processor_of(saved)(images=image.pixels, return_tensors="pt")["pixel_values"]
    seen: list[torch.Tensor] = []
    inner = model._model.get_image_embeddings  # type: ignore[attr-defined]
    model._model.get_image_embeddings = lambda pixels: (seen.append(pixels), inner(pixels))[1]  # type: ignore[attr-defined]
    model.encode([model.prepare(image.pixels)])
    torch.testing.assert_close(seen[0], theirs, atol=1e-5, rtol=0)


def test_sam3_adds_the_empty_memory_where_the_tracker_of_videos_does(tmp_path: Path) -> None:
    drawn = engine.build(SAM3_CARD)
    drawn.no_memory_embedding.normal_(generator=torch.Generator().manual_seed(0))
    state = {name: tensor.clone() for name, tensor in drawn.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    memory = {"memory_attention_hidden_size": 32, "memory_encoder_hidden_size": 32, "memory_attention_num_layers": 1}
    video = Sam3TrackerVideoModel(Sam3TrackerVideoConfig(**SAM3, **memory, image_size=64)).eval()
    assert not video.load_state_dict(state, strict=False).unexpected_keys
    model = segmenter.load(with_weights(SAM3_CARD, tmp_path / "model.safetensors"))
    image = picture(96, 96)
    pixels = processor_of(SAM3_CARD)(images=image.pixels, return_tensors="pt")["pixel_values"]
    (ours,) = model.encode([model.prepare(image.pixels)])
    for mine, theirs in zip(ours, video.get_image_embeddings(pixels), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- weights as the hub has them


def test_a_file_for_videos_serves_images(tmp_path: Path) -> None:
    """The hub's SAM 2.1 holds what remembers frames too, and SAM 3's a detector, under other names."""
    image, found = picture(96, 96), detections(96, 96, 3)
    extra = {"memory_attention.layers.0.linear1.weight": torch.zeros(2, 2), "no_object_pointer": torch.zeros(1, 4)}
    path = tmp_path / "model.safetensors"
    save_file({**engine.build(SAM2_CARD).state_dict(), **extra}, path)
    assert unnamed(run(segment(with_weights(SAM2_CARD, path)), image, found)) == unnamed(
        run(segment(SAM2_CARD), image, found)
    )

    def of_sam3(name: str) -> str:
        if name.startswith("vision_encoder.neck."):
            return name.replace("vision_encoder.neck.", "tracker_neck.")
        return f"detector_model.{name}" if name.startswith("vision_encoder.") else f"tracker_model.{name}"

    state = {of_sam3(name): tensor.clone() for name, tensor in engine.build(SAM3_CARD).state_dict().items()}
    others = {"detector_model.text_encoder.weight": torch.zeros(2), "tracker_model.memory_encoder.a": torch.zeros(1)}
    save_file({**state, **others}, path)
    assert unnamed(run(segment(with_weights(SAM3_CARD, path)), image, found)) == unnamed(
        run(segment(SAM3_CARD), image, found)
    )


def test_the_configuration_can_lie_beside_the_weights(tmp_path: Path) -> None:
    engine.build(SAM2_CARD).save_pretrained(tmp_path)
    bare = SAM2_CARD.model_copy(update={"config": {}})
    card = with_weights(bare, tmp_path / "model.safetensors")
    image, found = picture(96, 96), detections(96, 96, 3)
    assert unnamed(run(segment(card), image, found)) == unnamed(run(segment(SAM2_CARD), image, found))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config cannot be built"):
        segment(card)


@pytest.mark.parametrize("card", [SAM_CARD, SAM2_CARD, SAM3_CARD], ids=lambda card: card.architecture)
def test_other_weights_are_refused(card: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in engine.build(card).state_dict().items()}
    with pytest.raises(ModelError, match="there is no such file"):
        Segment(Segment.Params(model=with_weights(card, path))).ready()
    name = "mask_decoder.upscale_conv1.weight"
    for wrong, message in (
        ({key: value for key, value in state.items() if key != name}, f"1 missing .*{name}"),
        ({**state, "surprise": torch.zeros(1)}, "1 unexpected .*surprise"),
        ({**state, name: torch.zeros(3)}, f"of another shape .*{name}"),
    ):
        save_file(wrong, path)
        with pytest.raises(ModelError, match=message):
            segment(with_weights(card, path))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be read"):
        segment(with_weights(card, path))


# ---------------------------------------------------------------- cards


def test_refuses_what_it_cannot_build() -> None:
    def refused(update: dict[str, Any]) -> str:
        card = SAM2_CARD.model_copy(update=update)
        with pytest.raises(ModelError) as error:
            engine.build(card)
        return str(error.value)

    assert "must be SamModel, Sam2Model, Sam3TrackerModel with engine transformers but is 'Sam4'" in refused(
        {"architecture": "Sam4"}
    )
    assert "config.sizes" in refused({"config": {"sizes": 3}})
    assert "preprocess.side" in refused({"preprocess": {"side": 3}})
    assert "config must have model when weights are random" in refused({"config": {}})
    maps = {**SAM2["vision_config"], "backbone_feature_sizes": [[256, 256], [128, 128], [64, 64]]}
    assert "must be [[16, 16], [8, 8], [4, 4]] for images of 64 and patches of 16" in refused(
        {"config": {"model": {**SAM2, "vision_config": maps}}}
    )
    other = {**SAM2["prompt_encoder_config"], "image_size": 128}
    assert "same image_size" in refused({"config": {"model": {**SAM2, "prompt_encoder_config": other}}})
    assert "cannot be built" in refused({"config": {"model": {**SAM2, "mask_decoder_config": {"hidden_size": 7}}}})
    assert "cannot be built" in refused({"config": {"model": {**SAM2, "initializer_range": "wide"}}})


def test_refuses_points_where_there_are_none() -> None:
    decoder = {**SAM["mask_decoder_config"], "num_multimask_outputs": 0}
    card = SAM_CARD.model_copy(update={"config": {"model": {**SAM, "mask_decoder_config": decoder}}})
    segmenter.check(card)
    with pytest.raises(ModelError, match="knows boxes only"):
        segmenter.check(card, points=True)


def test_an_image_can_be_too_narrow_for_sam_only() -> None:
    sam, sam2 = segmenter.load(SAM_CARD), segmenter.load(SAM2_CARD)
    thin = np.zeros((2, 900, 3), np.uint8)
    with pytest.raises(RowError, match="too narrow for the model: 900 x 2 pixels"):
        sam.prepare(thin)
    assert sam2.prepare(thin).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "parameters", "maps", "logits"), [("sam2.1-hiera-small", 38.5e6, 64, 256), ("sam3", 462e6, 72, 288)]
)
def test_full_size_cards_build_the_published_models(name: str, parameters: float, maps: int, logits: int) -> None:
    card = load_card(FOLDER / f"{name}.yaml")
    Segment(Segment.Params(model=card, everything=True)).check({})
    Segment(Segment.Params(model=card)).check({"detections": DETECTIONS})
    with torch.device("meta"):
        model = getattr(__import__("transformers"), card.architecture)(engine.configuration(card))
    assert sum(tensor.numel() for tensor in model.parameters()) == pytest.approx(parameters, rel=0.02)
    assert model.prompt_encoder.image_embedding_size == (maps, maps)
    assert model.prompt_encoder.mask_input_size == (logits, logits)
    family = engine.ARCHITECTURES[card.architecture]
    assert card.preprocess == {"mean": list(family.mean), "std": list(family.std)}


def test_full_size_weights_must_be_pulled_first() -> None:
    for name in ("sam2.1-hiera-small", "sam3"):
        with pytest.raises(ModelError, match=f"labelmill models pull {name}"):
            Segment(Segment.Params(model=load_card(FOLDER / f"{name}.yaml"))).ready()
