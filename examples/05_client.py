"""The same verbs over REST: start a service, talk to it with a client, stop it."""

import socket
import subprocess
import sys
import tempfile
import time

import nestvec
from nestvec import Record


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


with tempfile.TemporaryDirectory() as folder:
    port = free_port()
    serve = [sys.executable, "-m", "nestvec.cli", "serve", "--db", f"{folder}/db", "--port", str(port)]
    service = subprocess.Popen(serve, stderr=subprocess.DEVNULL)
    try:
        with nestvec.Client(f"http://127.0.0.1:{port}") as client:
            while not client.healthy():
                time.sleep(0.1)
            notes = client.create_collection("notes", encoder="static")
            records = (Record(f"n{i}", text=f"{i} squared is {i * i}.", payload={"n": i}) for i in range(1200))
            print("written:", notes.upsert_many(records, batch=500).count)  # any number, batch by batch
            hits = notes.search(text="30 squared", k=3, filter={"field": "n", "range": {"gte": 30, "lt": 33}})
            for hit in hits:
                print(f"  {hit.score:.3f}  {hit.text}")
            print("all:", sum(1 for _ in notes.records()))  # scrolls in pages
    finally:
        service.terminate()
        print("stopped with", service.wait(30))
