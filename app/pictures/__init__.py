"""From what a client sent to pixels: uploads, and decoding in guarded processes."""
