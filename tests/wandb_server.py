"""A small W&B server on 127.0.0.1: it takes runs, rows and files, and keeps them for a test."""

import gzip
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "k" * 40


@dataclass
class Received:
    """What the server has received of one run."""

    variables: dict[str, Any] = field(default_factory=dict)  # of its UpsertBucket requests
    lines: list[tuple[int, str]] = field(default_factory=list)  # rows in order, with their offsets
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows as they came, without W&B's own keys except ``_step``."""
        found = [json.loads(line) for _, line in self.lines]
        return [
            {key: value for key, value in row.items() if key == "_step" or key[0] != "_"}
            for row in found
        ]


class WandbServer(ThreadingHTTPServer):
    """``runs`` by id. With ``is_down``, it closes each connection without an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Received] = defaultdict(Received)
        self.views: list[dict[str, Any]] = []
        self.unknown: set[str] = set()
        self.requests = 0
        self.is_down = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients close their connections when they end."""

    def environment(self, home: Path) -> dict[str, str]:
        """For a client that knows only this server."""
        home.mkdir(exist_ok=True)
        folders = ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
        return dict.fromkeys(folders, str(home)) | {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that runs while inside."""
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of wandb 0.31."""

    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        if (body := self._body()) is not None:
            _, _, run_id, name = self.path.split("/", 3)
            self.server.runs[run_id].files[name] = body
            self._answer({})

    def do_POST(self) -> None:
        if (body := self._body()) is None:
            return
        request = json.loads(body)
        if self.path.endswith("/file_stream"):
            self._answer(self._stream(self.path.split("/")[-2], request))
        else:
            query = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            name = request.get("operationName") or (query[1] if query else "")
            self._answer({"data": self._operation(name, request.get("variables") or {})})

    def _body(self) -> bytes | None:
        raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.requests += 1
        if self.server.is_down:
            self.close_connection = True
            return None
        return gzip.decompress(raw) if self.headers["Content-Encoding"] == "gzip" else raw

    def _answer(self, document: dict[str, Any]) -> None:
        raw = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, run_id: str, request: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[run_id]
        history = request.get("files", {}).get("wandb-history.jsonl")
        if history:
            lines = enumerate(history["content"], history["offset"])
            run.lines += list(lines)
        if request.get("complete"):
            run.exit_codes.append(request["exitcode"])
        return {"exitcode": None, "limits": {}}

    def _operation(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        match name:
            case "UpsertBucket":
                run = self.server.runs[variables["name"]]
                if variables.get("program") and not variables.get("id"):
                    run.lines.clear()  # a run that does not resume replaces its namesake
                run.variables |= {key: value for key, value in variables.items() if value}
                bucket = self._bucket(variables["name"], variables.get("project") or "llm")
                return {"upsertBucket": {"bucket": bucket, "inserted": not run.lines}}
            case "RunResumeStatus":
                known = self.server.runs.get(variables["name"])
                bucket = self._bucket(variables["name"], "llm") if known and known.lines else None
                return {"model": {"id": "1", "name": "llm", "bucket": bucket}}
            case "CreateRunFiles":
                run_id = variables["run"]
                files = [
                    {"name": one, "uploadUrl": f"{self.server.url}/upload/{run_id}/{one}"}
                    for one in variables["files"]
                ]
                return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
            case "Viewer":
                teams: dict[str, Any] = {"edges": []}
                viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}"}
                return {"viewer": viewer | {"teams": teams}}
            case "ServerFeaturesQuery" | "ServerInfo":
                versions = {"max_cli_version": "9.0.0"}
                return {"serverInfo": {"features": [], "cliVersionInfo": versions}}
            case "UpsertView2":
                self.server.views.append(variables)
                return {"upsertView": {"view": {"id": "1", "name": "view"}, "inserted": True}}
            case _:
                self.server.unknown.add(name)
                return {}

    def _bucket(self, run_id: str, project: str) -> dict[str, Any]:
        lines = [line for _, line in self.server.runs[run_id].lines]
        return {
            "id": run_id, "name": run_id, "displayName": run_id, "description": None,
            "config": "{}", "sweepName": None, "historyLineCount": len(lines),
            "eventsLineCount": 0, "logLineCount": 0, "summaryMetrics": "{}", "tags": [],
            "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]",
            "wandbConfig": '{"t": {}}',  # without t, W&B does not resume
            "project": {"id": "1", "name": project, "entity": {"id": "1", "name": "me"}},
        }  # fmt: skip
