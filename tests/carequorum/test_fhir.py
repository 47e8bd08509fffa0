"""FHIR files come apart into the exact bytes of their resources, or are refused with the place."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carequorum import fhir
from carequorum.fhir import Resource, files, read_path, resources
from ledger.errors import Rejection

# Numbers, escapes, spaces and names as no serialiser would write them twice.
PATIENT = b'{ "resourceType" : "Patient","id":"p-1", "weight":10.00,\n\t"name":[{"family":"M\\u00fcller \xc3\xa9"}] }'
CLAIM = b'{"total":1E+2,"resourceType":"Claim"}'


def slices(data: bytes) -> list[tuple[str, str | None, bytes]]:
    found = list(resources(data, "file"))
    for resource in found:
        assert data[resource.offset : resource.offset + len(resource.data)] == resource.data
    return [(resource.type, resource.id, resource.data) for resource in found]


def refusal(data: bytes) -> str:
    with pytest.raises(Rejection) as caught:
        list(resources(data, "file"))
    assert caught.value.code == "bad_fhir"
    return caught.value.detail


def test_one_resource_is_its_own_slice_without_the_space_around_it() -> None:
    assert slices(b" \r\n" + PATIENT + b"\n ") == [("Patient", "p-1", PATIENT)]


def test_a_byte_order_mark_is_skipped_and_counted() -> None:
    assert slices(b"\xef\xbb\xbf" + PATIENT) == [("Patient", "p-1", PATIENT)]


def test_a_bundle_gives_its_entries_in_order() -> None:
    bundle = (
        b'{"id":"b","entry" : [ {"fullUrl":"urn:uuid:\xc3\xa9","resource": '
        + PATIENT
        + b' ,"request":{"method":"PUT"}},'
        b'{"request":{"method":"DELETE","url":"Claim/1"}} , {"resource":'
        + CLAIM
        + b'}],"resourceType":"Bundle","type":"batch"}'
    )
    assert slices(bundle) == [("Patient", "p-1", PATIENT), ("Claim", None, CLAIM)]


def test_a_bundle_in_a_bundle_is_one_resource() -> None:
    inner = b'{"resourceType":"Bundle","entry":[{"resource":' + CLAIM + b"}]}"
    assert slices(b'{"resourceType":"Bundle","entry":[{"resource":' + inner + b"}]}") == [("Bundle", None, inner)]


@pytest.mark.parametrize("bundle", [b'{"resourceType":"Bundle"}', b'{"resourceType":"Bundle","entry":[ ]}'])
def test_an_empty_bundle_has_nothing(bundle: bytes) -> None:
    assert slices(bundle) == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_ndjson_gives_a_resource_a_line(end: bytes) -> None:
    patient = PATIENT.replace(b"\n", b" ")
    assert slices(patient + end + end + CLAIM + end) == [("Patient", "p-1", patient), ("Claim", None, CLAIM)]


def test_an_id_that_is_none_by_fhir_is_passed_over() -> None:
    assert slices(b'{"resourceType":"Claim","id":"not an id"}')[0][1] is None
    assert slices(b'{"resourceType":"Claim","id":7}')[0][1] is None


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "byte 0: there is nothing"),
        (b" \n", "byte 2: there is nothing"),
        (b'{"resourceType":"Claim"', "byte 23: Expecting"),
        (b'{"id":"1"}', "byte 0: not a FHIR resource"),
        (b"[]", "byte 0: not a FHIR resource"),
        (b'"Patient"', "byte 0: not a FHIR resource"),
        (b'{"resourceType":"patient"}', "byte 0: not a FHIR resource"),
        (b'{"resourceType":"Claim","a":NaN}', "byte 0: in the value that begins here: NaN"),
        (b'{"resourceType":"Claim","a":1,"a":2}', "byte 0: in the value that begins here: a name stands twice"),
        (b'{"resourceType":"\xff"}', "byte 17: not UTF-8"),
        (b'{"resourceType":"Claim"}\n{"resourceType":"Claim"} {}\n', "byte 50: more than one value"),
        (b'{"resourceType":"Claim"}\n{"resourceType":\n', "byte 42: Expecting value"),
        (b'{"resourceType":"Bundle","entry":{}}', "byte 33: expected ["),
        (b'{"resourceType":"Bundle","entry":[7]}', "byte 34: expected {"),
        (b'{"resourceType":"Bundle","entry":[{"resource":"\xc3\xa9"},{"resource":{}}]}', "byte 46: not a FHIR"),
        (b'{"resourceType":"Claim","a":' + b"[" * 64 + b"]" * 64 + b"}", "byte 91: nested deeper"),
        (b"[" * 2_000_000, "byte 64: nested deeper"),
    ],
)
def test_what_is_no_fhir_is_refused_with_its_place(data: bytes, where: str) -> None:
    assert refusal(data).startswith(f"file: {where}")


def test_a_refusal_repeats_nothing_of_the_content() -> None:
    for data in (b'{"resourceType":"Patient","family":"Kreiger"', b'{"Kreiger":"Kreiger"}', b"Kreiger"):
        assert "Kreiger" not in refusal(data)


def test_brackets_in_strings_are_no_depth() -> None:
    text = b'{"resourceType":"Claim","a":"\\"' + b"[{" * 200 + b'\\\\"}'
    assert slices(text) == [("Claim", None, text)]


def test_an_endless_string_is_refused_in_one_pass() -> None:
    assert "Unterminated string" in refusal(b'{"resourceType":"' + b'\\"' * 500_000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(st.text(max_size=5).filter(lambda name: name not in ("resourceType", "id")), json_values)


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(bodies, max_size=4), ascii_only=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_slices_of_any_bundle_are_where_they_say_and_mean_what_they_meant(
    parts: list[dict[str, object]], ascii_only: bool, indent: int | None
) -> None:
    wanted = [{"resourceType": "Basic", **part} for part in parts]
    bundle = {"entry": [{"resource": part} for part in wanted], "resourceType": "Bundle"}
    data = json.dumps(bundle, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    assert [json.loads(found) for _, _, found in slices(data)] == json.loads(json.dumps(wanted).encode())


def test_a_folder_is_read_in_order_of_path_and_passes_over_other_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.ndjson").write_bytes(CLAIM + b"\n" + CLAIM + b"\n")
    (tmp_path / "a.JSON").write_bytes(PATIENT)
    (tmp_path / "README.md").write_text("no FHIR")
    found = list(read_path(tmp_path))
    assert [(Path(each.source).name, each.offset) for each in found] == [
        ("a.JSON", 0),
        ("2.ndjson", 0),
        ("2.ndjson", 38),
    ]
    assert list(read_path(tmp_path / "a.JSON")) == found[:1]


def test_errors_in_files_name_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "x.ndjson"
    broken.write_bytes(CLAIM + b"\n{}\n")
    with pytest.raises(Rejection, match=r"bad_fhir: .*x\.ndjson: byte 38: not a FHIR resource"):
        list(read_path(tmp_path))


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_nothing_to_read_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(Rejection, match="no_such_file"):
        files(tmp_path / name)


def test_lines_and_documents_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fhir, "LINE_BYTES_MAX", 100)
    monkeypatch.setattr(fhir, "DOCUMENT_BYTES_MAX", 100)
    for name, words in (("a.ndjson", "a line longer than 100"), ("a.json", "longer than 100 bytes; use NDJSON")):
        (tmp_path / name).write_bytes(CLAIM + b" " * 100)
        with pytest.raises(Rejection, match=words):
            list(read_path(tmp_path / name))


def test_a_resource_does_not_show_when_printed() -> None:
    assert "ller" not in repr(next(resources(PATIENT, "file")))


def data_folder() -> Path:
    """Public FHIR files that are not part of this repository."""
    default = Path(__file__).parents[2].parent / "shared" / "data" / "fhir"
    folder = Path(os.environ.get("CAREQUORUM_FHIR_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no FHIR data at {folder}; set CAREQUORUM_FHIR_DATA")
    return folder


def test_published_files_come_apart_without_loss() -> None:
    by_source: dict[str, list[Resource]] = {}
    for resource in read_path(data_folder()):
        by_source.setdefault(resource.source, []).append(resource)
    for source, found in by_source.items():
        data = Path(source).read_bytes()
        assert all(data[each.offset : each.offset + len(each.data)] == each.data for each in found)
        if source.endswith(".ndjson"):
            wanted = [json.loads(line) for line in data.splitlines()]
        else:
            whole = json.loads(data)
            entries = whole.get("entry", []) if whole["resourceType"] == "Bundle" else [{"resource": whole}]
            wanted = [entry["resource"] for entry in entries]
        assert [json.loads(each.data) for each in found] == wanted
        assert [each.type for each in found] == [each["resourceType"] for each in wanted]
    assert len(by_source) > 10
