"""Lines of logs as generate.py makes them, with the written lines that came last (later-2.csv) in place of the earlier.

python later-2.py --seed 0 --cases 1000
"""

from __future__ import annotations

import generate

if __name__ == "__main__":
    generate.main("later-2.csv")
