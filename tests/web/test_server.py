"""The server of `ino web` without a browser: what a person does, and what nobody may do."""

import asyncio
import io
import json
import random
import subprocess
import sys
import threading
import time
import zipfile
from xml.etree import ElementTree

import cv2
import httpx2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from command import refused, run
from data.video_files import H264, cut, damage, moving_frames, write_sound, write_video
from ino.data.label_maps import read_labels
from ino.data.video import read_frames
from ino.propagate.protocols import protocol_for
from ino.propagate.tracker import Tracker
from ino.web.exports import EXPORTS
from ino.web.server import Site, make_app
from ino.web.workspace import find_all
from web.visitors import (
    FAST,
    SIZE,
    GatedTracker,
    draw,
    labels_of,
    make_tracker,
    opened,
    running,
    sentence,
    until,
    write_clip,
)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


@pytest.fixture
def labels(videos):
    return write_clip(videos / "clip.mp4")


def test_masks_are_those_of_the_command_and_a_restart_continues(tmp_path, videos, labels):
    root = tmp_path / "root"
    with running(root, videos) as (site, visitor):
        client = visitor()
        assert client.get(f"/?own={site.own_key}").status_code == 200
        work = opened(client, "clip.mp4")
        state = client.get(work).json()
        assert (state["num_frames"], state["height"], state["width"]) == (6, *SIZE)
        frame = cv2.imdecode(np.frombuffer(client.get(f"{work}/frame/3").content, np.uint8), 1)
        exact = list(read_frames(videos / "clip.mp4"))[3]
        assert np.abs(frame[..., ::-1].astype(int) - exact).mean() < 6
        objects = [{"id": 1, "name": "the fly", "color": "#00ff00"}]
        assert client.put(f"{work}/objects", json={"objects": objects}).status_code == 200
        draw(client, work, labels[0])
        assert labels_of(client, work, 0)[1] == "drawn"
        assert client.post(f"{work}/run", json={"quality": "fast"}).status_code == 200
        assert until(client, work, "done")["followed"] == [[0, 5]]
        folder = site.workspaces_of(site.own_key) / work.rsplit("/", 1)[1]
        assert json.loads((folder / "settings.json").read_text())["objects"] == {"1": "the fly"}
        masks = ["--mask", folder / "drawings"]
        assert run("segment", videos / "clip.mp4", *masks, "--out", tmp_path / "out", *FAST) == 0
        for path in sorted((tmp_path / "out/masks").iterdir()):
            np.testing.assert_array_equal(
                read_labels(path), read_labels(folder / "masks" / path.name)
            )
        client.put(f"{work}/view", json={"frame": 4, "opacity": 0.25, "quality": "default"})
    with running(root, videos) as (site, visitor):
        client = visitor()
        client.get(f"/?own={site.own_key}")
        (one,) = client.get("/api/home").json()["workspaces"]
        state = client.get(f"/api/w/{one['id']}").json()
        assert (state["view"]["frame"], state["view"]["opacity"]) == (4, 0.25)
        assert (state["annotated"], state["followed"]) == ([0], [[0, 5]])
        assert opened(client, videos / "clip.mp4") == work  # not a second one
        assert (site.root / "own" / one["id"] / "drawings/00000.png").is_file()


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_several_drawings_give_the_masks_of_the_command(quality, tmp_path, videos, labels):
    def make_tracker(quality):
        protocol = protocol_for("ino-davis", quality, short_side=None)
        return Tracker("color", protocol=protocol, device="cpu"), {"weights": "color"}

    site = Site(tmp_path / "root", folders=[videos], make_tracker=make_tracker)
    with TestClient(make_app(site), base_url="http://localhost") as client:
        work = opened(client, "clip.mp4")
        objects = [{"id": n, "name": f"n{n}", "color": "#123456"} for n in (1, 2)]
        client.put(f"{work}/objects", json={"objects": objects})
        for number in (1, 4):
            client.put(f"{work}/labels/{number}", content=labels[number].tobytes())
        client.post(f"{work}/run", json={"quality": quality})
        until(client, work, "done")
        (folder,) = site.root.glob("*/clip-*")
        masks = ["--mask", folder / "drawings", "--quality", quality]
        assert run("segment", videos / "clip.mp4", *masks, "--out", tmp_path / "out", *FAST) == 0
        for path in sorted((tmp_path / "out/masks").iterdir()):
            mine = read_labels(folder / "masks" / path.name)
            np.testing.assert_array_equal(read_labels(path), mine)
        assert json.loads((folder / "settings.json").read_text())["quality"] == quality


