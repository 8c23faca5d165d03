"""`ul2 report`: the files of runs as one page.

Nothing of training is imported, and nothing but files is read: a report of a run that
is at work, was killed, or has lost half its last line takes a second or two.
"""
