"""Issuing, renewing and reading certificates: handshakes in memory say what they are worth."""

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tagpin.certificates import (
    BACKDATING,
    CA_CERTIFICATE,
    CA_KEY,
    CERTIFICATE,
    KEY,
    Material,
    Pair,
    issue_ca,
    issue_serving,
    needs_renewal,
    parse_certificates,
    renewed,
    to_pem,
)
from tagpin.errors import ConfigurationError

NOW = datetime.now(UTC).replace(microsecond=0)
NAME = "tagpin.tagpin-system.svc"
NAMES = (NAME, "127.0.0.1", "::1")


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


def self_signed(extension: x509.ExtensionType) -> Pair:
    """A certificate with this extension only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone")])
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(day(-1))
        .not_valid_after(day(1000))
        .add_extension(extension, critical=True)
    )
    return Pair((builder.sign(key, hashes.SHA256()),), key)


def handshake(serving: Pair, authorities: bytes, name: str, *, strict: bool = True) -> None:
    """Let a strict client and a server speak TLS; raises ssl.SSLError if the client refuses."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(serving.certificate_pem + serving.key_pem)
        server_side.load_cert_chain(file.name)
    client_side = ssl.create_default_context(cadata=authorities.decode())
    if strict:
        client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    else:
        client_side.verify_flags &= ~ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    for turn in range(10):
        if not pending:
            return
        side = pending[turn % len(pending)]
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        pending.remove(side)
    raise AssertionError("the handshake does not end")


def issued(now: datetime = NOW) -> dict[str, bytes]:
    """The data of a Secret that was found empty."""
    renewal = renewed({}, NAMES, now, trusted=())
    assert renewal is not None
    return dict(renewal.data)


def still(data: dict[str, bytes], now: datetime, *, trusted: bool = True) -> dict[str, bytes]:
    """The data after one look at it."""
    known = Material.parse(data).authorities if trusted else ()
    renewal = renewed(data, NAMES, now, known)
    return dict(renewal.data) if renewal else data


class TestIssuing:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_strict_client_accepts_the_certificate_for_each_name(self, name: str) -> None:
        ca = issue_ca(NOW)
        handshake(issue_serving(ca, NAMES, NOW), to_pem(ca.chain), name)

    def test_a_client_refuses_it_for_another_name(self) -> None:
        ca = issue_ca(NOW)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(issue_serving(ca, NAMES, NOW), to_pem(ca.chain), "other.svc")

    def test_a_client_refuses_it_under_another_ca(self) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(issue_serving(issue_ca(NOW), NAMES, NOW), to_pem(issue_ca(NOW).chain), NAME)

    @pytest.mark.parametrize(
        ("issued_at", "complaint"),
        [(day(-91), "certificate has expired"), (day(1), "certificate is not yet valid")],
    )
    def test_a_client_refuses_it_outside_of_its_life(
        self, issued_at: datetime, complaint: str
    ) -> None:
        ca = issue_ca(day(-100))
        with pytest.raises(ssl.SSLCertVerificationError, match=complaint):
            handshake(issue_serving(ca, NAMES, issued_at), to_pem(ca.chain), NAME)

    def test_two_cas_of_one_day_are_told_apart(self) -> None:
        old, new = issue_ca(NOW), issue_ca(NOW)
        for ca in (old, new):
            handshake(issue_serving(ca, NAMES, NOW), to_pem((*old.chain, *new.chain)), NAME)

    def test_clocks_that_are_a_little_behind_accept_it(self) -> None:
        serving = issue_serving(issue_ca(NOW), NAMES, NOW)
        assert serving.is_valid(NOW - BACKDATING)
        assert not serving.is_valid(NOW - BACKDATING - timedelta(seconds=1))

    def test_it_lasts_ninety_days_and_never_longer_than_its_ca(self) -> None:
        ca = issue_ca(NOW)
        assert issue_serving(ca, NAMES, NOW).expires == day(90)
        assert issue_serving(ca, NAMES, day(3649)).expires == day(3650) == ca.expires

    def test_the_ca_signs_nothing_but_servers(self) -> None:
        extensions = issue_ca(NOW).certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)

    def test_a_ca_of_an_administrator_may_lack_a_key_identifier(self) -> None:
        ca = self_signed(x509.BasicConstraints(ca=True, path_length=None))
        handshake(issue_serving(ca, NAMES, NOW), to_pem(ca.chain), NAME, strict=False)

    def test_it_needs_a_name(self) -> None:
        with pytest.raises(ConfigurationError, match="needs a name"):
            issue_serving(issue_ca(NOW), (), NOW)


