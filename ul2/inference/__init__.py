"""Any checkpoint opened to be used: files and lines of text in, answers out."""
