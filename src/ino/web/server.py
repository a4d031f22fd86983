"""The server of `ino web`: pages, frames and drawings over HTTP, on top of `ino.web.workspace`.

Starlette and one hand-written page were chosen after prototypes (docs/architecture.md): a stroke is
painted in the browser and sent once when it ends, there is no build step, and nothing is fetched
from elsewhere.

Whoever opens the page gets a session by a cookie; the workspaces of a session are one folder, named
by a hash of the cookie, so no name that a browser sends is part of a path. Who started the server
gets the address of the session `own`, which stays the same after a restart. On another address than
localhost nothing is answered without the token in the printed address.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import shutil
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from anyio import CapacityLimiter, to_thread
from cachetools import LRUCache
from pydantic import Field
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ino.data.video import VIDEO_SUFFIXES, read_clip
from ino.errors import ConfigError, InoError, MaskError, VideoError
from ino.schema import Model, checked, parse_json
from ino.system import atomic_path, folder_lock, new_folder
from ino.web.exports import EXPORTS, Exporter
from ino.web.runs import MakeAdapted, MakeTracker, Runner
from ino.web.workspace import (
    COLORS,
    DOUBTFUL,
    Allowed,
    Frames,
    VideoObject,
    View,
    Workspace,
    create,
    find,
    find_all,
)

PAGE = Path(__file__).parent / "page"
QUALITIES = {
    "fast": "Fast: for a first look",
    "default": "Good: takes longer",
    "best": "Best: takes longest",
}
_FILES = {
    "": ("index.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MAX_JSON = 1 << 20
_ROOM = 1 << 27
_NUM_FEATURES = 4
"""Frames, and crops of each, whose features are kept; each of them has about a megabyte."""
PATIENCE = 60.0
"""Seconds without a byte after which a request is given up."""
_YEAR = 365 * 24 * 3600
_UPLOAD_SUFFIXES = VIDEO_SUFFIXES | {".tif", ".tiff"}
_LOG = logging.getLogger("ino")


class _RefusedError(InoError):
    """A request that is not answered, with its status of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Opened(Model):
    path: str = Field(max_length=4096)


class _Objects(Model):
    objects: list[VideoObject] = Field(max_length=254)


class _Prompt(Model):
    box: tuple[float, float, float, float] | None = None
    points: list[tuple[float, float, bool]] = Field([], max_length=200)


class _Started(Model):
    quality: str = Field("", max_length=20)
    first: int = Field(0, ge=0)
    last: int | None = Field(None, ge=0)
    adapt: bool = False


