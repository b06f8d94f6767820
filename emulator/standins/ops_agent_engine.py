#!/usr/bin/python3
"""A stand-in for the Ops Agent's engine: checks its configuration, and shows what would be collected.

`-in FILE` checks a configuration against the fields that Ops Agent 2.60 knows on Linux (its `confgenerator` package,
https://github.com/GoogleCloudPlatform/ops-agent) and ends with 1 and the real program's words when it is not valid.
With `-service otel` or `-service fluentbit` it writes what that part starts from into `$RUNTIME_DIRECTORY`; of all that
the real one writes there, it is where a part offers its own metrics.
With `-run logging` it follows the files of the `files` and `nginx_*` receivers in use, with `-run metrics` it polls the
endpoints of `nginx` and `prometheus` receivers; both write JSON lines to `STATE/shipped.jsonl`, cut off at a mebibyte,
and offer metrics where that file says.
What it does not do: ship anything, read the journal, apply processors, measure the host, know other applications'
receivers, OTLP and traces, or parse filters, regular expressions and Prometheus' relabelling.
Needs Debian's python3-yaml.
"""

import argparse
import glob
import http.client
import http.server
import json
import os
import pathlib
import re
import sys
import threading
import time
import urllib.parse
from typing import Any

import yaml

_LARGEST_STATE_BYTES = 1 << 20
_POLL_SECONDS = 1
_DURATION = re.compile(r"(\d+(\.\d+)?(ms|s|m|h))+")
_FILES = {"include_paths": list, "exclude_paths": list, "wildcard_refresh_interval": str, "record_log_file_path": bool}
_TIME: dict[str, type] = {"field": str, "time_key": str, "time_format": str}
_INTERVAL: dict[str, type] = {"collection_interval": str}
# Section, kind of component, its type: fields and the types of their values.
_COMPONENTS: dict[str, dict[str, dict[str, dict[str, type]]]] = {
    "logging": {
        "receivers": {
            "files": _FILES,
            "fluent_forward": {"listen_host": str, "listen_port": int},
            "nginx_access": _FILES,
            "nginx_error": _FILES,
            "syslog": {"transport_protocol": str, "listen_host": str, "listen_port": int},
            "systemd_journald": {},
            "tcp": {"format": str, "listen_host": str, "listen_port": int},
        },
        "processors": {
            "exclude_logs": {"match_any": list},
            "modify_fields": {"fields": dict},
            "nginx_access": {},
            "nginx_error": {},
            "parse_json": _TIME,
            "parse_multiline": {"match_any": list},
            "parse_regex": {**_TIME, "regex": str},
        },
    },
    "metrics": {
        "receivers": {
            "hostmetrics": _INTERVAL,
            "nginx": {**_INTERVAL, "stub_status_url": str},
            "prometheus": {"config": dict},
        },
        "processors": {"exclude_metrics": {"metrics_pattern": list}},
    },
}
_REQUIRED = {"files": "include_paths", "exclude_logs": "match_any", "parse_regex": "regex", "prometheus": "config"}
# The built-in configuration, which a user's own is laid over.
_BUILT_IN = {
    "logging": {"receivers": {"syslog"}, "processors": set()},
    "metrics": {"receivers": {"hostmetrics"}, "processors": {"metrics_filter"}},
}
# What each part starts from, by the engine's name for the part: the file, and what is in it.
_GENERATED = {
    "fluentbit": ("fluent_bit_main.conf", "[OUTPUT]\n    Name prometheus_exporter\n    host 0.0.0.0\n    port 20202\n"),
    "otel": (
        "otel.yaml",
        """\
service:
  telemetry:
    metrics:
      readers:
      - pull:
          exporter:
            prometheus:
              host: 0.0.0.0
              port: 20201
""",
    ),
}
_DEFAULT_PATHS = {
    "nginx_access": ["/var/log/nginx/access.log"],
    "nginx_error": ["/var/log/nginx/error.log"],
}


def check(config: Any) -> list[str]:
    """Return what is wrong with a configuration, one line each."""
    if config is None:
        return []
    problems = _unknown("", config, {"logging", "metrics", "combined", "traces", "global"})
    for section in () if problems else _COMPONENTS.keys() & config.keys():
        problems += _check_section(section, config[section] or {})
    return problems


