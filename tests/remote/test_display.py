"""What is shown of a job: in a terminal, in a notebook, in a log file, and where nothing can be."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nnsight import CONFIG
from nnsight.remote import display as displays
from nnsight.remote import surfaces
from nnsight.remote.display import Display
from nnsight.remote.messages import Event
from nnsight.remote.progress import Moment, Transfer, clock, detail_of

JOB = "5a3c0ffe"


def event(status: str, description: str = "", **more: Any) -> Event:
    return Event(id=JOB, status=status, description=description, **more)


QUEUED = event("QUEUED", "Moved to position 3 in Queue.")
RUNNING = event("RUNNING", "Your job has started running.")
COMPLETED = event("COMPLETED", "Your job has been completed.")


class Screen(io.StringIO):
    """A terminal of one width: keeps what it was sent, and knows what it looks like."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no file")

    def lines(self, text: str | None = None) -> list[str]:
        """The lines that are to be seen."""
        rows = [""]
        for part in re.split(r"(\r|\n|\x1b\[[\d;]*[A-Za-z])", text or self.getvalue()):
            if part == "\n":
                rows.append("")
            elif part == "\x1b[2K":
                rows[-1] = ""
            elif part == "\r" or part.startswith("\x1b["):
                assert part == "\r" or part.endswith("m")
            else:
                assert part == "" or rows[-1] == "" or rows[-1].startswith("●"), (rows, part)
                rows[-1] += part
        return rows


def use(monkeypatch: pytest.MonkeyPatch, out: Any, err: Any) -> None:
    """Let these be stdout and stderr; pytest sets those of `sys` anew for each phase."""
    stand_in = SimpleNamespace(stdout=out, stderr=err, modules=sys.modules, platform="linux")
    monkeypatch.setattr(displays, "sys", stand_in)
    monkeypatch.setattr(surfaces, "sys", stand_in)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """stdout and stderr are one terminal."""
    one = Screen()
    monkeypatch.setenv("TERM", "xterm")
    use(monkeypatch, one, one)
    return one


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """stdout and stderr are files."""
    files = SimpleNamespace(out=io.StringIO(), err=io.StringIO())
    use(monkeypatch, files.out, files.err)
    return files


# --- a terminal ----------------------------------------------------------------------------------


def test_one_line_is_written_over_and_gone_at_the_end(screen: Screen):
    with Display() as display:
        display.status(event("RECEIVED", "Your job has been received."))
        assert screen.lines() == [f"● RECEIVED  job {JOB}"]
        display.status(QUEUED)
        assert screen.lines() == [f"● QUEUED  position 3 in the queue  job {JOB}"]
        display.status(RUNNING)
        assert screen.lines() == [f"● RUNNING  job {JOB}"]
        display.status(COMPLETED)
    assert screen.lines() == [""]


def test_prints_stand_above_it_in_order(screen: Screen):
    with Display() as display:
        display.status(RUNNING)
        display.print("first\n")
        display.print("second\n")
        display.status(event("LOG", "third"))
        assert screen.lines() == ["first", "second", "third", f"● RUNNING  job {JOB}"]
    assert screen.lines()[:3] == ["first", "second", "third"]


def test_a_line_never_wraps(screen: Screen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surfaces, "_width", lambda out: 30)
    with Display() as display:
        display.status(event("DEPLOYING", "x" * 100))
        assert len(screen.lines()[0]) == 29


