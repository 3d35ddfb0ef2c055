from __future__ import annotations

import inspect
import re

from model import search
from model.runtime import openvino_search

STEPS = ("_allowed", "_best_candidates", "_joined", "_live", "_final", "_finished")


def test_each_step_of_the_graph_names_the_lines_of_the_search_that_it_repeats() -> None:
    source = {line.strip() for line in inspect.getsource(search).splitlines()}
    for name in STEPS:
        said = inspect.getdoc(getattr(openvino_search, name)) or ""
        quoted = [line.strip() for line in re.findall(r"^    (.+)$", said, re.M)]
        assert quoted, name
        assert [line for line in quoted if line not in source] == [], name
        [named] = re.findall(r"^(?:.*[.] )?((?:`[\w.]+`(?: and )?)+):$", said, re.M)
        for function in re.findall(r"`([\w.]+)`", named):
            of = search
            for part in function.split("."):
                of = getattr(of, part)
