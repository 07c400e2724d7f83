"""Few images are fitted on in many views, many as they are; a class token weighs what the head makes of it."""

import pytest
import torch
from torch import Tensor

from dcvit.data import draw_few_shot, open_source
from dcvit.families import BlockSpec
from dcvit.methods.few_shot.fitted_images import (
    MAX_BYTES,
    MAX_TOKENS,
    MAX_VIEWS,
    TOKENS_A_NODE,
    views_needed,
    with_views,
)
from dcvit.methods.few_shot.search import DcVitCompressor
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.run import Run
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.subject import open_subject

SMALL = BlockSpec(embed_dim=384, num_heads=6, head_dim=64, mlp_hidden=1536)


@pytest.mark.parametrize(
    ("images", "tokens", "views"),
    [(500, 197, 1), (256, 197, 1), (64, 65, 15), (256, 65, 4), (1, 197, MAX_VIEWS)],
)
def test_views_make_up_for_tokens_that_are_too_few(images: int, tokens: int, views: int) -> None:
    assert views_needed(images, [tokens] * 12, [SMALL] * 12) == views
    if 1 < views < MAX_VIEWS:
        assert (views - 1) * images * tokens < TOKENS_A_NODE * 1536 <= views * images * tokens


def test_the_widest_mlp_on_the_fewest_tokens_decides_and_the_longest_rows_limit() -> None:
    """As in a Swin Transformer: late blocks ask for many views, which the many tokens of early ones do not allow."""
    early = BlockSpec(embed_dim=96, num_heads=3, head_dim=32, mlp_hidden=384)
    late = BlockSpec(embed_dim=768, num_heads=24, head_dim=32, mlp_hidden=3072)
    assert views_needed(50, [49], [late]) == MAX_VIEWS
    found = views_needed(50, [3136, 49], [early, late])
    assert 1 < found < MAX_VIEWS
    assert found * 50 * 3136 * 96 * 4 <= MAX_BYTES
    assert views_needed(2000, [3136, 49], [early, late]) == 1


def test_a_fit_stays_cheap() -> None:
    wide = BlockSpec(embed_dim=768, num_heads=12, head_dim=64, mlp_hidden=3072)
    assert views_needed(64, [197] * 12, [wide] * 12) == MAX_TOKENS // (64 * 197) == 5


@pytest.mark.parametrize("images", [8, 9])
def test_all_views_of_an_image_are_in_one_half(images: int) -> None:
    """The ridge is chosen by whether every second image is served by a fit to the others."""
    few_shot = draw_few_shot(open_source("digits", "train"), images, seed=0)
    preprocessing = Preprocessing(
        input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
    )
    plain = few_shot.tensor(preprocessing)
    found = with_views(plain, few_shot, preprocessing, 3, seed=0)
    even = images // 2 * 2
    assert len(found) == 2 * even + images
    assert torch.equal(found[2 * even :], plain)
    views = found[: 2 * even].unflatten(0, (2, even))
    assert not torch.equal(views[0], views[1])
    for number in range(2):
        assert torch.equal(views[number], few_shot.augmented(preprocessing, number)[:even])
    # What stands at an even place is a view of an image at an even place.
    assert even % 2 == 0
    assert with_views(plain, few_shot, preprocessing, 1, seed=0) is plain


def test_the_final_refit_is_made_on_views_and_the_examination_is_not(
    tiny_plan: CompressionPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = open_subject(tiny_plan.model, model_kwargs=tiny_plan.model_kwargs, weights="random")
    compressor = DcVitCompressor(
        Run(subject, open_source("digits", "train"), 8, recovery="mimic"), SearchSettings(steps=0)
    )
    job, _ = compressor.job(Target(macs_reduction=0.3))
    tokens = subject.family.tokens(subject.model, subject.plan)
    views = views_needed(8, tokens, subject.architecture.blocks)
    assert views > 1
    fitted: Tensor = job.wanted().images
    assert len(fitted) == 8 * views
    assert torch.equal(fitted[-8:], job.calibration)
    assert len(job.calibration) == 8
