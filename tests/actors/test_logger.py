"""Our loggers are structlog's, once there is something to say."""

import subprocess
import sys

from structlog.testing import capture_logs

from holdfast.actors.logger import get_logger


def test_what_is_said_is_said_by_structlog() -> None:
    log = get_logger("test")
    with capture_logs() as said:
        log.warning("mailbox.full", bound=3)
        log.bind(ref="r").info("mailbox.free")
    assert said == [
        {"event": "mailbox.full", "log_level": "warning", "bound": 3},
        {"event": "mailbox.free", "log_level": "info", "ref": "r"},
    ]


def test_a_command_of_the_client_imports_no_structlog() -> None:
    program = "import sys, holdfast.api.cli.main; sys.exit('structlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
