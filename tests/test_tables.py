"""Reading a user's table: what is accepted, and an error for everything else that says where it is."""

import re

import numpy as np
import pytest

from ctrlgen.tables import check_output, read_table, write_table


def saved(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8") if isinstance(text, str) else (tmp_path / name).write_bytes(
        text
    )
    return tmp_path / name


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a,b\n1,2\n3,4.5\n", ("a", "b")),
        ("1,2\n3,4.5\n", None),
        ("a;b\n1;2\n3;4.5\n", ("a", "b")),
        ("a\tb\n1\t2\n3\t4.5\n", ("a", "b")),
        ("a b\n1 2\n3   4.5\n", ("a", "b")),
        ("  1 2\n 3 4.5", None),
        ('"a, in m","b"\n"1","2"\n3,4.5\n', ("a, in m", "b")),
        ("\ufeffa,b\r\n1,2\r\n\r\n3,4.5\r\n", ("a", "b")),
        ("# made by hand\na, b\n 1, 2\n# note\n3, 4.5", ("a", "b")),
        (",b\n1,2\n3,4.5\n", ("column 1", "b")),
        ("x,2020\n1,2\n3,4.5\n", ("x", "2020")),
        ("a,b\n1e0,+2\n3,.45e1\n", ("a", "b")),
    ],
)
def test_text_tables(tmp_path, text, columns):
    table = read_table(saved(tmp_path, text))
    assert table.columns == columns
    assert table.values.dtype == np.float64
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4.5]])


def test_one_column(tmp_path):
    table = read_table(saved(tmp_path, "my height\n1\n2\n"))
    assert table.columns == ("my height",)
    np.testing.assert_array_equal(table.values, [[1], [2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: there is no line with numbers"),
        ("\n# only a comment\n", "is empty"),
        ("a,b\n", "has a header and no rows below it"),
        ("a,b\n1,2\n3\n4,5\n6,7,8\n", "must have 2 cells in every line, as its first; line 3 has 1, line 5 has 3."),
        ("1,2\n" * 3 + "1,2,3\n" * 7, "line 8 has 3 and 2 more lines"),
        ("a,b\n1,2\nnan,4\n5,inf\n7,8\n", "must be finite; 2 rows are not: lines 3, 4. Drop them"),
        ("a,b\n1,2\n\n3,\n", "must be finite; 1 row is not: line 4."),
        ("1,2\n" + "nan,1\n" * 9, r"9 rows are not: lines 2, 3, 4, 5, 6, \.\.\.\."),
        (
            "a,species\n1,2\n3,setosa\n",
            "must be numeric; 'species' (column 2) has 'setosa' in line 3. Drop these columns",
        ),
        ("1,x,2\n3,y,4\n", "must be numeric; column 2 has 'x' in line 1."),
        (
            "1,5;2,5\n3,5;4,5\n",
            "(column 1) has '3,5' in line 2; '2,5' (column 2) has '4,5' in line 2. Write decimal points",
        ),
        ("a;b\n1,5;2\n3,5;4\n", "'a' (column 1) has '1,5' in line 2. Write decimal points, not commas."),
        (b"a,b\n\xff,2\n", "must be UTF-8 text; byte 4 is not"),
    ],
)
def test_text_that_is_refused(tmp_path, text, message):
    file = saved(tmp_path, text)
    if "\\" not in message:
        message = re.escape(message)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(file)
    assert str(file) in str(caught.value)


def test_arrays(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "line.npy", values[:, 0])
    np.savez(tmp_path / "one.npz", data=values)
    np.savez(tmp_path / "two.npz", first=values[:2], second=values)
    for file, name in (("a.npy", None), ("one.npz", None), ("one.npz", "data"), ("two.npz", "second")):
        table = read_table(tmp_path / file, name)
        assert table.columns is None
        np.testing.assert_array_equal(table.values, values)
    assert read_table(tmp_path / "line.npy").values.shape == (4, 1)
    with pytest.raises(ValueError, match=r"two.npz holds several arrays; it has \['first', 'second'\]. Say which one"):
        read_table(tmp_path / "two.npz")
    with pytest.raises(ValueError, match=r"two.npz has no array 'third'"):
        read_table(tmp_path / "two.npz", "third")
    with pytest.raises(ValueError, match=r"array is for .npz files"):
        read_table(tmp_path / "a.npy", "first")


def test_arrays_that_are_refused(tmp_path):
    bad = np.zeros((9, 2))
    bad[[2, 5], 1] = np.nan, np.inf
    for name, array, message in (
        ("bad", bad, r"must be finite; 2 rows are not: rows 2, 5 \(counted from 0\)"),
        ("cube", np.zeros((2, 3, 4)), r"must hold an array of shape \(n, d\), one row a sample; got shape \(2, 3, 4\)"),
        ("none", np.zeros((0, 2)), r"got shape \(0, 2\)"),
        ("words", np.array(["a", "b"]), "must hold real numbers; got <U1"),
        ("complex", np.zeros(3, complex), "must hold real numbers; got complex128"),
        ("record", np.zeros(3, [("a", float)]), "must hold real numbers"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=message):
            read_table(tmp_path / f"{name}.npy")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a table was executed",))


def test_objects_in_arrays_are_not_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", a=np.array([Bomb()], dtype=object))
    for name in ("o.npy", "o.npz"):
        with pytest.raises(ValueError, match="It holds Python objects, which are not read: save numbers"):
            read_table(tmp_path / name)


def test_damaged_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20, 2)))
    np.savez(tmp_path / "a.npz", np.zeros((20, 2)))
    for name in ("a.npy", "a.npz"):
        whole = (tmp_path / name).read_bytes()
        for part in (b"", whole[:60], whole[: len(whole) // 2], b"x" * 300):
            with pytest.raises(ValueError, match=f"{name} cannot be read as"):
                read_table(saved(tmp_path, part, name))
    np.save(tmp_path / "b.npy", np.zeros((20, 2)))
    with pytest.raises(ValueError, match="it is a single array, not an archive"):
        read_table((tmp_path / "b.npy").rename(tmp_path / "b.npz"))


def test_files_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing.csv; pass a table \(.csv"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"t.xlsx must be one of .csv, .tsv, .*got .xlsx. Export it as CSV"):
        read_table(saved(tmp_path, "x", "t.xlsx"))


@pytest.mark.parametrize("name", ["out/s.csv", "s.npy", "s.npz"])
def test_what_is_written_reads_back(tmp_path, name):
    values = np.random.default_rng(1).normal(scale=1e3, size=(50, 2)).astype(np.float32)
    table = read_table(write_table(tmp_path / name, values, ["höhe", "a, b"]))
    np.testing.assert_array_equal(table.values.astype(np.float32), values)
    assert table.columns == (("höhe", "a, b") if name.endswith("csv") else None)
    assert read_table(write_table(tmp_path / "plain.csv", values)).columns == ("x1", "x2")


def test_writing_is_refused_before_work(tmp_path):
    with pytest.raises(ValueError, match=r"out must end in .csv, .npy or .npz; got 's.xlsx'"):
        check_output("s.xlsx")
    with pytest.raises(ValueError, match="columns must be 2 names; got 1"):
        write_table(tmp_path / "s.csv", np.zeros((3, 2)), ["a"])
