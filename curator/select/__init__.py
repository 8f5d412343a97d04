"""Select: the subset worth training on, by value, with limits, quotas and diversity; and its export."""

from curator.select.choose import Limits
from curator.select.selection import Selection, select
from curator.select.write import check_out, write_selection

__all__ = ["Limits", "Selection", "check_out", "select", "write_selection"]
