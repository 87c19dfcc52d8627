"""`python -m breakeven.cli` is `breakeven`."""

from breakeven.cli.main import main

main()
