"""What alerts look for in the journal is sent there: only some of it is."""

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
SENT = yaml.safe_load((ROOT / "roles/ops_agent/defaults/main.yml").read_text())
UNITS = re.compile(rf"({'|'.join(SENT['ops_agent_journal_units'])})([@-].*)?[.]service")
OBSERVABILITY = yaml.safe_load((ROOT / "roles/gcp_observability/vars/main.yml").read_text())
FILTERS = {
    alert["name"]: alert["log"].replace(
        "{{ __gcp_observability_sets_filter }}", OBSERVABILITY["__gcp_observability_sets_filter"]
    )
    for alert in OBSERVABILITY["__gcp_observability_alerts"]
    if "log" in alert
}
JOURNAL = {name: text for name, text in FILTERS.items() if "/journal" in text}


def test_alerts_look_into_the_journal() -> None:
    assert {"set-failed", "drill-failed", "gc-failed", "renewal-failed"} <= {*JOURNAL}


@pytest.mark.parametrize("name", [*JOURNAL])
def test_what_an_alert_looks_for_is_sent(name: str) -> None:
    # One value, or several in parentheses.
    asked = re.findall(r"jsonPayload\.(_SYSTEMD_UNIT|UNIT|SYSLOG_IDENTIFIER)=(\([^)]+\)|\S+)", JOURNAL[name])
    ((field, values),) = asked
    for value in re.findall(r'"([^"]+)"', values):
        if field == "SYSLOG_IDENTIFIER":
            assert value in SENT["ops_agent_journal_identifiers"]
        else:
            assert UNITS.fullmatch(value)
    assert '"' in values
