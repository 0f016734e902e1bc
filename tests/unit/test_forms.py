"""Forms of uploads, however they are cut; names and ranges of downloads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.files.download import disposition, wanted
from api.files.form import Form
from shared.errors import RequestError
from shared.file_index import FileFacts
from shared.pipe import BrokenOffError, Pipe

KIND = 'multipart/form-data; boundary="----b"'


def body_of(parts: list[tuple[str, bytes]]) -> bytes:
    whole = b"".join(
        b'------b\r\nContent-Disposition: form-data; name="%s"\r\nContent-Type: x/y\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in parts
    )
    return whole + b"------b--\r\n"


async def cut(body: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    at = 0
    for size in sizes:
        yield body[at : at + size]
        at += size
    yield body[at:]


async def read(form: Form, skipping: set[int]) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = []
    while (part := await form.part()) is not None:
        if len(found) in skipping:
            found.append((part.name, None))
        else:
            found.append((part.name, b"".join([chunk async for chunk in form.chunks()])))
    return found


CONTENT = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"------b"[:-1], b"\r\n------", b"x", b"\0"])).map(
    b"".join
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "file"]), CONTENT), min_size=1, max_size=5),
    st.lists(st.integers(0, 40), max_size=30),
    st.sets(st.integers(0, 4)),
)
def test_a_form_reads_the_same_however_it_is_cut_and_whatever_is_skipped(
    parts: list[tuple[str, bytes]], sizes: list[int], skipping: set[int]
) -> None:
    found = asyncio.run(read(Form(cut(body_of(parts), sizes), KIND), skipping))
    assert found == [(name, None if at in skipping else data) for at, (name, data) in enumerate(parts)]


@settings(max_examples=200)
@given(st.integers(0, 200), st.binary(max_size=8))
def test_a_form_that_is_cut_short_or_disturbed_never_ends_as_another_error(at: int, put: bytes) -> None:
    body = body_of([("a", b"1"), ("file", b"22")])
    for disturbed in (body[:at], body[:at] + put + body[at:]):
        status = 400
        try:
            asyncio.run(read(Form(cut(disturbed, [7] * 50), KIND), set()))
        except RequestError as error:
            status = error.status
        assert status == 400


async def test_a_part_is_told_before_the_rest_of_the_form_has_come() -> None:
    came: list[bytes] = []

    async def slowly() -> AsyncIterator[bytes]:
        for at in range(0, len(body := body_of([("a", b"1" * 50), ("b", b"2")])), 10):
            came.append(body[at : at + 10])
            yield came[-1]

    part = await Form(slowly(), KIND).part()
    assert part is not None
    assert part.name == "a"
    assert b"".join(came).count(b"1") < 50


@given(st.text(max_size=60))
def test_no_name_breaks_out_of_its_header(name: str) -> None:
    told = disposition(name)
    plain, _, whole = told.removeprefix('attachment; filename="').partition("\"; filename*=UTF-8''")
    assert plain
    assert all(char.isascii() and (char.isalnum() or char in "._ ()-") for char in plain)
    assert all(char.isascii() and (char.isalnum() or char in "._~%-") for char in whole)
    told.encode("latin-1")


@given(st.text(alphabet="bytes=0123456789-, ", max_size=20), st.integers(0, 30))
def test_a_range_is_in_the_file_or_refused(asked: str, size: int) -> None:
    facts = FileFacts("file-x", "a", "f", "batch", size, 0)
    try:
        status, start, end = wanted(facts, {"range": asked})
    except RequestError as error:
        status = error.status
    if status == 416:
        return
    assert 0 <= start <= end <= size
    assert status == (200 if (start, end) == (0, size) and status == 200 else 206)
    assert status == 200 or start < end


def test_any_validator_matches_a_file_that_is_there() -> None:
    assert wanted(FileFacts("file-x", "a", "f", "batch", 10, 0), {"if-none-match": "*"}) == (304, 0, 0)


async def test_a_pipe_holds_back_its_writer_and_tells_its_reader_of_a_failure() -> None:
    pipe = Pipe(4)
    writing = asyncio.create_task(_fill(pipe))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not writing.done(), "two blocks lie in it"
    assert await anext(pipe) == b"0000"
    assert await anext(pipe) == b"1111"
    assert await anext(pipe) == b"2222"
    assert await writing
    pipe.fail()
    with pytest.raises(BrokenOffError):
        await anext(pipe)


async def _fill(pipe: Pipe) -> bool:
    return all([await pipe.write(byte * 2) for byte in (b"0", b"0", b"1", b"1", b"2", b"2")])


async def test_a_pipe_that_nobody_reads_any_more_lets_its_writer_go() -> None:
    pipe = Pipe(1)
    assert await pipe.write(b"0")
    writing = asyncio.create_task(pipe.write(b"1"))
    await asyncio.sleep(0)
    assert not writing.done()
    pipe.close()
    assert not await writing
