import pytest
from testinfra.host import Host

SUDO = "sudo"
SERVICE = "systemd-run --quiet --wait --pipe --collect"
CURL = "curl --silent --show-error https://inside.test/page"
# Brings no certificates of its own, and is told of none.
PYTHON = (
    "python3 -c 'import urllib.request as r; print(r.urlopen(\"https://inside.test/page\").read().decode().strip())'"
)
STORE = "/etc/ssl/certs/ca-certificates.crt"
THROUGH = "inside.test:443 GET /page HTTP/1.1"


@pytest.mark.parametrize("program", [CURL, PYTHON])
@pytest.mark.parametrize("runner", [SUDO, SERVICE])
def test_services_and_what_sudo_runs_go_out_by_the_proxy_and_trust_it(host: Host, runner: str, program: str) -> None:
    assert host.check_output(f"{runner} {program}") == THROUGH
    # Nobody else has the way.
    assert host.run(program).rc != 0


def test_apt_goes_out_by_it(host: Host) -> None:
    for runner in (SUDO, SERVICE):
        host.check_output(
            f"rm -f /srv/fetched && {runner} /usr/lib/apt/apt-helper download-file http://inside.test/page /srv/fetched"
        )
        assert host.file("/srv/fetched").content_string == "GET http://inside.test/page HTTP/1.1\n"


def test_what_is_excepted_does_not(host: Host) -> None:
    assert "Could not resolve host" in host.run(f"{SUDO} curl https://of.direct.test/").stderr


def test_an_interrupted_run_is_finished_by_the_next(host: Host, converge) -> None:
    # Written down, and not brought into use.
    host.check_output(f"cp {STORE} /srv/kept && sed -i '/BEGIN/,$d' {STORE} && touch --date='-1 hour' {STORE}")
    host.check_output("truncate --size=0 /etc/systemd/system.conf.d/server-egress.conf && systemctl daemon-reload")
    assert host.run(f"{SERVICE} {CURL}").rc != 0
    unhealthy = converge(entry_point="health")
    assert "services have no http_proxy=http://127.0.0.1:3128, https_proxy=" in " ".join(unhealthy.stdout.split())
    finished = converge()
    assert finished.returncode == 0, finished.stdout
    assert host.check_output(f"{SERVICE} {CURL}") == THROUGH
    assert host.run(f"cmp {STORE} /srv/kept").rc == 0
    assert "changed=0 " in converge().stdout
    assert converge(entry_point="health").returncode == 0


def test_what_is_taken_away_here_is_taken_away_there(host: Host, converge) -> None:
    gone = converge(server_egress_environment={}, server_egress_ca_certificates="")
    assert gone.returncode == 0, gone.stdout
    places = "/etc/sudoers.d /etc/systemd /usr/local/share /etc/ssl /etc/server-egress.env"
    left = host.check_output(f"find {places} -name 'server-egress*' 2>/dev/null || true")
    assert left == ""
    for runner in (SUDO, SERVICE):
        assert "resolve host" in host.run(f"{runner} {CURL}").stderr
        # The proxy is there, and is not trusted.
        assert "certificate" in host.run(f"{runner} {CURL} --proxy http://127.0.0.1:3128").stderr
    back = converge()
    assert back.returncode == 0, back.stdout
    assert host.check_output(f"{SERVICE} {CURL}") == THROUGH
