"""One `Report` of what a run found, as files, as a page, on a terminal and as JSON."""

from tokenprune.evaluate.report.folder import read_manifest, read_report, shell_line, write_report
from tokenprune.evaluate.report.report import Report, Shown, as_text, frame
from tokenprune.evaluate.report.slides import Card, Picture, Slide, Word

__all__ = [
    "Card",
    "Picture",
    "Report",
    "Shown",
    "Slide",
    "Word",
    "as_text",
    "frame",
    "read_manifest",
    "read_report",
    "shell_line",
    "write_report",
]
