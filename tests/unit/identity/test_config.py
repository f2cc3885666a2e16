"""The operator's own docker config: what it may name, for whom, and what becomes of changes."""

import asyncio
import base64
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.clock import FakeClock
from tagpin.errors import Unobtainable
from tagpin.identity.config import MAX_SIZE, RECHECK, DockerConfig, OwnCredentials
from tagpin.identity.programs import Programs
from tagpin.keychain import Candidate, Credential, Identity, InvalidDockerConfig
from tagpin.reference import Reference

ECR = "/opt/bin/docker-credential-ecr-login"
PASS = "/opt/bin/docker-credential-pass"
BOT = Credential("bot", "pw")


def entry(user: str = "bot") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}


def cloud(domain: str) -> tuple[Identity, ...]:
    """One that says that every registry is its own."""
    return (Identity("cloud", domain),)


class Mounted:
    """A docker config on disk, and what tagpin makes of it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / ".dockerconfigjson"
        self.clock = FakeClock()

    def write(self, document: object) -> None:
        """Replace the file as a kubelet does, all at once."""
        text = document if isinstance(document, str) else json.dumps(document)
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.rename(self.file)
        self.clock.advance(RECHECK)

    def own(self, document: object = None, **options: Any) -> OwnCredentials:
        if document is not None:
            self.write(document)
        given = {"registries": ["r.io", "*.r.io", "docker.io", "123.dkr.ecr.eu.aws.test"]}
        return OwnCredentials(file=self.file, clock=self.clock, **given | options)


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.INFO)
    yield caplog
    assert "s3cret" not in caplog.text


def tried(own: OwnCredentials, image: str, namespace: str = "shop") -> tuple[Candidate, ...]:
    return own.keychain(namespace).candidates(Reference.parse(image))


def test_a_listed_registry_gets_what_the_file_has_for_it(mounted: Mounted) -> None:
    own = mounted.own({"auths": {"r.io": entry(), "https://index.docker.io/v1/": entry("hub")}})
    assert tried(own, "r.io/x") == (BOT,)
    assert tried(own, "nginx") == (Credential("hub", "pw"),)


@pytest.mark.parametrize(
    "image", ["evil.io/x", "r.io:5000/x", "r.io.evil.io/x", "a.b.r.io/x", "R.io/x"]
)
def test_a_registry_that_is_not_listed_gets_nothing(mounted: Mounted, image: str) -> None:
    keys = ("*.*", "*.*.*", "*.*.*.*", "r.io:5000", "R.io")
    own = mounted.own(
        {"auths": {key: entry() for key in keys}},
        programs=dict.fromkeys(keys, ECR),
        identities=cloud,
    )
    assert tried(own, image) == ()
    assert len(tried(own, "r.io/x")) == 3


def test_nothing_is_for_anybody_where_no_registry_is_listed(mounted: Mounted) -> None:
    own = mounted.own({"auths": {"r.io": entry()}}, registries=())
    assert tried(own, "r.io/x") == ()


@pytest.mark.parametrize(
    ("namespaces", "namespace", "served"),
    [
        ((), "shop", True),
        (("shop",), "shop", True),
        (("shop",), "shop2", False),
        (("shop",), "myshop", False),
        (("team-*", "shop"), "team-a", True),
        (("team-*",), "team", False),
        (("team-*",), "", False),
        (("[",), "[", False),
    ],
)
def test_a_namespace_outside_the_limits_gets_nothing(
    mounted: Mounted, namespaces: tuple[str, ...], namespace: str, *, served: bool
) -> None:
    own = mounted.own(
        {"auths": {"r.io": entry()}},
        programs={"r.io": ECR},
        identities=cloud,
        namespaces=namespaces,
    )
    assert len(tried(own, "r.io/x", namespace)) == (3 if served else 0)


def test_programs_come_first_then_the_file_then_the_clouds(mounted: Mounted) -> None:
    own = mounted.own(
        {"auths": {"r.io": entry()}},
        programs={"r.io": ECR},
        identities=cloud,
    )
    assert tried(own, "r.io/x") == (Identity(ECR, "r.io"), BOT, Identity("cloud", "r.io"))


@pytest.mark.parametrize("glob", ["*.dkr.ecr.*.aws.test", "???.dkr.ecr.[de]u.aws.test"])
def test_a_program_is_asked_for_the_registry_that_its_glob_matches(
    mounted: Mounted, glob: str
) -> None:
    own = mounted.own(programs={glob: ECR, "docker.io": PASS})
    image = "123.dkr.ecr.eu.aws.test/x"
    assert tried(own, image) == (Identity(ECR, "123.dkr.ecr.eu.aws.test"),)
    assert tried(own, "nginx") == (Identity(PASS, "docker.io"),)
    assert tried(own, "r.io/x") == ()


def test_the_file_may_name_programs_that_the_operator_configured(mounted: Mounted) -> None:
    own = mounted.own(
        {
            "auths": {"https://index.docker.io/v1/": {}, "a.r.io": {"email": "a@b"}, "b.r.io": {}},
            "credHelpers": {"r.io": "ecr-login", "b.r.io": "ecr-login"},
            "credsStore": "pass",
        },
        programs={"ecr.example": ECR, "pass.example": PASS},
    )
    assert tried(own, "r.io/x") == (Identity(ECR, "r.io"),)
    assert tried(own, "b.r.io/x") == (Identity(ECR, "b.r.io"),)
    assert tried(own, "a.r.io/x") == (Identity(PASS, "a.r.io"),)
    assert tried(own, "nginx") == (Identity(PASS, "docker.io"),)
    assert tried(own, "c.r.io/x") == ()  # docker would ask the store for any


@pytest.mark.parametrize(
    "name", ["pass", "/opt/bin/evil", "../evil", "ecr-login; id", "-ecr-login", "", "a\nb", 7, None]
)
@pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
def test_the_file_cannot_name_another_program(
    mounted: Mounted, name: object, key: str, said: pytest.LogCaptureFixture
) -> None:
    value = {"r.io": name} if key == "credHelpers" else name
    own = mounted.own(
        {"auths": {"r.io": {}, "a.r.io": entry()}, key: value}, programs={"x.io": ECR}
    )
    assert tried(own, "r.io/x") == ()
    assert tried(own, "a.r.io/x") == (BOT,)
    assert "WARNING" in [record.levelname for record in said.records]


def test_what_is_wrong_with_the_file_is_said_once(
    mounted: Mounted, said: pytest.LogCaptureFixture
) -> None:
    own = mounted.own(
        {
            "auths": {"r.io": {"auth": "s3cret!"}, "*.*": entry()},
            "credHelpers": {"a.r.io": "pass"},
            "credsStore": "desktop",
        },
        programs={"r.io": ECR},
    )
    said.clear()
    for _ in range(3):
        own.keychain("shop")
        mounted.clock.advance(RECHECK)
    warnings = [each.getMessage() for each in said.records if each.levelname == "WARNING"]
    assert warnings == [
        f"{mounted.file}: 'a.r.io': docker-credential-pass is not among credentialPrograms",
        f"{mounted.file}: credsStore serves what auths names, which is nothing",
        "credentials of tagpin's own: 'r.io': auth is not base64 of text",
        "credentials of tagpin's own: '*.*': is for any registry with such a name, whoever runs it",
    ]


def test_what_serves_no_listed_registry_is_said(
    mounted: Mounted, said: pytest.LogCaptureFixture
) -> None:
    keys = ["r.io", "a.r.io/team", "https://index.docker.io/v1/", "*.b.io", "b.io", "r.io:5000"]
    own = mounted.own({"auths": {key: entry() for key in keys}})
    own.keychain("shop")
    warnings = [each.getMessage() for each in said.records if each.levelname == "WARNING"]
    assert warnings == [
        f"credentials of tagpin's own: {key!r}: not used, since not in registries"
        for key in ("b.io", "r.io:5000")
    ]


def test_a_change_of_the_file_is_noticed_within_seconds(mounted: Mounted) -> None:
    own = mounted.own({"auths": {"r.io": entry("old")}})
    assert tried(own, "r.io/x") == (Credential("old", "pw"),)
    mounted.write({"auths": {"r.io": entry("new")}})
    mounted.clock.advance(-1)
    assert tried(own, "r.io/x") == (Credential("old", "pw"),)
    mounted.clock.advance(1)
    assert tried(own, "r.io/x") == (Credential("new", "pw"),)


def test_a_change_that_keeps_size_and_time_is_noticed(mounted: Mounted) -> None:
    own = mounted.own({"auths": {"r.io": entry("old")}})
    own.keychain("shop")
    before = mounted.file.stat()
    mounted.write({"auths": {"r.io": entry("new")}})
    assert mounted.file.stat().st_size == before.st_size
    os.utime(mounted.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tried(own, "r.io/x") == (Credential("new", "pw"),)


def test_the_file_is_not_read_again_while_it_is_the_same(mounted: Mounted) -> None:
    own = mounted.own({"auths": {"r.io": entry()}})
    first = own.keychain("shop")
    mounted.clock.advance(RECHECK)
    assert own.keychain("shop") is first


def test_a_file_that_was_never_of_use_and_is_gone_is_no_trouble(mounted: Mounted) -> None:
    own = mounted.own("[]")
    seen = []
    for _ in range(2):
        own.keychain("shop")
        seen.append(own.is_broken)
        mounted.file.unlink(missing_ok=True)
        mounted.clock.advance(RECHECK)
    assert seen == [True, False]


def test_there_need_not_be_a_file(mounted: Mounted, said: pytest.LogCaptureFixture) -> None:
    own = mounted.own(programs={"r.io": ECR})
    assert tried(own, "r.io/x") == (Identity(ECR, "r.io"),)
    assert not said.records
    mounted.write({"auths": {"r.io": entry()}})
    assert tried(own, "r.io/x") == (Identity(ECR, "r.io"), BOT)


def test_a_file_that_goes_away_takes_its_credentials_along(
    mounted: Mounted, said: pytest.LogCaptureFixture
) -> None:
    own = mounted.own({"auths": {"r.io": entry()}})
    assert tried(own, "r.io/x") == (BOT,)
    mounted.file.unlink()
    mounted.clock.advance(RECHECK)
    assert tried(own, "r.io/x") == ()
    assert said.records[-1].getMessage() == f"{mounted.file}: gone"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ('{"auths": {"r.io": {"auth": "s3cret', "the docker config is not valid JSON"),
        ('["s3cret"]', "the docker config holds no map of registries"),
        ('{"auths": ["s3cret"]}', "auths or credHelpers is no map of registries"),
        ('{"credHelpers": ["s3cret"]}', "auths or credHelpers is no map of registries"),
        ('{"auths": {}, "s3cret": "' + "x" * MAX_SIZE + '"}', f"it has more than {MAX_SIZE} bytes"),
        (None, "Is a directory"),
    ],
)
def test_a_file_that_becomes_bad_leaves_what_was_there_and_is_reported_once(
    mounted: Mounted, bad: str | None, why: str, said: pytest.LogCaptureFixture
) -> None:
    own = mounted.own({"auths": {"r.io": entry()}})
    own.keychain("shop")
    said.clear()
    if bad is None:
        mounted.file.unlink()
        mounted.file.mkdir()
    else:
        mounted.write(bad)
    for _ in range(3):
        mounted.clock.advance(RECHECK)
        assert tried(own, "r.io/x") == (BOT,)
    (record,) = said.records
    expected = f"{mounted.file} is of no use, what it had before is kept: {why}"
    assert (record.levelname, record.getMessage()) == ("WARNING", expected)

    if bad is None:
        mounted.file.rmdir()
    mounted.write({"auths": {"r.io": entry("mended")}})
    assert tried(own, "r.io/x") == (Credential("mended", "pw"),)
    assert said.records[-1].getMessage() == f"{mounted.file}: credentials read"
    assert not own.is_broken

    mounted.write("[]")
    own.keychain("shop")
    mounted.write({"auths": {}})
    own.keychain("shop")
    mounted.write("[]")
    own.keychain("shop")
    assert [record.levelname for record in said.records[-4:]] == ["INFO", "WARNING"] * 2


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", "a b", "a\n", "a;b", "x" * 101, 7, None, ["a"]]
)
def test_what_is_no_name_of_a_program_is_reported_and_none(name: object) -> None:
    document = {"credHelpers": {"r.io": name, "a.io": "ecr-login"}, "credsStore": name}
    config = DockerConfig.parse(json.dumps(document))
    assert (config.helpers, config.store) == ({"a.io": "ecr-login"}, "")
    remarks = ["credHelpers: 'r.io': no name of a credential program"]
    if name:
        remarks.append("credsStore: no name of a credential program")
    assert list(config.keychain.remarks) == remarks


def test_a_config_without_programs_has_none() -> None:
    config = DockerConfig.parse('{"auths": {}, "HttpHeaders": {"a": "b"}, "psFormat": "table"}')
    assert config == DockerConfig()
    with pytest.raises(InvalidDockerConfig):
        DockerConfig.parse("7")


def test_an_empty_entry_is_a_flaw_where_no_program_has_it() -> None:
    config = DockerConfig.parse('{"auths": {"r.io": {}}}')
    assert config.keychain.remarks == ("'r.io': neither auth nor username and password",)


async def test_a_pod_makes_no_program_run_for_a_registry_that_nobody_configured(
    tmp_path: Path,
) -> None:
    log = tmp_path / "asked"
    program = tmp_path / "docker-credential-test"
    program.write_text(f'#!/bin/sh\n/bin/cat >> {log}; echo \'{{"Username":"a","Secret":"b"}}\'\n')
    program.chmod(0o700)
    programs = Programs([str(program)], environment={})
    own = OwnCredentials(registries=["*.corp.io"], programs={"*.corp.io": str(program)})
    hostile = ["evil.io/x", "corp.io/x", "a.b.corp.io/x", "a.corp.io.evil.io/x", "a.corp.io:1/x"]

    for image in hostile:
        assert tried(own, image) == ()
    (identity,) = tried(own, "a.corp.io/x")
    assert isinstance(identity, Identity)
    assert await programs.obtain(identity) == Credential("a", "b")
    for host in ("a.corp.io\nevil.io", "--config=x y"):
        with pytest.raises(Unobtainable):
            await programs.obtain(Identity(str(program), host))

    assert await asyncio.to_thread(log.read_text) == "a.corp.io"
