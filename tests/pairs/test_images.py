"""Images of rows: what is read, what is refused and why, and that the store keeps each one plain, small and unchanged."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from hubdistill.errors import InputError
from hubdistill.pairs import images
from hubdistill.pairs.image_sources import raw_image
from hubdistill.pairs.images import ImageStore, RawImage

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def noise(width: int = 24, height: int = 16, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), random.Random(0).randbytes(width * height * channels))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def raw(data: bytes) -> RawImage:
    return raw_image(data, None)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "run" / "images", 10_000)


def stored(store: ImageStore, data: bytes) -> Image.Image:
    image = store.open(store.put(raw(data)))
    assert image.mode == "RGB"
    return image


# What a cell may hold


def test_every_kind_of_cell_gives_the_same_bytes(tmp_path: Path) -> None:
    data = encoded(noise())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    (tmp_path / "link.png").symlink_to(path)
    (tmp_path / "sub").mkdir()
    expected = raw(data)
    assert expected.data == data
    assert len(expected.digest) == 32
    for cell in (bytearray(data), "a.png", "link.png", "sub/../a.png", str(path), {"bytes": data, "path": "gone.png"}, {"bytes": data}):
        assert raw_image(cell, tmp_path) == expected
    assert raw_image("../a.png", tmp_path / "sub") == expected
    assert raw_image({"bytes": None, "path": str(path)}, None, trusted_paths=True) == expected


def test_a_pil_image_becomes_the_same_png_each_time(store: ImageStore) -> None:
    for mode in ("RGB", "L", "RGBA", "CMYK", "F"):
        one, two = (raw_image(noise(mode="L" if mode == "F" else mode).convert(mode), None) for _ in range(2))
        assert one == two
        assert Image.open(io.BytesIO(one.data)).format == "PNG"
    assert store.open(store.put(raw_image(noise(), None))).tobytes() == noise().tobytes()
    with pytest.raises(InputError, match="several frames"):
        raw_image(Image.open(io.BytesIO(animated("GIF"))), None)
    with pytest.raises(InputError, match="damaged"):
        raw_image(Image.open(io.BytesIO(encoded(noise(200, 200))[:9000])), None)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (None, "holds null.*; give"),
        (3, "type int.*; give"),
        ([1], "type list.*; give"),
        ({}, "object without bytes.*; give"),
        ({"bytes": None, "path": None}, "object without bytes.*; give"),
        ({"bytes": [1, 2], "path": None}, "object without bytes.*; give"),
        ({"bytes": None, "path": "/x/a.png"}, "only the path '/x/a.png'.*not read; put the bytes"),
        (b"", "empty.*; replace"),
        ("", "empty text; give"),
        ("http://10.0.0.1/a.png", "URL 'http://10.0.0.1/a.png', which is not fetched; download"),
        (" HTTPS://example.com/a.png", "not fetched; download"),
        ("file:///etc/a.png", "not fetched; download"),
        ("data:image/png;base64,AAAA", "data: URL.*; decode it"),
        ("nul\0.png", "no path; give"),
        ("half\ud800.png", "no path; give"),
        ("A" * 5000, "A\\.\\.\\.', which cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_image_source_is_refused(cell: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        raw_image(cell, tmp_path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("path", ["a.png", "http://x/a.png", "hf://datasets/x/a.png"])
def test_a_trusted_path_must_be_absolute(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not read; put the bytes"):
        raw_image({"bytes": None, "path": path}, tmp_path, trusted_paths=True)


def test_a_dataset_of_the_hub_cannot_name_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise()))
    with pytest.raises(InputError, match="must be in it as bytes"):
        raw_image(str(path), None, trusted_paths=True)


def test_a_missing_file_is_named_with_the_place_looked_at(tmp_path: Path) -> None:
    for name in ("gone.png", "a.txt/gone.png"):
        (tmp_path / "a.txt").touch()
        with pytest.raises(InputError, match=f"names '{tmp_path / name}', which is not there; correct the path"):
            raw_image(name, tmp_path)


def test_folders_and_special_files_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "sub.png").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    for name, words in (("sub.png", "a folder"), ("fifo.png", "no regular file"), ("/dev/zero", "no regular file")):
        with pytest.raises(InputError, match=f"{words}; name"):
            raw_image(name, tmp_path)
    with pytest.raises(InputError, match="no regular file"):
        raw_image({"bytes": None, "path": "/dev/zero"}, None, trusted_paths=True)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with (tmp_path / "large.png").open("wb") as stream:
        stream.truncate(2**20 + 1)
    for cell in ("large.png", b"x" * (2**20 + 1)):
        with pytest.raises(InputError, match="larger than 1 MiB; save"):
            raw_image(cell, tmp_path)


# What the store refuses


def animated(kind: str) -> bytes:
    return encoded(noise(), kind, save_all=True, append_images=[noise(16, 24).rotate(90, expand=True)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"just a text, whatever its name says\n", "not an image that can be read.*; replace"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (encoded(noise(), "PPM"), "not an image that can be read"),
        (png_header(60_000, 60_000), "too many pixels.*; save a smaller"),
        (png_header(12_000, 12_000), "12000 x 12000 pixels.*; save a smaller"),
        (png_header(20_000, 10), "20000 x 10 pixels, more than 200 times.*; crop"),
        (png_header(10, 20_000), "10 x 20000 pixels, more than 200 times"),
        (encoded(noise(200, 200))[:9000], "damaged or cut short; replace"),
        (encoded(noise(200, 200), "JPEG")[:9000], "damaged or cut short; replace"),
        (encoded(noise(200, 200), "WEBP")[:5000], "damaged or cut short|not an image"),
        (encoded(noise())[:20], "not an image|damaged"),
        (animated("GIF"), "several frames.*; save the frame"),
        (animated("WEBP"), "several frames"),
        (animated("PNG"), "several frames"),
        (animated("TIFF"), "several frames or pages"),
        (encoded(Image.new("F", (4, 4), float("nan")), "TIFF"), "no numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_and_nothing_is_written(data: bytes, words: str, store: ImageStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=words):
            store.put(raw(data))
    assert not store.folder.exists()


def test_a_bomb_is_refused_before_it_is_decoded(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="12000 x 12000"):
        store.put(raw(png_header(12_000, 12_000)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_corrupt_bytes_give_an_image_or_an_input_error(kind: str, store: ImageStore) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole, rng, refused = encoded(noise(), kind, **({} if kind in ("GIF", "BMP") else {"exif": exif})), random.Random(1), 0
    assert stored(store, whole).width in (16, 24)
    for _ in range(200):
        data = bytearray(whole)
        data[rng.randrange(min(len(data), 500))] = rng.randrange(256)
        try:
            stored(store, bytes(data))
        except InputError:
            refused += 1
    assert refused


# What the store keeps


@pytest.mark.parametrize(
    ("image", "kind", "suffix"),
    [
        (noise(), "PNG", ".png"),
        (noise(), "JPEG", ".jpg"),
        (noise(), "WEBP", ".webp"),
        (noise(mode="L"), "PNG", ".png"),
        (noise(mode="L"), "JPEG", ".jpg"),
        (noise(1, 1), "PNG", ".png"),
        (noise(200, 1), "PNG", ".png"),
    ],
)  # fmt: skip
def test_a_plain_image_is_kept_byte_for_byte(image: Image.Image, kind: str, suffix: str, store: ImageStore) -> None:
    found = raw(encoded(image, kind))
    name = store.put(found)
    assert name == found.digest + suffix
    assert (store.folder / name).read_bytes() == found.data
    assert store.open(name).size == image.size


def test_a_phones_picture_with_thumbnails_is_its_first_frame(store: ImageStore) -> None:
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise(8, 8)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    name = store.put(raw(data))
    assert name.endswith(".jpg")
    assert store.open(name).size == (24, 16)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF"])
def test_other_formats_become_png(kind: str, store: ImageStore) -> None:
    name = store.put(raw(encoded(Image.new("RGB", (5, 4), RED), kind)))
    assert name.endswith(".png")
    assert store.open(name).getpixel((2, 2)) == RED


def test_a_cmyk_jpeg_becomes_an_rgb_jpeg(store: ImageStore) -> None:
    name = store.put(raw(encoded(Image.new("RGB", (32, 32), RED).convert("CMYK"), "JPEG")))
    assert name.endswith(".jpg")
    pixel: Any = store.open(name).getpixel((9, 9))
    assert all(abs(a - b) < 12 for a, b in zip(pixel, RED, strict=True))
    assert Image.open(store.folder / name).mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_rotated_image_is_turned_upright(kind: str, store: ImageStore) -> None:
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (0, 0, 16, 16))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise: left goes to the top
    exif[0x010F] = "a camera's name"
    name = store.put(raw(encoded(image, kind, exif=exif, icc_profile=b"profile" * 20)))
    found = store.open(name)
    top, bottom = found.getpixel((8, 4)), found.getpixel((8, 28))
    assert found.size == (16, 32)
    assert top[2] > 200 > 60 > top[0]  # type: ignore[index]
    assert bottom[0] > 200 > 60 > bottom[2]  # type: ignore[index]
    assert name.endswith(".jpg" if kind == "JPEG" else ".png")
    data = (store.folder / name).read_bytes()
    assert b"camera" not in data
    assert b"profile" not in data
    assert not Image.open(io.BytesIO(data)).getexif()


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_what_pil_makes_of_it(orientation: int, store: ImageStore) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), exif=exif)
    assert stored(store, data).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()


def test_an_image_with_broken_exif_is_still_an_image(store: ImageStore) -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert stored(store, encoded(noise(), "JPEG", exif=exif)).size == (24, 16)


def test_what_is_transparent_comes_on_white(store: ImageStore) -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    half.putpixel((0, 0), (0, 0, 0, 0))
    for image in (half, half.quantize(4)):
        found = stored(store, encoded(image))
        assert found.getpixel((0, 0)) == WHITE
        assert found.getpixel((2, 2)) == (255, 127, 127)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = raw_image(clear.convert("P").convert("PA"), None)  # PIL has no format to write it in
    assert store.open(store.put(palette)).getpixel((1, 1)) == WHITE
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (Image.new("LA", (4, 4), (0, 0)), "PNG", {}),
        (Image.new("RGB", (4, 4), RED), "PNG", {"transparency": RED}),
        (Image.new("L", (4, 4), 9), "PNG", {"transparency": 9}),
        (Image.new("P", (4, 4), 1), "GIF", {"transparency": 1}),
        (clear, "WEBP", {"lossless": True}),
        (clear, "TIFF", {}),
    ]
    for image, kind, options in kinds:
        assert stored(store, encoded(image, kind, **options)).getpixel((1, 1)) == WHITE


@pytest.mark.parametrize(
    ("mode", "kind", "values", "expected"),
    [
        ("I;16", "PNG", [0, 32768, 65535], [0, 128, 255]),
        ("I;16", "TIFF", [0, 257 * 77, 200], [0, 77, 0]),
        ("I;16B", "TIFF", [0, 32768, 65535], [0, 128, 255]),
        ("I", "TIFF", [0, 128, 255], [0, 128, 255]),
        ("I", "TIFF", [0, 32768, 65535], [0, 128, 255]),
        ("I", "TIFF", [-1000, 0, 1000], [0, 127, 255]),
        ("F", "TIFF", [0, 0.5, 1], [0, 127, 255]),
        ("F", "TIFF", [0, 128, 255], [0, 128, 255]),
        ("F", "TIFF", [7, 7, 7], [7, 7, 7]),
        ("F", "TIFF", [-7, -7, -7], [0, 0, 0]),
        ("1", "PNG", [0, 255, 0], [0, 255, 0]),
    ],
)  # fmt: skip
def test_deep_gray_is_scaled_not_clipped(mode: str, kind: str, values: list[float], expected: list[int], store: ImageStore) -> None:
    image = Image.new("I;16" if mode == "I;16B" else mode, (3, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    if mode == "I;16B":  # which PIL reads and does not write: give it as the row's PIL image
        data = struct.pack(">3H", *map(int, values))
        found = store.open(store.put(raw_image(Image.frombytes("I;16B", (3, 1), data), None)))
    else:
        found = stored(store, encoded(image, kind))
    assert list(found.getchannel(1).tobytes()) == expected


# Scaling


@pytest.mark.parametrize(
    ("size", "pixels"),
    [((400, 100), 10_000), ((100, 400), 10_000), ((101, 99), 9_999), ((200, 1), 50), ((1, 200), 50), ((3162, 16), 50_000), ((7, 7), 1), ((2, 1), 1)],
)
def test_scaling_keeps_the_shape_and_the_limit(size: tuple[int, int], pixels: int, tmp_path: Path) -> None:
    found = stored(ImageStore(tmp_path, pixels), encoded(Image.new("RGB", size, RED)))
    width, height = found.size
    assert width * height <= pixels
    assert max(found.size) <= images.MAX_RATIO * min(found.size)
    assert found.getpixel((0, 0)) == RED
    if min(size) > 90:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
        assert width * height > 0.95 * pixels


def test_a_scaled_jpeg_stays_one_and_others_become_png(store: ImageStore) -> None:
    for kind, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".png")):
        name = store.put(raw(encoded(noise(200, 100), kind)))
        assert name.endswith(suffix)
        assert store.open(name).size == (141, 70)


def test_only_the_name_of_a_scaled_image_depends_on_the_limit(tmp_path: Path) -> None:
    small, large = raw(encoded(noise(10, 10))), raw(encoded(noise(200, 100)))
    names = [(ImageStore(tmp_path, pixels).put(small), ImageStore(tmp_path, pixels).put(large)) for pixels in (1000, 2000)]
    assert names[0][0] == names[1][0]
    assert names[0][1] != names[1][1]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_the_same_bytes_give_the_same_file(kind: str, tmp_path: Path) -> None:
    image = raw(encoded(noise(200, 100), kind))
    kept = []
    for folder in ("one", "two"):
        store = ImageStore(tmp_path / folder, 5_000)
        name = store.put(image)
        kept.append((name, (store.folder / name).read_bytes()))
    assert kept[0] == kept[1]


# The folder


def test_a_file_that_is_there_is_neither_decoded_nor_written_again(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    image = raw(encoded(noise(200, 100), "JPEG"))
    name = store.put(image)
    before = (store.folder / name).stat()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert store.put(image) == name
    after = (store.folder / name).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:300]), lambda path: path.write_bytes(b"")])
def test_a_spoilt_store_says_what_to_delete(spoil: Callable[[Path], Any], store: ImageStore) -> None:
    name = store.put(raw(encoded(noise())))
    spoil(store.folder / name)
    with pytest.raises(InputError, match=f"{name}: the stored image .*; delete the folder {store.folder.parent} and run"):
        store.open(name)


def test_keep_only_deletes_every_other_file(store: ImageStore) -> None:
    store.keep_only([])  # no folder yet
    kept, other = store.put(raw(encoded(noise()))), store.put(raw(encoded(noise(9, 9))))
    (store.folder / f".{other}.0123456789ab").write_bytes(b"left over")
    (store.folder / "folder").mkdir()
    store.keep_only(iter([kept, kept, "gone.png"]))
    assert sorted(path.name for path in store.folder.iterdir()) == sorted([kept, "folder"])
