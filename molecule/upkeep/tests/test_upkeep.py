import re

from testinfra.host import Host


def test_only_security_updates_come_by_themselves(host: Host) -> None:
    codename = host.system_info.codename
    told = host.run("unattended-upgrade --dry-run --debug")
    allowed = re.search(r"^Allowed origins are: (.*)$", told.stdout + told.stderr, re.MULTILINE)
    assert allowed
    assert allowed[1] == f"origin=Debian,codename={codename}-security,label=Debian-Security"
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "logrotate.timer"):
        assert host.check_output(f"systemctl is-enabled {timer}") == "enabled"
        assert host.check_output(f"systemctl is-active {timer}") == "active"


def test_no_reboot_unless_asked_for(host: Host, converge) -> None:
    reboot = "apt-config dump | grep ^Unattended-Upgrade::Automatic-Reboot"
    assert host.check_output(reboot) == 'Unattended-Upgrade::Automatic-Reboot "false";'
    asked = converge(upkeep_reboot_time="03:30")
    assert asked.returncode == 0, asked.stdout
    assert host.check_output(reboot).splitlines() == [
        'Unattended-Upgrade::Automatic-Reboot "true";',
        'Unattended-Upgrade::Automatic-Reboot-Time "03:30";',
    ]


def test_the_clock_follows_googles_servers_alone(host: Host) -> None:
    # A container may not set the clock, so the service is not running here; its own parser tells.
    sources = host.check_output("chronyd -p -f /etc/chrony/chrony.conf | grep -E '^(server|pool|sourcedir)'")
    assert sources == "server metadata.google.internal iburst"
    assert host.service("chrony").is_enabled


def test_the_journal_is_bounded_by_the_running_service(host: Host) -> None:
    limit = host.check_output("journalctl --unit=systemd-journald --output=cat | grep 'System Journal' | tail -1")
    assert re.search(r"max 1(\.0)?G", limit)
    assert host.file("/var/log/journal").is_directory


def test_logs_of_packages_are_rotated(host: Host) -> None:
    host.check_output("echo line >/var/log/of-a-test.log")
    host.check_output("printf '/var/log/of-a-test.log {\\n  size 1\\n  rotate 1\\n}\\n' >/etc/logrotate.d/of-a-test")
    host.check_output("systemctl start logrotate.service")
    assert host.file("/var/log/of-a-test.log.1").exists
