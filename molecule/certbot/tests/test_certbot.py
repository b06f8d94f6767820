import json
import pathlib

import pytest
from testinfra.host import Host

LIVE = "/etc/letsencrypt/live/mlflow.test"
HOOK = "/etc/letsencrypt/renewal-hooks/deploy/reload-server"
DEPLOYED = "/var/lib/letsencrypt/deployed"
SETTINGS = "/etc/letsencrypt/renewal/mlflow.test.conf"


@pytest.fixture
def once() -> None:
    """Try all of this on both systems, whose Certbots are years apart."""


def certificate(host: Host, *fields: str) -> str:
    return host.check_output(f"openssl x509 -in {LIVE}/fullchain.pem -noout {' '.join(fields)}")


def nginx_workers(host: Host) -> str:
    return host.check_output("pgrep --parent $(systemctl show -P MainPID nginx) | sort")


def test_a_request_waits_for_another_certbot(host: Host) -> None:
    requested = host.file(SETTINGS).mtime
    assert requested >= host.file("/run/another-certbot-has-ended").mtime


def test_the_certificate_is_what_was_asked_for(host: Host) -> None:
    assert "DNS:mlflow.test" in certificate(host, "-ext subjectAltName")
    assert "Pebble" in certificate(host, "-issuer")
    assert "id-ecPublicKey" in certificate(host, "-text")
    assert host.file(f"{LIVE}/privkey.pem").exists
    assert host.run(f"runuser -u nobody -- cat {LIVE}/privkey.pem").rc != 0


def test_debians_timer_renews_and_the_server_is_reloaded(host: Host, converge) -> None:
    assert host.service("certbot.timer").is_enabled
    assert host.service("certbot.timer").is_running
    before, workers = certificate(host, "-serial"), nginx_workers(host)
    host.check_output(f"sed -i '1i renew_before_expiry = 20000 days' {SETTINGS}")
    host.check_output("systemctl start certbot.service")
    host.check_output(f"sed -i '/^renew_before_expiry = 20000/d' {SETTINGS}")
    assert certificate(host, "-serial") != before
    assert nginx_workers(host) != workers
    # The renewed certificate is still the one asked for; only the hook, as if it had failed, is run again.
    workers = nginx_workers(host)
    host.check_output(f"rm {DEPLOYED}")
    done = converge()
    assert "changed=1 " in done.stdout, done.stdout
    assert nginx_workers(host) != workers


def revoked(host: Host, serial: str) -> bool:
    """Whether the authority says that it has revoked a certificate."""
    status = host.check_output(f"curl --silent --fail https://acme.test:15000/cert-status-by-serial/{serial.lower()}")
    return json.loads(status)["Status"] == "Revoked"


def test_a_certificate_is_replaced_with_its_key_and_then_revoked(host: Host, converge) -> None:
    before, key = certificate(host, "-serial"), host.file(f"{LIVE}/privkey.pem").sha256sum
    check = converge("--check", entry_point="rotate")
    assert "Would request another certificate for mlflow.test" in check.stdout
    # As NGINX has no TLS here, and never answers with the new one, the run ends after it was issued.
    ended = converge(entry_point="rotate", certbot_served_at="127.0.0.1:443")
    assert ended.returncode != 0
    assert "See that the server answers with it failed for mlflow.test" in ended.stdout
    replaced, workers = certificate(host, "-serial"), nginx_workers(host)
    assert replaced != before
    assert host.file(f"{LIVE}/privkey.pem").sha256sum != key
    assert not revoked(host, before.removeprefix("serial="))

    done = converge(entry_point="rotate")

    assert done.returncode == 0, done.stdout
    assert certificate(host, "-serial") == replaced
    assert nginx_workers(host) == workers
    assert revoked(host, before.removeprefix("serial="))
    assert not revoked(host, replaced.removeprefix("serial="))
    assert not host.file("/var/lib/letsencrypt/replaced.pem").exists
    again = converge()
    assert "changed=0 " in again.stdout, again.stdout


def test_a_configuration_that_nginx_refuses_is_not_loaded(host: Host) -> None:
    workers, deployed = nginx_workers(host), host.file(DEPLOYED).mtime
    host.check_output("echo nonsense >/etc/nginx/conf.d/broken.conf")
    try:
        refused = host.run(HOOK)
    finally:
        host.check_output("rm /etc/nginx/conf.d/broken.conf")
    assert refused.rc != 0
    assert "broken.conf" in refused.stderr
    assert nginx_workers(host) == workers
    assert host.file(DEPLOYED).mtime == deployed


# By words in roles/gcp_observability/vars/main.yml.
FAILED = "certbot.service: Failed with result"


