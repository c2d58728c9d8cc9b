"""Two reward servers as they are commonly written, for comparison: images in JSON, and one JPEG a request.

`json` takes blocks of base64 PNG, as a REST service would; `jpeg` takes one JPEG a POST. (Servers that are published
pickle that JPEG, which adds microseconds; nothing is unpickled here.) Both score what a request holds, one at a time.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import ray
from PIL import Image

from reward_service.scorers import make_scorer

KINDS = ("json", "jpeg")


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _read(kind: str, body: bytes) -> np.ndarray:
    if kind == "jpeg":
        return _pixels(body)[None]
    return np.stack([_pixels(base64.b64decode(text)) for text in json.loads(body)["images"]])


@ray.remote(num_cpus=0)
class HttpServer:
    """A scorer behind one of the two."""

    def __init__(self, kind: str, scorer: str, params: dict[str, Any]) -> None:
        served, turn = make_scorer(scorer, **params), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet an answer

            def do_POST(self) -> None:
                images = _read(kind, self.rfile.read(int(self.headers["Content-Length"])))
                with turn:
                    scores = served.score(images)
                answer = json.dumps({"scores": scores.tolist()}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def port(self) -> int:
        return int(self.server.server_address[1])


def sender(kind: str, port: int) -> Callable[[np.ndarray], list[float]]:
    """What asks for the scores of a block."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(body: bytes) -> list[float]:
        connection.request("POST", "/", body, {"Content-Type": "application/octet-stream"})
        scores: list[float] = json.loads(connection.getresponse().read())["scores"]
        return scores

    def send(images: np.ndarray) -> list[float]:
        if kind == "jpeg":
            return [post(_jpeg(image))[0] for image in images]
        return post(json.dumps({"images": [_png(image) for image in images]}).encode())

    return send
