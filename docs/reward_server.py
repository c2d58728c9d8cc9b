"""A reward server in one file (numpy alone): `python docs/reward_server.py 8900`, then `--scorer http://localhost:8900`.

Put your own model into `score`. With REWARD_TOKEN set, requests must bring it. For https give the files of a
certificate and its key as further arguments.
"""

import contextlib
import hmac
import io
import json
import math
import os
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

SAID = {"name": "contrast", "version": "contrast-1", "range": [0, 127.5], "least_side": 1}
MOST_BYTES = 1 << 30
ONE_AT_A_TIME = threading.Lock()


def score(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] RGB -> [N], higher is better; NaN for a picture that has no score."""
    return images.mean(3, dtype=np.float64).std((1, 2))


def pictures_in(body: bytes) -> np.ndarray:
    """The array of a .npy file, whose header must fit its size; nothing is unpickled."""
    stream = io.BytesIO(body)
    version = np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=4096)
    fits = math.prod(shape) == len(body) - stream.tell() and len(shape) == 4 and shape[3] == 3
    if version != (1, 0) or dtype != np.uint8 or fortran or not fits:
        raise ValueError(f"{dtype} {shape} in {len(body)} bytes")
    return np.frombuffer(body, np.uint8, offset=stream.tell()).reshape(shape)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    timeout = 60

    def do_GET(self) -> None:
        if self.welcome():
            known = self.path.endswith("/describe")
            self.answer(*((200, json.dumps(SAID).encode()) if known else (404, b"GET /describe, POST /score")))

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", -1))
        if not self.welcome(0 <= size <= MOST_BYTES):
            return
        body = self.rfile.read(size)
        try:
            images = pictures_in(body)
        except Exception as error:
            return self.answer(400, f"no npy of uint8 [N, H, W, 3]: {error}".encode())
        out = io.BytesIO()
        with ONE_AT_A_TIME:
            np.save(out, np.asarray(score(images), np.float32), allow_pickle=False)
        self.answer(200, out.getvalue())

    def welcome(self, fits: bool = True) -> bool:
        wanted, given = os.environ.get("REWARD_TOKEN"), self.headers.get("Authorization", "")
        known = not wanted or hmac.compare_digest(given.encode(), f"Bearer {wanted}".encode())
        if not (known and fits):
            self.close_connection = True  # a body is left unread
            self.answer(*((413, b"the body is too large") if known else (401, b"another bearer token is wanted")))
        return known and fits

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Scorer-Version", str(SAID["version"]))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    port, *certificate = sys.argv[1:] or sys.exit("which port? reward_server.py PORT [CERTIFICATE KEY]")
    try:
        server = ThreadingHTTPServer(("127.0.0.1" if not certificate else "", int(port)), Handler)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"port {port}: {error}; give another")
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(f"listening on port {server.server_port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
