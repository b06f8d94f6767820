"""Whether a text is a query of Cloud Logging, or a PromQL query: their grammar, and what they refer to."""

import re
from collections.abc import Callable, Collection

_LOG_TOKEN = re.compile(r'\s+|>=|<=|!=|=~|!~|[=<>:()]|-(?=\S)|(?:"(?:[^"\\]|\\.)*"|[^\s"=<>:()!~])+')
_OPERATORS = {"=", "!=", ">", "<", ">=", "<=", ":", "=~", "!~"}
_WORDS = {"AND", "OR", "NOT"}
_PROMQL_METRIC = re.compile(r"\b([a-z][a-z0-9_]*_googleapis_com:\w+)")


class _LogQuery:
    """A parser of https://cloud.google.com/logging/docs/view/logging-query-language; ValueError says what is wrong."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        while position < len(text):
            found = _LOG_TOKEN.match(text, position)
            if not found:
                raise ValueError(f"unexpected {text[position : position + 20]!r}")
            position = found.end()
            self.tokens += [found[0]] if found[0].strip() else []
        self.fields: list[str] = []

    def parse(self) -> None:
        self._alternatives()
        if self.tokens:
            raise ValueError(f"unexpected {self.tokens[0]!r}")

    def _peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def _take(self, wanted: str = "") -> str:
        if not self.tokens or (wanted and self.tokens[0] != wanted):
            raise ValueError(f"expected {wanted or 'a term'!r}, found {self._peek() or 'the end'!r}")
        return self.tokens.pop(0)

    def _alternatives(self) -> None:
        self._joined()
        while self._peek() == "OR":
            self._take()
            self._joined()

    def _joined(self) -> None:
        self._term()
        while self._peek() not in ("", ")", "OR"):
            if self._peek() == "AND":
                self._take()
            self._term()

    def _term(self) -> None:
        while self._peek() in ("NOT", "-"):
            self._take()
        if self._peek() == "(":
            self._nested(self._alternatives)
            return
        field = self._value()
        if self._peek() in _OPERATORS:
            self._take()
            self.fields.append(field)
            if self._peek() == "(":
                self._nested(self._choices)
            else:
                self._value()

    def _choices(self) -> None:
        self._value()
        while self._peek() in ("OR", "AND"):
            self._take()
            self._value()

    def _nested(self, inside: Callable[[], None]) -> None:
        self._take("(")
        inside()
        self._take(")")

    def _value(self) -> str:
        token = self._take()
        if token in _OPERATORS | _WORDS | {"(", ")"}:
            raise ValueError(f"expected a term, found {token!r}")
        return token


def check_log_query(text: str, fields: Collection[str]) -> None:
    """Raise ValueError unless the text is a query whose comparisons begin with one of the fields of a log entry."""
    query = _LogQuery(text)
    query.parse()
    unknown = [field for field in query.fields if field.split(".")[0].strip('"') not in fields]
    if unknown:
        raise ValueError(f"a log entry has no field {unknown[0]!r}")


def check_promql(text: str) -> list[str]:
    """Return the Google metrics that a PromQL query reads; ValueError when it has none or its brackets do not match."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    if '"' in bare:
        raise ValueError("a string is not closed")
    while (shorter := re.sub(r"\([^()\[\]{}]*\)|\[[^()\[\]{}]*\]|\{[^()\[\]{}]*\}", "", bare)) != bare:
        bare = shorter
    if re.search(r"[()\[\]{}]", bare):
        raise ValueError("its brackets do not match")
    found = _PROMQL_METRIC.findall(text)
    if not found:
        raise ValueError("it reads no metric")
    return found


def promql_name(metric: str) -> str:
    """Return how PromQL calls a metric: https://cloud.google.com/monitoring/promql/promql-mapping."""
    domain, _, path = metric.partition("/")
    return ":".join(re.sub(r"\W", "_", part) for part in (domain, path))
