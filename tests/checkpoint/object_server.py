"""A real S3 server (moto) in a process of its own, for tests of the object store."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import fsspec
import pytest

_SERVER = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
lock = threading.RLock()
def one_at_a_time(method):
    def call(*args, **kwargs):
        with lock:
            return method(*args, **kwargs)
    return call
# S3 looks and puts as one step; moto's threads look first and put later, so two of them could both find nothing there
for name in ("put_object", "_key_response_post"):
    setattr(S3Response, name, one_at_a_time(getattr(S3Response, name)))
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
SECRET = "a-word-that-no-message-shows"


@contextmanager
def object_server() -> Iterator[str]:
    """Its address, while the block runs; the environment then names it and credentials for it."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = f"http://127.0.0.1:{int(process.stdout.readline())}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AWS_ENDPOINT_URL", address)
                patch.setenv("AWS_ACCESS_KEY_ID", "someone")
                patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
                patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
                patch.setenv("NO_PROXY", "127.0.0.1")
                yield address
        finally:
            process.stdin.close()
            process.wait(timeout=30)
            fsspec.get_filesystem_class("s3").clear_instance_cache()


def new_bucket() -> str:
    """The URL of an empty bucket."""
    name = f"chain-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"