def test_exports_come_as_files_and_leave_none_behind(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (site, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        assert "no masks yet" in sentence(client.post(f"{work}/export/masks"))
        draw(client, work, labels[0])
        client.post(f"{work}/run", json={})
        until(client, work, "done")
        assert "no format" in sentence(client.post(f"{work}/export/docx"))
        files = {}
        for kind in EXPORTS:
            client.post(f"{work}/export/{kind}")
            while not client.get(f"{work}/export/{kind}").json()["is_ready"]:
                time.sleep(0.02)
            files[kind] = client.get(f"{work}/export/{kind}/file").content
            assert "asked for" in sentence(client.get(f"{work}/export/{kind}"))
        names = zipfile.ZipFile(io.BytesIO(files["masks"])).namelist()
        assert names[:2] == ["masks/00000.png", "masks/00001.png"]
        assert {"drawings/00000.png", "settings.json"} <= set(names)
        (tmp_path / "overlay.mp4").write_bytes(files["overlay"])
        assert len(list(read_frames(tmp_path / "overlay.mp4"))) == 6
        assert not [path for one in site.root.glob(".export-*") for path in one.iterdir()]
    assert not list(site.root.glob(".export-*"))


def test_a_damaged_video_has_the_same_frames_everywhere(tmp_path, videos):
    frames = moving_frames(9, height=SIZE[0], width=SIZE[1])
    whole = write_video(tmp_path / "whole.mp4", frames, options=H264 | {"g": "3", "bf": "0"})
    damage(videos / "broken.mp4", whole, 4)
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "broken.mp4")
        shown = []
        for number in range(9):
            content = np.frombuffer(client.get(f"{work}/frame/{number}").content, np.uint8)
            shown.append(cv2.imdecode(content, 1)[..., ::-1].astype(int))
        assert np.abs(shown[7] - frames[7]).mean() < 6 < np.abs(shown[6] - frames[7]).mean()
        draw(client, work, (frames[0][..., 0] > 90).astype(np.uint8))
        client.post(f"{work}/run", json={})
        assert until(client, work, "done")["followed"] == [[0, 8]]
        client.post(f"{work}/export/overlay")
        while not client.get(f"{work}/export/overlay").json()["is_ready"]:
            time.sleep(0.02)
        (tmp_path / "o.mp4").write_bytes(client.get(f"{work}/export/overlay/file").content)
    assert len(list(read_frames(tmp_path / "o.mp4"))) == 9


def test_a_run_pauses_stops_and_others_wait(tmp_path, videos, labels):
    GatedTracker.gate.clear()
    with running(tmp_path / "root", videos, kind=GatedTracker) as (_, visitor):
        first, second = visitor(), visitor()
        works = []
        for client in (first, second):
            client.get("/")
            works.append(opened(client, "clip.mp4"))
            draw(client, works[-1], labels[0])
            assert client.post(f"{works[-1]}/run", json={}).status_code == 200
        assert until(second, works[1], "waiting")["num_before"] == 1
        assert "worked on" in sentence(first.post(f"{works[0]}/run", json={}))
        assert "worked on" in sentence(first.delete(works[0]))
        first.post(f"{works[0]}/pause")
        GatedTracker.gate.set()
        found = until(first, works[0], "paused")
        assert found["num_done"] == 1 and found["new"] == [[0, 0]]
        assert first.get(f"{works[0]}/frame/5").status_code == 200  # all else goes on
        first.post(f"{works[0]}/resume")
        until(first, works[0], "done")
        until(second, works[1], "done")
        GatedTracker.gate.clear()
        second.post(f"{works[1]}/run", json={})
        assert until(second, works[1], "done")["num_done"] == 0  # nothing is left to do
        draw(second, works[1], np.roll(labels[0], 3, axis=1))
        second.post(f"{works[1]}/run", json={})
        until(second, works[1], "running")
        second.post(f"{works[1]}/stop")
        GatedTracker.gate.set()
        assert until(second, works[1], "stopped")["followed"] == [[0, 5]]  # the earlier ones stay


def test_people_do_not_see_one_another(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (site, visitor):
        first, second = visitor(), visitor()
        for client in (first, second):
            client.get("/")
        work = opened(first, "clip.mp4")
        draw(first, work, labels[0])
        assert len(first.get("/api/home").json()["workspaces"]) == 1
        assert second.get("/api/home").json()["workspaces"] == []
        tries = [
            *(
                ("GET", rest)
                for rest in ("", "/frame/0", "/labels/0", "/progress", "/export/masks")
            ),
            *(("POST", rest) for rest in ("/run", "/stop", "/prompt/0", "/export/masks")),
            *(("PUT", rest) for rest in ("/labels/0", "/view", "/objects")),
            ("DELETE", ""),
        ]
        for method, rest in tries:
            valid = {"objects": [{"id": 1, "name": "a", "color": "#000000"}]}
            given = valid if rest == "/objects" else {}
            answer = second.request(method, work + rest, json=given)
            assert "no such workspace" in sentence(answer), (method, rest)
        assert labels_of(first, work, 0)[1] == "drawn"
        wrong = visitor()
        wrong.get("/?own=wrong")
        assert site.own_key not in wrong.cookies.values()


def test_a_cookie_is_no_path(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (site, visitor):
        client = visitor()
        client.cookies.set(site.cookie, "../../../../../../../../tmp/x")
        opened(client, "clip.mp4")
        assert len(list(site.root.glob("*/clip-*"))) == 1


def path_tricks(inside, outside):
    return [
        "../secret.mp4",
        str(outside / "secret.mp4"),
        f"{inside}/../secret.mp4",
        f"{inside}-other/secret.mp4",
        "a/../../secret.mp4",
        "./../secret.mp4",
        "..\\secret.mp4",
        "%2e%2e/secret.mp4",
        "..%2fsecret.mp4",
        "....//secret.mp4",
        "link.mp4",
        "folder-link/secret.mp4",
        "folder-link",
        "frames-of-links",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "~/secret.mp4",
        f"file://{outside}/secret.mp4",
        "clip.mp4\0.png",
        "",
        "x" * 4000,
        "concat:../secret.mp4",
        f"subfile,,start,0,end,0,,:{outside}/secret.mp4",
    ]


def test_no_path_leads_out(tmp_path, videos, labels):
    write_clip(tmp_path / "secret.mp4")
    (tmp_path / "videos-other").mkdir()
    write_clip(tmp_path / "videos-other/secret.mp4")
    (videos / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (videos / "folder-link").symlink_to(tmp_path / "videos-other")
    (videos / "frames-of-links").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    (videos / "frames-of-links/0.png").symlink_to(tmp_path / "0.png")
    with running(tmp_path / "root", videos) as (site, visitor):
        client = visitor()
        client.get("/")
        tricks = path_tricks(videos, tmp_path)
        assert len(tricks) >= 20
        for trick in tricks:
            sentence(client.post("/api/open", json={"path": trick}), status=400)
            if trick not in ("", "frames-of-links"):
                sentence(client.get("/api/folder", params={"path": trick}), status=400)
        listed = client.get("/api/folder", params={"path": str(videos)}).json()
        assert [one["name"] for one in listed["videos"]] == ["clip.mp4"]
        assert [one["name"] for one in listed["folders"]] == ["frames-of-links"]
        work = opened(client, "clip.mp4")
        page = client.get("/").text  # where "/api/w/../.." leads in a browser
        tricks = ("..", "../own", "%2e%2e", "..%2f..%2fvideos", ".", work[7:] + "/..", "a\0")
        for trick in tricks:
            for address in (f"/api/w/{trick}", f"/api/w/{trick}/frame/0", f"/page/{trick}"):
                raw = httpx2.URL("http://localhost").copy_with(raw_path=ascii_path(address))
                answer = client.get(raw)
                assert answer.status_code in (400, 404, 405) or answer.text == page, address
        assert not find_all(site.root / "own")


def ascii_path(address: str) -> bytes:
    return address.replace("\0", "%00").encode()


def malformed_uploads(tmp_path, videos):
    """Names and contents that are no video, or a harmful one."""
    whole = (videos / "clip.mp4").read_bytes()
    other = videos / "clip.mp4"
    generator = random.Random(0)
    noise = generator.randbytes(5000)
    for suffix in (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif", ".tif", ".ts", ".mpg"):
        yield f"empty{suffix}", b""
        yield f"noise{suffix}", noise
    for length in (1, 8, 40, 200, len(whole) // 2, len(whole) - 20):
        yield "cut.mp4", whole[:length]
    yield "zeros.mp4", bytes(100_000)
    yield "text.mp4", b"this is a letter and no video\n" * 50
    yield "page.mp4", b"<!doctype html><script>alert(1)</script>"
    yield "doubled-head.mp4", whole[:40] + noise
    yield "photo.mp4", png()
    yield "program.tif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    yield "photo.tif", png()[:60]
    yield "archive.mkv", zipped()
    sound = write_sound(tmp_path / "sound.mp4")
    yield "sound.mp4", sound.read_bytes()
    yield "half.mkv", half_matroska(tmp_path)
    yield "list.mp4", f"ffconcat version 1.0\nfile {other.name}\n".encode()
    yield "list.mkv", f"ffconcat version 1.0\nfile '{other}'\n".encode()
    for suffix in (".mp4", ".ts"):
        hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n"
        yield f"hls{suffix}", hls.encode()
        yield f"remote{suffix}", hls.replace(str(other), "http://localhost:9/x.ts").encode()
    yield "dash.mp4", f'<?xml version="1.0"?><MPD><BaseURL>{other}</BaseURL></MPD>'.encode()
    yield "sdp.mp4", b"v=0\nm=video 9 RTP/AVP 96\nc=IN IP4 127.0.0.1\na=rtpmap:96 H264/90000\n"
    for name in (
        "a.exe",
        "a.png",
        "a.m3u8",
        "a",
        "",
        "a.mp4.zip",
        "../../a.sh",
        ".mp4/",
        "a\0.txt",
    ):
        yield name, whole


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("../../x.mp4", b"x")
    return file.getvalue()


def half_matroska(tmp_path) -> bytes:
    from data.video_files import moving_frames, write_video

    whole = write_video(tmp_path / "whole.mkv", moving_frames(40))
    return cut(tmp_path / "half.mkv", whole).read_bytes()


def test_malformed_uploads_give_a_sentence_and_leave_nothing(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (site, visitor):
        client = visitor()
        client.get("/")
        uploads = list(malformed_uploads(tmp_path, videos))
        assert len(uploads) >= 50
        for name, content in uploads:
            answer = client.post("/api/upload", params={"name": name}, content=content)
            assert str(tmp_path) not in sentence(answer), name
            assert client.get("/api/home").json()["workspaces"] == [], name
        assert {one.name for one in site.root.iterdir() if one.name[0] != "."} == set()
        content = (videos / "clip.mp4").read_bytes()
        answer = client.post("/api/upload", params={"name": "../../my clip.mp4"}, content=content)
        (one,) = client.get("/api/home").json()["workspaces"]
        assert one["id"] == answer.json()["id"] and one["title"] == "my clip"
        folder = next(site.root.glob("*/my-clip-*"))
        assert sorted(path.name for path in folder.iterdir()) == ["video.mp4", "workspace.json"]
        assert not list(folder.parent.glob(".upload-*"))
        assert client.delete(f"/api/w/{one['id']}").status_code == 200
        assert not folder.exists()


def test_uploads_end_at_the_limit(tmp_path, videos, labels):
    content = (videos / "clip.mp4").read_bytes()
    with running(tmp_path / "root", videos, max_upload=len(content) - 1) as (site, visitor):
        client = visitor()
        client.get("/")
        for body in (content, iter([content[:50], content[50:]])):  # with and without its length
            answer = client.post("/api/upload", params={"name": "clip.mp4"}, content=body)
            assert "larger than" in sentence(answer, status=413)
        assert not [one for one in site.root.iterdir() if one.name[0] != "."]


def test_who_stops_sending_is_given_up(tmp_path, videos, labels, monkeypatch):
    monkeypatch.setattr("ino.web.server.PATIENCE", 0.2)

    async def body():
        yield b"0" * 100
        await asyncio.sleep(20)

    async def upload(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/api/upload", params={"name": "a.mp4"}, content=body())

    site = Site(tmp_path / "root", folders=[videos], make_tracker=make_tracker)
    assert "nothing came" in sentence(asyncio.run(upload(make_app(site))), status=408)
    assert not [one for one in site.root.iterdir() if one.name[0] != "."]
    site.close()


def test_names_with_markup_stay_text(tmp_path, videos, labels):
    name = "<img src=x onerror=alert(1)> & 'x' \"y\""
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        objects = [{"id": 1, "name": name, "color": "#123456"}]
        assert client.put(f"{work}/objects", json={"objects": objects}).status_code == 200
        for color in ("red", "#12345g", '#123456"><script>'):
            wrong = [{"id": 1, "name": "a", "color": color}]
            sentence(client.put(f"{work}/objects", json={"objects": wrong}), status=400)
        draw(client, work, labels[0])
        client.post(f"{work}/run", json={})
        until(client, work, "done")
        client.post(f"{work}/export/cvat")
        while not client.get(f"{work}/export/cvat").json()["is_ready"]:
            time.sleep(0.02)
        answer = client.get(f"{work}/export/cvat/file")
        assert answer.headers["content-disposition"].startswith("attachment")
        tree = ElementTree.fromstring(answer.content)
        assert {one.get("label") for one in tree.iter("track")} == {name}


def test_a_part_of_a_video(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        work = opened(client, videos / "clip.mp4")
        draw(client, work, labels[3], number=3)
        for wrong in ({"first": 4}, {"last": 2}, {"first": 3, "last": 2}, {"last": 6}):
            sentence(client.post(f"{work}/run", json=wrong))
        assert client.post(f"{work}/run", json={"first": 2, "last": 4}).status_code == 200
        until(client, work, "done")
        assert client.get(work).json()["followed"] == [[2, 4]]
        assert client.post(f"{work}/export/overlay").status_code == 200
        while not client.get(f"{work}/export/overlay").json()["is_ready"]:
            time.sleep(0.02)
        (tmp_path / "part.mp4").write_bytes(client.get(f"{work}/export/overlay/file").content)
        assert sum(1 for _ in read_frames(tmp_path / "part.mp4")) == 3


def test_beyond_localhost_only_the_token_lets_in(tmp_path, videos, labels):
    with running(tmp_path / "root", videos, host="192.0.2.7") as (site, visitor):
        stranger, guest = visitor(), visitor()
        for address in ("/", "/api/home", "/page/page.js", "/?token=wrong", "/?own=wrong"):
            assert "token" in sentence(stranger.get(address), status=401)
        assert "token" in sentence(
            stranger.post("/api/open", json={"path": "clip.mp4"}), status=401
        )
        answer = guest.get(f"/?token={site.token}")
        assert answer.status_code == 200 and site.token not in str(answer.url)
        opened(guest, "clip.mp4")
        assert oct((site.root / ".secret").stat().st_mode)[-2:] == "00"


def test_other_pages_of_the_browser_are_refused(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        client.get("/")
        elsewhere = {"Origin": "http://evil.example"}
        answer = client.post("/api/open", json={"path": "clip.mp4"}, headers=elsewhere)
        assert "another page" in sentence(answer, status=403)
        for host in (
            "evil.example",
            "localhost.evil.example",
            "evil.example:80",
            "127.0.0.1.nip.io",
        ):
            answer = client.get("/api/home", headers={"Host": host})
            assert "this machine only" in sentence(answer, status=403)
        sentence(client.get("/api/home", headers={"Host": "[::1"}), status=400)
        for origin in ("null", "http://[", "http://localhost:1", "https://localhost@evil.example"):
            answer = client.put("/api/w/x/labels/0", content=b"", headers={"Origin": origin})
            sentence(answer)
            assert answer.status_code in (400, 403), origin
        assert "default-src 'self'" in client.get("/").headers["content-security-policy"]


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        whole = np.ones(SIZE, np.uint8)
        wrong = [
            client.put(f"{work}/labels/0", content=whole[1:].tobytes()),
            client.put(f"{work}/labels/0", content=whole.tobytes() + b"1"),
            client.put(f"{work}/labels/0", content=(7 * whole).tobytes()),
            client.put(f"{work}/labels/6", content=whole.tobytes()),
            client.get(f"{work}/frame/6"),
            client.get(f"{work}/frame/99999999999999999999"),
            client.post(f"{work}/run", json={"quality": "best of all"}),
            client.post(f"{work}/run", json={"quality": "fast"}),  # nothing is drawn
            client.post(f"{work}/run", content=b"{"),
            client.post(f"{work}/run", content=b"[" * 100_000),
            client.post(f"{work}/run", content=b"\xff"),
            client.post(f"{work}/run", content=b" " * (1 << 21)),
            client.put(f"{work}/objects", json={"objects": []}),
            client.put(f"{work}/objects", json={"objects": [{"id": 0, "name": "a"}]}),
            client.put(f"{work}/view", json={"frame": -1}),
            client.put(f"{work}/view", json={"frame": 99}),
            prompt(client, work, 0, {"box": [3, 3, 3, 3]}),
            prompt(client, work, 0, {"box": [1e308, 0, 1e308, 9]}),
            prompt(client, work, 0, {"points": []}),
            prompt(client, work, 0, {"points": [[1, 1, True]]}, mask=b"1"),
            client.post(f"{work}/prompt/0"),
            prompt(client, work, 9, {"points": [[1, 1, True]]}),
            client.post(f"{work}/dance"),
            client.get("/nothing"),
        ]
        for number, answer in enumerate(wrong):
            assert sentence(answer), number
        state = client.get(work).json()
        assert state["annotated"] == [] and state["run"] == "never"


def test_a_box_and_clicks_find_something(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        rows, columns = np.nonzero(labels[0] == 1)
        box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        middle = [float(columns.mean()), float(rows.mean()), True]
        for given in ({"box": box}, {"points": [middle]}):
            answer = prompt(client, work, 0, given)
            found = np.frombuffer(answer.content, np.uint8).reshape(SIZE) > 0
            assert 0 < found.sum() < 0.8 * found.size
            if "box" in given:
                found[box[1] : box[3], box[0] : box[2]] = False
                assert not found.any()
            else:
                assert found[round(middle[1]), round(middle[0])]


def prompt(client, work, number, given, mask=b""):
    address = f"{work}/prompt/{number}"
    return client.post(address, params={"given": json.dumps(given)}, content=mask)


def test_who_is_not_drawn_in_a_frame_counts_as_not_there(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        objects = [{"id": n, "name": f"n{n}", "color": "#123456"} for n in (1, 2)]
        client.put(f"{work}/objects", json={"objects": objects})
        draw(client, work, labels[0])
        second = np.where(labels[3] == 2, 2, 0).astype(np.uint8)
        answer = client.put(f"{work}/labels/3", content=second.tobytes())
        assert answer.json()["absent"] == {"0": [2]}  # frame 3 only introduces the second object
        client.post(f"{work}/run", json={})
        assert until(client, work, "done")["followed"] == [[0, 5]]
        both, source = labels_of(client, work, 3)
        assert source == "drawn" and set(np.unique(both)) == {0, 1, 2}
        np.testing.assert_array_equal(both == 2, second == 2)
        # A correction begins with the masks that are there, so nobody is forgotten.
        followed, source = labels_of(client, work, 4)
        assert source == "followed" and set(np.unique(followed)) == {0, 1, 2}
        followed = np.where(followed == 1, 0, followed)
        answer = client.put(f"{work}/labels/4", content=followed.tobytes())
        assert answer.json()["absent"] == {"0": [2], "4": [1]}
        client.post(f"{work}/run", json={})
        until(client, work, "done")
        np.testing.assert_array_equal(labels_of(client, work, 4)[0], followed)


def test_undrawing_and_removing_objects(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (_, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        objects = [{"id": n, "name": f"n{n}", "color": "#123456"} for n in (1, 2)]
        client.put(f"{work}/objects", json={"objects": objects})
        client.put(f"{work}/labels/2", content=labels[2].tobytes())
        np.testing.assert_array_equal(labels_of(client, work, 2)[0], labels[2])
        client.put(f"{work}/objects", json={"objects": objects[:1]})
        left = labels_of(client, work, 2)[0]
        np.testing.assert_array_equal(left, np.where(labels[2] == 1, 1, 0))
        assert client.put(f"{work}/labels/2", content=b"").json()["annotated"] == []
        assert labels_of(client, work, 2)[1] == "none"


def test_a_folder_of_images_and_a_stack_are_videos(tmp_path, videos):
    (videos / "shots").mkdir()
    shots = [Image.new("RGB", (40, 30), (20 * n, 90, 200)) for n in range(4)]
    shots[0].save(videos / "stack.tif", save_all=True, append_images=shots[1:])
    for number, shot in enumerate(shots):
        shot.save(videos / f"shots/take_{7 + number}.png")
    with running(tmp_path / "root", videos) as (site, visitor):
        client = visitor()
        client.get("/")
        for name in ("shots", "stack.tif"):
            work = opened(client, name)
            assert client.get(work).json()["num_frames"] == 4
            mask = np.zeros((30, 40), np.uint8)
            mask[5:20, 5:20] = 1
            client.put(f"{work}/labels/1", content=mask.tobytes())
            client.post(f"{work}/run", json={})
            assert until(client, work, "done")["followed"] == [[0, 3]]
        names = {path.name for path in site.root.glob("*/shots-*/masks/*")}
        assert names == {f"take_{n}.png" for n in range(7, 11)}


def test_certainty_marks_doubtful_frames(tmp_path, videos, labels):
    with running(tmp_path / "root", videos) as (site, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        rows = "frame,object,confidence,survival\n0,1,1,1\n1,1,.9,.2\n2,1,.9,.3\n3,1,.9,\n"
        next(site.root.glob("*/clip-*")).joinpath("frames.csv").write_text(rows)
        rows = '[{"frame": 4, "object": 1}, {"frame": 99}]'
        next(site.root.glob("*/clip-*")).joinpath("next.json").write_text(rows)
        state = client.get(work).json()
        assert state["next"] == [4]
        assert state["doubtful"] == [[1, 2]]
        assert state["certainty"][3] == [3, 0.9]


def test_the_command_refuses_in_one_sentence(tmp_path, capsys):
    out = ["--out", tmp_path / "workspaces"]
    assert "not a folder" in refused(capsys, "web", "--folder", tmp_path / "nowhere", *out)
    assert "--max-upload" in refused(capsys, "web", "--max-upload", -1, *out)
    assert "does not exist" in refused(capsys, "web", tmp_path / "nothing.mp4", "--port", 0, *out)
    assert "listen" in refused(capsys, "web", "--host", "no.such.host.invalid", *out)


@pytest.mark.slow
def test_a_killed_server_continues(tmp_path, videos, labels):
    """Killed at 20 random moments of drawing and following: what was drawn is there, finished masks
    stay, and what is followed in the end is what the command gives for these drawings."""
    write_clip(videos / "long.mp4", num_frames=60)
    generator, saved, finished = random.Random(1), {}, set()
    command = [sys.executable, "-m", "ino", "web", "--folder", videos, "--port", "0"]
    command = [str(part) for part in [*command, "--out", tmp_path / "root", *FAST]]
    for moment in range(21):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            base = address.split("?")[0]
            with httpx2.Client(base_url=base, follow_redirects=True, timeout=30) as client:
                client.get(address)
                work = opened(client, "long.mp4")
                state = client.get(work).json()
                assert set(state["annotated"]) == set(saved)
                assert state["run"] in ("never", "running", "done")
                for number, content in saved.items():
                    found = client.get(f"{work}/labels/{number}").content
                    assert found == content
                if moment < 20:
                    mask = np.zeros(SIZE, np.uint8)
                    mask[5:25, 5 : 20 + moment] = 1
                    client.put(f"{work}/labels/{2 * moment}", content=mask.tobytes())
                    saved[2 * moment] = mask.tobytes()
                client.post(f"{work}/run", json={})
                if moment < 20:
                    time.sleep(generator.uniform(0, 6))
                else:
                    assert until(client, work, "done")["followed"] == [[0, 59]]
            server.kill()
        (folder,) = (tmp_path / "root/own").glob("long-*")
        masks = {path.name for path in folder.glob("masks/[0-9]*.png")}
        assert masks >= finished
        finished = masks
        for path in folder.glob("*/[0-9]*.png"):
            assert read_labels(path).shape == SIZE
    masks = ["--mask", folder / "drawings", "--quality", "fast"]
    assert run("segment", videos / "long.mp4", *masks, "--out", tmp_path / "out", *FAST) == 0
    for path in sorted((tmp_path / "out/masks").iterdir()):
        np.testing.assert_array_equal(read_labels(path), read_labels(folder / "masks" / path.name))


def test_a_run_may_adapt_the_weights_first(tmp_path, videos, labels):
    asked = []

    def make_adapted(quality, video, mask, out, on_progress):
        for _ in range(3):
            on_progress("learning", 4)
        asked.append((quality, video.name, mask.partition("=")[0], out.name))
        return *make_tracker(quality), "the weights stay as they were"

    with running(tmp_path / "root", videos, make_adapted=make_adapted) as (_, visitor):
        client = visitor()
        client.get("/")
        assert client.get("/api/home").json()["can_adapt"]
        work = opened(client, "clip.mp4")
        draw(client, work, labels[0])
        client.post(f"{work}/run", json={"quality": "best", "adapt": True})
        until(client, work, "done")
        progress = client.get(f"{work}/progress").json()
        assert progress["note"] == "the weights stay as they were"
        assert progress["adapting"] == "learning, 75 %"
    assert asked == [("best", "clip.mp4", "0", ".adapted")]


def test_a_run_is_stopped_while_its_weights_adapt(tmp_path, videos, labels):
    began = threading.Event()

    def make_adapted(quality, video, mask, out, on_progress):
        while True:
            on_progress("learning", 1_000_000)
            began.set()
            time.sleep(0.01)

    with running(tmp_path / "root", videos, make_adapted=make_adapted) as (_, visitor):
        client = visitor()
        client.get("/")
        work = opened(client, "clip.mp4")
        draw(client, work, labels[0])
        client.post(f"{work}/run", json={"quality": "fast", "adapt": True})
        assert began.wait(10)
        client.post(f"{work}/stop")
        until(client, work, "stopped")
