"""A source format stands in three files: config.py has the setting, files.py the suffixes, formats.py the functions that read."""

from pathlib import Path
from typing import get_args

import pytest

from contract.errors import InputError
from sources.config import Format, Source
from sources.files import NEVER_PACKED, RECORDS, SPLIT, SUFFIXES, files_of
from sources.formats import RECORD_FORMS, WHOLE_FORMS

FORMATS = set(get_args(Format)) - {"auto"}


def test_every_format_has_its_name_as_a_suffix_and_one_reader():
    assert set(SUFFIXES.values()) == FORMATS
    assert {form: SUFFIXES.get(form) for form in FORMATS} == {form: form for form in FORMATS}
    assert all((form in RECORD_FORMS) != (form in WHOLE_FORMS) for form in FORMATS)


def test_what_is_counted_in_records_is_read_as_records():
    assert RECORD_FORMS.keys() == set(RECORDS) and set(SPLIT) <= set(RECORDS) and set(NEVER_PACKED) <= FORMATS


def test_the_form_names_every_suffix_and_so_does_the_refusal_of_others(tmp_path: Path):
    said = Source.model_fields["format"].description or ""
    assert [form for form in FORMATS if f".{form}" not in said] == []
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(InputError, match=r"ends in .* also with \.gz or \.zst; set the source's `format`$") as refused:
        files_of(Source(uri=str(tmp_path), domain="web"), None)
    assert [form for form in FORMATS if f".{form}" not in str(refused.value)] == []
