"""`https://...`: scores from a server of the user's own, and every way in which it may fail."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from reward_service.scorers import Scorer, make_scorer
from reward_service.scorers.npy import NotNpy, header_of, read_npy
from reward_service.scorers.remote import RemoteScorer, ServerFailed
from tests.reward_service.company import reads_only, scores_in_any_company

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "docs" / "reward_server.py"


def pictures(count: int = 5, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def npy(values: Any, dtype: Any = np.float32) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(values, dtype), allow_pickle=False)
    return out.getvalue()


def means(body: bytes) -> bytes:
    images = np.load(io.BytesIO(body), allow_pickle=False)
    assert images.dtype == np.uint8 and images.ndim == 4
    return npy(images.mean((1, 2, 3)))


class Fake:
    """A server that answers as it is told: `post` gets the body and the handler, and answers by itself or not."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.said: Any = {"name": "fake", "version": "fake-1", "range": [0, 255]}
        self.post: Callable[[bytes, Any], None] = lambda body, handler: handler.answer(200, means(body))
        self.seen: list[tuple[str, dict[str, str], int]] = []
        outer = self

        self.open: list[socket.socket] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.open.append(self.connection)

            def do_GET(self) -> None:
                outer.seen.append((self.path, dict(self.headers), 0))
                content = outer.said if isinstance(outer.said, bytes) else json.dumps(outer.said).encode()
                self.answer(200, content)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.seen.append((self.path, dict(self.headers), len(body)))
                outer.post(body, self)

            def answer(self, status: int, content: bytes, version: str | None = "fake-1", **headers: str) -> None:
                self.send_response(status)
                for key, value in {"Content_Length": str(len(content)), **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                if version is not None:
                    self.send_header("Scorer-Version", version)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.stop()


def made(fake: Fake, **params: Any) -> RemoteScorer:
    found = make_scorer(fake.url, "cpu", **params)
    assert isinstance(found, RemoteScorer) and isinstance(found, Scorer)
    return found


# -- what goes well


def test_pictures_arrive_bit_for_bit_and_scores_come_back(fake: Fake) -> None:
    fake.said |= {"least_side": 8, "preferred_batch": 4, "native_side": 448}
    scorer = made(fake)
    images = pictures()
    scores = scorer.score(images)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, images.mean((1, 2, 3)).astype(np.float32))
    assert (scorer.name, scorer.version, scorer.range) == ("fake", "fake-1", (0.0, 255.0))
    assert (scorer.least_side, scorer.preferred_batch, scorer.native_side) == (8, 4, 448)
    (path, headers, size) = fake.seen[-1]
    assert path == "/score" and size == len(npy(images, np.uint8)) and headers["Content-Type"] == "application/x-npy"
    assert "Authorization" not in headers and "Cookie" not in headers


def test_a_score_is_the_same_in_any_company_and_of_any_part_of_an_array(fake: Fake) -> None:
    scorer, images = made(fake), pictures(6)
    together = scores_in_any_company(scorer, images)
    np.testing.assert_array_equal(scorer.score(np.asfortranarray(images)), together)
    np.testing.assert_array_equal(scorer.score(images[:, ::-1]), together)
    reads_only(scorer, images)


def test_it_is_made_and_scores_where_an_event_loop_runs_as_in_a_replica(fake: Fake) -> None:
    async def replica() -> np.ndarray:
        return made(fake).score(pictures(2))

    assert np.isfinite(asyncio.run(replica())).all()


def test_blocks_larger_than_a_piece_are_sent_whole(fake: Fake) -> None:
    images = pictures(3, 700, 700)
    np.testing.assert_array_equal(made(fake).score(images), images.mean((1, 2, 3)).astype(np.float32))


def test_an_open_range_and_a_path_of_ones_own(fake: Fake) -> None:
    fake.said["range"] = [None, 0.5]
    assert make_scorer(f"{fake.url}/iqa/", "cpu").range == (float("-inf"), 0.5)
    assert fake.seen[-1][0] == "/iqa/describe"


def test_a_picture_without_a_finite_score_is_nan_and_its_mates_keep_theirs(fake: Fake) -> None:
    fake.post = lambda body, handler: handler.answer(200, npy([1, np.nan, np.inf, 4]))
    np.testing.assert_array_equal(made(fake).score(pictures(4)), [1, np.nan, np.nan, 4])


# -- what goes wrong


def fails(fake: Fake, match: str, **params: Any) -> None:
    scorer = made(fake, **params)
    with pytest.raises(ServerFailed, match=match):
        scorer.score(pictures(4))


