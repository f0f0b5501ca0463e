"""Parts: many photos of a manifest, in folders and in a store that speaks S3, with what goes wrong on the way."""

import gzip
import http.server
import json
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow.fs import FileSelector, S3FileSystem
from typer.testing import CliRunner

from diffseg import outputs, parts, stores
from diffseg.cli import app
from diffseg.datasets.scenes import scene

SMALL = ["--size", "64", "--anchors", "8", "--device", "cpu"]
COUNT = 12
AWS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


@pytest.fixture(autouse=True)
def _aws(monkeypatch):
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        Image.fromarray(scene(4, i, 96).image[:80]).save(folder / f"scene{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def manifest(photos):
    file = photos / "keys.txt"
    file.write_text("".join(f"{path}\n" for path in sorted(photos.glob("*.png"))))
    return file


@pytest.fixture(scope="module")
def segmented(photos, tmp_path_factory):
    """What `diffseg segment` writes for the photos."""
    out = tmp_path_factory.mktemp("segmented")
    run = CliRunner().invoke(app, ["segment", str(photos), "--out", str(out), "--coco", str(out / "coco.json"), *SMALL])
    assert run.exit_code == 0, run.output
    return out


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory):
    """The parts of the manifest, two photos each."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert segment(manifest, out, "--part-size", 2).exit_code == 0
    return contents(str(out))


class Store:
    """An S3 server on this machine, which can go away and come back with all it holds."""

    def __init__(self, photos: Path):
        moto = pytest.importorskip("moto.server")
        self.make, self.server = moto.ThreadedMotoServer, moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()
        self.bucket = f"bucket{self.port}"
        self.files = S3FileSystem(
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}",
            allow_bucket_creation=True,
            access_key="somebody",
            secret_key="secret",
            region="us-east-1",
        )
        self.files.create_dir(self.bucket)
        for path in sorted(photos.glob("*.png")):
            self.put(f"photos/{path.name}", path.read_bytes())

    def put(self, key: str, content: bytes) -> None:
        with self.files.open_output_stream(f"{self.bucket}/{key}") as file:
            file.write(content)

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}?scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def go(self) -> None:
        self.server.stop()

    def come_back(self) -> None:
        self.server = self.make("127.0.0.1", self.port, verbose=False)
        self.server.start()


@pytest.fixture(scope="module")
def store(photos):
    store = Store(photos)
    yield store
    store.go()


def segment(manifest: object, out: object, *options: object):
    command = ["segment", "--manifest", str(manifest), "--out", str(out), *SMALL, *map(str, options)]
    return CliRunner().invoke(app, command)


def merge(*arguments: object):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def contents(uri: str) -> dict[str, bytes]:
    """What each file of a run holds."""
    folder = stores.place(uri)
    return {name: folder.child(name).read() for name in sorted(folder.names())}


def files_in(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def times(uri: str) -> dict[str, int]:
    folder = stores.place(uri)
    listed = folder.files.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return {info.base_name: info.mtime_ns for info in listed if info.base_name.startswith("part-")}


def one_sentence(run, words: str) -> None:
    told = [line for line in run.stderr.splitlines() if line.startswith("diffseg: ")]
    assert len(told) == 1, run.output
    assert words in told[0]
    assert "Traceback" not in run.output


# --- what parts hold --------------------------------------------------------------------------------------------------


def test_the_same_as_segment_through_a_store(store, photos, segmented, tmp_path):
    """Photos, manifest and parts in the store: records and label maps are those of `diffseg segment`."""
    names = sorted(path.name for path in photos.glob("*.png"))
    store.put("keys.txt", "\n".join(["", *(store.uri(f"photos/{name}") for name in names), "  "]).encode())
    out = store.uri("same")
    run = segment(store.uri("keys.txt"), out, "--part-size", 5)
    assert run.exit_code == 0, run.output
    assert run.stdout.startswith(f"{COUNT} photos, ")
    assert sorted(contents(out)) == [*(parts.part_name(i) for i in range(3)), "run.json"]

    records = list(parts.read(out))
    assert [record["photo"] for record in records] == [store.uri(f"photos/{name}") for name in names]
    for name, record in zip(names, records, strict=True):
        stem = segmented / Path(name).stem
        expected = json.loads(stem.with_suffix(".json").read_text())
        np.testing.assert_array_equal(parts.labels(record), np.asarray(Image.open(f"{stem}.labels.png")))
        assert {**expected, "photo": record["photo"], "timings_s": {}} == record
    assert parts.labels(records[0]).dtype == np.int32
    assert parts.find(out, records[7]["photo"]) == records[7]

    merged = merge(out, "--coco", tmp_path / "coco.json", "--labels", tmp_path / "labels")
    assert merged.exit_code == 0, merged.output
    ours, theirs = (json.loads((folder / "coco.json").read_text()) for folder in (tmp_path, segmented))
    assert ours["annotations"] == theirs["annotations"]
    assert ours == outputs.coco([{**record, "photo": record["photo"].partition("?")[0]} for record in records])
    made = {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()}
    assert made == {path.name: path.read_bytes() for path in segmented.glob("*.labels.png")}


def test_the_table_is_what_the_page_says(undisturbed, manifest, segmented, tmp_path):
    """Columns, types and metadata of a part, read with nothing of this package."""
    file = tmp_path / "part.parquet"
    file.write_bytes(undisturbed["part-00000003.parquet"])
    table = pq.read_table(file)
    assert {field.name: str(field.type) for field in table.schema} == {
        "key": "string", "height": "int32", "width": "int32", "error": "string",
        "segments": "list<element: struct<counts: string, area: int64, bbox: fixed_size_list<element: int32>[4]>>",
    }  # fmt: skip
    assert table["key"].to_pylist() == manifest.read_text().splitlines()[6:8]
    facts = json.loads(table.schema.metadata[b"diffseg"])
    assert facts["settings"]["anchors"] == 8
    assert facts["model"] == "mini"
    assert facts["part"] == 3
    assert {"diffseg", "torch"} <= set(facts["versions"])
    first = table.to_pandas()["segments"][0]
    expected = json.loads((segmented / "scene06.json").read_text())["segments"]
    assert [(s["counts"], s["area"], list(s["bbox"])) for s in first] == [
        (s["segmentation"]["counts"], s["area"], s["bbox"]) for s in expected
    ]


def test_photos_that_fail_are_rows(store, photos, tmp_path):
    fine = str(photos / "scene00.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 400)).save(tmp_path / "narrow.png")
    store.put("cut.png", Path(fine).read_bytes()[:500])
    file = tmp_path / "keys.txt"
    wrong = {
        "broken.png": "damaged or not an image",
        str(tmp_path / "none.png"): "is missing, there is no such file",
        store.uri("cut.png"): "damaged or unreadable",
        store.uri("photos/none.png"): "no such object",
        store.uri("photos/"): "no such object",
        store.uri("photos//scene00.png"): "Empty path component",
        "narrow.png": "anchors must be 1 to",
    }
    file.write_text("\n".join([fine, *wrong, fine]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # relative paths are relative to the current folder
        run = segment(file, "out", "--size", 128, "--anchors", 16, "--part-size", 4)
    assert run.exit_code == 0, run.output
    assert f"{len(wrong)} could not be segmented, such as: " in run.stderr
    out = str(tmp_path / "out")
    errors = dict(parts.failures(out))
    assert list(errors) == list(wrong)
    for key, words in wrong.items():
        assert words in errors[key]
    assert [record["photo"] for record in parts.read(out)] == [fine, fine]
    with pytest.raises(parts.UserError, match=r"broken\.png could not be segmented: .*damaged"):
        parts.find(out, "broken.png")
    told = merge(out)
    assert told.exit_code == 0
    assert told.stdout.strip() == f"{len(wrong) + 2} photos, {len(wrong)} of them failed; 3 of 3 parts are there"


def test_photos_that_share_passes_are_segmented_as_one_by_one(monkeypatch):
    """As on a GPU, up to three of one shape in a pass; one is too narrow, and one is no photo."""
    seg = parts.load_model("mini", device="cpu")
    settings = seg.settings(size=128, anchors=16)
    shapes = [(80, 96), (96, 80)] * 4
    photos: list = [scene(4, i, 96).image[:height, :width] for i, (height, width) in enumerate(shapes)]
    photos[3:3] = [parts.UserError("no photo"), np.zeros((400, 20, 3), np.uint8)]
    passes = []
    observe = type(seg.model).observe
    monkeypatch.setattr(
        type(seg.model), "observe", lambda m, x, *a, **k: passes.append(len(x)) or observe(m, x, *a, **k)
    )
    together = list(parts._segmented(seg, iter(photos), settings, 3))
    assert max(passes) == 3
    passes.clear()
    alone = list(parts._segmented(seg, iter(photos), settings, 1))
    assert max(passes) == 1
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert isinstance(other, parts.UserError) == (index in (3, 4))
        if index in (3, 4):
            assert str(one) == str(other)
        else:
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(other, seg.segment(photos[index], settings).labels)
    assert "anchors must be 1 to" in str(together[4])


def test_a_part_without_any_segments_is_told(tmp_path):
    (tmp_path / "keys.txt").write_text("a.png\nb.png\n")
    run = segment(tmp_path / "keys.txt", tmp_path / "out")
    assert run.exit_code == 0
    assert "no photo of part-00000000.parquet could be segmented" in run.stderr


def test_urls_in_all_forms(store, photos, tmp_path, monkeypatch):
    """Spaces, letters of any alphabet, encoded characters; an endpoint by the environment; file://."""
    content = (photos / "scene00.png").read_bytes()
    for key in ("a b.png", "é/ü.png", "100%.png", "what?.png"):
        store.put(key, content)
    (tmp_path / "a b.png").write_bytes(content)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
    for key in ("a b.png", "a%20b.png", "é/ü.png", "100%25.png", "what%3F.png"):
        assert stores.place(f"s3://{store.bucket}/{key}").read() == content
        assert stores.place(store.uri(key)).read() == content
    assert stores.place(f"file://{tmp_path}/a%20b.png").read() == content
    with pytest.raises(stores.UserError, match="is too large"):
        stores.place(store.uri("a b.png")).read(most_bytes=len(content) - 1)


