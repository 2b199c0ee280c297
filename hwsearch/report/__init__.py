"""What a search found, for people: facts as frames, figures of the facts, one self-contained page."""
