import random
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dcvit.data import preprocessing_of
from dcvit.errors import InputError
from dcvit.methods.few_shot import synthesis
from dcvit.methods.few_shot.synthesis import SynthesisRecipe, save_pictures, synthesize, total_variation
from dcvit.stages import StageStore


def make(name="vit_tiny_patch16_224", size=(16, 16), channels=3, classes=4):
    torch.manual_seed(0)
    model = timm.create_model(
        name, img_size=size, patch_size=4, embed_dim=32, depth=2, num_heads=2, in_chans=channels, num_classes=classes
    )
    if classes:
        torch.nn.init.normal_(model.head.weight, std=0.5)  # at timm's own start all classes look the same
    return model, preprocessing_of(model, (channels, *size))


@pytest.fixture
def vit():
    return make()


@pytest.fixture
def watched(monkeypatch):
    """Every view that a step saw, with its loss."""
    seen = []
    original = synthesis._loss

    def record(view, *arguments):
        loss = original(view, *arguments)
        seen.append((view.detach().clone(), loss.item()))
        return loss

    monkeypatch.setattr(synthesis, "_loss", record)
    return seen


def test_loss_falls_and_the_model_sees_the_classes(vit):
    model, preprocessing = vit
    start = synthesize(model, preprocessing, 4, count=8, steps=1)
    made = synthesize(model, preprocessing, 4, count=8, steps=60)
    assert made.loss < 0.5 * start.loss
    with torch.no_grad():
        logits = model(made.images)
    assert torch.equal(logits.argmax(-1), made.labels)
    # The loss is that of the images: only autocast (8 bits of mantissa, where the machine has it) may tell them apart.
    loss = synthesis._loss(made.images, logits, made.labels, SynthesisRecipe(tv_exponent=0.6))
    assert made.loss == pytest.approx(loss.item(), rel=0.05)


def test_same_seed_same_images_and_no_trace_of_it(vit):
    model, preprocessing = vit
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = synthesize(model, preprocessing, 4, count=4, steps=5, seed=3)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(99)
    again = synthesize(model, preprocessing, 4, count=4, steps=5, seed=3)
    other = synthesize(model, preprocessing, 4, count=4, steps=5, seed=4)
    assert torch.equal(first.images, again.images)
    assert first.loss == again.loss
    assert not torch.equal(first.images, other.images)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert all(block.attn.fused_attn for block in model.blocks)


def test_images_of_least_loss_are_kept(vit, watched):
    model, preprocessing = vit
    # A learning rate this high makes the loss jump, so that the last step is not the best one.
    made = synthesize(model, preprocessing, 4, count=4, steps=12, recipe=SynthesisRecipe(lr=5))
    losses = [loss for _, loss in watched]
    assert made.loss == min(losses) < losses[-1]
    assert torch.equal(made.images, watched[losses.index(min(losses))][0])


def test_every_batch_stays_within_the_range_of_pixels(watched):
    model, preprocessing = make()
    synthesize(model, preprocessing, 4, count=4, steps=10, recipe=SynthesisRecipe(lr=5))
    mean, std = (torch.tensor(figures)[:, None, None] for figures in (preprocessing.mean, preprocessing.std))
    pixels = torch.stack([view for view, _ in watched]) * std + mean
    # 1e-6: normalising and back rounds a few times at 2⁻²⁴.
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    # A learning rate as high as this drives pixels to both ends, or the clip was never needed.
    assert pixels.min() < 1e-6
    assert pixels.max() > 1 - 1e-6


@pytest.mark.parametrize(("classes", "count"), [(4, 8), (4, 10), (3, 2), (1, 3), (7, 7)])
def test_classes_repeat_evenly(classes, count):
    labels = synthesis._labels(classes, count, torch.Generator().manual_seed(0))
    times = [Counter(labels.tolist())[label] for label in range(classes)]
    assert sum(times) == count
    assert max(times) - min(times) <= 1


def test_total_variation_by_hand():
    # One image [[1, 2], [4, 8]]: horizontal 1, 4; vertical 3, 6; diagonals 8 − 1 and 4 − 2.
    images = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).expand(1, 1, 2, 2)
    by_hand = 17**0.5 + 45**0.5 + 7 + 2
    assert total_variation(images, 1.0).item() == pytest.approx(by_hand)
    by_hand = 17**0.3 + 45**0.3 + 7**0.6 + 2**0.6
    assert total_variation(images, 0.6).item() == pytest.approx(by_hand)
    # The norm is taken over the batch: twice the images are √2 of it, not twice.
    assert total_variation(images.expand(2, 1, 2, 2), 1.0) == pytest.approx(2**0.5 * (17**0.5 + 45**0.5 + 9))


