"""Converters: the same bytes from the same file, and everything that is left out is counted."""

from pathlib import Path

import pytest

from firmware_sim.errors import BadInput
from firmware_sim.recordings import recording
from firmware_sim.recordings.convert.complete_journey import CompleteJourney
from firmware_sim.recordings.convert.online_retail import OnlineRetail
from firmware_sim.recordings.convert.writer import convert
from firmware_sim.scenarios import builtin

SHARED = Path(__file__).parents[3] / "shared" / "data"
RETAIL = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recorded data in ../shared/data")


@needs_shared
def test_our_recording_can_be_reproduced(tmp_path: Path) -> None:
    """A recording whose making nobody can repeat is a claim, not data."""
    out = tmp_path / "again.csv.gz"
    make = OnlineRetail()
    done = convert([SHARED / "online_retail" / "2010-12.csv.gz"], out, make.columns, make)
    assert (done.rows, sum(done.left_out.values()), len(done.sites)) == (42_481, 0, 24)
    assert out.read_bytes() == builtin.ONLINE_RETAIL.read_bytes()


@needs_shared
def test_every_month_and_every_store_converts(tmp_path: Path) -> None:
    """Real files of two makers; what comes out is a recording without a bad row."""
    retail, journey = OnlineRetail(), CompleteJourney()
    months = sorted((SHARED / "online_retail").glob("*.csv.gz"))
    stores = sorted((SHARED / "complete_journey").glob("store*.csv.gz"))
    for files, make in ((months[2:4], retail), (stores, journey)):
        out = tmp_path / "out.csv"
        done = convert(files, out, make.columns, make)
        assert done.rows > 50_000
        assert sum(1 for _ in recording.read(out)) == done.rows
        assert set(done.left_out) <= {"the quantity is zero"}


def test_rows_without_meaning_for_stock_are_counted(tmp_path: Path) -> None:
    """Nothing is dropped without a reason and a line."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [
        "536365,85123A,HEART,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom",
        "C536379,D,Discount,-1,2010-12-01 09:41:00,27.5,14527.0,EIRE",
        "536366,,X,1,2010-12-01 08:26:00,2.55,,United Kingdom",
        "536366,A,X,0,2010-12-01 08:26:00,2.55,,United Kingdom",
        "536366,A,X,1.5,2010-12-01 08:26:00,2.55,,United Kingdom",
        "536366,A,X,inf,2010-12-01 08:26:00,2.55,,United Kingdom",
        "536366,A,X,many,2010-12-01 08:26:00,2.55,,United Kingdom",
        "536366,A,X,1,1 December,2.55,,United Kingdom",
        "536366,A,X,1,2010-12-01 08:26:00,2.55,,???",
        "none,A,X,1,2010-12-01 08:26:00,2.55,,EIRE",
    ]
    source.write_text(RETAIL + "".join(f"{row}\n" for row in rows))
    done = convert([source], out, OnlineRetail.columns, OnlineRetail())
    assert out.read_text().splitlines() == [
        "time,site,device,sku,quantity",
        "2010-12-01T08:26:00Z,united-kingdom,till-2,85123A,6",
        "2010-12-01T09:41:00Z,eire,till-4,D,-1",
    ]
    assert sum(done.left_out.values()) == 8
    assert done.first_left_out[0][1].line == 4


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b"\x1f\x8b\x08broken"])
def test_what_is_not_the_data_set_is_refused_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    """Half a recording under its final name would be taken for a whole one."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(content)
    with pytest.raises(BadInput):
        convert([source], out, OnlineRetail.columns, OnlineRetail())
    with pytest.raises(BadInput, match=r"absent\.csv"):
        convert([tmp_path / "absent.csv"], out, OnlineRetail.columns, OnlineRetail())
    assert list(tmp_path.iterdir()) == [source]
