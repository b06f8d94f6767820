import gzip
import hashlib
import io
import subprocess
import tarfile
import textwrap

import pytest
import yaml

from emulator.standins import ops_agent, ops_agent_engine

GOOD = """\
logging:
  receivers:
    access: {type: files, include_paths: [/var/log/nginx/access.log]}
    error: {type: nginx_error}
    journal: {type: systemd_journald}
  processors:
    json: {type: parse_json}
    mine: {type: exclude_logs, match_any: ['NOT jsonPayload._SYSTEMD_UNIT="mlflow.service"']}
  service:
    pipelines:
      default_pipeline: {receivers: []}
      access: {receivers: [access], processors: [json]}
      journal: {receivers: [journal, error], processors: [mine]}
metrics:
  receivers:
    hostmetrics: {type: hostmetrics, collection_interval: 60s}
    nginx: {type: nginx, stub_status_url: "http://127.0.0.1:81/status"}
    proxy:
      type: prometheus
      config:
        scrape_configs: [{job_name: proxy, scrape_interval: 30s, static_configs: [{targets: ["127.0.0.1:9090"]}]}]
  service:
    pipelines:
      all: {receivers: [hostmetrics, nginx, proxy], processors: [metrics_filter]}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    directory = tmp_path_factory.mktemp("apt")
    ops_agent.build_apt_repository(directory)
    return directory


@pytest.mark.parametrize("suite", ops_agent.SUITES)
def test_release_is_signed_by_the_key_beside_it(repository, suite, tmp_path):
    keyring = tmp_path / "key.gpg"
    armoured = repository / "doc/apt-key.gpg"
    assert armoured.read_text().startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")
    subprocess.run(["gpg", "--homedir", tmp_path, "--dearmor", "--output", keyring, armoured], check=True)
    signed = repository / "dists" / suite / "InRelease"
    checked = ["gpg", "--homedir", tmp_path, "--no-default-keyring", "--keyring", keyring, "--output", "-", "--decrypt"]
    release = subprocess.run([*checked, signed], check=True, capture_output=True).stdout
    assert release.strip() == (repository / "dists" / suite / "Release").read_bytes().strip()
    forged = tmp_path / "forged"
    forged.write_bytes(signed.read_bytes().replace(b"Components: main", b"Components: evil"))
    assert subprocess.run([*checked, forged], check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize("suite", ops_agent.SUITES)
@pytest.mark.parametrize("architecture", ops_agent.ARCHITECTURES)
def test_sums_lead_from_the_release_to_the_package(repository, suite, architecture):
    base = repository / "dists" / suite
    release = (base / "Release").read_text()
    index = base / f"main/binary-{architecture}/Packages"
    compressed = index.with_name("Packages.gz").read_bytes()
    for content, name in ((index.read_bytes(), "Packages"), (compressed, "Packages.gz")):
        line = f" {hashlib.sha256(content).hexdigest()} {len(content)} main/binary-{architecture}/{name}\n"
        assert line in release
    assert gzip.decompress(compressed) == index.read_bytes()
    fields = dict(line.split(": ", 1) for line in index.read_text().splitlines() if line and line[0] != " ")
    package = (repository / fields["Filename"]).read_bytes()
    assert fields["SHA256"] == hashlib.sha256(package).hexdigest()
    assert int(fields["Size"]) == len(package)
    assert fields["Package"] == "google-cloud-ops-agent"


def members(package):
    """Return `{name: content}` of an ar archive."""
    assert package.startswith(b"!<arch>\n")
    found, position = {}, 8
    while position < len(package):
        header = package[position : position + 60]
        size = int(header[48:58])
        found[header[:16].decode().strip()] = package[position + 60 : position + 60 + size]
        position += 60 + size + size % 2
    return found


def unpacked(archive):
    """Return `{path: mode}` and `{path: content}` of a compressed tar archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        files = [member for member in opened.getmembers() if member.isfile()]
        return {file.name: file.mode for file in files}, {file.name: opened.extractfile(file).read() for file in files}


