"""What is in a shard is a sample, or is counted: damage, cuts, dots in names, the same names twice."""

import io
import tarfile
from pathlib import Path

import pytest
from own_pictures import data_for, png, take, write_folder

from uae_lightning.data.images import BadFile
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns, Sample
from uae_lightning.usage import UsageError

BLOCK = tarfile.BLOCKSIZE


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> list[int]:
    """Returns where the headers lie, and then where the end is marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            offsets.append(tar.offset)
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
        return [*offsets, tar.offset]


def read(path: Path | list[Path]) -> list[Sample]:
    source = open_source([str(one) for one in path] if isinstance(path, list) else str(path), Columns())
    return [sample for unit in range(len(source)) for sample in source.read(unit)]


def reasons(samples: list[Sample]) -> list[str]:
    return [sample.image.reason for sample in samples if isinstance(sample.image, BadFile)]


# ---------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Six samples of a picture and a caption, and where its headers are."""
    path = tmp_path_factory.mktemp("shard") / "whole.tar"
    members = [(f"{i:03d}.{kind}", b"x" * (600 * i + 1)) for i in range(6) for kind in ("png", "txt")]
    return path, write_tar(path, members)


def test_a_whole_shard_has_no_damage(shard):
    # red if the end mark itself is taken for damage
    assert len(read(shard[0])) == 6 and not reasons(read(shard[0]))


def test_a_cut_anywhere_is_counted(shard, tmp_path: Path):
    # red where tarfile takes a cut for the end: at a header, in the middle of one, or before the mark of the end
    path, headers = shard
    data, cut = path.read_bytes(), tmp_path / "cut.tar"
    places = {header + more for header in headers for more in (0, 1, BLOCK - 1, BLOCK, BLOCK + 7)}
    for place in sorted(place for place in places if 0 < place <= headers[-1]):
        cut.write_bytes(data[:place])
        samples = read(cut)
        assert reasons(samples) == ["damaged shard"] and len(samples) <= 6, place


def test_a_damaged_header_anywhere_is_counted(shard, tmp_path: Path):
    # red where tarfile takes a header with a wrong sum, or of nothing but zeros, for the end
    path, headers = shard
    damaged = tmp_path / "damaged.tar"
    for header in headers[:-1]:
        for place, byte in ((0, b"\xff"), (124, b"9"), (150, b"?"), (300, b"\x01")):
            data = bytearray(path.read_bytes())
            data[header + place : header + place + 1] = byte
            damaged.write_bytes(data)
            assert "damaged shard" in reasons(read(damaged)), (header, place)
        data[header : header + BLOCK] = bytes(BLOCK)
        damaged.write_bytes(data)
        assert "damaged shard" in reasons(read(damaged)), header


def test_where_nothing_may_be_skipped_one_damaged_shard_stops_the_run(tmp_path: Path):
    # red if the verdict waits for 100 samples although no share of them is allowed
    folder = write_folder(tmp_path / "pictures")
    headers = write_tar(tmp_path / "00.tar", {f"{i:03d}.png": png(100 + i) for i in range(4)})
    (tmp_path / "00.tar").write_bytes((tmp_path / "00.tar").read_bytes()[: headers[-1]])
    data = data_for(tmp_path / "00.tar", validation_path=str(folder), max_skipped=0.0)
    with pytest.raises(UsageError, match=r"\d of \d+ pictures .* damaged shard \(1\)"):
        take(data, 20)


# ---------------------------------------------------------------------------------------------------- names


def test_dots_in_names_lose_no_picture(tmp_path: Path):
    # red if a name's suffix begins at its first dot
    pictures = {f"IMG.2019.{i:02d}.{kind}": f"{kind} {i}".encode() for i in range(90) for kind in ("png", "txt")}
    write_tar(tmp_path / "a.tar", pictures | {"0001.v1.png": b"one", "0001.v1.txt": b"its caption"})
    samples = read(tmp_path / "a.tar")
    assert [sample.key for sample in samples[:2]] == ["a.tar/IMG.2019.00", "a.tar/IMG.2019.01"]
    assert len(samples) == 91 and not reasons(samples)
    assert all(s.image.replace(b"png", b"txt") == s.caption and not s.others for s in samples[:90])
    assert (samples[90].image, samples[90].caption) == (b"one", b"its caption")


def test_further_pictures_of_a_webdataset_sample_are_no_samples_but_counted(tmp_path: Path):
    # red if a mask is trained on, or passed over without a count
    parts = {"0.jpg": b"photo", "0.json": b'{"caption": "c"}', "0.mask.png": b"mask", "0.depth.v2.png": b"depth"}
    write_tar(tmp_path / "a.tar", parts | {"1.image.jpg": b"photo", "1.txt": b"d", "2.jpg": b"p", "2.png": b"q"})
    samples = read(tmp_path / "a.tar")
    assert [(s.key, s.image, s.caption, s.others) for s in samples] == [
        ("a.tar/0", b"photo", "c", 2), ("a.tar/1.image", b"photo", b"d", 0), ("a.tar/2", b"p", None, 1),
    ]  # fmt: skip


def test_further_pictures_are_told_with_what_was_converted(tmp_path: Path):
    # red if `others` is not handed on
    folder = write_folder(tmp_path / "pictures")
    write_tar(tmp_path / "a.tar", {"0.png": png(200), "0.mask.png": png(201)})
    data = data_for(tmp_path / "a.tar", validation_path=str(folder), batch_size=1)
    take(data, 3)
    assert data.skipped_files.converted == {"without further pictures of its name": 3}


def test_one_name_for_two_files_is_counted(tmp_path: Path):
    # red if the second takes the place of the first
    write_tar(tmp_path / "a.tar", [("0.png", b"one"), ("0.png", b"two"), ("1.png", b"three")])
    samples = read(tmp_path / "a.tar")
    assert reasons(samples) == ["same name twice"] and samples[1].image == b"three"


def test_links_in_a_shard_are_counted(tmp_path: Path):
    # red if a member that is no file is passed over
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert reasons(read(tmp_path / "a.tar")) == ["not a file"]


def test_shards_of_one_name_give_different_keys(tmp_path: Path):
    # red if keys have the name of the file alone; those of shards with names of their own stay as they were
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "00.tar", {"000.png": b"x"})
    write_tar(tmp_path / "a" / "01.tar", {"000.png": b"x"})
    a, b, c = (tmp_path / name for name in ("a/00.tar", "b/00.tar", "a/01.tar"))
    assert [sample.key for sample in read([a, b])] == ["a/00.tar/000", "b/00.tar/000"]
    assert [sample.key for sample in read([a, c])] == ["00.tar/000", "01.tar/000"]
