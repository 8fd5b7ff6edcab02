"""Stores of objects on this machine, for real clients to talk to.

S3 is moto's server. TOS is a few lines of ours, which check that a request carries a whole signature of the form
``TOS4-HMAC-SHA256``, that the signature is that of the key the client was given (recomputed here from what came over
the wire), and that the path is the object's. What they cannot prove: that the real service accepts the same, its
policies on buckets, redirects between regions, and virtual hosts over real DNS.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

ACCESS_KEY, SECRET_KEY, TOKEN = "AKexample", "SKsecretsecret", "STStokentoken"
REGION = "cn-test"
_AUTHORIZATION = re.compile(
    r"TOS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/tos/request, "
    r"SignedHeaders=(?P<signed>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass
class Tos:
    """Where it listens, and what it was asked."""

    port: int = 0
    paths: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    tokens: list[str | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # how to answer next: "503" or "short"

    @property
    def environment(self) -> dict[str, str]:
        """What its users have set."""
        return {
            "TOS_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "TOS_REGION": REGION,
            "TOS_ACCESS_KEY": ACCESS_KEY,
            "TOS_SECRET_KEY": SECRET_KEY,
        }


@contextlib.contextmanager
def serve_tos(objects: Mapping[str, bytes], public: Mapping[str, bytes] | None = None) -> Iterator[Tos]:
    """Serve objects to who signs, and public ones to everyone."""
    state = Tos()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            key = unquote(urlsplit(self.path).path).removeprefix("/")
            state.paths.append(key)
            state.hosts.append(self.headers["Host"])
            state.connections.add(self.client_address)
            state.tokens.append(self.headers.get("x-tos-security-token"))
            if public and key in public:
                self._send(200, public[key])
            elif refusal := _refusal(self.headers, self.path):
                self._refuse(403, refusal)
            elif state.faults:
                self._fail(state.faults.pop(0), objects[key])
            elif key not in objects:
                self._refuse(404, "NoSuchKey")
            else:
                self._send(200, objects[key])

        def _fail(self, fault: str, data: bytes) -> None:
            if fault == "short":
                self._send(200, data[: len(data) // 2], len(data))
                self.close_connection = True
            else:
                self._refuse(int(fault), "ServiceBusy")

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, json.dumps({"Code": code, "Message": f"{code} {self.headers}"}).encode())

        def _send(self, status: int, body: bytes, n_bytes: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if n_bytes is None else n_bytes))
            self.send_header("x-tos-request-id", "1")
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Listening(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            pass  # a client that had enough went away

    with Listening(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        server.shutdown()
        thread.join(5)


def _refusal(headers: Mapping[str, str], path: str) -> str | None:
    found = _AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
    if found is None:
        return "AccessDenied"
    signed = found["signed"].split(";")
    if found["key"] != ACCESS_KEY or found["region"] != REGION or not {"host", "x-tos-date"} <= set(signed):
        return "InvalidAccessKeyId"
    date = headers["x-tos-date"]
    lines = "".join(f"{name}:{headers[name]}\n" for name in signed)
    wanted = ["GET", quote(unquote(urlsplit(path).path), safe="/~"), "", lines, found["signed"], "UNSIGNED-PAYLOAD"]
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    scope = f"{found['day']}/{REGION}/tos/request"
    key = SECRET_KEY.encode()
    for part in (found["day"], REGION, "tos", "request"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(["TOS4-HMAC-SHA256", date, scope, digest])
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    return None if hmac.compare_digest(signature, found["signature"]) else "SignatureDoesNotMatch"


@dataclass(frozen=True)
class S3:
    """Where moto's server listens."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What its users have set."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def serve_s3(bucket: str, objects: Mapping[str, bytes]) -> Iterator[S3]:
    """Serve a bucket through moto's server; objects whose names begin with ``public`` to everyone."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        state = S3(f"http://{host}:{port}")
        client = boto3.client(
            "s3",
            endpoint_url=state.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        for key, data in objects.items():
            acl = "public-read" if key.startswith("public") else "private"
            client.put_object(Bucket=bucket, Key=key, Body=data, ACL=acl)
        client.close()
        yield state
    finally:
        server.stop()


@contextlib.contextmanager
def serve_hub(repository: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve a data set as the hub does, as far as reading files of it goes; gives the endpoint."""
    commit = "1" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            name = path.rpartition("/resolve/main/")[2]
            if path.startswith(f"/api/datasets/{repository}/tree/"):
                self._tell([{"type": "file", "path": one, "size": len(files[one]), "oid": commit} for one in files])
            elif path == f"/api/datasets/{repository}":
                self._tell({"id": repository, "sha": commit, "siblings": []})
            elif path.startswith(f"/datasets/{repository}/resolve/main/") and name in files:
                self._send(200, files[name])
            else:
                self._send(404, b"{}")

        def _tell(self, content: object) -> None:
            self._send(200, json.dumps(content).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5)