@pytest.mark.parametrize(("age", "due"), [(0, False), (59, False), (61, True), (91, True)])
def test_renewal_is_due_in_the_last_third_of_the_life(age: int, *, due: bool) -> None:
    certificate = issue_serving(issue_ca(NOW), NAMES, NOW).certificate
    assert needs_renewal(certificate, day(age)) is due


def test_renewal_is_due_before_the_life_begins() -> None:
    assert needs_renewal(issue_ca(NOW).certificate, day(-1))


class TestPair:
    def test_it_survives_pem(self) -> None:
        pair = issue_serving(issue_ca(NOW), NAMES, NOW)
        parsed = Pair.parse(pair.certificate_pem, pair.key_pem)
        assert parsed == pair
        assert parsed.key_pem == pair.key_pem

    def test_a_key_of_another_certificate_is_refused(self) -> None:
        one, other = issue_ca(NOW), issue_ca(NOW)
        with pytest.raises(
            ConfigurationError, match="does not belong to the certificate CN=tagpin"
        ):
            Pair.parse(one.certificate_pem, other.key_pem)

    def test_half_a_certificate_is_refused(self) -> None:
        pair = issue_ca(NOW)
        with pytest.raises(ConfigurationError, match="not a PEM certificate"):
            Pair.parse(pair.certificate_pem[:200], pair.key_pem)

    def test_a_bad_key_is_refused_without_a_word_of_it(self) -> None:
        pair = issue_ca(NOW)
        with pytest.raises(
            ConfigurationError, match=r"^not an unencrypted PEM private key$"
        ) as got:
            Pair.parse(pair.certificate_pem, pair.key_pem[:100])
        assert got.value.__cause__ is None

    def test_its_text_does_not_show_the_key(self) -> None:
        assert "key" not in repr(issue_ca(NOW))

    def test_a_certificate_whose_names_are_malformed_has_none(self) -> None:
        names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"junk")
        assert not self_signed(names).is_for(NAME)

    def test_wildcards_count_as_names(self) -> None:
        pair = issue_serving(issue_ca(NOW), ["*.tagpin-system.svc"], NOW)
        assert pair.is_for(NAME)
        assert not pair.is_for("tagpin.elsewhere.svc")


class TestMaterial:
    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(ConfigurationError, match=r"^tls.crt and tls.key missing$"):
            Material.parse({CA_CERTIFICATE: to_pem(issue_ca(NOW).chain)})

    def test_no_ca_means_that_clients_trust_it_anyway(self) -> None:
        data = issued()
        del data[CA_CERTIFICATE], data[CA_KEY]
        assert Material.parse(data).authorities == frozenset()

    def test_a_malformed_ca_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="not a PEM certificate"):
            Material.parse(issued() | {CA_CERTIFICATE: b"junk"})

    def test_a_ca_of_a_version_that_there_is_not_is_refused(self) -> None:
        der = issue_ca(NOW).certificate.public_bytes(Encoding.DER)
        second = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1)
        with pytest.raises(ConfigurationError, match="not a PEM certificate"):
            Material.parse(issued() | {CA_CERTIFICATE: ssl.DER_cert_to_PEM_cert(second).encode()})

    def test_it_is_trusted_by_whom_its_ca_is_known_to_renewed_or_not(self) -> None:
        data = issued()
        material, strange = Material.parse(data), issue_ca(NOW)
        ca = Pair.parse(data[CA_CERTIFICATE], data[CA_KEY])
        assert material.is_trusted_by(ca.chain)
        assert material.is_trusted_by([strange.certificate, ca.certificate])
        assert not material.is_trusted_by(strange.chain)
        assert not material.is_trusted_by([])

    def test_it_is_trusted_by_all_where_no_ca_is_named(self) -> None:
        data = issued()
        del data[CA_CERTIFICATE], data[CA_KEY]
        assert Material.parse(data).is_trusted_by([])
        assert Material.parse(data).authority_expires is None

    def test_of_several_cas_the_one_that_signed_says_when_the_trust_ends(self) -> None:
        data = issued(day(-300))
        both = data[CA_CERTIFICATE] + to_pem(issue_ca(NOW).chain)
        assert Material.parse(data | {CA_CERTIFICATE: both}).authority_expires == day(3350)


