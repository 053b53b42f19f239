"""A package is loaded only with the signature of a trusted key, and only where nobody else can write."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import sys
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from stack.base.errors import ConfigError, PackageError
from stack.export.sign import (
    SIGNATURE,
    Algorithm,
    Signature,
    check,
    make_keys,
    read_signature,
    refuse_writable_by_others,
    sign,
    write_signature,
)

MANIFEST = b'{"format_version": 1}'
# RFC 8032, 7.1, test 2
RFC_SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)

Keys = tuple[Path, Path]


@pytest.fixture(params=list(Algorithm), ids=lambda one: one.value)
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "keys", request.param)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Keys]:
    return [make_keys(tmp_path_factory.mktemp("keys"), algorithm) for algorithm in Algorithm]


def private(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_what_is_signed_is_accepted_among_other_trusted_keys(keys: Keys, tmp_path: Path) -> None:
    others = [make_keys(tmp_path / "others", algorithm)[1] for algorithm in Algorithm]
    signature = sign(MANIFEST, keys[0])
    check(MANIFEST, signature, [*others, keys[1]])
    check(MANIFEST, signature, [keys[1], *others])


def test_ed25519_signs_as_its_rfc_says(tmp_path: Path) -> None:
    secret = private(tmp_path / "key.pem", _pem_of(RFC_SECRET))
    assert sign(b"\x72", secret) == Signature(
        algorithm=Algorithm.ed25519, key_id=hashlib.sha256(RFC_PUBLIC).hexdigest()[:16], value=RFC_SIGNATURE
    )


def _pem_of(seed: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_hmac_signs_as_its_rfc_says_and_its_id_is_of_the_hash(tmp_path: Path) -> None:
    secret = private(tmp_path / "key", b"aa" * 131 + b"\n")  # RFC 4231, test 6
    signature = sign(b"Test Using Larger Than Block-Size Key - Hash Key First", secret)
    assert signature.value == "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    assert signature.key_id == hashlib.sha256(hashlib.sha256(b"\xaa" * 131).digest()).hexdigest()[:16]


@given(manifest=st.binary(max_size=200), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_of_manifest_or_signature_is_refused(
    manifest: bytes, position: int, bit: int, both: list[Keys]
) -> None:
    for secret, public in both:
        signature = sign(manifest, secret)
        check(manifest, signature, [public])
        value = bytearray.fromhex(signature.value)
        value[position % len(value)] ^= 1 << bit
        with pytest.raises(PackageError, match=r"the package's signature is wrong: the key [0-9a-f]{16} \(.*changed"):
            check(manifest, msgspec.structs.replace(signature, value=value.hex()), [public])
        if manifest:
            changed = bytearray(manifest)
            changed[position % len(changed)] ^= 1 << bit
            with pytest.raises(PackageError, match="signature is wrong"):
                check(bytes(changed), signature, [public])


@pytest.mark.parametrize("value", ["", "zz", "0", "00" * 64, "00" * 1000, "é"])
def test_a_value_of_another_form_is_refused(keys: Keys, value: str) -> None:
    signature = msgspec.structs.replace(sign(MANIFEST, keys[0]), value=value)
    with pytest.raises(PackageError, match="signature is wrong"):
        check(MANIFEST, signature, [keys[1]])


def test_a_key_that_is_not_trusted_is_refused_by_its_id(keys: Keys, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other", Algorithm.ed25519)
    trusted = sign(b"", other[0]).key_id
    signature = sign(MANIFEST, keys[0])
    with pytest.raises(PackageError, match=f"the key '{signature.key_id}', which is not trusted; trusted: {trusted}"):
        check(MANIFEST, signature, [other[1]])
    with pytest.raises(PackageError, match="which is not trusted; trusted: none"):
        check(MANIFEST, signature, [])


def test_an_hmac_made_with_a_public_key_is_refused(tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path, Algorithm.ed25519)
    key_id = sign(MANIFEST, secret).key_id
    raw = serialization.load_pem_public_key(public.read_bytes()).public_bytes_raw()
    for known in (public.read_bytes(), raw):
        forged = hmac.digest(known, MANIFEST, "sha256").hex()
        signature = Signature(algorithm=Algorithm.hmac_sha256, key_id=key_id, value=forged)
        with pytest.raises(PackageError, match=r"signature says hmac-sha256, but its key .* is for ed25519: sign it"):
            check(MANIFEST, signature, [public])
        with pytest.raises(PackageError, match="signature is wrong"):
            check(MANIFEST, msgspec.structs.replace(signature, algorithm=Algorithm.ed25519), [public])


def test_an_ed25519_signature_is_refused_for_an_hmac_key(tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path, Algorithm.hmac_sha256)
    signature = msgspec.structs.replace(sign(MANIFEST, secret), algorithm=Algorithm.ed25519)
    with pytest.raises(PackageError, match=r"signature says ed25519, but its key .* is for hmac-sha256"):
        check(MANIFEST, signature, [public])


def test_keys_are_made_for_this_user_alone_and_never_overwritten(keys: Keys) -> None:
    for file in keys:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    before = [file.read_bytes() for file in keys]
    algorithm = sign(MANIFEST, keys[0]).algorithm
    with pytest.raises(PackageError, match=re.escape(f"{keys[0]} exists: keys are not overwritten; choose another")):
        make_keys(keys[0].parent, algorithm)
    assert [file.read_bytes() for file in keys] == before


def test_a_public_key_that_is_there_leaves_no_secret_behind(tmp_path: Path) -> None:
    (tmp_path / "package-ed25519.pub.pem").touch()
    with pytest.raises(PackageError, match=r"package-ed25519.pub.pem exists"):
        make_keys(tmp_path, Algorithm.ed25519)
    assert [file.name for file in tmp_path.iterdir()] == ["package-ed25519.pub.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_key_that_others_can_read_is_refused(keys: Keys, mode: int) -> None:
    keys[0].chmod(mode)
    with pytest.raises(PackageError, match=rf"is open to others \(mode {mode:04o}\): chmod 600 {keys[0]}"):
        sign(MANIFEST, keys[0])


def test_a_trusted_public_key_may_be_read_but_not_exchanged_by_others(tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path, Algorithm.ed25519)
    signature = sign(MANIFEST, secret)
    public.chmod(0o644)
    check(MANIFEST, signature, [public])
    public.chmod(0o664)
    with pytest.raises(PackageError, match=rf"could be exchanged by others \(mode 0664\): chmod go-w {public}"):
        check(MANIFEST, signature, [public])


def test_a_trusted_hmac_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secret, _ = make_keys(tmp_path, Algorithm.hmac_sha256)
    signature = sign(MANIFEST, secret)
    secret.chmod(0o644)
    with pytest.raises(PackageError, match=r"is open to others \(mode 0644\): chmod 600"):
        check(MANIFEST, signature, [secret])


def test_a_file_without_a_key_for_the_purpose_is_refused_without_its_content(tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path, Algorithm.ed25519)
    signature = sign(MANIFEST, secret)
    other = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked = serialization.BestAvailableEncryption(b"pass")
    for name, data in {
        "public": public.read_bytes(),
        "rsa": other.private_bytes(*form, serialization.NoEncryption()),
        "locked": other.private_bytes(*form, locked),
        "damaged": secret.read_bytes()[:60],
    }.items():
        with pytest.raises(PackageError, match=f"{name} holds no secret ed25519 key as PEM without a password"):
            sign(MANIFEST, private(tmp_path / name, data))
    for name, data in {"short": b"ab" * 31, "no hex": b"secret" * 20, "empty": b""}.items():
        with pytest.raises(PackageError, match="neither an ed25519 key as PEM nor at least 32 bytes in hex") as caught:
            sign(MANIFEST, private(tmp_path / name, data))
        assert "secret" not in str(caught.value).replace(str(tmp_path), "")
    with pytest.raises(PackageError, match="holds no public ed25519 key as PEM; secret ones stay at home"):
        check(MANIFEST, signature, [secret])
    with pytest.raises(PackageError, match=r"none cannot be read \(No such file or directory\)"):
        sign(MANIFEST, tmp_path / "none")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(PackageError, match="nor at least 32 bytes in hex"):
        sign(MANIFEST, tmp_path / "pipe")


def test_without_cryptography_hmac_works_and_ed25519_tells_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, _ = make_keys(tmp_path, Algorithm.ed25519)
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    secret, _ = make_keys(tmp_path, Algorithm.hmac_sha256)
    check(MANIFEST, sign(MANIFEST, secret), [secret])
    for act in (lambda: sign(MANIFEST, pem), lambda: make_keys(tmp_path / "new", Algorithm.ed25519)):
        with pytest.raises(ConfigError, match="need the package cryptography: pip install cryptography, or use hmac"):
            act()


def test_a_signature_is_written_and_read_beside_the_manifest(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=re.escape(f"{tmp_path} is not signed: it has no {SIGNATURE}")):
        read_signature(tmp_path)
    signature = sign(MANIFEST, keys[0])
    write_signature(tmp_path, signature)
    assert read_signature(tmp_path) == signature
    told = msgspec.json.decode((tmp_path / "signature.json").read_bytes())
    assert set(told) == {"algorithm", "key_id", "value"}
    assert told["algorithm"] in ("ed25519", "hmac-sha256")


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"{}", b"[]", b'{"algorithm": "none", "key_id": "", "value": ""}', b'{"a": "' + b"b" * 99_999],
)
def test_a_damaged_signature_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / SIGNATURE).write_bytes(data)
    with pytest.raises(PackageError, match=r"signature.json cannot be read: "):
        read_signature(tmp_path)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "graphs").mkdir(parents=True)
    for name in ("manifest.json", "graphs/user_half.pt2"):
        (folder / name).touch()
    for path in (folder, folder / "graphs"):
        path.chmod(0o755)
    return folder


def test_a_package_that_only_this_user_can_write_is_accepted_also_through_a_link(package: Path) -> None:
    refuse_writable_by_others(package)
    link = package.with_name("current")
    link.symlink_to(package)
    refuse_writable_by_others(link)


@pytest.mark.parametrize("name", [".", "graphs", "manifest.json", "graphs/user_half.pt2"])
@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
def test_a_package_that_others_can_write_is_refused_by_name(package: Path, name: str, bit: int) -> None:
    path = package / name
    mode = stat.S_IMODE(path.stat().st_mode) | bit
    path.chmod(mode)
    with pytest.raises(
        PackageError,
        match=re.escape(f"'{path}' can be written by others (mode {mode:04o}), and a package is a program: "
                        f"chmod -R go-w {package}"),
    ):  # fmt: skip
        refuse_writable_by_others(package)


def test_a_link_or_a_pipe_in_a_package_is_refused(package: Path) -> None:
    (package / "a").symlink_to(package / "graphs")
    with pytest.raises(PackageError, match=r"package/a' is neither a plain file nor a folder: remove it"):
        refuse_writable_by_others(package)
    (package / "a").unlink()
    os.mkfifo(package / "graphs" / "pipe", 0o600)
    with pytest.raises(PackageError, match=r"graphs/pipe' is neither a plain file"):
        refuse_writable_by_others(package)


def test_a_package_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no package at .*none: it is not a folder"):
        refuse_writable_by_others(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_or_key_of_another_user_is_refused(package: Path, keys: Keys) -> None:
    os.chown(package / "manifest.json", 12_345, -1)
    with pytest.raises(PackageError, match=r"manifest.json' belongs to user 12345, not to this one \(0\) or root, and"):
        refuse_writable_by_others(package)
    os.chown(keys[0], 12_345, -1)
    with pytest.raises(PackageError, match=r"belongs to user 12345, not to 0 or root: use your own key"):
        sign(MANIFEST, keys[0])
