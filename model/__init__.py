"""The captioner itself: configuration, vocabulary, cells, encoder, decoder, search and engines.

Knows no HTTP and no data set; `app` and `training` both build on it.
"""

import sys

# Importing OpenVINO or NNCF reports to an analytics server and writes to the home folder, unless this
# package of theirs is absent: then they take their own silent stub. No variable switches it off.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
