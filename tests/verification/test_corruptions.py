"""The corruptions: what each does to an image, and what the verb writes."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom

import rrmsdk
from rrmsdk.errors import DataError, FieldError
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CORRUPTIONS
from rrmsdk.schema.corruption import Corruptions
from rrmsdk.verification.corruptions import SEVERITIES, TYPES, corrupted
from rrmsdk.verification.corruptions.blur import smeared
from rrmsdk.verification.corruptions.drawn import Drawn
from rrmsdk.verification.corruptions.weather import plasma
from tests.attacks.small_network import digits

TEACHER = "hub:digits-cnn-linf"
# Where the paper's constants make a higher severity nearer to the image: glass is smoothed more, the corners of the
# elastic triangle move less, the image under frost is darkened.
NEARER = ("glass_blur", "elastic_transform", "frost")


def _pictures(count: int = 48, size: int = 32) -> torch.Tensor:
    """Colour images with edges and shades: a disk on a gradient, each in colours of its own."""
    draw = torch.Generator().manual_seed(0)
    place = torch.arange(size) / size
    ends, ink = torch.rand(2, count, 3, 1, 1, generator=draw), torch.rand(count, 3, 1, 1, generator=draw)
    ground = ends[0] * place + ends[1] * (1 - place[:, None])
    x, y, r = (0.2 + 0.5 * torch.rand(count, 1, 1, 1, generator=draw) for _ in range(3))
    disk = (place - x) ** 2 + (place[:, None] - y) ** 2 < (r / 2) ** 2
    return (255 * torch.where(disk, ink, ground / 2)).to(torch.uint8)


def _distance(kind: str, severity: int, pixels: torch.Tensor) -> float:
    changed = corrupted(pixels, kind, severity, seed=0, ids=torch.arange(len(pixels)))
    return (changed.double() - pixels).flatten(1).norm(dim=1).mean().item()


def _flat(level: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.full((1, channels, size, size), level, dtype=torch.uint8)


def _one(pixels: torch.Tensor, kind: str, severity: int) -> torch.Tensor:
    return corrupted(pixels, kind, severity, seed=0, ids=torch.zeros(len(pixels), dtype=torch.int64))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_every_corruption_changes_every_picture(kind, severity):
    pixels = _pictures(8)
    changed = corrupted(pixels, kind, severity, seed=0, ids=torch.arange(8))
    assert (changed.dtype, changed.shape) == (torch.uint8, pixels.shape)
    assert (changed != pixels).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NEARER])
def test_a_higher_severity_is_farther_from_the_image(kind):
    distances = [_distance(kind, severity, _pictures()) for severity in SEVERITIES]
    # 3 % of slack for those whose next severity only adds chance.
    assert all(after > 0.97 * before for before, after in itertools.pairwise(distances)), distances
    assert distances[-1] > 1.2 * distances[0]


@pytest.mark.parametrize("kind", TYPES)
def test_an_image_is_corrupted_alike_in_every_batch(kind):
    pixels, ids = _pictures(12), torch.arange(12) + 1000
    together = corrupted(pixels, kind, 3, seed=7, ids=ids)
    apart = [corrupted(pixels[at], kind, 3, seed=7, ids=ids[at]) for at in torch.arange(12).split(5)]
    assert torch.equal(torch.cat(apart), together)
    last_first = corrupted(pixels.flip(0), kind, 3, seed=7, ids=ids.flip(0))
    assert torch.equal(last_first.flip(0), together)


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow",
                                  "frost", "fog", "elastic_transform"])  # fmt: skip
def test_chance_differs_from_seed_to_seed_and_image_to_image(kind):
    pixels = _pictures(1).repeat(2, 1, 1, 1)
    first, second = corrupted(pixels, kind, 3, seed=0, ids=torch.arange(2))
    other = corrupted(pixels[:1], kind, 3, seed=1, ids=torch.arange(1))[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(1, 8), (1, 4), (3, 33), (2, 16), (3, 96)])
def test_images_of_any_size_and_number_of_channels_are_corrupted(kind, shape):
    channels, size = shape
    pixels = torch.randint(256, (2, channels, size, size), dtype=torch.uint8)
    for severity in SEVERITIES:
        assert corrupted(pixels, kind, severity, seed=0, ids=torch.arange(2)).shape == pixels.shape


# Values by hand


def test_brightness_of_a_grey_image_is_a_sum():
    assert _one(_flat(100), "brightness", 1).unique().tolist() == [112]  # 100 + 0.05 * 255 = 112.75, cut off
    assert _one(_flat(250), "brightness", 5).unique().tolist() == [255]
    assert _one(_flat(0, channels=3), "brightness", 2).unique().tolist() == [25]  # black has no hue: grey, 25.5


def test_brightness_keeps_the_ratio_of_the_colours():
    pixels = torch.tensor([100, 50, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    found = _one(pixels, "brightness", 4)[0, :, 0, 0].tolist()
    assert found == [151, 75, 0]  # 100 + 0.2 * 255 = 151 for the brightest, and half of it


def test_contrast_draws_each_pixel_to_the_mean():
    pixels = torch.cat([_flat(40)[..., :4], _flat(200)[..., :4]], 3)
    assert _one(pixels, "contrast", 2).unique().tolist() == [80, 160]  # 120 +- 0.5 * 80
    assert _one(pixels, "contrast", 5).unique().tolist() == [108, 132]  # 120 +- 0.15 * 80


def test_pixelate_averages_over_areas():
    pixels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    pixels[..., 0, 0] = 180
    # int(4 * 0.65) = 2: a 2 x 2 mean of 45, seen as 2 x 2 pixels.
    assert _one(pixels, "pixelate", 5)[0, 0].tolist() == [[45, 45, 0, 0], [45, 45, 0, 0], [0] * 4, [0] * 4]


def test_jpeg_is_what_pillow_writes_at_the_papers_quality():
    pixels, file = _pictures(1), io.BytesIO()
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(_one(pixels, "jpeg_compression", 5)[0], expected)


def test_jpeg_rounds_a_flat_image_to_a_step_of_its_mean():
    # Quality 40 makes the table's 16 a 20: 8 (77 - 128) = -408 becomes -20 steps of 20, and 128 - 400 / 8 is 78.
    assert _one(_flat(77, size=16), "jpeg_compression", 5).unique().tolist() == [78]


def test_gaussian_noise_has_the_papers_deviation():
    changed = _one(_flat(128, size=256), "gaussian_noise", 3).double() / 255
    assert changed.std().item() == pytest.approx(0.08, rel=0.02)
    assert changed.mean().item() == pytest.approx((128 - 0.5) / 255, abs=1e-3)  # cut off: half a level darker


@pytest.mark.parametrize(("level", "severity", "photons"), [(51, 1, 500), (153, 3, 100), (102, 5, 50)])
def test_shot_noise_has_the_mean_and_variance_of_photons(level, severity, photons):
    changed = _one(_flat(level, size=256), "shot_noise", severity).double() / 255
    x = level / 255
    assert changed.mean().item() == pytest.approx(x - 0.5 / 255, abs=3e-3)
    assert changed.var().item() == pytest.approx(x / photons, rel=0.05)


def test_black_gets_no_photons():
    assert _one(_flat(0), "shot_noise", 5).unique().tolist() == [0]


def test_impulse_noise_is_as_much_salt_as_pepper():
    changed = _one(_flat(128, size=256), "impulse_noise", 5)
    assert (changed == 255).double().mean().item() == pytest.approx(0.035, rel=0.1)
    assert (changed == 0).double().mean().item() == pytest.approx(0.035, rel=0.1)


def test_defocus_of_one_point_is_a_softened_disk():
    pixels = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    pixels[..., 4, 4] = 255
    # Radius 1.5 covers 3 x 3 pixels; a sigma of 0.1 leaves its edge hard.
    expected = torch.zeros(9, 9, dtype=torch.uint8)
    expected[3:6, 3:6] = int(255 / 9)
    assert torch.equal(_one(pixels, "defocus_blur", 5)[0, 0], expected)


@pytest.mark.parametrize(("severity", "end"), list(enumerate((1.06, 1.11, 1.16, 1.21, 1.26), 1)))
def test_zoom_is_that_of_scipy_over_the_papers_range(severity, end):
    """Rounding is a part of it: the range holds 1.06 and 1.11, and ends a hair above 1.25."""
    pixels = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x, factors = pixels[0].numpy() / 255, np.arange(1, end, 0.01)
    wanted = x.copy()
    for factor in factors:
        part = int(np.ceil(32 / factor))
        start = (32 - part) // 2
        large = zoom(x[:, start : start + part, start : start + part], (1, factor, factor), order=1)
        start = (large.shape[1] - 32) // 2
        wanted += large[:, start : start + 32, start : start + 32]
    found = _one(pixels, "zoom_blur", severity)[0].numpy()
    assert np.abs(found - 255 * wanted / (len(factors) + 1)).max() <= 1


def test_glass_takes_values_from_up_and_left_only():
    rows = torch.arange(0, 160, 5, dtype=torch.uint8).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    moved = rows.int() - _one(rows, "glass_blur", 1).int()  # a sigma of 0.05 smooths nothing
    assert moved[..., :2, :].abs().max() == 0
    assert set(moved.unique().tolist()) == {0, 5}
    assert moved[..., 2:, 2:].double().mean().item() == pytest.approx(2.5, rel=0.1)


def test_motion_smears_one_point_along_the_angle():
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x[..., 4, 8] = 1
    g = torch.tensor([1, np.exp(-0.5), np.exp(-2), np.exp(-4.5), np.exp(-8), np.exp(-12.5), np.exp(-18)])
    right = smeared(x, 3, 1.0, torch.zeros(1).double())[0, 0]
    # The edge is repeated: all later taps of the last column fall on the point itself.
    assert right[4, 8].item() == pytest.approx(1)
    assert right[4, 7].item() == pytest.approx((g[1:].sum() / g.sum()).item(), abs=1 / 255)
    assert right[torch.arange(9) != 4].abs().max() == 0
    down = smeared(x.transpose(2, 3), 3, 1.0, torch.full((1,), 90.0).double())[0, 0]
    assert torch.equal(down.T, right)


def test_a_flat_image_stays_flat_where_only_places_change():
    for kind in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate", "contrast"):
        for severity in SEVERITIES:
            assert _one(_flat(90, channels=3, size=32), kind, severity).unique().tolist() == [90], (kind, severity)


def test_plasma_is_cloudy_and_reaches_from_zero_to_one():
    rough, smooth = (plasma(Drawn(0, 0, torch.arange(20)), 32, decay) for decay in (1.2, 3.0))
    for maps in (rough, smooth):
        assert maps.amin((1, 2)).tolist() == [0] * 20
        assert maps.amax((1, 2)).tolist() == [1] * 20
    assert smooth.diff(dim=2).abs().mean() < 0.5 * rough.diff(dim=2).abs().mean()


def test_fog_keeps_the_brightest_value_in_range():
    x = _flat(128, size=32)
    changed = _one(x, "fog", 3).double()
    # (m + 0.75 p) m / (m + 0.75) with p from 0 to 1
    m = 128 / 255
    assert changed.min().item() == pytest.approx(255 * m * m / (m + 0.75), abs=1)
    assert changed.max().item() == pytest.approx(128, abs=1)


# Bad input


def test_an_unknown_corruption_is_told_its_near_matches():
    with pytest.raises(FieldError, match=r"no corruption 'gausian_noise'\. Did you mean 'gaussian_noise'"):
        _one(_flat(0), "gausian_noise", 1)


def test_a_sixth_severity_is_refused():
    with pytest.raises(FieldError, match="severity = 6"):
        _one(_flat(0), "fog", 6)


def test_images_too_small_to_warp_are_refused():
    with pytest.raises(DataError, match="images of 3 x 3 pixels are too small: 4 is the least"):
        _one(_flat(0, size=3), "fog", 1)


def test_an_empty_split_is_refused(tmp_path):
    data = {"name": "digits", "validation": 0.0}
    with pytest.raises(DataError, match="the validation split of 'digits' is empty"):
        rrmsdk.corrupt(TEACHER, data, split="validation", out=tmp_path / "b", quiet=True)


def test_a_negative_number_of_images_is_refused(tmp_path):
    with pytest.raises(FieldError, match="images = -1"):
        rrmsdk.corrupt(TEACHER, images=-1, out=tmp_path / "b", quiet=True)


# The verb


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corrupt") / "bundle"
    return folder, rrmsdk.corrupt(TEACHER, images=100, out=folder, quiet=True)


def test_the_bundle_names_the_file_and_the_file_is_the_result(judged):
    folder, found = judged
    bundle = rrmsdk.Bundle(path=folder, card=rrmsdk.pull("hub:digits-cnn-linf").card)
    assert value.read(Corruptions, folder / CORRUPTIONS) == found
    named = json.loads((folder / "card.json").read_text())["files"]
    assert CORRUPTIONS in named
    assert found.weights_sha256 == bundle.card.files["model.safetensors"]


def test_the_accuracies_are_those_of_the_network_on_the_corrupted_images(judged):
    _, found = judged
    network, test = rrmsdk.load(TEACHER), digits().test.take(100)
    by_name = {one.name: one.accuracy for one in found.types}
    for kind, severity in (("shot_noise", 5), ("fog", 4), ("pixelate", 5)):
        changed = corrupted(test.pixels, kind, severity, seed=0, ids=test.ids)
        with torch.no_grad():
            right = (network(changed / 255).argmax(1) == test.labels).double().mean().item()
        assert by_name[kind][severity - 1] == pytest.approx(right)


def test_all_fifteen_types_are_told_and_corruption_costs_accuracy(judged):
    _, found = judged
    assert [one.name for one in found.types] == list(TYPES)
    assert 0.1 < found.mean < found.clean
    assert found.error is not None
    assert 0 < found.error < 0.05


def test_what_differs_from_the_paper_and_what_changed_nothing_is_told(judged):
    _, found = judged
    assert "photographs" in found.differs["frost"]
    assert found.unchanged == ("zoom_blur 1",)  # 8 pixels: a zoom of 1.06 is less than one
    assert "left every image as it was: zoom_blur 1" in found.summary()


def test_a_mean_that_is_not_that_of_the_types_is_refused(judged):
    _, found = judged
    with pytest.raises(ValueError, match=r"mean says 0\.5"):
        Corruptions.model_validate(found.model_dump() | {"mean": 0.5})


def test_the_batch_does_not_matter(judged, tmp_path):
    _, found = judged
    again = rrmsdk.corrupt(TEACHER, images=100, batch=33, out=tmp_path / "b", quiet=True)
    assert again.types == found.types


@pytest.mark.slow
def test_the_command_prints_one_json_object(tmp_path):
    command = [sys.executable, "-m", "rrmsdk", "corrupt", TEACHER, "-n", "10", "--out", str(tmp_path / "b"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["path"] == str(tmp_path / "b" / CORRUPTIONS)
    assert (told["images"], len(told["types"])) == (10, 15)