def test_package_holds_engine_units_and_configuration():
    found = members(ops_agent.build_package())
    assert list(found) == ["debian-binary", "control.tar.gz", "data.tar.gz"]
    modes, contents = unpacked(found["data.tar.gz"])
    assert modes["./opt/google-cloud-ops-agent/libexec/google_cloud_ops_agent_engine"] == 0o755
    units = {name.rpartition("/")[2] for name in modes if name.endswith(".service")}
    assert units == {
        "google-cloud-ops-agent.service",
        "google-cloud-ops-agent-fluent-bit.service",
        "google-cloud-ops-agent-opentelemetry-collector.service",
    }
    part = contents["./usr/lib/systemd/system/google-cloud-ops-agent-fluent-bit.service"]
    assert b"-run logging -state ${STATE_DIRECTORY}\n" in part
    modes, contents = unpacked(found["control.tar.gz"])
    assert contents["./conffiles"] == b"/etc/google-cloud-ops-agent/config.yaml\n"
    assert modes["./postinst"] == 0o755


def test_good_configuration_has_no_problems():
    assert ops_agent_engine.check(yaml.safe_load(GOOD)) == []
    assert ops_agent_engine.check(None) == []


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("logging:", "loging:", 'unknown field "loging"'),
        ("include_paths", "include_path", 'unknown field "include_path"'),
        ("type: files, include_paths: [/var/log/nginx/access.log]", "type: files", '"include_paths" is a required'),
        ("type: nginx_error", "type: nginx_errors", 'type "nginx_errors" is not supported'),
        ("processors: [json]", "processors: [jsn]", 'logging processor "jsn" is not defined'),
        ("receivers: [hostmetrics, nginx", "receivers: [hostmetric, nginx", 'receiver "hostmetric" is not defined'),
        ("collection_interval: 60s", "collection_interval: 5s", "at least 10s"),
        ("scrape_interval: 30s", "scrape_interval: 1s", "at least 10s"),
        ("match_any: ['NOT", "match_none: ['NOT", 'unknown field "match_none"'),
        ("    journal: {type", '    "lib:journal": {type', "reserved"),
        ("scrape_configs: [", "scrapes: [", 'unknown field "scrapes"'),
    ],
)
def test_bad_configuration_is_named(good, bad, problem):
    assert good in GOOD
    assert problem in "\n".join(ops_agent_engine.check(yaml.safe_load(GOOD.replace(good, bad, 1))))


@pytest.mark.parametrize(
    "text", ["[]", "logging: [1]", "logging: {receivers: [1]}", "metrics: {service: {pipelines: 1}}"]
)
def test_wrong_shapes_are_problems_not_crashes(text):
    assert ops_agent_engine.check(yaml.safe_load(text))


def test_new_lines_of_files_in_use_are_read_once_and_after_a_rotation(tmp_path):
    log = tmp_path / "access.log"
    log.write_text("one\ntwo\nhal")
    text = f"""\
        logging:
          receivers:
            access: {{type: files, include_paths: ["{tmp_path}/*.log"]}}
            unused: {{type: files, include_paths: ["{tmp_path}/*.log"]}}
          service: {{pipelines: {{p: {{receivers: [access]}}}}}}
        """
    receivers = ops_agent_engine.used(yaml.safe_load(textwrap.dedent(text)), "logging")
    assert list(receivers) == ["access"]
    positions = {}
    read = [record["line"] for record in ops_agent_engine.read_new_lines(receivers, positions)]
    assert read == ["one\n", "two\n"]
    with log.open("a") as file:
        file.write("f\n")
    assert [record["line"] for record in ops_agent_engine.read_new_lines(receivers, positions)] == ["half\n"]
    log.write_text("new\n")
    assert [record["line"] for record in ops_agent_engine.read_new_lines(receivers, positions)] == ["new\n"]


def test_unreachable_endpoints_are_told():
    receivers = ops_agent_engine.used(yaml.safe_load(GOOD), "metrics")
    receivers["nginx"]["stub_status_url"] = "http://127.0.0.1:1/status"
    records = {record["receiver"]: record for record in ops_agent_engine.poll({"nginx": receivers["nginx"]})}
    assert "refused" in records["nginx"]["error"]


def test_program_refuses_in_the_real_words(tmp_path, capsys, monkeypatch):
    file = tmp_path / "config.yaml"
    monkeypatch.setattr("sys.argv", ["engine", "-in", str(file)])
    file.write_text("loging: {}\n")
    assert ops_agent_engine.main() == 1
    assert capsys.readouterr().err.startswith("The agent config file is not valid. Detailed error: ")
    file.write_text(GOOD)
    assert ops_agent_engine.main() == 0