# --- how parts are made -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_killed_run_continues(where, request, manifest, undisturbed, tmp_path, commands):
    """Parts that were finished are not made again, and the whole is that of a run that nobody killed."""
    out = str(tmp_path / "out") if where == "folder" else request.getfixturevalue("store").uri("killed")
    options = ["--manifest", str(manifest), "--out", out, "--part-size", "2", *SMALL]
    process = commands.start("segment", *options, module="diffseg.cli", cwd=tmp_path)
    while len(times(out)) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    before = times(out)
    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(before) < COUNT // 2
    run = segment(manifest, out, "--part-size", 2)
    assert run.exit_code == 0, run.output
    assert f"{len(before)} parts are there already" in run.stderr
    assert before.items() <= times(out).items()
    assert contents(out) == undisturbed
    if where == "folder":
        assert files_in(out) == sorted(undisturbed)


def test_shards_are_the_whole(manifest, undisturbed, tmp_path):
    for shard in ("1/2", "0/2"):
        run = segment(manifest, tmp_path, "--part-size", 2, "--shard", shard)
        assert run.exit_code == 0, run.output
        assert "6 photos, 3 parts of 3, with" in run.stderr
    assert contents(str(tmp_path)) == undisturbed
    assert parts.missing(parts.run_of(str(tmp_path)), [], (5, 7)) == [5]
    assert parts.missing(parts.run_of(str(tmp_path)), [], (6, 7)) == []