def test_a_late_answer_is_told_and_not_asked_for_again(fake: Fake) -> None:
    ended = threading.Event()
    fake.post = lambda body, handler: ended.wait(5)
    began = time.monotonic()
    fails(fake, r"/score: no answer within 0\.3\d* s for 4 pictures of 16x12 .*raise timeout_s=0\.3", timeout_s=0.3)
    ended.set()
    assert time.monotonic() - began < 2 and sum(path == "/score" for path, *_ in fake.seen) == 1


def test_an_answer_that_trickles_is_late_all_the_same(fake: Fake) -> None:
    def trickle(body: bytes, handler: Any) -> None:
        handler.send_response(200)
        handler.flush_headers()
        try:
            for _ in range(50):  # headers that never end
                handler.wfile.write(b"X-More: 1\r\n")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    fake.post = trickle
    began = time.monotonic()
    fails(fake, "no answer within", timeout_s=0.3)
    assert time.monotonic() - began < 2


def test_the_limit_grows_with_the_bytes(fake: Fake) -> None:
    def slow(body: bytes, handler: Any) -> None:
        time.sleep(0.4)
        handler.answer(200, means(body))

    fake.post = slow
    scorer = made(fake, timeout_s=0.2, bytes_per_s=4 * 12 * 16 * 3.0)  # a second for four pictures
    assert np.isfinite(scorer.score(pictures(4))).all()
    with pytest.raises(ServerFailed, match=r"within 0\.45 s for 1 pictures"):
        fake.post = lambda body, handler: time.sleep(0.7)
        scorer.score(pictures(1))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (npy([1, 2, 3]), r"npy of float32 \[3\], where float32 \[4\] was expected, for 4 pictures"),
        (npy([1, 2, 3, 4], np.float64), "npy of float64"),
        (npy([[1, 2, 3, 4]]), r"float32 \[1, 4\]"),
        (npy([1, 2, 3, 4])[:-4], "npy with 12 bytes behind its header, where .* has 16"),
        (npy([1, 2, 3, 4]) + b"1234", "npy with 20 bytes"),
        (b'{"scores": [1, 2, 3, 4]}', "no npy: it begins with b'{\"scores"),
        (b"", "no npy"),
        (npy([1, 2, 3, 4]) + bytes(10000), "an answer of more than 4112 bytes"),
    ],
)
def test_an_answer_that_is_not_a_number_for_each_picture_is_told(fake: Fake, content: bytes, told: str) -> None:
    fake.post = lambda body, handler: handler.answer(200, content)
    fails(fake, told)


def test_an_array_of_objects_is_refused_without_being_unpickled(fake: Fake) -> None:
    out = io.BytesIO()
    np.save(out, np.array([print, 1, 2, 3], object), allow_pickle=True)
    fake.post = lambda body, handler: handler.answer(200, out.getvalue())
    fails(fake, "npy of object")


def test_an_answer_shorter_than_announced_is_told(fake: Fake) -> None:
    def cut(body: bytes, handler: Any) -> None:
        handler.answer(200, npy([1, 2, 3, 4])[:-8], Content_Length=str(len(npy([1, 2, 3, 4]))))
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    fake.post = cut
    fails(fake, "shorter than announced")


@pytest.mark.parametrize(("status", "told"), [(500, "500 .*CUDA error"), (404, "404"), (413, "413"), (401, "token")])
def test_what_the_server_refuses_is_told_in_its_words_and_not_asked_again(fake: Fake, status: int, told: str) -> None:
    fake.post = lambda body, handler: handler.answer(status, b"CUDA error: \x1b[31mred\n" + b"x" * 9999)
    scorer = made(fake)
    with pytest.raises(ServerFailed, match=told) as caught:
        scorer.score(pictures(4))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000
    assert sum(path == "/score" for path, *_ in fake.seen) == 1


def test_a_redirect_is_refused_with_where_it_led(fake: Fake) -> None:
    fake.post = lambda body, handler: handler.answer(307, b"", Location="http://elsewhere/score")
    fails(fake, r"redirects \(307\) to http://elsewhere/score, which is not followed")


@pytest.mark.parametrize("version", ["fake-2", None])
def test_an_answer_of_another_version_than_at_the_start_is_refused(fake: Fake, version: str | None) -> None:
    fake.post = lambda body, handler: handler.answer(200, means(body), version)
    fails(fake, "where Scorer-Version 'fake-1' was expected: the server was changed")


def test_a_server_that_is_unavailable_for_a_moment_is_asked_again(fake: Fake) -> None:
    left = [1, 1]

    def busy(body: bytes, handler: Any) -> None:
        if left:
            left.pop()
            return handler.answer(503, b"loading")
        handler.answer(200, means(body))

    fake.post = busy
    images = pictures(4)
    np.testing.assert_array_equal(made(fake).score(images), images.mean((1, 2, 3)).astype(np.float32))
    assert sum(path == "/score" for path, *_ in fake.seen) == 3


