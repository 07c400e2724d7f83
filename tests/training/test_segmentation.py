"""Training on masks: the loss of each pixel, and pairs that are augmented together."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dcvit.data import open_source
from dcvit.data.masks import IGNORE, with_masks
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.training.order import Draw, Order
from dcvit.training.recipe import Augmentation, TrainingRecipe
from dcvit.training.segmentation import Segmentation, TrainingPairs

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 48), mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest", crop_pct=1.0, crop_mode="squash"
)


def _pairs(root: Path, augmentation: Augmentation, **more: int) -> TrainingPairs:
    source = with_masks(open_source(root, "train"))
    return TrainingPairs(source, PREPROCESSING, 5, augmentation, more.get("seed", 0), more.get("samples"))


def _draws(images: int) -> Iterable[Draw]:
    return Order(images, 4, seed=0).draws(0, 2 * images // 4)  # two epochs


def test_the_loss_is_a_mean_over_the_pixels_that_count() -> None:
    student, teacher = torch.randn(2, 2, 5, 4, 6)
    labels = torch.randint(0, 5, (2, 4, 6))
    labels[0, :2] = IGNORE
    counted = labels != IGNORE
    losses = Segmentation(distill=0.25).losses(student, teacher, labels)
    expected = F.cross_entropy(student.movedim(1, -1)[counted], labels[counted])
    assert torch.allclose(losses["cross_entropy"], 0.75 * expected)
    log_student, log_teacher = (scores.movedim(1, -1).reshape(-1, 5).log_softmax(-1) for scores in (student, teacher))
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum() / (2 * 4 * 6)
    assert torch.allclose(losses["distillation"], 0.25 * divergence, atol=1e-6)
    assert set(Segmentation(distill=0.0).losses(student, None, labels)) == {"cross_entropy"}
    unlabelled = Segmentation(labelled=False).losses(student, teacher, None)
    assert torch.allclose(unlabelled["distillation"], divergence, atol=1e-6)
    nothing = Segmentation(distill=0.0).losses(student, None, torch.full_like(labels, IGNORE))
    assert float(nothing["cross_entropy"]) == 0


@pytest.mark.parametrize("augmentation", ["none", "crop", "deit"])
def test_masks_follow_their_images(telling_pairs: Path, augmentation: Augmentation) -> None:
    pairs = _pairs(telling_pairs, augmentation)
    shown = {}
    for draw, images, masks in pairs.batches(_draws(8)):
        assert masks is not None
        assert images.shape == (4, 3, 32, 48)
        assert masks.shape == (4, 32, 48)
        classes = (images[:, 0] * 255 / 60).round().long()
        counted = masks != IGNORE
        # Both are resized by the nearest pixel, timm's and torch's rounding may differ by one at an edge.
        assert (classes == masks)[counted].float().mean() > 0.9
        assert (classes[~counted] == 0).all()  # what a shift uncovered
        for epoch, index, image in zip(draw.epochs.tolist(), draw.indices.tolist(), images, strict=True):
            shown[epoch, index] = image
    assert len(shown) == 16
    changed = sum(not torch.equal(shown[0, index], shown[1, index]) for index in range(8))
    assert changed == 0 if augmentation == "none" else changed >= 7


@pytest.mark.parametrize("augmentation", ["crop", "deit"])
def test_what_a_pair_looks_like_depends_on_seed_epoch_and_image_alone(
    telling_pairs: Path, augmentation: Augmentation
) -> None:
    whole = list(_pairs(telling_pairs, augmentation).batches(_draws(8)))
    later = list(_pairs(telling_pairs, augmentation).batches(list(_draws(8))[3:]))
    for (_, images, masks), (_, again, same) in zip(whole[3:], later, strict=True):
        assert torch.equal(images, again)
        assert masks is not None
        assert same is not None
        assert torch.equal(masks, same)
    other = next(iter(_pairs(telling_pairs, augmentation, seed=1).batches(_draws(8))))
    assert not torch.equal(whole[0][1], other[1])


def test_samples_and_corrupt_images(telling_pairs: Path) -> None:
    assert _pairs(telling_pairs, "none", samples=5).num_images == 5
    with pytest.raises(InputError, match="--samples 9: .* has 8 images"):
        _pairs(telling_pairs, "none", samples=9)
    first = _pairs(telling_pairs, "none").fingerprint
    (telling_pairs / "images" / "2.png").write_bytes(b"no image")
    pairs = _pairs(telling_pairs, "none")
    assert pairs.fingerprint == first
    seen = {round(255 * float(image[1, 0, 0])) for _, images, _ in pairs.batches(_draws(8)) for image in images}
    assert seen == {0, 1, 3, 4, 5, 6, 7}  # the next one stands in for it
    for path in (telling_pairs / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 8 images"):
        list(_pairs(telling_pairs, "none").batches(_draws(8)))


def test_masks_are_never_mixed_by_default() -> None:
    large = PREPROCESSING.model_copy(update={"input_size": (3, 224, 224)})
    assert TrainingRecipe().resolved(large).mixup == 0.8
    assert TrainingRecipe().resolved(large, "segmentation").mixup == 0
