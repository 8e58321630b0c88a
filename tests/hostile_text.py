"""Text that somebody may call a class, a file or a row to do harm where it is shown."""

HOSTILE = [
    '</script><script>document.title="HOLE"</script>', "<img src=x onerror=alert(1)>", '=HYPERLINK("http://x","y")',
    "+1+1", "-2+3", "@SUM(A1)", "\tx", "\rx", "\nx", "'quoted", "''twice", "-0.5", "a,b;c", 'say "no"', "&lt;b&gt;",
    "\x1b[31mred\x1b[0m", "[red]x[/red]", "[/]", ":warning:", "\u202eevil", "<!--", "<DVC_METRIC_DATA>", "`x`|y", "",
    "\udcff", "\x00", "a\u2028b", "x" * 5000,
]  # fmt: skip
