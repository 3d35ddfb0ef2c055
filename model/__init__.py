"""The captioner itself: configuration, vocabulary, cells, encoder, decoder, search and engines.

Knows no HTTP and no data set; `app` and `training` both build on it.
"""
