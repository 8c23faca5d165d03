"""Pages for a browser: one file each, no network, all text escaped.

Charts are SVG and masks are images inside the page; a script of some dozen lines reads
values under the pointer, and without it everything is still there. Nothing here knows
what it draws. The standard library alone.
"""