def test_jobs_travel_and_come_in_any_order(store, manifest, undisturbed):
    """Another machine has nothing but the pickled job."""
    out = store.uri("jobs")
    run = parts.Run(**json.loads(undisturbed["run.json"]))
    assert parts.begin(out, run) == []
    todo = [pickle.dumps(job) for job in parts.jobs(str(manifest), parts.missing(run, []), out, run, device="cpu")]
    for job in [*reversed(todo), todo[2]]:  # one of them twice
        ended = pickle.loads(pickle.dumps(parts.write_part(pickle.loads(job))))
        assert (ended.photos, ended.failed, ended.error) == (2, 0, "")
    assert contents(out) == undisturbed
    assert parts.begin(out, run) == parts.done(out) == list(range(6))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--anchors", "7"], "anchors (8 there, 7 here)"),
        (["--threshold", "0.5"], "threshold ("),
        (["--part-size", "3"], "part_size (2 there, 3 here)"),
        (["--dtype", "bfloat16"], "dtype (float32 there, bfloat16 here)"),
    ],
)
def test_other_settings_are_refused(manifest, undisturbed, tmp_path, options, words):
    (tmp_path / "run.json").write_bytes(undisturbed["run.json"])
    run = segment(manifest, tmp_path, "--part-size", 2, *options)
    assert run.exit_code == 2
    one_sentence(run, words)
    assert files_in(tmp_path) == ["run.json"]


