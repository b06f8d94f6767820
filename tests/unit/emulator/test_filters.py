import pytest

from emulator.filters import check_log_query, check_promql, promql_name

FIELDS = {"logName", "jsonPayload", "severity", "resource", "labels"}


@pytest.mark.parametrize(
    "text",
    [
        'logName="projects/p/logs/nginx_access" AND jsonPayload.status>=500',
        'logName:"cloudaudit.googleapis.com" OR (severity>=ERROR AND NOT jsonPayload.uri="/health")',
        'jsonPayload.host="a.b"\njsonPayload.status=("500" OR "503") -labels."k8s/x"=~"^a"',
        '"words that an entry has"',
    ],
)
def test_log_queries_that_are_right(text: str) -> None:
    check_log_query(text, FIELDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('logName="a', "unexpected"),
        ("severity>=", "expected 'a term'"),
        ("(severity>=ERROR", r"expected '\)'"),
        ("severity>=ERROR)", r"unexpected '\)'"),
        ("severity>=ERROR AND", "expected 'a term'"),
        ("severity = = ERROR", "found '='"),
        ('jsonPayloads.status="500"', "no field 'jsonPayloads.status'"),
    ],
)
def test_log_queries_that_are_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_log_query(text, FIELDS)


def test_a_promql_query_names_its_metrics() -> None:
    query = 'sum(rate(a_googleapis_com:b_c{x="(",y=~"[^)]"}[5m])) / sum(rate(d_googleapis_com:e[5m])) > 0.1'
    assert check_promql(query) == ["a_googleapis_com:b_c", "d_googleapis_com:e"]
    assert promql_name("logging.googleapis.com/user/mlflow-errors") == "logging_googleapis_com:user_mlflow_errors"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sum(rate(a_googleapis_com:b[5m])", "brackets"),
        ("sum(a_googleapis_com:b[5m)]", "brackets"),
        ('a_googleapis_com:b{x="y}', "string"),
        ("1 > 0", "no metric"),
    ],
)
def test_promql_queries_that_are_wrong(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_promql(query)