def _unknown(place: str, value: Any, known: set[str]) -> list[str]:
    if not isinstance(value, dict):
        return [f"{place or 'the file'} must be a mapping"]
    return [f'{place}{"." if place else ""}{name}: unknown field "{name}"' for name in value if name not in known]


def _check_section(section: str, value: Any) -> list[str]:
    problems = _unknown(section, value, {"receivers", "processors", "service"})
    if problems:
        return problems
    service = value.get("service") or {}
    problems += _unknown(f"{section}.service", service, {"pipelines", "log_level", "compress"})
    parts = {kind: value.get(kind) or {} for kind in ("receivers", "processors")}
    parts |= {"service.pipelines": {} if problems else service.get("pipelines") or {}}
    problems += [f"{section}.{name} must be a mapping" for name, part in parts.items() if not isinstance(part, dict)]
    if problems:
        return problems
    for kind in ("receivers", "processors"):
        for identifier, component in parts[kind].items():
            problems += _check_component(section, kind, identifier, component)
    for name, pipeline in parts["service.pipelines"].items():
        place = f"{section}.service.pipelines.{name}"
        problems += _unknown(place, pipeline, {"receivers", "processors"})
        for kind in ("receivers", "processors") if isinstance(pipeline, dict) else ():
            known = _BUILT_IN[section][kind] | parts[kind].keys()
            for identifier in pipeline.get(kind) or []:
                if identifier not in known:
                    problems.append(f'{place}: {section} {kind[:-1]} "{identifier}" is not defined')
    return problems


def _check_component(section: str, kind: str, identifier: str, component: Any) -> list[str]:
    place = f"{section}.{kind}.{identifier}"
    if identifier.startswith("lib:"):
        return [f'{place}: {section} {kind[:-1]} id prefix "lib:" is reserved for pre-defined {kind}']
    component_type = component.get("type") if isinstance(component, dict) else None
    types = _COMPONENTS[section][kind]
    if component_type not in types:
        return [f'{place}: {section} {kind[:-1]} with type "{component_type}" is not supported: {sorted(types)}']
    fields = types[component_type]
    problems = _unknown(place, component, {"type", *fields})
    for name in fields.keys() & component.keys():
        if not isinstance(component[name], fields[name]):
            problems.append(f"{place}.{name}: must be a {fields[name].__name__}")
    required = _REQUIRED.get(component_type)
    if required and not component.get(required):
        problems.append(f'{place}: "{required}" is a required field')
    interval = component.get("collection_interval")
    if isinstance(interval, str) and not (_DURATION.fullmatch(interval) and _seconds(interval) >= 10):
        problems.append(f'{place}: "collection_interval" must be a duration of at least 10s')
    if component_type == "prometheus" and not problems:
        problems += _check_scrapes(place, component["config"])
    return problems


def _check_scrapes(place: str, config: dict[str, Any]) -> list[str]:
    problems = _unknown(f"{place}.config", config, {"global", "scrape_configs"})
    for scrape in config.get("scrape_configs") or []:
        if not scrape.get("job_name"):
            problems.append(f"{place}: job_name is empty")
        interval = scrape.get("scrape_interval")
        if interval and (not _DURATION.fullmatch(str(interval)) or _seconds(interval) < 10):
            problems.append(f"{place}: scrape_interval must be at least 10s")
        if "static_configs" not in scrape:
            problems.append(f"{place}: only static_configs are known to this stand-in")
    return problems


