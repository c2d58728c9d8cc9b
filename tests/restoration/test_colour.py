import pytest
import torch

from restoration.base_models.interface import SamplerSettings
from restoration.colour import COLOUR_FIXES, match_colour
from restoration.restore import sample, seeded_generator
from tests.restoration.tiny_model import TinyModel


def photo(seed: int, side: int = 64) -> torch.Tensor:
    """Smooth colours with fine detail, in the middle of the range so that nothing is clipped."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return 0.35 + 0.3 * smooth.clamp(0, 1) + 0.02 * torch.randn(1, 3, side, side, generator=generator)


@pytest.mark.parametrize("how", ["adain", "wavelet"])
def test_a_colour_cast_is_taken_away(how):
    clean = photo(0)
    cast = clean + torch.tensor([0.1, -0.05, 0.02])[:, None, None]
    torch.testing.assert_close(match_colour(cast, clean, how), clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", COLOUR_FIXES)
def test_an_image_is_its_own_reference(how):
    torch.testing.assert_close(match_colour(photo(0), photo(0), how), photo(0))


def test_wavelet_keeps_the_detail_of_the_image_and_the_base_of_the_reference():
    image, reference = photo(0), photo(1)
    fixed = match_colour(image, reference, "wavelet")

    def fine(x):
        return x - torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    torch.testing.assert_close(fine(fixed)[inside], fine(image)[inside], rtol=0, atol=5e-3)
    torch.testing.assert_close(fixed.mean((2, 3)), reference.mean((2, 3)), rtol=0, atol=5e-3)
    assert (fixed - reference).abs().mean() < (image - reference).abs().mean()


def test_adain_gives_mean_and_deviation_of_the_reference():
    fixed, reference = match_colour(photo(0), photo(1), "adain"), photo(1)
    torch.testing.assert_close(fixed.mean((2, 3)), reference.mean((2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(fixed.std((2, 3)), reference.std((2, 3)), rtol=0, atol=1e-3)


def test_a_flat_image_stays_finite_and_in_range():
    for how in COLOUR_FIXES:
        fixed = match_colour(torch.full((1, 3, 20, 36), 0.9), torch.rand(1, 3, 20, 36), how)
        assert torch.isfinite(fixed).all() and fixed.min() >= 0 and fixed.max() <= 1


def test_the_sampler_takes_colours_from_the_clean_condition():
    lq = photo(3, 16)
    kept, fixed = (
        sample(TinyModel(gain=0.5), lq, SamplerSettings(steps=2, colour_fix=how), [seeded_generator("x", 0)])
        for how in ("none", "adain")
    )
    clean = TinyModel().condition(lq).clean
    assert (kept.mean((2, 3)) - clean.mean((2, 3))).abs().max() > 0.05
    torch.testing.assert_close(fixed.mean((2, 3)), clean.mean((2, 3)), rtol=0, atol=1e-3)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="adain"):
        SamplerSettings(colour_fix="nonsense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="colour_fix"):
        match_colour(photo(0), photo(1), "nonsense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reference"):
        match_colour(photo(0), photo(1, 32), "adain")