def renew(host: Host, broken: str, mended: str) -> str:
    """Renew while something is broken, and return what the journal says of it."""
    since = host.check_output("date +%s")
    host.check_output(f"sed -i '1i renew_before_expiry = 20000 days' {SETTINGS}")
    host.check_output(broken)
    try:
        assert host.run("systemctl start certbot.service").rc != 0
    finally:
        host.check_output(f"sed -i '/^renew_before_expiry = 20000/d' {SETTINGS}")
        host.check_output(mended)
    return host.check_output(f"journalctl --unit=certbot.service --since=@{since} --output=cat --no-pager")


def test_a_renewal_that_fails_is_seen_by_the_alert(host: Host) -> None:
    before = certificate(host, "-serial")
    assert FAILED in renew(host, "systemctl stop nginx", "systemctl start nginx")
    assert certificate(host, "-serial") == before


def test_a_new_certificate_that_is_not_in_use_is_seen_and_brought_into_use_by_the_next_run(host: Host) -> None:
    before, workers = certificate(host, "-serial"), nginx_workers(host)
    said = renew(host, "echo nonsense >/etc/nginx/conf.d/broken.conf", "rm /etc/nginx/conf.d/broken.conf")
    assert FAILED in said
    assert "The new certificate is not in use yet" in said
    assert certificate(host, "-serial") != before
    assert nginx_workers(host) == workers
    host.check_output("systemctl start certbot.service")
    assert nginx_workers(host) != workers


def test_other_names_are_another_certificate(host: Host, converge) -> None:
    names = {"certbot_domains": ["mlflow.test", "www.mlflow.test"]}
    before = certificate(host, "-serial")
    done = converge("--check", **names)
    assert "Would request a certificate for mlflow.test, www.mlflow.test" in done.stdout
    assert certificate(host, "-serial") == before
    assert converge(**names).returncode == 0
    assert "DNS:mlflow.test, DNS:www.mlflow.test" in certificate(host, "-ext subjectAltName")
    assert converge().returncode == 0
    assert "www" not in certificate(host, "-ext subjectAltName")


# With the same key, as months without renewal leave it.
EXPIRE = f"""
import datetime, pathlib
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
live = pathlib.Path("{LIVE}")
old = x509.load_pem_x509_certificate((live / "cert.pem").read_bytes())
key = serialization.load_pem_private_key((live / "privkey.pem").read_bytes(), None)
now = datetime.datetime.now(datetime.UTC)
expired = (
    x509.CertificateBuilder(old.subject, old.subject, key.public_key(), x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(days=90))
    .not_valid_after(now - datetime.timedelta(minutes=1))
    .add_extension(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
    .sign(key, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
)
for name in ("cert.pem", "fullchain.pem"):
    (live / name).write_bytes(expired)
"""


def test_an_expired_certificate_is_replaced(host: Host, converge) -> None:
    host.check_output("python3 -c %s", EXPIRE)
    expired, workers = certificate(host, "-serial"), nginx_workers(host)
    check = converge("--check")
    assert "Would request a certificate for mlflow.test from https://acme.test:14000/dir" in check.stdout, check.stdout
    assert certificate(host, "-serial") == expired
    done = converge()
    assert done.returncode == 0, done.stdout
    assert "Pebble" in certificate(host, "-issuer")
    assert "will not expire" in certificate(host, "-checkend 86400")
    assert nginx_workers(host) != workers
    assert "changed=0 " in converge().stdout


def serials(host: Host) -> dict[str, str]:
    """Serial number of each certificate that Certbot keeps, by its first name."""
    listed = host.check_output(
        "cd /etc/letsencrypt/live && for name in */; do"
        " echo ${name%/} $(openssl x509 -in $name/cert.pem -noout -serial); done"
    )
    return dict(line.split() for line in listed.splitlines())


def renewed_without(host: Host, name: str) -> set[str]:
    """Let Certbot's unit renew what it may while a name has no address, and return what that was."""
    every = "/etc/letsencrypt/renewal/*.conf"
    before = serials(host)
    host.check_output(f"sed -i '1i renew_before_expiry = 20000 days' {every}")
    host.check_output(f"cp /etc/hosts /tmp/hosts && sed 's/ {name}//' /tmp/hosts >/etc/hosts")
    try:
        host.check_output("systemctl start certbot.service")
    finally:
        host.check_output(f"cat /tmp/hosts >/etc/hosts; sed -i '/^renew_before_expiry = 20000/d' {every}")
    after = serials(host)
    return {name for name in after if after[name] != before[name]}


