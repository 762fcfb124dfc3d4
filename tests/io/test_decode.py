"""Every kind of image becomes the encoder's pixels, or a bad row with its reason."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pytest
from corpora import encoded, jpeg, picture, png_with_huge_header
from PIL import Image

from rrcluster.io.decode import PixelSpec, Undecodable, decode, thumbnail

LIMIT = 178_956_970


def pixels_of(content: bytes, size: int = 32) -> np.ndarray:
    return decode(content, PixelSpec(size), LIMIT)[0]


def reason_of(content: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(Undecodable) as caught:
        decode(content, PixelSpec(32), limit)
    return caught.value.reason


@pytest.mark.parametrize("resize", ["center_crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("width", "height"), [(300, 200), (201, 333), (64, 64), (20, 31), (1, 1), (700, 9), (65, 64)]
)
def test_pixels_must_agree_with_open_clips_transform(resize, interpolation, width, height):
    image = picture(3, width, height)
    transform = open_clip.image_transform(
        64,
        is_train=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        resize_mode="squash" if resize == "squash" else "shortest",
        interpolation=interpolation,
    )
    theirs = (transform(image) * 255).round().permute(1, 2, 0).numpy()
    ours, *size = decode(encoded(image), PixelSpec(64, resize, interpolation), LIMIT)
    assert size == [width, height]
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # PIL's fixed-point weights, rounded


@pytest.mark.parametrize("width", range(64, 97))
def test_the_crop_falls_on_the_same_pixels_for_every_parity(width):
    noise = np.random.default_rng(width).integers(0, 256, (64, width, 3), dtype=np.uint8)
    left = round((width - 64) / 2)
    ours = pixels_of(encoded(Image.fromarray(noise)), 64)
    np.testing.assert_array_equal(ours, noise[:, left : left + 64])


def test_modes_without_colour_become_gray_in_three_channels():
    for mode in ("L", "1", "I;16", "I", "F"):
        image = picture(1).convert("L")
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        elif mode != "L":
            image = image.convert(mode)
        found = pixels_of(encoded(image, "PNG" if mode not in ("I", "F") else "TIFF"))
        assert (found[..., 0] == found[..., 1]).all(), mode
        assert found.std() > 5, mode


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.asarray(picture(1).convert("L"))
    shallow = pixels_of(encoded(Image.fromarray(values)))
    deep = pixels_of(encoded(Image.fromarray(values.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(shallow, deep)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert (pixels_of(encoded(clear)) == 255).all()
    assert (pixels_of(encoded(palette, transparency=0)) == 255).all()
    assert (pixels_of(encoded(palette, transparency=bytes([0] * 256))) == 255).all()
    assert (pixels_of(encoded(palette, "GIF", transparency=0)) == 255).all()
    assert (pixels_of(encoded(Image.new("LA", (9, 9), (0, 0)))) == 255).all()
    assert (pixels_of(encoded(Image.new("RGB", (9, 9)), transparency=(0, 0, 0))) == 255).all()
    assert (pixels_of(encoded(palette))[0, 0] == [10, 20, 30]).all()


def test_cmyk_keeps_its_colours():
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    found = pixels_of(encoded(image.convert("CMYK"), "JPEG", quality=100))
    assert np.abs(found.astype(int) - [200, 40, 90]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, format):
    stored = picture(2, 48, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    found, width, height = decode(
        encoded(stored, format, exif=exif, **options), PixelSpec(24, "squash"), LIMIT
    )
    assert (width, height) == ((24, 48) if orientation >= 5 else (48, 24))
    turned = Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif)))
    from PIL import ImageOps

    seen, _, _ = decode(encoded(ImageOps.exif_transpose(turned)), PixelSpec(24, "squash"), LIMIT)
    if format != "JPEG":
        np.testing.assert_array_equal(found, seen)
    else:
        assert np.abs(found.astype(int) - seen).mean() < 3


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert np.abs(pixels_of(content)[16, 16].astype(int) - [255, 0, 0]).max() <= 3, format


def test_extreme_shapes_are_cropped_without_being_blown_up():
    for size in ((30_000, 4), (4, 30_000), (1, 1), (1, 5000)):
        found, width, height = decode(
            encoded(Image.new("RGB", size, "teal")), PixelSpec(224), LIMIT
        )
        assert (width, height) == size
        assert (found == [0, 128, 128]).all()


def test_a_decompression_bomb_is_refused_by_its_header():
    assert reason_of(png_with_huge_header()) == "too_large"  # over PIL's own limit
    assert reason_of(png_with_huge_header(12_000, 12_000), 100_000_000) == "too_large"
    assert reason_of(encoded(picture(0, 40, 30)), 1199) == "too_large"
    pixels, *_ = decode(encoded(picture(0, 40, 30)), PixelSpec(32), 1200)
    assert pixels.shape == (32, 32, 3)


def test_a_jpeg_of_endless_scans_is_refused():
    """Every scan is a pass over the picture: some kilobytes could keep a core busy for hours."""
    whole = encoded(picture(0, 200, 200), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert pixels_of(whole[:-2] + 50 * last + whole[-2:]).shape == (32, 32, 3)
    assert reason_of(whole[:-2] + 5000 * last + whole[-2:]) == "too_large"


def test_damaged_images_are_decode_and_other_files_unsupported():
    photo = encoded(picture(0, 200, 200), "JPEG")
    assert reason_of(b"") == "decode"
    assert reason_of(photo[: len(photo) // 2]) == "decode"
    assert reason_of(photo[:5]) == "decode"
    for format in ("PNG", "GIF", "WEBP", "TIFF", "BMP"):
        content = encoded(picture(0, 200, 200), format)
        assert reason_of(content[: len(content) // 2]) == "decode", format
    assert reason_of(b"<html>not found</html>") == "unsupported"
    assert reason_of(bytes(1000)) == "unsupported"
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "unsupported"


def test_random_damage_never_raises_anything_else():
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(picture(0, 60, 50), format)
        for _ in range(60):
            damaged = bytearray(whole)
            for at in rng.integers(0, len(whole), 8):
                damaged[at] = rng.integers(0, 256)
            try:
                found = pixels_of(bytes(damaged))
            except Undecodable:
                continue
            assert found.shape == (32, 32, 3)


def test_no_warning_is_printed_and_pil_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        pixels_of(encoded(picture(0, 40, 30)))  # 1200 pixels: PIL would warn
        palette = picture().convert("P")
        pixels_of(encoded(palette, transparency=bytes(range(256))))
        pixels_of(encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"))
        assert list(warnings.filters) == filters
    assert not caught
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_threads_decode_side_by_side():
    content = [jpeg(i) for i in range(8)]
    expected = [pixels_of(c) for c in content]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(pixels_of, content * 10), expected * 10, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_thumbnails_fit_and_are_jpeg():
    for image in (picture(0, 500, 300), picture(0, 300, 5), picture(0, 10, 10, "RGBA")):
        small = Image.open(io.BytesIO(thumbnail(encoded(image), 96, LIMIT)))
        assert small.format == "JPEG"
        assert max(small.size) <= 96
    large = Image.open(io.BytesIO(thumbnail(encoded(picture(0, 900, 600), "JPEG"), 96, LIMIT)))
    assert large.size == (96, 64)


def noise_in_db(exact: np.ndarray, found: np.ndarray) -> float:
    """Peak signal-to-noise ratio; 99 for equal pictures."""
    square = np.square(exact.astype(float) - found).mean()
    return 10 * np.log10(255**2 / square) if square else 99.0


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_told_with_its_own(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = picture(4, 24, 18).resize((960, 720), Image.Resampling.BICUBIC)
    content = encoded(smooth, "JPEG", quality=95, exif=exif)
    exact, *size = decode(content, PixelSpec(64), LIMIT)
    found, *told = decode(content, PixelSpec(64), LIMIT, margin=2)
    assert told == size == ([960, 720] if orientation == 1 else [720, 960])
    assert not np.array_equal(found, exact), "nothing was saved"
    assert noise_in_db(exact, found) > 40
    for margin in (0, 12):  # 12 times 64 is more than its shorter side
        np.testing.assert_array_equal(decode(content, PixelSpec(64), LIMIT, margin)[0], exact)
    lossless = encoded(smooth, "PNG")
    whole = decode(lossless, PixelSpec(64), LIMIT)[0]
    np.testing.assert_array_equal(decode(lossless, PixelSpec(64), LIMIT, margin=2)[0], whole)


def test_two_encoders_are_given_enough_pixels_for_the_larger_one():
    smooth = picture(4, 24, 18).resize((960, 720), Image.Resampling.BICUBIC)
    content = encoded(smooth, "JPEG", quality=95)
    both = PixelSpec(16, beside=PixelSpec(400))
    exact, found = (decode(content, both, LIMIT, margin)[0] for margin in (0, 2))
    np.testing.assert_array_equal(found, exact)


def test_photos_at_a_part_of_their_size_keep_their_pixels_within_the_stated_noise(test_data):
    files = sorted((test_data / "images").rglob("*.jpg"))[::40]
    spec, noise = PixelSpec(32), []
    for content in (f.read_bytes() for f in files):
        pair = (decode(content, spec, LIMIT, margin)[0] for margin in (0, 3))
        noise.append(noise_in_db(*pair))
    changed = [n for n in noise if n < 99]
    assert len(changed) > len(files) / 4
    assert np.mean(changed) > 40
