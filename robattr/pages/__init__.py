"""Pages: what the book shows of the studies, its chapters and its figures."""