class Site:
    """Everything that the server knows.

    Args:
        root: folder of all workspaces, created if missing; one server at a time.
        folders: below which videos may be opened.
        make_tracker, make_adapted: see `ino.web.runs`.
        quality: that the page proposes; None if there is no choice.
        host: the address that is listened on; another one than localhost asks for the token.
        max_upload: bytes.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(
        self,
        root: Path,
        *,
        folders: Sequence[Path],
        make_tracker: MakeTracker,
        make_adapted: MakeAdapted | None = None,
        quality: str | None = "fast",
        host: str = "localhost",
        max_upload: int = 4 << 30,
    ) -> None:
        self.root = new_folder(root, overwrite=True)
        for leftover in (*root.glob(".export-*"), *root.glob("*/.upload-*")):  # of a killed server
            shutil.rmtree(leftover, ignore_errors=True)
        secret = _secret(self.root / ".secret")
        self.own_key, self.token = (_derived(secret, one) for one in ("own", "token"))
        self.is_local = host in _LOCAL
        self.quality = quality
        self.max_upload = max_upload
        self.allowed = Allowed(folders)
        self.runner = Runner(make_tracker, make_adapted=make_adapted)
        self.exporter = Exporter(self.root)
        self.frames = Frames()
        self.prompts = CapacityLimiter(2)
        self._features: LRUCache[tuple[Path, int], dict[Any, Any]] = LRUCache(_NUM_FEATURES)
        self._lock = threading.Lock()
        self.cookie = f"ino_{zlib.crc32(str(self.root.resolve()).encode()):08x}"
        self._opened: dict[Path, Workspace] = {}

    def workspaces_of(self, key: str) -> Path:
        """The folder of a session."""
        if hmac.compare_digest(key.encode(), self.own_key.encode()):
            return self.root / "own"
        return self.root / _derived(key, "session")

    def workspace(self, session: Path, identity: str) -> Workspace:
        """One of a session's workspaces; always the same object, which guards the folder.

        Raises:
            ConfigError: the session has none of this name.
        """
        place = session / identity
        with self._lock:
            if place not in self._opened or not place.is_dir():
                self._opened.pop(place, None)
                self._opened[place] = find(session, identity)
            return self._opened[place]

    def open(self, session: Path, video: Path, *, title: str) -> Workspace:
        """The session's workspace of a video on this machine, a new one if there is none."""
        for one in find_all(session):
            if one.video == video.resolve():
                return self.workspace(session, one.id)
        return create(session, video, title=title)

    def features(self, workspace: Workspace, number: int) -> dict[Any, Any]:
        """What `mask_from_prompt` keeps of a frame, so that the next click is quick."""
        place = (workspace.folder, number)
        with self._lock:
            if len(self._features.get(place, ())) >= _NUM_FEATURES:  # each box has its own
                del self._features[place]
            return self._features.setdefault(place, {})

    def close(self) -> None:
        """Ends the work; what is on disk stays."""
        self.exporter.close()
        self.runner.close()


Handler = Callable[[Site, Request, Any], Any]
"""Answers a request by a response or by what becomes JSON. It is given the workspace that the
address names, otherwise the folder of the session. Those that read what is sent with the request
are coroutines; the others run in a thread."""