class TestRenewed:
    def test_an_empty_secret_is_filled(self) -> None:
        data = issued()
        handshake(Pair.parse(data[CERTIFICATE], data[KEY]), data[CA_CERTIFICATE], NAME)
        assert Pair.parse(data[CA_CERTIFICATE], data[CA_KEY]).is_valid(NOW)

    def test_what_is_fresh_stays(self) -> None:
        assert renewed(issued(), NAMES, day(59), trusted=()) is None

    def test_a_due_certificate_is_issued_again_by_the_same_ca(self) -> None:
        before = issued()
        after = still(before, day(61), trusted=False)
        assert after[CERTIFICATE] != before[CERTIFICATE]
        assert after[KEY] != before[KEY]
        assert after[CA_CERTIFICATE] == before[CA_CERTIFICATE]
        assert after[CA_KEY] == before[CA_KEY]
        assert Pair.parse(after[CERTIFICATE], after[KEY]).expires == day(151)

    def test_a_name_that_is_lacking_is_added(self) -> None:
        renewal = renewed(issued(), [*NAMES, "more.svc"], NOW, trusted=())
        assert renewal is not None
        assert renewal.reasons == ("the certificate lacks a name",)
        assert Material.parse(renewal.data).serving.is_for("more.svc")

    @pytest.mark.parametrize("broken", [CERTIFICATE, KEY])
    def test_a_broken_certificate_is_issued_again_by_the_same_ca(self, broken: str) -> None:
        before = issued()
        after = still(before | {broken: b"junk"}, NOW, trusted=False)
        assert after[CA_CERTIFICATE] == before[CA_CERTIFICATE]
        handshake(Pair.parse(after[CERTIFICATE], after[KEY]), after[CA_CERTIFICATE], NAME)

    def test_a_certificate_of_a_strange_ca_is_issued_again(self) -> None:
        strange = issued()
        after = still(issued() | {CERTIFICATE: strange[CERTIFICATE], KEY: strange[KEY]}, NOW)
        handshake(Pair.parse(after[CERTIFICATE], after[KEY]), after[CA_CERTIFICATE], NAME)

    @pytest.mark.parametrize("broken", [CA_KEY, CA_CERTIFICATE])
    def test_a_broken_ca_is_replaced(self, broken: str) -> None:
        after = still(issued() | {broken: b"junk"}, NOW, trusted=False)
        handshake(Pair.parse(after[CERTIFICATE], after[KEY]), after[CA_CERTIFICATE], NAME)
        settled = still(after, NOW)
        Pair.parse(parse_pem_last(settled[CA_CERTIFICATE]), settled[CA_KEY])
        handshake(Pair.parse(settled[CERTIFICATE], settled[KEY]), settled[CA_CERTIFICATE], NAME)
        assert still(settled, NOW) == settled

    def test_a_ca_changes_in_two_steps(self) -> None:
        late = day(3650 * 2 / 3 + 1)
        before = still(issued(), late - timedelta(days=20))
        old = parse_certificates(before[CA_CERTIFICATE])

        announced = still(before, late, trusted=False)
        assert parse_certificates(announced[CA_CERTIFICATE])[: len(old)] == old
        assert len(parse_certificates(announced[CA_CERTIFICATE])) == len(old) + 1
        assert announced[CERTIFICATE] == before[CERTIFICATE]
        assert still(announced, late, trusted=False) == announced

        changed = still(announced, late, trusted=True)
        new = parse_certificates(announced[CA_CERTIFICATE])[-1]
        Pair.parse(changed[CERTIFICATE], changed[KEY]).certificate.verify_directly_issued_by(new)
        assert changed[CA_CERTIFICATE] == announced[CA_CERTIFICATE]
        assert still(changed, late) == changed

    def test_an_expired_ca_is_left_out_at_the_next_change(self) -> None:
        before = issued()
        after = still(before, day(3651))
        assert len(parse_certificates(after[CA_CERTIFICATE])) == 1
        assert after[CA_CERTIFICATE] != before[CA_CERTIFICATE]

    def test_an_untrusted_ca_may_serve_once_the_old_certificate_has_expired(self) -> None:
        before = issued()
        late = day(3650 * 2 / 3 + 1)
        after = still(before, late, trusted=False)
        assert Pair.parse(after[CERTIFICATE], after[KEY]).is_valid(late)

    @pytest.mark.parametrize("age", [0, 61, 1000])
    def test_what_someone_else_issued_always_stays(self, age: int) -> None:
        data = issued()
        del data[CA_KEY]
        assert renewed(data, NAMES, day(age), trusted=()) is None
        assert renewed(data | {CERTIFICATE: b"junk"}, NAMES, day(age), trusted=()) is None

    def test_a_foreign_kind_of_ca_key_is_replaced(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        after = still(issued() | {CA_KEY: pem}, NOW)
        assert Pair.parse(parse_pem_last(after[CA_CERTIFICATE]), after[CA_KEY]).is_valid(NOW)

    def test_its_text_does_not_show_the_keys(self) -> None:
        assert "PRIVATE" not in repr(renewed({}, NAMES, NOW, trusted=()))


def parse_pem_last(bundle: bytes) -> bytes:
    return to_pem(parse_certificates(bundle)[-1:])
