"""A small HTTP service: one backbone in memory, one tracker per video.

    uvicorn --app-dir examples service:app

It needs starlette and uvicorn (uv sync --extra web). The body of a request is a picture, PNG or
JPEG. The first one comes with a box, POST /?box=120,60,310,400, and the answer is {"id": "..."};
those after it come with that id, POST /?id=..., and the answer is a mask, a PNG of 0 and 1.
"""

import asyncio
import secrets

import cv2
import numpy as np
from cachetools import LRUCache
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ino import InoError, Tracker, load_backbone, mask_from_prompt

BACKBONE = load_backbone("ino_vitt8")
VIDEOS = LRUCache(100)  # the latest hundred; a tracker takes one picture at a time


async def follow(request: Request) -> Response:
    """The id of a new video, or the mask of the next picture of one."""
    query, body = request.query_params, await request.body()
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise InoError("the body is no picture: send a PNG or a JPEG")
    if "box" in query:
        box, name = [float(side) for side in query["box"].split(",")], secrets.token_urlsafe()
        mask = await run_in_threadpool(mask_from_prompt, picture, box=box, backbone=BACKBONE)
        tracker = Tracker(BACKBONE, quality="fast")
        await run_in_threadpool(tracker.start, picture, mask)
        VIDEOS[name] = tracker, asyncio.Lock()
        return JSONResponse({"id": name})
    tracker, lock = VIDEOS[query["id"]]
    async with lock:
        labels = await run_in_threadpool(tracker.step, picture)
    return Response(cv2.imencode(".png", labels)[1].tobytes(), media_type="image/png")


async def refuse(_: Request, error: Exception) -> Response:
    """What the visitor did wrong, in one sentence."""
    why = str(error) if isinstance(error, InoError) else "no such video, or box is not x0,y0,x1,y1"
    return JSONResponse({"error": why}, 400)


app = Starlette(
    routes=[Route("/", follow, methods=["POST"])],
    exception_handlers=dict.fromkeys((InoError, LookupError, ValueError), refuse),
)
