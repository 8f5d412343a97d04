"""Queries: what to value against, the answer, and the value of every sample."""

from curator.query.answer import Answering, QueryOptions
from curator.query.explain import Explanation, explain
from curator.query.indexes import refresh_indexes
from curator.query.inputs import Query, QueryInput, read_queries
from curator.query.opened import OpenedSpace
from curator.query.question import Asked, OneQuestion, Question, is_asking, parts_of
from curator.query.results import How, QueryResult, ScoredSample, TokenValue
from curator.query.saved import record_tops, save_query
from curator.query.values import value_rows

__all__ = [
    "Answering",
    "Asked",
    "Explanation",
    "How",
    "OneQuestion",
    "OpenedSpace",
    "Query",
    "QueryInput",
    "QueryOptions",
    "QueryResult",
    "Question",
    "ScoredSample",
    "TokenValue",
    "explain",
    "is_asking",
    "parts_of",
    "read_queries",
    "record_tops",
    "refresh_indexes",
    "save_query",
    "value_rows",
]
