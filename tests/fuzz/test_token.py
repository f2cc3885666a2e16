"""Token servers: whatever they answer, it is a token that fits into a header, or no token."""

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fuzz.fuzzing import FUZZED
from tagpin.errors import Reason
from tagpin.registry.flow import Failure, Login, Registry, Response, Token
from tagpin.registry.login import MAX_TOKEN_LIFETIME, fetch_token

REALM = URL("https://r.example/token")
LOGIN = Login(Registry("r.example", REALM.origin()), REALM, "r", "repository:a/b:pull", None)
MARK = "m4rk"

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", "t0ken", "a b", "a\r\nb", "\u00e4", "x" * 8192, "x" * 8193, MARK, "300"]),
    st.sampled_from(["1e999", "nan", "-1", " 7 ", "1_000", "\u0663", "9" * 5000]),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
)
BODIES = st.one_of(
    st.dictionaries(
        st.sampled_from(["token", "access_token", "expires_in", "issued_at", "refresh_token", "x"]),
        VALUES,
        max_size=5,
    ).map(lambda value: json.dumps(value).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.just(b'{"token":' + b"[" * 60_000),
)
STATUSES = st.sampled_from([200, 200, 200, 200, 204, 302, 400, 401, 403, 404, 405, 429, 500, 999])


@FUZZED
@given(STATUSES, BODIES)
def test_every_answer_is_a_token_or_a_reason(status: int, body: bytes) -> None:
    response = Response(status, (("Location", "https://evil.example/"),), body)
    outcome = conversed(response)
    if isinstance(outcome, Failure):
        assert isinstance(outcome.reason, Reason)
        assert MARK not in str(outcome)
        assert outcome.reason is not Reason.NOT_FOUND or status == 404
        return
    assert status == 200
    assert re.fullmatch(r"[\x21-\x7e]{1,8192}", outcome.value)
    answer: dict[str, Any] = json.loads(body)
    assert outcome.value in (answer.get("access_token"), answer.get("token"))
    assert 0 < outcome.lifetime < MAX_TOKEN_LIFETIME
    assert outcome.value not in repr(outcome) or len(outcome.value) < 8


def conversed(response: Response) -> Token | Failure:
    """What comes of asking once, whatever is asked."""
    flow = fetch_token(LOGIN)
    try:
        next(flow)
        while True:
            flow.send(response)
    except StopIteration as end:
        token: Token = end.value
        return token
    except Failure as failure:
        return failure