def test_a_server_that_stays_unavailable_or_hangs_up_is_told_after_its_tries(fake: Fake) -> None:
    fake.post = lambda body, handler: handler.answer(503, b"")
    fails(fake, "503 Service Unavailable, at 2 tries; is the server up", retries=1)

    def hang_up(body: bytes, handler: Any) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    fake.post = hang_up
    fails(fake, "no connection .*, at 2 tries", retries=1)


def test_tries_end_with_the_time(fake: Fake) -> None:
    fake.post = lambda body, handler: handler.answer(503, b"")
    began = time.monotonic()
    fails(fake, "no answer within", retries=100, timeout_s=0.4)
    assert time.monotonic() - began < 2


def test_a_server_that_went_away_is_told_and_one_that_comes_back_is_used_again(fake: Fake) -> None:
    scorer, images = made(fake, retries=0), pictures(2)
    scorer.score(images)
    port = fake.server.server_port
    fake.stop()
    with pytest.raises(ServerFailed, match="no connection"):
        scorer.score(images)
    again = ThreadingHTTPServer(("127.0.0.1", port), fake.server.RequestHandlerClass)
    threading.Thread(target=again.serve_forever, args=(0.02,), daemon=True).start()
    fake.server = again
    np.testing.assert_array_equal(scorer.score(images), images.mean((1, 2, 3)).astype(np.float32))


def test_pictures_that_no_scorer_takes_are_refused_before_anything_is_sent(fake: Fake) -> None:
    fake.said["least_side"] = 16
    scorer = made(fake)
    for images, told in ((pictures(2), "too small"), (pictures(2).astype(np.float32), "not float32")):
        with pytest.raises(ValueError, match=told):
            scorer.score(images)
    assert all(path != "/score" for path, *_ in fake.seen)


# -- before anything is scored


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"<html>", "no JSON"),
        ([1], "list, where an object"),
        ({"version": "1", "range": [0, 1]}, "name must be"),
        ({"name": "a", "version": "1\n2", "range": [0, 1]}, "version must be"),
        ({"name": "a", "version": "1"}, "range must be"),
        ({"name": "a", "version": "1", "range": [1, 0]}, "range must be"),
        ({"name": "a", "version": "1", "range": [0, 1], "least_side": 0}, "least_side must be"),
    ],
)
def test_a_server_that_does_not_say_who_it_is_is_no_scorer(fake: Fake, said: Any, told: str) -> None:
    fake.said = said
    with pytest.raises(ValueError, match=f"/describe: .*{told}"):
        made(fake)


def test_without_a_server_there_is_no_scorer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=f"http://127.0.0.1:{port}/describe: no connection .* is the server up"):
        make_scorer(f"http://127.0.0.1:{port}", retries=1)