def test_another_manifest_and_foreign_parts_are_refused(manifest, undisturbed, tmp_path):
    for name, content in undisturbed.items():
        (tmp_path / name).write_bytes(content)
    other = tmp_path / "other.txt"
    other.write_text("".join(reversed(manifest.read_text().splitlines(keepends=True))))
    one_sentence(segment(other, tmp_path, "--part-size", 2), "manifest (")
    one_sentence(segment(manifest, tmp_path, "--part-size", 10), "part_size (2 there, 10 here)")
    (tmp_path / "run.json").unlink()
    one_sentence(merge(tmp_path), "run.json is missing")
    one_sentence(segment(other, tmp_path, "--part-size", 2), "part-00000000.parquet is of another run")
    assert "run.json" not in files_in(tmp_path)
    other_run = {**json.loads(undisturbed["run.json"]), "manifest": "0"}
    (tmp_path / "run.json").write_text(json.dumps(other_run))
    one_sentence(merge(tmp_path), "part-00000000.parquet is of another run")
    (tmp_path / "run.json").write_bytes(undisturbed["run.json"])
    (tmp_path / "part-00000001.parquet").write_bytes(undisturbed["part-00000002.parquet"])
    one_sentence(merge(tmp_path), "part-00000001.parquet is of another run")
    one_sentence(segment(manifest, tmp_path, "--part-size", 2), "part-00000001.parquet is of another run")
    (tmp_path / "part-00000001.parquet").write_bytes(undisturbed["part-00000001.parquet"])
    (tmp_path / "part-00000006.parquet").write_bytes(undisturbed["part-00000001.parquet"])
    one_sentence(segment(manifest, tmp_path, "--part-size", 2), "part-00000006.parquet is of another, longer run")
    one_sentence(merge(tmp_path), "part-00000006.parquet is of another run")


def test_what_is_damaged_or_lost_is_made_again(manifest, undisturbed, tmp_path):
    for name, content in undisturbed.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "part-00000001.parquet").write_bytes(undisturbed["part-00000001.parquet"][:-9])
    (tmp_path / "part-00000004.parquet").write_bytes(b"")
    one_sentence(merge(tmp_path), "is damaged")
    before = times(str(tmp_path))
    run = segment(manifest, tmp_path, "--part-size", 2)
    assert run.exit_code == 0, run.output
    assert "damaged, and made again: part-00000001.parquet, part-00000004.parquet" in run.stderr
    assert contents(str(tmp_path)) == undisturbed
    made = {name for name, time in times(str(tmp_path)).items() if time != before[name]}
    assert made == {"part-00000001.parquet", "part-00000004.parquet"}

    (tmp_path / "run.json").write_text("{}")
    one_sentence(merge(tmp_path), "run.json is damaged")
    one_sentence(segment(manifest, tmp_path, "--part-size", 2), "run.json is damaged")
    (tmp_path / "run.json").unlink()
    run = segment(manifest, tmp_path, "--part-size", 2)
    assert "nothing to do: no part is missing of 6" in run.stderr
    assert contents(str(tmp_path)) == undisturbed