def test_loss_by_hand():
    view = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    recipe = SynthesisRecipe(tv_weight=0.1, l2_weight=0.01, tv_exponent=1.0)
    loss = synthesis._loss(view, torch.zeros(2, 5), torch.tensor([0, 3]), recipe)
    by_hand = np.log(5) + 0.1 * (17**0.5 + 45**0.5 + 9) + 0.01 * (85**0.5 + 0) / 2
    assert loss.item() == pytest.approx(by_hand)


def test_a_view_shifts_within_its_reach_and_mirrors():
    images = torch.zeros(1, 1, 20, 40)
    images[..., 0, 0] = 1
    recipe = SynthesisRecipe(shift_share=0.1, flip=0.5)
    generator = torch.Generator().manual_seed(0)
    spots = {tuple(torch.nonzero(synthesis._view(images, recipe, generator))[0, 2:].tolist()) for _ in range(2000)}
    rows, columns = {0, 1, 2, 18, 19}, set(range(5)) | set(range(36, 40))
    mirrored = {39 - column for column in columns}
    assert spots == {(row, column) for row in rows for column in columns | mirrored}


@pytest.mark.parametrize(("name", "exponent"), [("vit_tiny_patch16_224", 0.6), ("deit_tiny_patch16_224", 1.0)])
def test_exponent_follows_the_name(name, exponent, watched, monkeypatch):
    used = []
    original = synthesis.total_variation
    monkeypatch.setattr(synthesis, "total_variation", lambda images, beta: used.append(beta) or original(images, beta))
    model, preprocessing = make(name)
    synthesize(model, preprocessing, 4, count=2, steps=1)
    synthesize(model, preprocessing, 4, count=2, steps=1, recipe=SynthesisRecipe(tv_exponent=0.8))
    assert used == [exponent, 0.8]


def test_kept_images_are_used_again(vit, watched, tmp_path):
    model, preprocessing = vit
    arguments = {"count": 3, "steps": 4, "store": StageStore(tmp_path)}
    first = synthesize(model, preprocessing, 4, **arguments)
    assert len(watched) == 4
    again = synthesize(model, preprocessing, 4, **arguments | {"store": StageStore(tmp_path)})
    assert len(watched) == 4  # no step was run
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert first.loss == again.loss
    synthesize(model, preprocessing, 4, **arguments, seed=1)
    assert len(watched) == 8
    with torch.no_grad():
        model.head.bias += 1
    synthesize(model, preprocessing, 4, **arguments)
    assert len(watched) == 12


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (12, 20))])
def test_pictures_decode_to_the_size_of_the_input(channels, size, tmp_path):
    model, preprocessing = make(size=size, channels=channels)
    made = synthesize(model, preprocessing, 4, count=12, steps=2)
    assert made.images.shape == (12, channels, *size)
    save_pictures(made, preprocessing, tmp_path / "pictures")
    names = [f"{index:03d}-class-{label}.png" for index, label in enumerate(made.labels.tolist())]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted([*names, "contact-sheet.png"])
    for name, image in zip(names, made.images, strict=True):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert picture.size == (size[1], size[0])
            assert picture.mode == ("L" if channels == 1 else "RGB")
            pixels = np.asarray(picture).reshape(*size, channels).transpose(2, 0, 1) / 255
        # timm's default for this model is 0.5 and 0.5; half a level of 8 bits is lost.
        assert np.abs(pixels - (image.numpy() * 0.5 + 0.5)).max() <= 0.5 / 255 + 1e-6
    with Image.open(tmp_path / "pictures" / "contact-sheet.png") as sheet:
        assert sheet.width > 10 * 96
        assert sheet.height > 2 * size[0]


def test_a_model_without_a_classifier_is_refused():
    model, preprocessing = make(classes=0)
    with pytest.raises(InputError, match="--metric train"):
        synthesize(model, preprocessing, 0)


def test_a_broken_model_is_refused(vit):
    model, preprocessing = vit
    torch.nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        synthesize(model, preprocessing, 4, count=2, steps=2)