@pytest.mark.parametrize(
    ("url", "params", "told"),
    [
        ("http://scores.example", {}, "unencrypted: use https, or say insecure=true"),
        ("http://localhost.example", {}, "unencrypted"),
        ("https://me:secret@scores.example", {}, "no user or password"),
        ("https://scores.example/?a=1", {}, "without query"),
        ("https://", {}, "an address is"),
        ("https://scores.example:99999", {}, "an address that is none"),
        ("https://scores.example", {"token": "secret"}, "doesn't belong into a configuration"),
        ("https://scores.example", {"token_env": "RESTORL_NO_SUCH"}, "RESTORL_NO_SUCH: the variable isn't set"),
        ("https://scores.example", {"token_file": "/nowhere/token"}, "the file can't be read"),
        ("https://scores.example", {"token_env": "A", "token_file": "b"}, "give one of them"),
        ("https://scores.example", {"ca": "/nowhere/ca.pem"}, "ca=/nowhere/ca.pem: no file of certificates"),
        ("https://scores.example", {"timeout_s": 0}, "timeout_s=0"),
        ("https://scores.example", {"bytes_per_s": float("nan")}, "bytes_per_s=nan"),
        ("https://scores.example", {"retries": -1}, "retries=-1"),
        ("https://scores.example", {"batch": 3}, "batch"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sent(url: str, params: dict[str, Any], told: str) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match=told) as caught:
        make_scorer(url, "cpu", **params)
    assert "secret" not in str(caught.value)
    time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_gpu_reserved_for_a_server_elsewhere_is_refused(fake: Fake) -> None:
    with pytest.raises(ValueError, match="set reward.num_gpus=0"):
        make_scorer(fake.url, "cuda")


def test_plain_http_elsewhere_is_used_with_a_warning_where_one_says_so(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_service.scorers.remote._is_this_machine", lambda host: False)
    with pytest.warns(UserWarning, match="travel unencrypted"):
        made(fake, insecure=True)


def test_the_token_comes_from_a_variable_or_a_file_and_reaches_every_request(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("file-secret\n")
    monkeypatch.setenv("REWARD_TEST_TOKEN", "env-secret")
    for params, token in (
        ({"token_env": "REWARD_TEST_TOKEN"}, "env-secret"),
        ({"token_file": str(tmp_path / "token")}, "file-secret"),
    ):
        scorer = made(fake, **params)
        scorer.score(pictures(1))
        assert [headers["Authorization"] for _, headers, _ in fake.seen[-2:]] == [f"Bearer {token}"] * 2
        assert token not in repr(vars(scorer)).replace(repr(scorer._headers), "")
    (tmp_path / "token").write_text("two words")
    with pytest.raises(ValueError, match="holds no token") as caught:
        made(fake, token_file=str(tmp_path / "token"))
    assert "two words" not in str(caught.value)


def test_neither_a_proxy_nor_a_netrc_of_the_environment_is_used(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    made(fake).score(pictures(1))
    assert "Authorization" not in fake.seen[-1][1]


# -- encrypted


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a reward server")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "server.pem", folder / "key.pem"
    files[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    unencrypted = serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted))
    return files


def test_a_certificate_is_checked_and_one_of_ones_own_is_given_as_ca(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Fake(context)
    try:
        began = time.monotonic()
        with pytest.raises(ValueError, match="no trusted connection .*: give the certificates .* as `ca`"):
            made(server, retries=9)
        assert time.monotonic() - began < 2, "a certificate gets no better by trying again"
        images = pictures(2)
        scorer = made(server, ca=str(certificate[0]))
        np.testing.assert_array_equal(scorer.score(images), images.mean((1, 2, 3)).astype(np.float32))
        server.url = server.url.replace("127.0.0.1", "localhost")  # the certificate is of another name
        with pytest.raises(ValueError, match="no trusted connection"):
            made(server, ca=str(certificate[0]))
    finally:
        server.stop()


# -- the server of the documentation


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("REWARD_TOKEN", "told-nobody")
    process = subprocess.Popen(
        [sys.executable, SERVER, "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on port ")
        yield f"http://127.0.0.1:{line.split()[-1]}"
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]


def test_the_documented_server_scores_what_the_pages_say(documented: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer = make_scorer(documented, "cpu", token_env="REWARD_TOKEN")
        images = pictures(7, 20, 30)
        scores = scores_in_any_company(scorer, images)
    np.testing.assert_allclose(scores, images.mean(3, dtype=np.float64).std((1, 2)), rtol=1e-6)
    assert (scorer.name, scorer.version, scorer.range) == ("contrast", "contrast-1", (0.0, 127.5))
    (tmp_path / "wrong").write_text("another")
    with pytest.raises(ValueError, match="401 .*is the token right"):
        make_scorer(documented, "cpu", token_file=str(tmp_path / "wrong"))


def test_the_documented_server_refuses_what_is_no_block(documented: str) -> None:
    host = documented.removeprefix("http://")
    huge = header_of(np.dtype(np.uint8), (1 << 20, 1 << 10, 1 << 10, 3))
    objects = io.BytesIO()
    np.save(objects, np.array([print], object), allow_pickle=True)
    for body, status in ((huge, 400), (objects.getvalue(), 400), (b"", 400), (npy([1, 2], np.uint8), 400)):
        connection = HTTPConnection(host, timeout=10)
        connection.request("POST", "/score", body, {"Authorization": "Bearer told-nobody"})
        answer = connection.getresponse()
        assert answer.status == status and b"no npy of uint8" in answer.read()
        connection.close()


# -- arrays as bytes


def test_npy_is_read_by_its_announced_type_and_shape_only() -> None:
    content = npy([1.5, 2.5])
    np.testing.assert_array_equal(read_npy(content, np.dtype("<f4"), (2,)), [1.5, 2.5])
    images = pictures(2)
    assert header_of(images.dtype, images.shape) + images.tobytes() == npy(images, np.uint8)
    bomb = header_of(np.dtype("<f4"), (1 << 40,))
    with pytest.raises(NotNpy, match=r"float32 \[1099511627776\]"):
        read_npy(bomb, np.dtype("<f4"), (2,))
    with pytest.raises(NotNpy, match="with 0 bytes behind"):
        read_npy(bomb, np.dtype("<f4"), (1 << 40,))