def test_photos_that_failed_are_counted_when_there_is_nothing_to_do(photos, tmp_path):
    (tmp_path / "keys.txt").write_text(f"{photos / 'scene00.png'}\n{tmp_path / 'none.png'}\n")
    for told in ("1 could not be segmented", "no part is missing of 1; 1 photo could not be segmented"):
        assert told in segment(tmp_path / "keys.txt", tmp_path / "out").stderr


def test_one_file_under_two_names_and_folders_alike(photos, tmp_path):
    """Names of label maps have as many folders as keep them apart, and one file has one."""
    for folder in ("a/x", "b/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").write_bytes((photos / "scene00.png").read_bytes())
    keys = [f"{tmp_path}/a/x/1.png", f"file://{tmp_path}/a/x/1.png", f"{tmp_path}/b/x/1.png"]
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    assert segment(tmp_path / "keys.txt", tmp_path / "out").exit_code == 0
    assert merge(tmp_path / "out", "--labels", tmp_path / "labels").exit_code == 0
    assert files_in(tmp_path / "labels") == ["a_x_1.png.labels.png", "b_x_1.png.labels.png"]


def test_another_model_on_another_machine_is_refused(manifest, undisturbed, tmp_path):
    run = parts.Run(**{**json.loads(undisturbed["run.json"]), "fingerprint": "another"})
    (job,) = parts.jobs(str(manifest), [4], str(tmp_path), run, device="cpu")
    with pytest.raises(parts.UserError, match="the model mini is another here"):
        parts.write_part(job)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["a.png"], "leave out the photos on the command line"),
        (["--demo"], "leave out --demo"),
        (["--coco", "a.json"], "leave out --coco"),
        (["--label-studio", "a.json"], "leave out --label-studio"),
        (["--polygons"], "leave out --polygons"),
        (["--numbers"], "leave out --numbers"),
        (["--opacity", "0"], "leave out --opacity"),
        (["--palette", "regions"], "leave out --palette"),
        (["--shard", "2/2"], "--shard takes i/n"),
        (["--shard", "1"], "--shard takes i/n"),
        (["--anchors", "999"], "anchors must be 1 to"),
        (["--out", "s3://a:b@bucket/x"], "credentials in a URI"),
        (["--out", "s3://bucket/x?endpoint=a"], "not endpoint"),
        (["--out", "http://a/b"], "of no store that is known"),
    ],
)
def test_options_that_make_no_sense(manifest, tmp_path, options, words):
    command = ["segment", "--manifest", str(manifest), "--out", str(tmp_path / "out"), *SMALL, *options]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2
    one_sentence(run, words)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "options", [["--shard", "0/2"], ["--part-size", "9"], ["--readers", "2"], ["--out", "s3://a/b"]]
)
def test_options_of_a_manifest_need_one(photos, options):
    run = CliRunner().invoke(app, ["segment", str(photos), *options])
    assert run.exit_code == 2
    one_sentence(run, f"{' '.join(options) if '--out' in options else options[0]} is for the photos of a text file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names no photos"),
        (b"\n \r\n\n", "names no photos"),
        (b"a.png\n\xff.png\n", "line 2, is not UTF-8"),
        (b"a.png\n\nhttp://a/b.png\n", "line 3: http://a/b.png is of no store"),
        (None, "is missing"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, content, words):
    file = tmp_path / "keys.txt"
    if content is not None:
        file.write_bytes(content)
    run = segment(file, tmp_path / "out")
    assert run.exit_code == 2
    one_sentence(run, words)


