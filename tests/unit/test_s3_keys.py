"""Where objects lie: the URL's bucket and prefix, and the template of keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from receiver.core.errors import ConfigError
from receiver.settings.model import BlobSettings
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.s3_options import S3Options, parse_url

AT = 1_795_222_923_456  # 2026-11-21T01:02:03.456Z


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://my.bucket-1/prefix", "my.bucket-1", "prefix/"),
        ("s3://bucket/a/b/", "bucket", "a/b/"),
    ],
)
def test_a_url_names_bucket_and_prefix(url: str, bucket: str, prefix: str) -> None:
    assert parse_url(url) == (bucket, prefix)


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///a",
        "https://bucket",
        "s3://key:secret@bucket/a",
        "s3://b/a//b",
        "s3://b/../c",
        "s3://bü/a",
    ],
)
def test_another_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"blobs\.url") as refused:
        parse_url(url)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": f"s3://b/{'x' * 950}"}, "keys may have 1075 bytes"),
        ({"key": f"{'x' * 1000}/{{name}}"}, "keys may have 1050 bytes"),
    ],
)
def test_settings_that_could_store_nothing_are_refused(change: dict[str, str], said: str) -> None:
    settings = BlobSettings(**({"url": "s3://b/p"} | change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        _ = S3Options.of(settings), KeyTemplate(settings.key)


@pytest.mark.parametrize("archive", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archive_is_refused_since_nothing_in_it_can_be_read(archive: str) -> None:
    with pytest.raises(ValueError, match="cannot be read or linked to"):
        BlobSettings(storage_class=archive)


def test_people_are_shown_the_place_without_credentials() -> None:
    options = S3Options(bucket="b", prefix="p/", endpoint_url="https://user:secret@s3.example.com:9000")
    assert (options.place, options.host) == ("s3://b/p", "s3.example.com:9000")
    assert S3Options(bucket="b").host == "Amazon S3"


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{source}/{year}/{month}/{day}/{name}", "deapi/2026/11/21/0123.mp3"),
        ("{name}", "0123.mp3"),
        ("audio/dt={year}-{month}-{day}/{hour}/{source}-{name}", "audio/dt=2026-11-21/01/deapi-0123.mp3"),
        ("{{x}}/{name}", "{x}/0123.mp3"),
    ],
)
def test_a_template_makes_keys(template: str, key: str) -> None:
    assert KeyTemplate(template).key(source="deapi", received_at=AT, name="0123.mp3") == key


def test_a_template_knows_its_keys_from_others() -> None:
    name = f"{'ab' * 16}.mp3"
    dated, odd = KeyTemplate(), KeyTemplate("{{x}}.y/{source}-{name}")
    assert dated.is_ours(dated.key(source="deapi-2", received_at=AT, name=name))
    assert odd.is_ours(f"{{x}}.y/deapi-{name}")
    for key in (
        f"a/2026/11/21/x-{name}",
        f"b/a/2026/11/21/{name}",
        f"a/2026/1/21/{name}",
        f"a/2026/11/21/{name}\n",
    ):
        assert not dated.is_ours(key)
    assert not odd.is_ours(f"{{x}}zy/deapi-{name}")


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{source}",
        "{name}/x",
        "{name}{name}",
        "{source}/{job}/{name}",
        "{source.__class__}/{name}",
        "{source!r}/{name}",
        "{year:>9}/{name}",
        "{}/{name}",
        "{source/{name}",
        "a//{name}",
        "../{name}",
        "/{name}",
        "a\n/{name}",
    ],
)
def test_a_template_that_makes_no_good_keys_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"^blobs\.key: "):
        KeyTemplate(template)


def test_the_policy_to_copy_grants_what_is_needed_and_no_more() -> None:
    policy = json.loads(Path("deploy/iam-policy.json").read_text("utf-8"))
    granted = {item["Resource"]: tuple(item["Action"]) for item in policy["Statement"]}
    assert granted == {
        "arn:aws:s3:::BUCKET/PREFIX/*": ("s3:PutObject", "s3:GetObject", "s3:DeleteObject"),
        "arn:aws:s3:::BUCKET": ("s3:ListBucket",),
    }
