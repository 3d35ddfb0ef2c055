"""What captions are made of: words, pieces of words, left and right."""