def test_lines_of_a_manifest(tmp_path):
    """Line ends of any system and a byte order mark are no part of a key; spaces and duplicates stay."""
    file = tmp_path / "keys.txt"
    file.write_bytes(b"\xef\xbb\xbfa.png\r\n\r\n b c.png\na.png\ns3://b/c.png")
    assert list(parts.keys_of(str(file))) == ["a.png", " b c.png", "a.png", "s3://b/c.png"]
    assert parts.scan(str(file))[0] == 4


def test_a_million_lines_need_the_memory_of_one_part(tmp_path):
    """Two readings with jobs: one part's keys, of a hundred bytes or so each, and a buffer of a MiB.

    A list of all keys would take 1,000,000 * (49 bytes of an object + 60 of its text + 8 of a pointer), 117 MB.
    """
    file = tmp_path / "keys.txt"
    with file.open("w") as lines:
        lines.writelines(f"s3://bucket/{'photos/' * 5}{number:08}.jpg\n" for number in range(1_000_000))
    code = f"""
import resource
from diffseg import parts
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
list(parts.jobs({str(file)!r}, [0], "out", parts.Run("mini", None, "", "", {{}}, 1000, "", 1000)))
before = peak()
photos, manifest = parts.scan({str(file)!r})
run = parts.Run("mini", None, "", "", {{}}, photos, manifest, 1000)
todo = parts.missing(run, [], (1, 2))
keys = sum(len(job.keys) for job in parts.jobs({str(file)!r}, todo, "out", run))
print(photos, keys, peak() - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    photos, keys, grown = map(int, ran.stdout.split())
    assert (photos, keys) == (1_000_000, 500_000)
    assert grown < 16 << 20


# --- stores and disks that fail ---------------------------------------------------------------------------------------


def when_parts_are_there(store: Store, out: str, count: int, then) -> threading.Thread:
    """Does something, once, in a thread, as soon as so many parts are there."""

    def watch() -> None:
        while len(times(out)) < count:
            time.sleep(0.005)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_store_that_is_gone_for_seconds_is_waited_for(photos, manifest, undisturbed):
    store = Store(photos)
    out, seen = store.uri("out"), []

    def outage() -> None:
        store.go()
        time.sleep(4)
        store.come_back()
        seen.append(len(times(out)))

    thread = when_parts_are_there(store, out, 2, outage)
    run = segment(manifest, out, "--part-size", 2)
    thread.join()
    assert run.exit_code == 0, run.output
    assert seen[0] < COUNT // 2  # it was in the middle
    assert contents(out) == undisturbed
    store.go()


@pytest.mark.parametrize("what", ["photos", "out"])
def test_a_store_that_is_gone_for_good_is_one_sentence(what, photos, manifest, undisturbed, tmp_path, monkeypatch):
    """Whether photos cannot be read or parts not be written: what is finished is kept, and the next call continues."""
    monkeypatch.setattr(stores, "_ATTEMPTS", 2)
    store = Store(photos)
    out, keys = str(tmp_path / "out"), tmp_path / "keys.txt"
    if what == "out":
        out, keys = store.uri("out"), manifest
    else:
        keys.write_text("".join(f"{store.uri(f'photos/{path.name}')}\n" for path in sorted(photos.glob("*.png"))))
    thread = when_parts_are_there(store, out, 1, store.go)
    run = segment(keys, out, "--part-size", 1, "--readers", 1)
    thread.join()
    assert run.exit_code == 1, run.output
    one_sentence(run, "cannot read s3://" if what == "photos" else "cannot write s3://")
    assert "NETWORK_CONNECTION" in run.stderr
    assert "run the same command again" in run.stderr
    store.come_back()
    kept = times(out)
    assert 1 <= len(kept) < COUNT
    run = segment(keys, out, "--part-size", 1)
    assert run.exit_code == 0, run.output
    assert kept.items() <= times(out).items()
    assert len(list(parts.read(out))) == COUNT
    store.go()


def test_a_server_that_is_busy_is_asked_again():
    """Two answers with 503 to each kind of request, then the file."""
    asked: list[str] = []

    class Busy(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.command)
            busy = asked.count(self.command) <= 2
            self.send_response(503 if busy else 200)
            self.send_header("Content-Length", "0" if busy else "5")
            self.end_headers()
            if not busy and self.command == "GET":
                self.wfile.write(b"photo")

        do_GET = do_HEAD = answer  # noqa: N815

        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        uri = f"s3://bucket/a.png?scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
        assert stores.place(uri).read() == b"photo"
        server.shutdown()
    assert asked == ["HEAD"] * 3 + ["GET"] * 3


def test_a_bucket_that_is_not_there_is_one_sentence(store, manifest):
    run = segment(manifest, store.uri("x").replace(store.bucket, "nobody"))
    assert run.exit_code == 1
    one_sentence(run, "NO_SUCH_BUCKET")


def test_a_full_disk_is_one_sentence(manifest, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        run = segment(manifest, disk, "--part-size", 2)
        assert run.exit_code == 1, run.output
        one_sentence(run, "No space left on device")
        kept = contents(str(disk))
        assert 1 < len(kept) < len(undisturbed)
        assert kept.items() <= undisturbed.items()
        assert files_in(disk) == sorted(kept)
    finally:
        subprocess.run(["umount", disk], check=True)


# --- merge ------------------------------------------------------------------------------------------------------------


def test_merge_of_some_photos_and_of_a_part_of_the_parts(manifest, undisturbed, segmented, tmp_path):
    for name, content in undisturbed.items():
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    keys = manifest.read_text().splitlines()
    (tmp_path / "some.txt").write_text(f"{keys[4]}\n")
    run = tmp_path / "run"

    told = merge(run, keys[1], "--keys", tmp_path / "some.txt", "--labels", tmp_path / "labels")
    assert told.exit_code == 0, told.output
    assert files_in(tmp_path / "labels") == ["scene01.labels.png", "scene04.labels.png"]
    one_sentence(merge(run, "none.png"), "such as 'none.png': give lines of its manifest")
    (tmp_path / "empty.txt").write_text("\n\n")
    one_sentence(merge(run, "--keys", tmp_path / "empty.txt"), "names no photos")

    (run / "part-00000005.parquet").unlink()
    told = merge(run)
    assert told.exit_code == 1
    assert told.stdout.strip() == "10 photos, 0 of them failed; 5 of 6 parts are there"
    refused = merge(run, "--coco", tmp_path / "coco.json")
    assert refused.exit_code == 2
    one_sentence(refused, "1 part of 6 missing")
    one_sentence(merge(run, keys[11]), "give lines of its manifest; 1 part of 6 missing")
    assert merge(run, keys[1], "--coco", tmp_path / "one.json").exit_code == 0
    assert not (tmp_path / "coco.json").exists()
    told = merge(run, "--coco", tmp_path / "coco.json", "--partial")
    assert told.exit_code == 0, told.output
    assert [image["file_name"] for image in json.loads((tmp_path / "coco.json").read_text())["images"]] == [
        f"scene{i:02}.png" for i in range(10)
    ]


def test_the_page_runs(photos, tmp_path, monkeypatch):
    """The Python of docs/parts.md, from top to bottom, and its manifest, compressed."""
    page = Path(__file__).parents[1] / "docs" / "parts.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert len(blocks) == 3
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes((photos / "scene00.png").read_bytes())
    (tmp_path / "keys.txt").write_text("photos/a.jpg\nphotos/none.jpg\n")
    (tmp_path / "keys.txt.gz").write_bytes(gzip.compress(b"photos/a.jpg\nphotos/none.jpg\n"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(blocks), names)
    assert names["labels"].shape == (80, 96)
    assert list(names["failed"]) == ["photos/none.jpg"]
    assert names["table"].num_rows == len(names["frame"]) == 2
    assert parts.scan("keys.txt.gz") == parts.scan("keys.txt")


def test_help_waits_neither_for_arrow_nor_for_torch():
    code = "import sys, diffseg.cli; sys.exit(bool({'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    run = CliRunner().invoke(app, ["segment", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert all(option in run.stdout for option in ("--manifest", "--part-size", "--shard", "--readers"))
