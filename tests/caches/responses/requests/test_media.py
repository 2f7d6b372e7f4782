"""Media in requests: equal content has an equal name, any change another one; live objects stay as they are."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmstash.caches.responses.requests.encoding import read_request
from lmstash.errors import InvalidArgumentError

Image = pytest.importorskip("PIL.Image")


def name(value: Any) -> bytes:
    return read_request({"image": value}).text


def pixels(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> Any:
    depth = len(Image.new(mode, (1, 1)).getbands())
    data = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], depth), dtype=np.uint8)
    return Image.frombytes(mode, size, data.tobytes())


FILMS = ("GIF", "TIFF", "PNG", "WEBP", "MPO")


def film(n_frames: int, changed: int | None = None, form: str = "GIF") -> Any:
    mode = "L" if form in ("GIF", "TIFF") else "RGB"
    frames = [pixels(n + (1000 if n == changed else 0), mode) for n in range(n_frames)]
    file = io.BytesIO()
    frames[0].save(
        file, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    file.seek(0)
    return Image.open(file)


def test_equal_pictures_have_one_name_whatever_they_came_from() -> None:
    picture = pixels()
    file = io.BytesIO()
    picture.save(file, "PNG")
    assert name(picture) == name(picture.copy()) == name(Image.open(io.BytesIO(file.getvalue())))


def test_any_change_of_a_picture_is_another_name() -> None:
    picture = pixels()
    point = picture.copy()
    point.putpixel((6, 4), (1, 2, 3))
    palette = picture.convert("P")
    other_palette = palette.copy()
    colours = palette.getpalette()
    colours[0] ^= 1
    other_palette.putpalette(colours)
    turned = picture.copy()
    turned.getexif()[0x0112] = 6
    profiled, described = picture.copy(), picture.copy()
    profiled.info["icc_profile"] = b"profile"
    exif = Image.Exif()
    exif[0x010E] = "described"
    described.info["exif"] = exif.tobytes()
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    flat = Image.frombytes("RGB", (5, 7), picture.tobytes())
    changed = [point, picture.convert("L"), picture.convert("RGBA"), palette, other_palette, turned, see_through, flat]
    changed += [profiled, described]
    names = {name(each) for each in [picture, *changed]}
    assert len(names) == 1 + len(changed)
    assert len({name(pixels(mode=mode)) for mode in ("RGB", "YCbCr", "HSV", "LAB")}) == 4


@pytest.mark.parametrize("form", FILMS)
def test_every_frame_counts_and_the_picture_stays_at_its_frame(form: str) -> None:
    one = film(3, form=form)
    first = name(one)
    assert first == name(film(3, form=form)) == name(one)
    assert len({first, name(film(2, form=form)), *(name(film(3, each, form)) for each in range(3))}) == 5
    plain = film(3, form=form)
    plain.seek(1)
    one.seek(1)
    assert name(one) != first, "who is handed it sees another picture"
    assert (one.tell(), one.tobytes()) == (1, plain.tobytes())


@pytest.mark.parametrize("form", [form for form in FILMS if form != "WEBP"])
@pytest.mark.parametrize("frame", [0, 1])
def test_what_is_drawn_on_a_frame_counts_and_stays(form: str, frame: int) -> None:
    one, plain = film(3, form=form), film(3, form=form)
    plain.seek(frame)
    one.seek(frame)
    one.load()
    one.paste(0, (0, 0, 3, 3))
    seen = one.tobytes()
    assert seen != plain.tobytes()
    drawn = name(one)
    assert drawn != name(plain)
    assert one.tobytes() == seen
    assert name(one) == drawn


@pytest.mark.parametrize(("form", "disposal"), [("GIF", 3), ("PNG", 2)])
def test_a_film_that_remembers_an_earlier_frame_is_refused(form: str, disposal: int) -> None:
    """The next frame is drawn over the remembered one, which may have been drawn on, and nobody can see that."""
    frames = [pixels(n, "L" if form == "GIF" else "RGBA") for n in range(4)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], disposal=[1, disposal, 1, 1])
    there = Image.open(io.BytesIO(file.getvalue()))
    expected = name(there)
    there.seek(1)
    there.load()
    with pytest.raises(InvalidArgumentError, match="taken back"):
        name(there)
    there.seek(2)
    there.load()
    assert name(there) != expected
    there.seek(0)
    assert name(there) == expected


def test_a_film_of_which_pil_has_let_go_is_refused_and_left_alone() -> None:
    one = film(3, form="WEBP")
    one.load()
    one.putalpha(77)
    seen = one.tobytes()
    with pytest.raises(InvalidArgumentError, match="let go"):
        name(one)
    assert one.tobytes() == seen


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_how_long_frames_are_shown_counts(form: str) -> None:
    def timed(duration: int) -> Any:
        file = io.BytesIO()
        pixels(0).save(file, form, save_all=True, append_images=[pixels(1)], duration=duration)
        return Image.open(file)

    assert name(timed(100)) == name(timed(100)) != name(timed(900))


@pytest.mark.parametrize("form", FILMS)
def test_a_film_that_was_not_looked_at_stays_so_and_a_closed_one_is_refused(form: str) -> None:
    one = film(3, form=form)
    assert name(one) == name(one)
    assert one.fp is not None, "PIL lets go of some files as soon as a frame is looked at"
    one.load()
    one.close()
    with pytest.raises(InvalidArgumentError):
        name(one)


def test_threads_name_one_film_alike_and_leave_it_as_it_is() -> None:
    one = film(4)
    one.seek(1)
    one.load()
    seen, first = one.tobytes(), name(one)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(name, [one] * 80)) == {first}
    assert (one.tell(), one.tobytes()) == (1, seen)


def test_pictures_that_cannot_be_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)  # lmms-eval has them filled up
    file = io.BytesIO()
    pixels(size=(64, 64)).save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:200]))
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        name(cut)


def test_arrays_count_by_values_dtype_and_shape_and_not_by_layout() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    before = array.copy()
    assert name(array) == name(array.copy(order="F")) == name(np.concatenate([array, array])[:3])
    changed = array.copy()
    changed[2, 3] += 1
    others = [changed, array.astype(np.int64), array.astype(">i4"), array.reshape(4, 3), array.T, array.view(np.uint32)]
    others += [array.ravel(), torch.from_numpy(array), array.tobytes(), np.float32(0), np.float64(0), np.matrix(array)]
    assert len({name(each) for each in [array, *others]}) == 1 + len(others)
    assert np.array_equal(array, before)


@pytest.mark.parametrize("wrong", [np.array([object()]), np.ma.array([1], mask=[1])])
def test_arrays_without_content_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        name(wrong)


def test_tensors_count_by_values_dtype_and_shape() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert name(tensor) == name(tensor.clone()) == name(tensor.T.contiguous().T) == name(tensor.requires_grad_())
    others = [tensor + 1, tensor.double(), tensor.bfloat16(), tensor.T, tensor.reshape(3, 2), -tensor]
    assert len({name(each) for each in [tensor, *others]}) == 1 + len(others)
    with pytest.raises(InvalidArgumentError):
        name(tensor.detach().to_sparse())


def test_files_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    one, same, other, suffix = (tmp_path / each for each in ("a.wav", "b.wav", "c.wav", "a.mp3"))
    for path in (one, same, suffix):
        path.write_bytes(b"sound")
    other.write_bytes(b"sound.")
    assert name(one) == name(same)
    assert len({name(one), name(other), name(suffix), name(str(one)), name(b"sound")}) == 5
    first = name(one)
    one.write_bytes(b"noise")
    assert name(one) != first
    with pytest.raises(InvalidArgumentError, match="no such file"):
        name(tmp_path / "absent.wav")


def test_audio_as_datasets_hands_it_out() -> None:
    def sound(rate: int = 16000, last: float = 0.0) -> dict[str, Any]:
        return {"array": np.array([0.1, 0.2, last]), "sampling_rate": rate, "path": None}

    assert name(sound()) == name(sound())
    assert len({name(sound()), name(sound(rate=8000)), name(sound(last=0.1))}) == 3


def test_long_bytes_and_data_urls_are_kept_as_digests() -> None:
    for value in (b"x" * 10_000, "data:image/png;base64," + "A" * 10_000):
        text = name(value)
        assert len(text) < 200
        assert text != name(value[:-1])
    assert name(bytearray(b"x" * 10_000)) == name(memoryview(b"x" * 10_000)) == name(b"x" * 10_000)


def test_the_order_of_pictures_counts() -> None:
    one, two = pixels(1), pixels(2)
    assert read_request([one, two]).text != read_request([two, one]).text
    assert read_request([one, [two]]).text != read_request([[one], two]).text
