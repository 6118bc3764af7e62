"""What focal_det adds to the set-up of Detectron2: log files that are plain text."""

import logging
from argparse import Namespace

from detectron2.engine import default_setup

from focal_det import host


def test_log_files_have_no_colour_codes(make_cfg, tmp_path):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path))
    host.keep_log_files_plain(cfg.OUTPUT_DIR)
    default_setup(cfg, Namespace(config_file="", eval_only=True))
    logging.getLogger("fvcore").warning("\x1b[31ma missing key\x1b[0m")
    logging.getLogger(host.LOGGER_NAME).info("an \x1b[1;4munused\x1b[0m key")
    log = (tmp_path / "log.txt").read_text()
    assert "FOCAL_DET:" in log and "WARNING: a missing key" in log and "an unused key" in log
    assert "\x1b" not in log and log.count("Full config saved") == 1