def make_app(site: Site) -> Starlette:
    """The application for a server of ASGI, such as uvicorn."""

    def guarded(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            key, is_new = request.cookies.get(site.cookie, ""), False
            try:
                if redirect := _enter(site, request):
                    return redirect
                if not 20 <= len(key) <= 100:
                    key, is_new = secrets.token_urlsafe(24), True
                place: Any = site.workspaces_of(key)
                if identity := request.path_params.get("workspace"):
                    place = await run_in_threadpool(site.workspace, place, identity)
                if iscoroutinefunction(handler):
                    found = await handler(site, request, place)
                else:
                    found = await run_in_threadpool(handler, site, request, place)
                response = found if isinstance(found, Response) else JSONResponse(found)
            except _RefusedError as error:
                response = JSONResponse({"error": str(error)}, error.status)
            except InoError as error:
                response = JSONResponse({"error": str(error)}, 400)
            except ClientDisconnect:
                response = Response(status_code=400)
            except OSError as error:
                reason = error.strerror or "an error of the file system"
                response = JSONResponse({"error": f"cannot read or write ({reason})"}, 500)
            if is_new and response.status_code < 400:
                _set_cookie(response, site.cookie, key)
            response.headers.update(_HEADERS)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return answer

    def refused(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        words = {404: "there is nothing at this address", 405: "this address does not do that"}
        fault = "the server met a fault of its own; the terminal shows more"
        return JSONResponse({"error": words.get(status, fault)}, status, headers=_HEADERS)

    @asynccontextmanager
    async def lifespan(_: Starlette):
        yield
        await run_in_threadpool(site.close)

    base = "/api/w/{workspace}"
    routes = [
        ("GET", "/", _file),
        ("GET", "/page/{name}", _file),
        ("GET", "/api/home", _home),
        ("GET", "/api/folder", _folder),
        ("POST", "/api/open", _open),
        ("POST", "/api/upload", _upload),
        ("GET", base, _state),
        ("DELETE", base, _delete),
        ("GET", base + "/frame/{number:int}", _frame),
        ("GET", base + "/labels/{number:int}", _labels),
        ("PUT", base + "/labels/{number:int}", _draw),
        ("POST", base + "/prompt/{number:int}", _prompt),
        ("PUT", base + "/objects", _objects),
        ("PUT", base + "/view", _view),
        ("GET", base + "/progress", _progress),
        ("POST", base + "/run", _run),
        ("POST", base + "/{what:str}", _control),
        ("POST", base + "/export/{kind}", _export),
        ("GET", base + "/export/{kind}", _is_exported),
        ("GET", base + "/export/{kind}/file", _take),
    ]
    return Starlette(
        routes=[Route(path, guarded(one), methods=[method]) for method, path, one in routes],
        exception_handlers={HTTPException: refused, Exception: refused},
        lifespan=lifespan,
    )


def _enter(site: Site, request: Request) -> Response | None:
    """Lets a request in; a redirect without them where the address holds the token or the key.

    Raises:
        _RefusedError: the token is missing, or a page of somebody else sends the request.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        name, sender = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
    except ValueError as error:  # such as half of an address of IPv6
        raise _RefusedError(400, "the request does not say which page it is for") from error
    if (
        site.is_local and name not in _LOCAL
    ):  # another name may be made to lead here (DNS rebinding)
        raise _RefusedError(403, "this page is for this machine only: open it as localhost")
    if request.method != "GET" and origin and sender != host:
        raise _RefusedError(403, "this request comes from another page")
    given = request.query_params.get("token", "")
    is_right = hmac.compare_digest(given.encode(), site.token.encode())
    cookie = request.cookies.get(f"{site.cookie}_token", "")
    if not (site.is_local or is_right or hmac.compare_digest(cookie.encode(), site.token.encode())):
        raise _RefusedError(401, "open the whole address that ino web printed, with its token")
    own = request.query_params.get("own", "")
    is_own = hmac.compare_digest(own.encode(), site.own_key.encode())
    if not (given or own) or request.url.path != "/":
        return None
    response = RedirectResponse("/", 303)
    if is_right:
        _set_cookie(response, f"{site.cookie}_token", site.token)
    if is_own:
        _set_cookie(response, site.cookie, site.own_key)
    return response


def _set_cookie(response: Response, name: str, value: str) -> None:
    response.set_cookie(name, value, max_age=_YEAR, httponly=True, samesite="strict")


def _file(site: Site, request: Request, session: Path) -> Response:
    name = request.path_params.get("name", "")
    if name not in _FILES:
        raise _RefusedError(404, "there is nothing at this address")
    file, kind = _FILES[name]
    return FileResponse(PAGE / file, media_type=kind, headers={"Cache-Control": "no-cache"})


def _home(site: Site, request: Request, session: Path) -> dict[str, Any]:
    return {
        "workspaces": [_summary(one) for one in find_all(session)],
        "max_upload": site.max_upload,
        "is_local": site.is_local,
        "suffixes": sorted(_UPLOAD_SUFFIXES),
        "quality": site.quality,
        "qualities": QUALITIES if site.quality else {},
        "can_adapt": site.runner.can_adapt,
        "colors": COLORS,
        "exports": {kind: {"title": one.title, "hint": one.hint} for kind, one in EXPORTS.items()},
    }


def _folder(site: Site, request: Request, session: Path) -> dict[str, object]:
    return site.allowed.listing(request.query_params.get("path", ""))


async def _open(site: Site, request: Request, session: Path) -> Any:
    path = (await _read(request, _Opened)).path

    def opened() -> dict[str, Any]:
        video = site.allowed.check(path.strip())
        return {"id": site.open(session, video, title=video.resolve().stem).id}

    return await run_in_threadpool(opened)


async def _upload(site: Site, request: Request, session: Path) -> Any:
    """The body is the file itself, which goes to the disk piece by piece."""
    name = Path(request.query_params.get("name", "").replace("\\", "/")).name[:200]
    suffix = Path(name).suffix.lower()
    if suffix not in _UPLOAD_SUFFIXES:
        raise VideoError(
            f"{name or 'a file without a name'} is no video by its name: choose a file such as "
            ".mp4, .mov, .avi, .mkv, .webm or .tif"
        )
    too_large = _RefusedError(
        413, f"the video is larger than {site.max_upload >> 20} MB: cut it first"
    )
    if (stated := request.headers.get("content-length", "0")).isdecimal():
        if int(stated) > site.max_upload:
            raise too_large
        _check_room(site, int(stated))
    folder = session / f".upload-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    try:
        num_bytes = num_checked = 0
        path = folder / f"{Path(name).stem[:80] or 'video'}{suffix}"
        with path.open("wb") as file:
            async for piece in _pieces(request):
                if (num_bytes := num_bytes + len(piece)) > site.max_upload:
                    raise too_large
                if num_bytes > num_checked + _ROOM:  # its size may not have been stated
                    num_checked = num_bytes
                    _check_room(site, 0)
                await run_in_threadpool(file.write, piece)

        def opened() -> dict[str, str]:
            return {"id": create(session, path, title=Path(name).stem, moves=True).id}

        return await run_in_threadpool(opened)
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)
        with suppress(OSError):
            session.rmdir()  # if nothing else is in it


def _check_room(site: Site, num_bytes: int) -> None:
    if num_bytes + 2 * _ROOM > shutil.disk_usage(site.root).free:
        raise _RefusedError(507, "the disk of the server has no room for this video")


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, from somebody who does not stop sending."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise _RefusedError(408, "nothing came for a minute: send it again") from error
        yield piece


def _state(site: Site, request: Request, workspace: Workspace) -> dict[str, Any]:
    stored = workspace.state
    return {
        **_summary(workspace),
        "objects": [one.model_dump() for one in stored.objects],
        "view": stored.view.model_dump(),
        "folder": str(workspace.folder.resolve()) if site.is_local else "",
        **_times(workspace),
    }


def _summary(workspace: Workspace) -> dict[str, Any]:
    state = workspace.state
    return {
        "id": workspace.id,
        "title": state.title,
        "num_frames": state.num_frames,
        "fps": state.fps,
        "height": state.height,
        "width": state.width,
        "num_followed": len(workspace.followed()),
        "num_annotated": len(workspace.annotated()),
        "changed": (workspace.folder / "workspace.json").stat().st_mtime,
    }


def _times(workspace: Workspace) -> dict[str, Any]:
    """What the time line shows."""
    certainty = workspace.certainty()
    drawn = workspace.annotated()
    return {
        "run": workspace.state.run,
        "is_changed": workspace.state.is_changed,
        "annotated": drawn,
        "absent": workspace.absent(),
        "followed": _ranges(workspace.followed()),
        "certainty": sorted(certainty.items()),
        "next": workspace.next_frames()[:3],
        "doubtful": _ranges([n for n, value in sorted(certainty.items()) if value < DOUBTFUL]),
    }


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last number of each stretch of consecutive ones."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _delete(site: Site, request: Request, workspace: Workspace) -> dict[str, bool]:
    if (run := site.runner.of(workspace)) is not None and run.is_live:
        raise InoError("this video is being worked on: stop that first")
    site.runner.forget(workspace)
    site.frames.forget(workspace)
    shutil.rmtree(workspace.folder)
    return {"done": True}


def _frame(site: Site, request: Request, workspace: Workspace) -> Response:
    content = site.frames.jpeg(workspace, request.path_params["number"])
    # A workspace's video does not change, and its name is never used again.
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})


def _labels(site: Site, request: Request, workspace: Workspace) -> Response:
    """One byte per pixel, compressed: exact, and ready for the browser to draw on."""
    found, source = workspace.labels(request.path_params["number"])
    return _packed(found, source)


def _packed(labels: np.ndarray, source: str) -> Response:
    packer = zlib.compressobj(1, wbits=31)  # gzip
    content = packer.compress(np.ascontiguousarray(labels).tobytes()) + packer.flush()
    headers = {"Content-Encoding": "gzip", "X-Source": source}
    return Response(content, media_type="application/octet-stream", headers=headers)


async def _draw(site: Site, request: Request, workspace: Workspace) -> Any:
    state = workspace.state
    content = await _body(request, limit=state.height * state.width)

    def draw() -> dict[str, Any]:
        workspace.draw(request.path_params["number"], content or None)
        return {"annotated": workspace.annotated(), "absent": workspace.absent()}

    return await run_in_threadpool(draw)


async def _prompt(site: Site, request: Request, workspace: Workspace) -> Response:
    """The body is the mask of the object so far, one byte per pixel, or nothing."""
    workspace.check_number(number := request.path_params["number"])
    state = workspace.state
    prompt = _checked(request.query_params.get("given", "").encode(), _Prompt)
    content = await _body(request, limit=state.height * state.width)
    if len(content) not in (0, state.height * state.width):
        raise MaskError("the mask so far is not of the size of the frames")

    def found() -> Response:
        from ino.propagate.prompts import mask_from_prompt  # it loads torch

        frame = read_clip(workspace.video, [number], fill=True)[0]
        mask = np.frombuffer(content, np.uint8).reshape(-1, state.width) > 0
        mask = mask_from_prompt(
            frame,
            box=prompt.box,
            points=prompt.points,
            mask=mask if mask.any() else None,
            features=site.features(workspace, number),
        )
        return _packed(mask.astype(np.uint8), "prompt")

    # A few at a time, and the threads of all else stay free.
    return await to_thread.run_sync(found, limiter=site.prompts)


async def _objects(site: Site, request: Request, workspace: Workspace) -> Any:
    objects = (await _read(request, _Objects)).objects

    def change() -> dict[str, Any]:
        gone = {one.id for one in workspace.state.objects} - {one.id for one in objects}
        if gone and (run := site.runner.of(workspace)) is not None and run.is_live:
            raise InoError("objects can be removed when the work on this video has ended")
        workspace.set_objects(objects)
        return _times(workspace)

    return await run_in_threadpool(change)


async def _view(site: Site, request: Request, workspace: Workspace) -> Any:
    view = await _read(request, View)

    def change() -> dict[str, bool]:
        workspace.check_number(view.frame)
        workspace.change(view=view)
        return {"done": True}

    return await run_in_threadpool(change)


def _progress(site: Site, request: Request, workspace: Workspace) -> dict[str, Any]:
    run = site.runner.of(workspace)
    if run is None:
        return {"status": "none", **_times(workspace)}
    return {
        "status": run.status,
        "reason": run.reason,
        "note": run.note,
        "adapting": run.adapting,
        "num_done": run.num_done,
        "num_steps": run.num_steps,
        "seconds_left": run.seconds_left(),
        "num_before": site.runner.num_before(run),
        "new": _ranges(run.new_masks()) if run.is_live else [],
        **({} if run.is_live else _times(workspace)),
    }


async def _run(site: Site, request: Request, workspace: Workspace) -> Any:
    wanted = await _read(request, _Started)
    quality = wanted.quality
    if site.quality is None or not quality:
        quality = site.quality or "default"
    if quality not in QUALITIES:
        raise ConfigError(f"there is no quality {quality!r}; there are {', '.join(QUALITIES)}")

    def start() -> dict[str, bool]:
        site.runner.start(
            workspace, quality, first=wanted.first, last=wanted.last, adapts=wanted.adapt
        )
        return {"done": True}

    return await run_in_threadpool(start)


def _control(site: Site, request: Request, workspace: Workspace) -> dict[str, bool]:
    match request.path_params["what"]:
        case "stop":
            site.runner.stop(workspace)
        case "pause":
            site.runner.pause(workspace, pauses=True)
        case "resume":
            site.runner.pause(workspace, pauses=False)
        case _:
            raise _RefusedError(404, "there is nothing at this address")
    return {"done": True}


def _export(site: Site, request: Request, workspace: Workspace) -> dict[str, bool]:
    site.exporter.start(workspace, request.path_params["kind"])
    return {"done": True}


def _is_exported(site: Site, request: Request, workspace: Workspace) -> dict[str, bool]:
    return {"is_ready": site.exporter.ready(workspace, request.path_params["kind"]) is not None}


def _take(site: Site, request: Request, workspace: Workspace) -> Response:
    kind = request.path_params["kind"]
    path = site.exporter.ready(workspace, kind)
    if path is None:
        raise InoError("the file is not ready yet")
    name = quote(f"{workspace.state.title}-{kind}{path.suffix}", safe=" ()")
    return FileResponse(
        path,
        headers={"Content-Disposition": f"attachment; filename*=UTF-8''{name}"},
        background=BackgroundTask(site.exporter.taken, workspace, kind),
    )


async def _read(request: Request, kind: type[Any]) -> Any:
    """The checked JSON of a request."""
    return _checked(await _body(request, limit=_MAX_JSON), kind)


def _checked(content: bytes, kind: type[Any]) -> Any:
    try:
        values = parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise ConfigError("the request is not JSON") from error
    if not isinstance(values, dict):
        raise ConfigError("the request must hold keys and values")
    return checked(kind, values)


async def _body(request: Request, *, limit: int) -> bytes:
    content = bytearray()
    async for piece in _pieces(request):
        content += piece
        if len(content) > limit:
            raise _RefusedError(413, f"the request is larger than {limit} bytes")
    return bytes(content)


def _secret(path: Path) -> str:
    """The secret of a folder of workspaces, which only its owner can read."""
    with suppress(OSError, UnicodeDecodeError):
        if len(text := path.read_text(encoding="ascii").strip()) >= 20:
            return text
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text := secrets.token_urlsafe(32), encoding="ascii")
    return text


def _derived(secret: str, purpose: str) -> str:
    return hashlib.sha256(f"{purpose}:{secret}".encode()).hexdigest()[:32]


@contextmanager
def _listening(host: str, port: int):
    """A socket on an address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({reason}): choose another --port or --host"
        ) from error
    with listener:
        yield listener


def serve(
    root: Path,
    *,
    folders: Sequence[Path],
    make_tracker: MakeTracker,
    make_adapted: MakeAdapted | None = None,
    quality: str | None = "fast",
    video: Path | None = None,
    host: str = "localhost",
    port: int = 8484,
    max_upload: int = 4 << 30,
    say: Callable[[str], None] = print,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        root: folder of the workspaces, see `Site`.
        folders: below which videos may be opened.
        make_tracker, make_adapted: see `ino.web.runs`.
        quality: that the page proposes; None if there is no choice.
        video: opened at once, for whoever started the server.
        host: the address to listen on.
        port: 0 for any that is free.
        max_upload: bytes.
        say: is told the address.

    Raises:
        ConfigError: the address cannot be listened on.
        OutputError: another server uses the folder, or it cannot be written.
        VideoError: the video cannot be used.
    """
    import uvicorn

    if missing := [one for one in folders if not one.is_dir()]:
        raise ConfigError(f"{missing[0]} is not a folder")
    with folder_lock(root, command="ino web"), _listening(host, port) as listener:
        site = Site(
            root,
            folders=folders,
            make_tracker=make_tracker,
            make_adapted=make_adapted,
            quality=quality,
            host=host,
            max_upload=max_upload,
        )
        try:
            place = ""
            if video is not None:
                own = site.workspaces_of(site.own_key)
                place = f"#{site.open(own, video, title=video.resolve().stem).id}"
            site.runner.warm_up(quality or "default")
            name = socket.gethostname() if host in ("0.0.0.0", "::") else host
            name = f"[{name}]" if ":" in name else name
            address = f"http://{name}:{listener.getsockname()[1]}/"
            token = "" if site.is_local else f"token={site.token}&"
            say(f"open {address}?{token}own={site.own_key}{place}")
            if token:
                say(f"for others: {address}?{token.rstrip('&')}")
            say(f"workspaces are in {root}; Ctrl-C ends the server")
            config = uvicorn.Config(
                make_app(site), log_level="warning", timeout_graceful_shutdown=2, access_log=False
            )
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            site.close()