def test_a_download(screen: Screen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(displays, "_OFTEN", 0.0)
    with Display() as display:
        display.status(COMPLETED)
        progress = display.download(40_000_000)
        assert "Downloading  ────────────────────────  0.0 of 40.0 MB" in screen.lines()[0]
        progress(10_000_000)
        assert "━━━━━━──────────────────  10.0 of 40.0 MB" in screen.lines()[0]
        progress(30_000_000)
        assert "━━━━━━━━━━━━━━━━━━━━━━━━  40.0 of 40.0 MB" in screen.lines()[0]
    assert screen.lines() == [""]


def test_a_download_of_unknown_size(screen: Screen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(displays, "_OFTEN", 0.0)
    with Display() as display:
        display.download()(2_500_000)
        assert screen.lines()[0].startswith("● Downloading  2.5 MB")


def test_a_transfer_is_drawn_ten_times_a_second_at_most(screen: Screen):
    with Display() as display:
        progress = display.upload(1_000_000)
        for _ in range(10_000):
            progress(100)
    assert screen.getvalue().count("Uploading") < 30 and "1.0 of 1.0 MB" in screen.getvalue()


def test_a_small_result_is_no_picture(screen: Screen):
    with Display() as display:
        display.status(COMPLETED)
        before = screen.getvalue()
        display.download(64_000)
        assert screen.getvalue() == before


def test_a_server_that_does_not_answer_is_told_of(screen: Screen):
    with Display() as display:
        display.notice("nothing listens there; trying again in 2 s")
        assert screen.lines() == ["● WAITING  nothing listens there; trying again in 2 s"]
        display.status(RUNNING)
        display.notice("the server hung up")
        assert screen.lines() == [f"● RUNNING  the server hung up  job {JOB}"]
        display.status(RUNNING)
        assert screen.lines() == [f"● RUNNING  job {JOB}"]


def test_a_job_that_goes_on_leaves_its_line(screen: Screen):
    with Display() as display:
        display.status(event("RECEIVED"))
    assert screen.lines() == [f"● RECEIVED  job {JOB}", ""]


def test_an_interrupted_one_leaves_a_clean_line(screen: Screen):
    with pytest.raises(KeyboardInterrupt):
        with Display() as display:
            display.status(RUNNING)
            raise KeyboardInterrupt
    assert screen.lines() == [""]


def test_verbose_leaves_every_state(screen: Screen):
    with Display(verbose=True) as display:
        display.status(QUEUED)
        display.status(QUEUED)
        display.status(RUNNING)
        display.print("hello\n")
        display.tick()
        display.status(COMPLETED)
    assert screen.lines() == [
        f"● QUEUED  Moved to position 3 in Queue.  job {JOB}",
        f"● RUNNING  Your job has started running.  job {JOB}",
        "hello",
        f"● COMPLETED  Your job has been completed.  job {JOB}",
        "",
    ]


def test_time_passes(screen: Screen, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    with Display() as display:
        display.tick()
        assert screen.getvalue() == ""
        display.status(QUEUED)
        now[0] = 172.5
        display.tick()
        assert screen.lines() == [f"● QUEUED  position 3 in the queue  1:12  job {JOB}"]


def test_two_jobs_share_the_line(screen: Screen):
    with Display() as first, Display() as second:
        first.status(QUEUED)
        second.status(RUNNING)
        assert screen.lines() == [f"● RUNNING  job {JOB}  and 1 more"]
        first.print("of the first\n")
        assert screen.lines()[0] == "of the first" and "QUEUED" in screen.lines()[1]
    assert screen.lines()[0] == "of the first"


def test_what_a_server_says_moves_no_cursor(screen: Screen):
    with Display() as display:
        display.status(event("DEPLOYING", "\x1b[2J\r\nevil\x07 \u202etext"))
        assert screen.lines() == [f"● DEPLOYING  [2J evil text  job {JOB}"]


def test_a_terminal_without_colours_and_glyphs(screen: Screen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    screen.encoding = "ascii"
    with Display() as display:
        display.status(RUNNING)
        display.download(2_000_000)
    assert screen.getvalue().isascii() and "\x1b[1;" not in screen.getvalue()
    assert "* Downloading" in screen.getvalue()


@pytest.mark.skipif(os.name != "posix", reason="ptys are of POSIX")
def test_a_real_terminal():
    import pty

    code = (
        "from nnsight.remote.display import Display; from nnsight.remote.messages import Event\n"
        "with Display() as d:\n d.status(Event('j', 'RUNNING')); d.print('hello\\n')\n"
        " d.status(Event('j', 'COMPLETED'))"
    )
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=follower, stderr=follower, env=env, timeout=60
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert done.returncode == 0
    assert Screen().lines(shown.decode().replace("\r\n", "\n")) == ["hello", ""]
    assert "RUNNING" in shown.decode()


# --- a log file ----------------------------------------------------------------------------------


def test_a_log_file_has_a_line_for_each_change(
    log: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    now = [100.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    with Display() as display:
        for one in (event("RECEIVED"), QUEUED, QUEUED, RUNNING, RUNNING):
            display.status(one)
            display.tick()
            now[0] += 2
        display.print("of the block\n")
        display.status(COMPLETED)
        display.download(500)(500)
    assert log.err.getvalue().splitlines() == [
        f"[nnsight] RECEIVED  job {JOB}",
        f"[nnsight] QUEUED  position 3 in the queue  0:02  job {JOB}",
        f"[nnsight] RUNNING  0:06  job {JOB}",
        f"[nnsight] COMPLETED  0:10  job {JOB}",
    ]
    assert log.out.getvalue() == "of the block\n"


def test_small_jobs_do_not_fill_a_log_file(log: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    with Display() as display:
        for one in (event("RECEIVED"), QUEUED, event("DISPATCHED"), RUNNING):
            display.status(one)
        assert log.err.getvalue() == f"[nnsight] RECEIVED  job {JOB}\n"
        now[0] += 10  # a heartbeat, and it is running still
        display.tick()
        display.tick()
        assert log.err.getvalue().splitlines()[1:] == [f"[nnsight] RUNNING  0:10  job {JOB}"]
    small = len(log.err.getvalue())
    with Display() as display:
        for one in (event("RECEIVED"), QUEUED, RUNNING, COMPLETED):
            display.status(one)
    more = log.err.getvalue()[small:].splitlines()
    assert more == [f"[nnsight] RECEIVED  job {JOB}", f"[nnsight] COMPLETED  job {JOB}"]


def test_a_job_that_goes_on_is_told_of_once(log: SimpleNamespace):
    with Display() as display:
        display.status(event("RECEIVED"))
    with Display() as display:
        display.status(RUNNING)
    assert log.err.getvalue() == f"[nnsight] RECEIVED  job {JOB}\n[nnsight] RUNNING  job {JOB}\n"


def test_a_large_download_is_one_line_in_it(log: SimpleNamespace):
    with Display() as display:
        progress = display.download(40_000_000)
        for _ in range(4):
            progress(10_000_000)
    assert log.err.getvalue() == "[nnsight] Downloading  0.0 of 40.0 MB\n"


def test_a_terminal_that_is_dumb_takes_lines(screen: Screen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    with Display() as display:
        display.status(COMPLETED)
    assert screen.getvalue() == f"[nnsight] COMPLETED  job {JOB}\n"


def test_it_needs_no_package():
    code = (
        "import sys; from nnsight.remote.display import Display\n"
        "from nnsight.remote.messages import Event\n"
        "with Display() as d: d.status(Event('j', 'RUNNING'))\n"
        "print([m for m in ('rich', 'IPython', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n" and done.stderr == "[nnsight] RUNNING  job j\n"


# --- a notebook ----------------------------------------------------------------------------------


class Shell:
    """As much of IPython's shell as is asked for."""

    kernel = object()
    execution_count = 1


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A notebook: its shell, and the outputs that have been made, as HTML."""
    import IPython
    import IPython.display

    shown = SimpleNamespace(shell=Shell(), outputs=[], out=io.StringIO())

    class Handle:
        def __init__(self, page: Any) -> None:
            shown.outputs.append(page._repr_html_())
            self.place = len(shown.outputs) - 1

        def update(self, page: Any) -> None:
            shown.outputs[self.place] = page._repr_html_()

    monkeypatch.setattr(IPython, "get_ipython", lambda: shown.shell)
    monkeypatch.setattr(IPython.display, "display", lambda page, display_id: Handle(page))
    use(monkeypatch, shown.out, io.StringIO())
    monkeypatch.setattr(surfaces.Notebook, "_last", None)
    return shown


def test_a_cell_has_one_line_that_changes(cells: SimpleNamespace):
    with Display() as display:
        display.status(QUEUED)
        (page,) = cells.outputs
        assert "QUEUED" in page and "position 3 in the queue" in page
        display.print("of the block\n")
        display.status(COMPLETED)
        display.download(10_000_000)
        (page,) = cells.outputs
        assert "<progress value='0.000'" in page
    (page,) = cells.outputs
    assert "COMPLETED" in page and "progress" not in page
    assert cells.out.getvalue() == "of the block\n"


def test_the_jobs_of_a_cell_share_it_and_those_of_the_next_do_not(cells: SimpleNamespace):
    for _ in range(5):
        with Display() as display:
            display.status(RUNNING)
            display.status(COMPLETED)
    assert len(cells.outputs) == 1
    cells.shell.execution_count = 2
    with Display() as first, Display() as second:
        first.status(QUEUED)
        second.status(RUNNING)
    assert len(cells.outputs) == 3


def test_verbose_in_a_cell(cells: SimpleNamespace):
    with Display(verbose=True) as display:
        display.status(RUNNING)
        display.status(COMPLETED)
    assert [page.count("</b>") for page in cells.outputs] == [1, 1]


def test_text_is_text_in_a_page(cells: SimpleNamespace):
    with Display() as display:
        display.status(Event("<b>", "<i>", "<script>alert(1)</script>"))
    assert not {"<i>", "<script>"} & set(re.findall("<[^>]*>", cells.outputs[0]))


KERNEL = """
import json
from jupyter_client.manager import start_new_kernel

code = '''
from nnsight.remote.display import Display
from nnsight.remote.messages import Event
for _ in range(2):
    with Display() as display:
        display.status(Event("j", "QUEUED", "position 2"))
        display.print("of the block\\\\n")
        display.status(Event("j", "COMPLETED"))
'''
said = []
manager, client = start_new_kernel(kernel_name="python3")
client.execute_interactive(
    code, output_hook=lambda one: said.append((one["msg_type"], one["content"])), timeout=50
)
client.stop_channels()
manager.shutdown_kernel(now=True)
print(json.dumps(said))
"""


def test_a_real_notebook():
    pytest.importorskip("ipykernel")
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], capture_output=True, text=True, timeout=55
    )
    said = [one for one in json.loads(done.stdout) if one[0] not in ("status", "execute_input")]
    kinds = [
        "display_data",
        "stream",
        *["update_display_data"] * 2,
        "stream",
        "update_display_data",
    ]
    assert [kind for kind, _ in said] == kinds
    shown = [content["data"] for kind, content in said if kind != "stream"]
    assert [data["text/plain"].split()[0] for data in shown] == ["QUEUED", "COMPLETED"] * 2
    assert "<b style='color:#1a7f37'>COMPLETED</b>" in shown[-1]["text/html"]
    assert [content["text"] for kind, content in said if kind == "stream"] == ["of the block\n"] * 2
    assert (
        len({content["transient"]["display_id"] for kind, content in said if kind != "stream"}) == 1
    )


def test_ipython_in_a_terminal_is_a_terminal(cells: SimpleNamespace, screen: Screen):
    cells.shell.kernel = None  # and stderr is the screen
    with Display() as display:
        display.status(RUNNING)
        assert screen.lines() == [f"● RUNNING  job {JOB}"]
    assert cells.outputs == []


# --- nothing to be seen, and nothing to show it on ------------------------------------------------


def test_the_switch_leaves_the_prints(screen: Screen):
    CONFIG.APP.REMOTE_LOGGING = False
    try:
        with Display() as display:
            display.status(RUNNING)
            display.print("of the block\n")
            display.download(10)(10)
            display.status(event("LOG", "and this"))
    finally:
        CONFIG.APP.REMOTE_LOGGING = True
    assert screen.getvalue() == "of the block\nand this\n"


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("err", [None, Broken()], ids=["none", "broken"])
@pytest.mark.parametrize("out", [None, Broken()], ids=["none", "broken"])
def test_it_never_raises(err: Any, out: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    use(monkeypatch, out, err)
    with Display() as display:
        display.status(RUNNING)
        display.print("of the block\n")
        display.tick()
        display.download(10)(10)
    display.status(COMPLETED)
    display.close()


def test_a_broken_stderr_costs_no_print(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    use(monkeypatch, out, screen)
    with Display() as display:
        display.status(RUNNING)
        screen.close()
        display.print("one\n")
        display.status(COMPLETED)
        display.print("two\n")
    assert out.getvalue() == "one\ntwo\n"


def test_characters_that_a_terminal_does_not_have(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    use(monkeypatch, io.TextIOWrapper(raw, encoding="ascii"), None)
    Display().print("caf\u00e9\n")
    assert raw.getvalue() == b"caf?\n"


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_an_interrupt_passes_through(monkeypatch: pytest.MonkeyPatch):
    class Slow(Screen):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGINT)
            return 0

    monkeypatch.setenv("TERM", "xterm")
    use(monkeypatch, None, Slow())
    display = Display()
    with pytest.raises(KeyboardInterrupt):
        display.status(RUNNING)
    assert not displays._lock._is_owned()


def test_threads_may_share_a_terminal(screen: Screen):
    def job(number: int) -> None:
        with Display() as display:
            for line in range(50):
                display.status(RUNNING)
                display.print(f"{number}:{line}\n")
            display.status(COMPLETED)

    threads = [threading.Thread(target=job, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    printed = [line for line in screen.lines() if ":" in line and "●" not in line]
    assert len(printed) == 200
    for number in range(4):
        own = [line for line in printed if line.startswith(f"{number}:")]
        assert own == [f"{number}:{line}" for line in range(50)]


def test_a_display_that_is_forgotten_is_no_other_job(screen: Screen):
    Display().status(RUNNING)
    with Display() as display:
        display.status(QUEUED)
        assert "more" not in screen.lines()[-1]


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "description", "detail"),
    [
        ("QUEUED", "Added to Queue at position 1.", "position 1 in the queue"),
        ("QUEUED", "Model Provisioning...", "Model Provisioning..."),
        ("DEPLOYING", "Model\nDeploying...", "Model Deploying..."),
        ("RUNNING", "Your job has started running.", ""),
        ("ERROR", "Traceback ...", ""),
        ("NEW_STATE", "of a later server", "of a later server"),
    ],
)
def test_details(status: str, description: str, detail: str):
    assert detail_of(status, description) == detail


def test_times_and_sizes():
    assert [clock(s) for s in (0, 7.9, 750, 3723)] == ["0:00", "0:07", "12:30", "1:02:03"]
    assert Transfer("Downloading", 5, 100, 0.1).text() == "5 of 100 B"
    assert Transfer("Downloading", 20_000_000, 40_000_000, 2).text() == "20.0 of 40.0 MB, 10.0 MB/s"
    assert Transfer("Downloading", 1500, None, 0.1).text() == "1.5 kB"
    assert Transfer("Downloading", 9, 3, 0.1).fraction == 1.0
    assert Moment("", "", "", 0.0).rest() == ""