def test_a_certificate_of_before_is_kept_and_not_renewed_until_its_name_is_back(host: Host, converge) -> None:
    other = {"certbot_domains": ["www.mlflow.test"]}
    others, by_record, operators = (
        f"/etc/letsencrypt/renewal/{name}.conf" for name in ("www.mlflow.test", "by-record", "acme.test")
    )
    # One that the operator has asked for, and what tells one that was proven in Cloud DNS.
    host.check_output(
        "ln -s html /var/www/own && certbot certonly --non-interactive --server=https://acme.test:14000/dir"
        " --webroot --webroot-path=/var/www/own --domain=acme.test"
    )
    host.check_output(f"printf '[renewalparams]\\nauthenticator = dns-google\\n' >{by_record}")
    try:
        check = converge("--check", **other)
        assert "Would request a certificate for www.mlflow.test from" in check.stdout, check.stdout
        assert f"(item={SETTINGS})" in check.stdout
        assert not host.file(SETTINGS).contains("autorenew")

        done = converge(**other)
        assert done.returncode == 0, done.stdout
        for settings in (SETTINGS, by_record):
            assert host.file(settings).contains("^autorenew = False$")
        again = converge(**other)
        assert "changed=0 " in again.stdout, again.stdout
        host.check_output(f"rm {by_record}")
        assert renewed_without(host, "mlflow.test") == {"www.mlflow.test", "acme.test"}

        # Both requests, and what the unit does with a hook that failed.
        check = converge("--check")
        assert "changed=3 " in check.stdout, check.stdout
        assert host.file(SETTINGS).contains("^autorenew = False$")
        back = converge()
        assert "changed=3 " in back.stdout, back.stdout
        again = converge()
        assert "changed=0 " in again.stdout, again.stdout
        assert renewed_without(host, "www.mlflow.test") == {"mlflow.test", "acme.test"}
        assert host.file(others).contains("^autorenew = False$")
        assert not host.file(operators).contains("autorenew")
    finally:
        host.check_output(
            f"rm -f {by_record}; for name in acme.test www.mlflow.test; do"
            " certbot delete --non-interactive --cert-name=$name; done; rm /var/www/own"
        )


def test_a_name_without_address_is_explained(host: Host, converge) -> None:
    before = certificate(host, "-serial")
    done = converge(certbot_domains=["absent.test"], certbot_external_address="203.0.113.7")
    assert done.returncode != 0
    assert "no certificate for absent.test from https://acme.test:14000/dir" in done.stdout
    assert "a DNS record with 203.0.113.7 (dig +short absent.test)" in " ".join(done.stdout.split())
    assert "port 80 is open" in done.stdout
    assert certificate(host, "-serial") == before


CLOUD_DNS = pathlib.Path(__file__).parents[1] / "cloud_dns.yml"
BY_RECORD = {
    "certbot_challenge": "dns-01",
    "certbot_directory_url": "https://acme.test:14001/dir",
    "certbot_dns_propagation_seconds": 0,
    "certbot_dns_zone": "test",
}


@pytest.mark.long
def test_a_record_in_cloud_dns_proves_the_domain_as_port_80_does(host: Host, converge) -> None:
    begun = converge(playbook=CLOUD_DNS)
    assert begun.returncode == 0, begun.stdout
    before = certificate(host, "-serial")
    check = converge("--check", **BY_RECORD)
    assert "Would request a certificate for mlflow.test from https://acme.test:14001/dir" in check.stdout, check.stdout
    assert certificate(host, "-serial") == before
    assert not host.package("python3-certbot-dns-google").is_installed

    done = converge(**BY_RECORD)
    assert done.returncode == 0, done.stdout
    proven = certificate(host, "-serial")
    assert proven != before
    assert host.file(SETTINGS).contains("^authenticator = dns-google$")
    assert "changed=0 " in converge(**BY_RECORD).stdout
    host.check_output("certbot renew --force-renewal --no-random-sleep-on-renew")
    renewed = certificate(host, "-serial")
    assert renewed != proven

    host.check_output("touch /run/denied")
    try:
        denied = converge(**{**BY_RECORD, "certbot_dns_propagation_seconds": 1})
    finally:
        host.check_output("rm /run/denied")
    assert denied.returncode != 0
    said = " ".join(denied.stdout.replace("\\n", " ").split())
    assert "Check that the public zone test is the one that the world asks" in said, said
    assert "403" in said
    assert certificate(host, "-serial") == renewed
    assert converge(**BY_RECORD).returncode == 0

    # And back.
    back = converge()
    assert back.returncode == 0, back.stdout
    assert host.file(SETTINGS).contains("^authenticator = webroot$")
    assert "changed=0 " in converge().stdout
