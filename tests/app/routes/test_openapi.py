"""The OpenAPI document against the service: no status it does not list, no body it does not describe, no 5xx."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.pictures import FORMATS, plain

app = create_app(Settings(max_pixels=1_000_000, decode_seconds=60), FakeEngine())
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
schemathesis.openapi.media_type("image/*", st.sampled_from([plain((9, 99, 200), format) for format in FORMATS]))

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@schema.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_service_keeps_to_its_document(case: schemathesis.Case) -> None:
    # Random bytes are valid by the schema, but no picture: 415 is right for them. A random model is none that is
    # served, and to say so comes first.
    # The page, at GET /, is no part of the document, but POST / is.
    excluded = [positive_data_acceptance, *([unsupported_method] if case.path == "/" else [])]
    case.call_and_validate(checks=[check for check in CHECKS if check not in excluded], excluded_checks=excluded)