def _seconds(duration: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", duration))


def used(config: Any, section: str) -> dict[str, dict[str, Any]]:
    """Return `{id: receiver}` of the user's receivers that a pipeline of the section names."""
    value = (config or {}).get(section) or {}
    pipelines = ((value.get("service") or {}).get("pipelines") or {}).values()
    named = {identifier for pipeline in pipelines for identifier in pipeline.get("receivers") or []}
    return {identifier: value["receivers"][identifier] for identifier in named & (value.get("receivers") or {}).keys()}


def read_new_lines(receivers: dict[str, dict[str, Any]], positions: dict[str, int]) -> list[dict[str, Any]]:
    """Return `{receiver, path, line}` for what was added to the receivers' files; `positions` (bytes) is updated."""
    records = []
    for identifier, receiver in receivers.items():
        patterns = receiver.get("include_paths") or _DEFAULT_PATHS.get(receiver["type"], [])
        for path in sorted({path for pattern in patterns for path in glob.glob(pattern)}):
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                start = positions.get(path, 0)
                file.seek(start if start <= size else 0)  # shorter than before: rotated
                lines = [line for line in file if line.endswith(b"\n")]
                positions[path] = (start if start <= size else 0) + sum(map(len, lines))
            records += [{"receiver": identifier, "path": path, "line": line.decode(errors="replace")} for line in lines]
    return records


def poll(receivers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `{receiver, url, status | error}` for each endpoint of the receivers, asked once."""
    urls = [
        (name, receiver["stub_status_url"]) for name, receiver in receivers.items() if "stub_status_url" in receiver
    ]
    for name, receiver in receivers.items():
        for scrape in receiver.get("config", {}).get("scrape_configs", []):
            for target in (target for group in scrape["static_configs"] for target in group["targets"]):
                scheme, path = scrape.get("scheme", "http"), scrape.get("metrics_path", "/metrics")
                urls.append((name, f"{scheme}://{target}{path}"))
    return [{"receiver": name, "url": url, **_ask(url)} for name, url in urls]


def _ask(url: str) -> dict[str, Any]:
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=5)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}".rstrip("?"))
        return {"status": connection.getresponse().status}
    except (OSError, http.client.HTTPException) as error:
        return {"error": str(error)}
    finally:
        connection.close()


class _Metrics(http.server.BaseHTTPRequestHandler):
    """What a part tells of itself."""

    def do_GET(self) -> None:
        content = b"fluentbit_uptime 1\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


def offer_metrics(directory: pathlib.Path) -> None:
    """Listen where the file that `-service` wrote says."""
    (file,) = (directory / name for name, _ in _GENERATED.values() if (directory / name).exists())
    text = file.read_text()
    host, port = (re.findall(rf"^\s*{name}:? (\S+)$", text, re.MULTILINE)[0] for name in ("host", "port"))
    server = http.server.ThreadingHTTPServer((host, int(port)), _Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def run(config: Any, mode: str, state: pathlib.Path) -> None:
    """Collect for ever."""
    receivers = used(config, mode)
    shipped = state / "shipped.jsonl"
    positions: dict[str, int] = {}
    intervals = [_seconds(receiver.get("collection_interval", "60s")) for receiver in receivers.values()]
    pause = min(intervals, default=60.0) if mode == "metrics" else _POLL_SECONDS
    while True:
        records = poll(receivers) if mode == "metrics" else read_new_lines(receivers, positions)
        if shipped.exists() and shipped.stat().st_size > _LARGEST_STATE_BYTES:
            shipped.unlink()
        with shipped.open("a") as file:
            file.writelines(json.dumps({"time": time.time(), **record}) + "\n" for record in records)
        time.sleep(pause)


def main() -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="google_cloud_ops_agent_engine", description=__doc__, prefix_chars="-")
    parser.add_argument("-in", dest="input", type=pathlib.Path, default="/etc/google-cloud-ops-agent/config.yaml")
    parser.add_argument("-state", type=pathlib.Path, default="/var/lib/google-cloud-ops-agent")
    parser.add_argument("-healthchecks", action="store_true", help="check only, as always without -run")
    parser.add_argument("-service", choices=_GENERATED, help="write what a part starts from")
    parser.add_argument("-run", choices=_COMPONENTS, help="collect (this stand-in alone)")
    options = parser.parse_args()
    try:
        config = yaml.safe_load(options.input.read_text())
        problems = check(config)
    except (OSError, yaml.YAMLError) as error:
        problems = [str(error)]
    if problems:
        detail = "\n".join(problems)
        print(f"The agent config file is not valid. Detailed error: {detail}", file=sys.stderr)
        return 1
    directory = pathlib.Path(os.environ.get("RUNTIME_DIRECTORY", "."))
    if options.service:
        name, text = _GENERATED[options.service]
        (directory / name).write_text(text)
    if options.run:
        offer_metrics(directory)
        run(config, options.run, options.state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
